// SPDX-License-Identifier: Apache-2.0
#include "abi/kvm/guest_memfd.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <utility>

#include "abi/kvm/kvm.h"
#include "abi/kvm/level.h"
#include "abi/kvm/uapi.h"
#include "abi/kvm/vm.h"
#include "base/process_page.h"
#include "base/sys.h"
#include "base/text.h"
#include "host/kept_fd.h"
#include "host/memory_budget.h"
#include "host/shared_objects.h"

namespace stagetwo::abi_kvm {
namespace {

// The flags stand in the memfd's name: who receives the descriptor needs nothing else.
constexpr std::string_view kKind = kGuestMemoryKind;

host::DescriptorSpec spec_of(host::StateHome home) {
  return {.shape = host::FileShape::kMemory, .home = home, .open_flags = O_RDWR};
}

// A mapping that is allowed is shared with everybody who has the file.
Result<void> check_map(u64 flags, const host::MapRequest& request) {
  if ((flags & GUEST_MEMFD_FLAG_MMAP) == 0) {
    // Since files of this kind can be mapped at all, a stack is refused before the flag is asked.
    const bool stack = level().says_memfd_flags && (request.flags & MAP_GROWSDOWN) != 0;
    return refuse(stack ? EINVAL : ENODEV);
  }
  if ((request.flags & MAP_TYPE) == MAP_PRIVATE) return refuse(EINVAL);
  return {};
}

// A page that begins private is not the client's to touch: the mapping lies behind the end of the
// file, where the kernel has no page to give and says SIGBUS.
off_t place_map(u64 flags, u64 size, const host::MapRequest& request) {
  const bool refused = request.offset < 0 || (static_cast<u64>(request.offset) & ~kPageMask) != 0;
  const bool shared = (flags & GUEST_MEMFD_FLAG_INIT_SHARED) != 0;
  return refused || shared ? request.offset : static_cast<off_t>(size);
}

u64 size_behind(int fd) {
  struct ::stat behind{};
  return sys::fstat(fd, &behind) ? static_cast<u64>(behind.st_size) : 0;
}

// The file in a process that is not the VM's. Allocating and punching need no state of ours.
class ForeignGuestMemfd final : public host::Description {
 public:
  explicit ForeignGuestMemfd(u64 flags) : flags_(flags) {}
  long ioctl(int, unsigned long, unsigned long) override { return -ENOTTY; }
  Result<void> check_mmap(const host::MapRequest& request) override {
    return check_map(flags_, request);
  }
  off_t map_offset(const host::MapRequest& request) override {
    // Behind any end.
    constexpr u64 kFar = (u64{1} << 63) - (u64{1} << 48);
    return place_map(flags_, kFar, request);
  }
  Result<void> fallocate(int fd, int mode, off_t offset, off_t size) override {
    return mem::GuestMemfd::fallocate_unbound(fd, size_behind(fd), mode, static_cast<u64>(offset),
                                              static_cast<u64>(size));
  }

 private:
  const u64 flags_;
};

}  // namespace

GuestMemfdFile::GuestMemfdFile(Vm& vm, u64 size, u64 flags)
    : vm_(&vm), flags_(flags), stamp_(process_stamp()), object_(size) {
  vm.get();
}

// Without a last close: the descriptor could not be made.
GuestMemfdFile::~GuestMemfdFile() {
  if (Vm* const vm = std::exchange(vm_, nullptr)) vm->put();
}

Result<long> GuestMemfdFile::open(Vm& vm, u64 size, u64 flags) {
  mem::private_pages::prepare();
  FixedString<32> kind;
  kind.append(kKind).append_int(static_cast<s64>(flags));
  auto backing = ST_TRY(host::Backing::create_memory(kind.c_str(), size));
  auto file = ST_TRY(make_box<GuestMemfdFile>("abi.guest_memfd", vm, size, flags));
  ST_TRY(file->fd_.hold(ST_TRY(sys::reopen_engine_fd(backing.fd(), O_RDWR, host::proc_folder()))));
  // This process's alone, until it is sent away: its pages may be taken.
  host::shared_file_made(backing.fd());
  return ST_TRY(
      host::publish(std::move(file), std::move(backing), spec_of(host::StateHome::kProcess)));
}

host::DescriptionRef GuestMemfdFile::find(Vm& vm, int fd, int* error) {
  struct ::stat behind{};
  *error = EBADF;
  if (!sys::fstat(fd, &behind)) return {};
  const auto opened = sys::fcntl(fd, F_GETFL);
  if (!opened || (*opened & O_PATH) != 0) return {};  // fget() knows none of these
  *error = EINVAL;
  host::DescriptionRef ref = host::find(fd, behind);
  if (!ref || ref.foreign()) return {};
  auto* const file = dynamic_cast<GuestMemfdFile*>(ref.get());
  if (file == nullptr || file->vm_ != &vm) return {};
  *error = 0;
  return ref;
}

bool GuestMemfdFile::is_mappable() const {
  return (flags_ & GUEST_MEMFD_FLAG_MMAP) != 0;
}

Result<void> GuestMemfdFile::check_mmap(const host::MapRequest& request) {
  return check_map(flags_, request);
}

off_t GuestMemfdFile::map_offset(const host::MapRequest& request) {
  return place_map(flags_, object_.size(), request);
}

Result<void> GuestMemfdFile::fallocate(int fd, int mode, off_t offset, off_t size) {
  const auto from = static_cast<u64>(offset);
  const auto bytes = static_cast<u64>(size);
  // A child of fork has a copy of this object and nothing of what it is bound to.
  if (process_stamp() != stamp_) {
    return mem::GuestMemfd::fallocate_unbound(fd, object_.size(), mode, from, bytes);
  }
  const int own = ST_TRY(fd_.get());
  if (mode != FALLOC_FL_KEEP_SIZE || !host::budget::is_limited()) {
    return object_.fallocate(own, mode, from, bytes);
  }
  // Memory that is made present is paid for first, here as in a fault; so it comes in pieces.
  constexpr u64 kPiece = u64{2} << 20;
  ST_TRY(object_.check_allocation(from, bytes));
  for (u64 done = 0; done < bytes; done += kPiece) {
    const u64 piece = std::min(kPiece, bytes - done);
    host::budget::pay(piece >> kPageShift);
    ST_TRY(object_.fallocate(own, mode, from + done, piece));
  }
  return {};
}

void GuestMemfdFile::last_close() {
  vm_->memory().slots().between_updates([this] { object_.release(); });
  fd_.close();
  std::exchange(vm_, nullptr)->put();
}

Box<host::Description> attach_guest_memfd(std::string_view kind, host::DescriptorSpec* spec) {
  if (!kind.starts_with(kKind)) return {};
  u64 flags = 0;
  for (const char digit : kind.substr(kKind.size())) {
    if (digit < '0' || digit > '9') return {};
    flags = flags * 10 + static_cast<u64>(digit - '0');
  }
  *spec = spec_of(host::StateHome::kDescription);
  auto file = make_box<ForeignGuestMemfd>("abi.attach", flags);
  if (!file) return {};
  return std::move(*file);
}

}  // namespace stagetwo::abi_kvm
