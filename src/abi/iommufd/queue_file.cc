// SPDX-License-Identifier: Apache-2.0
#include "abi/iommufd/queue_file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "base/sys.h"
#include "base/text.h"
#include "iommu/other_process.h"
#include "sync/passing_number.h"

namespace stagetwo::abi_iommufd {
namespace {

// The number in front of `text`, which is taken off with the ':' before it. False: none.
bool take_number(std::string_view* text, u64* out) {
  if (!text->starts_with(':')) return false;
  text->remove_prefix(1);
  *out = 0;
  size_t digits = 0;
  for (; digits < text->size() && (*text)[digits] >= '0' && (*text)[digits] <= '9'; ++digits) {
    *out = *out * 10 + static_cast<u64>((*text)[digits] - '0');
  }
  text->remove_prefix(digits);
  return digits != 0;
}

sync::Ref<Iommufd> found_at(int fd, u64 device, u64 inode) {
  struct ::stat behind{};
  behind.st_mode = S_IFREG;
  behind.st_dev = device;
  behind.st_ino = inode;
  const auto ref = host::find(fd, behind);
  const auto* const file = ref ? dynamic_cast<const iommu::IommufdFile*>(ref.get()) : nullptr;
  return file != nullptr ? file->iommufd() : sync::Ref<Iommufd>{};
}

}  // namespace

bool parse_queue_name(std::string_view kind, std::string_view name, QueueName* out) {
  if (!kind.starts_with(name)) return false;
  kind.remove_prefix(name.size());
  u64 id = 0, maker = 0;
  const bool all = take_number(&kind, &id) && take_number(&kind, &out->device) &&
                   take_number(&kind, &out->inode) && take_number(&kind, &maker);
  out->id = static_cast<u32>(id);
  out->maker = static_cast<u32>(maker);
  return all && kind.empty();
}

// Whoever has the queue's descriptor alone asks its maker for the iommufd.
sync::Ref<Iommufd> find_iommufd_of(const QueueName& name) {
  if (auto here = found_at(-1, name.device, name.inode)) return here;
  const sync::PassingNumber passing;
  const auto fd = iommu::open_of_process(name.maker, name.device, name.inode, O_RDWR);
  if (!fd) return {};
  auto found = found_at(*fd, name.device, name.inode);
  static_cast<void>(sys::close(*fd));
  return found;
}

Result<host::Backing> make_queue_backing(Call& call, std::string_view name, u32 id) {
  const iommu::Context& context = call.context();
  FixedString<128> kind(name);
  kind.append_char(':').append_int(id).append_char(':').append_int(context.device());
  kind.append_char(':').append_int(context.inode()).append_char(':');
  kind.append_int(static_cast<u32>(sys::getpid()));
  return host::Backing::create_ready(kind.c_str());
}

bool is_shown(int fd) {
  struct ::stat behind{};
  if (!sys::fstat(fd, &behind)) return false;
  const auto held = host::is_held_anywhere(behind.st_ino);
  return held && *held;
}

void close_untold(int fd) {
  host::CloseWatch watch(fd);
  static_cast<void>(sys::close(fd));
  watch.closed();
}

}  // namespace stagetwo::abi_iommufd
