// SPDX-License-Identifier: Apache-2.0
// The descriptor of an event queue: what a virtual IOMMU tells is read from it. kernel file:
// drivers/iommu/iommufd/eventq.c.
#include <fcntl.h>

#include <utility>

#include "abi/iommufd/calls.h"
#include "base/sys.h"
#include "host/descriptor.h"
#include "iommu/event_queue.h"

namespace stagetwo::abi_iommufd {
namespace {

constexpr u32 kDefaultType = 0;
constexpr u32 kDeepest = 1u << 19;

class EventFile final : public host::Description {
 public:
  EventFile(sync::Ref<Iommufd> iommufd, u32 id) : iommufd_(std::move(iommufd)), id_(id) {}
  long ioctl(int, unsigned long, unsigned long) override { return -ENOTTY; }
  [[nodiscard]] bool moves_bytes() const override { return true; }
  Result<long> read_bytes(u64 to, u64 size) override;
  // In the first process that finds nobody holding it.
  void last_close() override {
    iommu::Locked locked(iommufd_->context());
    if (!locked.ok()) return;
    const auto queue = locked.find<iommu::EventQueue>(id_);
    if (!queue || !(*queue)->open) return;
    (*queue)->open = false;
    --(*queue)->object.users;
  }

 private:
  sync::Ref<Iommufd> iommufd_;
  u32 id_;
};

// One event. What of it could be told counts in *done, also on failure, as in the kernel: a reader
// of a header whose data had no place finds the same event again.
Result<void> tell(const iommu::FirstEvent& event, u64 to, u64* done) {
  const iommufd_vevent_header header{.flags = event.lost ? u32{IOMMU_VEVENTQ_FLAG_LOST_EVENTS} : 0,
                                     .sequence = event.sequence};
  ST_TRY(copy_out_bytes(to + *done, &header, sizeof(header)));
  *done += sizeof(header);
  if (event.bytes == 0) return {};
  ST_TRY(copy_out_bytes(to + *done, event.data, event.bytes));
  *done += event.bytes;
  return {};
}

Result<long> EventFile::read_bytes(u64 to, u64 size) {
  iommu::Locked locked(iommufd_->context());
  if (!locked.ok()) return refuse(EIO);
  auto* const queue = ST_TRY(locked.find<iommu::EventQueue>(id_));
  u64 done = 0;
  for (;;) {
    const iommu::FirstEvent event = iommu::first_event(*queue);
    if (!event.any || sizeof(iommufd_vevent_header) + event.bytes > size - done) break;
    const auto told = tell(event, to, &done);
    if (!told && done == 0) return refuse(told.error());
    if (!told) break;
    iommu::drop_first(locked, *queue);
  }
  return static_cast<long>(done);
}

// Makes the descriptor of a queue that is there. Failure: EMFILE, ENFILE, ENOMEM.
Result<int> open_queue(Call& call, u32 id) {
  auto backing = ST_TRY(host::Backing::create("iommufd-viommu-event", 0));
  call.iommufd.ref();
  auto file = ST_TRY(
      make_box<EventFile>("abi_iommufd.event_file", sync::Ref<Iommufd>::adopt(&call.iommufd), id));
  return host::publish(std::move(file), std::move(backing),
                       {.shape = host::FileShape::kAnonInode,
                        .home = host::StateHome::kDescription,
                        .open_flags = O_RDWR | O_CLOEXEC,
                        .wants_last_close = true});
}

}  // namespace

Outcome veventq_alloc(Call& call, iommu_veventq_alloc& cmd) {
  if (cmd.flags != 0 || cmd.__reserved != 0 || cmd.type == kDefaultType) return refuse(EOPNOTSUPP);
  if (cmd.veventq_depth == 0 || cmd.veventq_depth > kDeepest) return refuse(EINVAL);
  {
    ST_LOCK_IOMMUFD(locked, call);
    auto* const viommu = ST_TRY(locked.find<iommu::Viommu>(cmd.viommu_id));
    auto* const queue =
        ST_TRY(iommu::make_event_queue(locked, *viommu, cmd.type, cmd.veventq_depth));
    queue->open = true;
    queue->object.users = 1;
    cmd.out_veventq_id = queue->object.id;
  }
  const auto fd = open_queue(call, cmd.out_veventq_id);
  Result<void> told;
  if (fd) {
    cmd.out_veventq_fd = static_cast<u32>(*fd);
    told = call.respond(cmd);
    if (told) return {};
    host::CloseWatch watch(*fd);
    static_cast<void>(sys::close(*fd));
    watch.closed();
  } else {
    told = refuse(fd.error());
  }
  ST_LOCK_IOMMUFD(locked, call);
  if (const auto queue = locked.find<iommu::EventQueue>(cmd.out_veventq_id)) {
    iommu::destroy_event_queue(locked, *queue);
  }
  return told;
}

}  // namespace stagetwo::abi_iommufd
