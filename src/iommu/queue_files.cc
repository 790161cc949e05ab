// SPDX-License-Identifier: Apache-2.0
#include "iommu/queue_files.h"

#include <fcntl.h>

#include <utility>

#include "base/sys.h"
#include "iommu/other_process.h"
#include "sync/passing_number.h"

namespace stagetwo::iommu {

Result<void> QueueFiles::hold(int fd, QueueFile* out) {
  auto end = ST_TRY(make_box<host::ReadyFile>("iommu.queue_end"));
  ST_TRY(end->hold(fd));
  out->device = end->device();
  out->inode = end->inode();
  out->maker = static_cast<u32>(sys::getpid());
  return ends_.push_back(std::move(end));
}

void QueueFiles::let_go(u64 device, u64 inode) {
  for (size_t i = 0; i < ends_.size(); ++i) {
    if (ends_[i]->device() != device || ends_[i]->inode() != inode) continue;
    std::swap(ends_[i], ends_[ends_.size() - 1]);
    ends_.pop_back();
    return;
  }
}

// A device may work in a process that has the iommufd and not the queue's descriptor.
template <typename F>
void QueueFiles::with(const QueueFile& file, F&& fn) {
  if (!file.open) return;
  for (const auto& end : ends_) {
    if (end->device() == file.device && end->inode() == file.inode) return fn(*end);
  }
  host::ReadyFile passing;
  {
    const sync::PassingNumber number;
    const auto fd = open_of_process(file.maker, file.device, file.inode, O_RDONLY | O_NONBLOCK);
    if (!fd) return;
    const bool held = passing.hold(*fd).has_value();
    static_cast<void>(sys::close(*fd));
    if (!held) return;
  }
  fn(passing);
}

void QueueFiles::rise(const QueueFile& file, bool waited) {
  with(file, [&](host::ReadyFile& end) { end.rise(waited); });
}
void QueueFiles::fall(const QueueFile& file) {
  with(file, [](host::ReadyFile& end) { end.fall(); });
}

}  // namespace stagetwo::iommu
