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
#include "host/guest_pages.h"
#include "host/kept_fd.h"
#include "host/memory_budget.h"
#include "host/shared_objects.h"
#include "sync/passing_number.h"

namespace stagetwo::abi_kvm {
namespace {

// What the object is stands in the memfd's name: who receives the descriptor needs nothing else.
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

// May the client map all of the pages? Then its descriptor leads to them; else to a stand-in of the
// same size without any.
bool shows_pages(u64 flags) {
  constexpr u64 kShown = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
  return (flags & kShown) == kShown;
}

// A page that begins private is not the client's to touch: the mapping lies as far behind the end
// of the file, where the kernel has no page to give and says SIGBUS.
off_t place_map(u64 flags, u64 size, off_t offset) {
  const bool refused = offset < 0 || (static_cast<u64>(offset) & ~kPageMask) != 0;
  off_t behind = 0;
  if (refused || shows_pages(flags)) return offset;
  const bool far = __builtin_add_overflow(static_cast<off_t>(size), offset, &behind);
  return far ? static_cast<off_t>(size) : behind;
}
off_t unplace_map(u64 flags, u64 size, off_t placed) {
  return shows_pages(flags) ? placed : placed - static_cast<off_t>(size);
}

// What stands in the stand-in's name, in this order, behind kKind.
struct Named {
  u64 flags = 0;
  u64 size = 0;
  host::PagesPlace place;
};

Result<host::Backing> make_backing(const Named& named) {
  FixedString<96> kind;
  kind.append(kKind).append_int(static_cast<s64>(named.flags));
  for (const u64 word : {named.size, u64{named.place.process}, named.place.inode}) {
    kind.append_char('-').append_digits(word, 10, 1);
  }
  using Pages = host::Backing::Pages;
  // A mapping that may be written is asked for with a file that may be.
  const bool sealed = (named.flags & GUEST_MEMFD_FLAG_MMAP) == 0;
  return host::Backing::create_memory(kind.c_str(), named.size,
                                      sealed ? Pages::kEmpty : Pages::kHere);
}

bool read_name(std::string_view kind, Named* out) {
  u64 words[4] = {};
  unsigned at = 0;
  for (const char c : kind.substr(kKind.size())) {
    if (c == '-' && ++at < 4) continue;
    if (c < '0' || c > '9' || at >= 4) return false;
    words[at] = words[at] * 10 + static_cast<u64>(c - '0');
  }
  *out = {words[0], words[1], {static_cast<u32>(words[2]), words[3]}};
  return at == 3;
}

// The file in a process that is not the VM's. Allocating and punching need no state of ours.
class ForeignGuestMemfd final : public host::Description {
 public:
  explicit ForeignGuestMemfd(const Named& named) : named_(named) {}
  long ioctl(int, unsigned long, unsigned long) override { return -ENOTTY; }
  Result<void> check_mmap(const host::MapRequest& request) override {
    return check_map(named_.flags, request);
  }
  off_t map_offset(const host::MapRequest& request) override {
    return place_map(named_.flags, named_.size, request.offset);
  }
  bool is_regular() const override { return level().memfd_is_regular; }
  off_t asked_offset(off_t placed) const override {
    return unplace_map(named_.flags, named_.size, placed);
  }
  Result<void> fallocate(int fd, int mode, off_t offset, off_t size) override {
    const auto change = [&](int pages) {
      return mem::GuestMemfd::fallocate_unbound(pages, named_.size, mode, static_cast<u64>(offset),
                                                static_cast<u64>(size));
    };
    if (named_.place.inode == 0) return fd < 0 ? Result<void>(refuse(ENODEV)) : change(fd);
    if (fd < 0) return refuse(ENODEV);
    const sync::PassingNumber passing;
    host::HeldFd pages;
    if (const auto found = host::find_pages_file(named_.place, fd)) {
      ST_TRY(pages.hold(*found));
    } else if (to_int(found.error()) != ENOENT) {
      return refuse(found.error());
    }
    return change(pages.number().use().get());
  }

 private:
  const Named named_;
};

}  // namespace

GuestMemfdFile::GuestMemfdFile(Vm& vm, u64 size, u64 flags)
    : vm_(&vm),
      flags_(flags),
      stamp_(process_stamp()),
      pages_(host::HeldFd::Child::kHasIt),
      object_(size, pages_.number()) {
  vm.get();
}

// Without a last close: the descriptor could not be made.
GuestMemfdFile::~GuestMemfdFile() {
  forget_file();
  if (Vm* const vm = std::exchange(vm_, nullptr)) vm->put();
}

void GuestMemfdFile::forget_file() {
  const host::HeldFd& named = shows_pages(flags_) ? pages_ : stand_in_;
  host::shared_file_gone(named.number().use().get());
}

Result<long> GuestMemfdFile::open(Vm& vm, u64 size, u64 flags) {
  mem::private_pages::prepare();
  const sync::PassingNumber passing;
  auto file = ST_TRY(make_box<GuestMemfdFile>("abi.guest_memfd", vm, size, flags));
  Named named{flags, size, {}};
  if (!shows_pages(flags)) {
    ST_TRY(host::make_pages_file(size, &file->pages_));
    named.place = ST_TRY(host::place_of_pages(file->pages_.number().use().get()));
  }
  auto backing = ST_TRY(make_backing(named));
  if (shows_pages(flags)) {
    ST_TRY(file->pages_.hold(ST_TRY(host::reopen_engine_file(backing.fd()))));
  } else {
    ST_TRY(file->stand_in_.hold(ST_TRY(host::reopen_engine_file(backing.fd()))));
  }
  // This process's alone, until the descriptor is sent away: its pages may be taken.
  host::shared_file_made(backing.fd(), file->pages_.number().use().get());
  return ST_TRY(
      host::publish(std::move(file), std::move(backing), spec_of(host::StateHome::kProcess)));
}

host::DescriptionRef GuestMemfdFile::find(Vm& vm, int fd, int* error) {
  struct ::stat behind{};
  *error = EBADF;
  if (host::is_engine_fd(fd) || !sys::fstat(fd, &behind)) return {};
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
  return place_map(flags_, object_.size(), request.offset);
}
bool GuestMemfdFile::is_regular() const {
  return level().memfd_is_regular;
}
off_t GuestMemfdFile::asked_offset(off_t placed) const {
  return unplace_map(flags_, object_.size(), placed);
}

Result<void> GuestMemfdFile::fallocate(int, int mode, off_t offset, off_t size) {
  const auto from = static_cast<u64>(offset);
  const auto bytes = static_cast<u64>(size);
  // A child of fork has a copy of this object and nothing of what it is bound to.
  if (process_stamp() != stamp_) {
    return mem::GuestMemfd::fallocate_unbound(pages_.number().use().get(), object_.size(), mode,
                                              from, bytes);
  }
  if (mode != FALLOC_FL_KEEP_SIZE || !host::budget::is_limited()) {
    return object_.fallocate(mode, from, bytes);
  }
  // Memory that is made present is paid for first, here as in a fault; so it comes in pieces.
  constexpr u64 kPiece = u64{2} << 20;
  ST_TRY(object_.check_allocation(from, bytes));
  for (u64 done = 0; done < bytes; done += kPiece) {
    const u64 piece = std::min(kPiece, bytes - done);
    host::budget::pay(piece >> kPageShift);
    ST_TRY(object_.fallocate(mode, from + done, piece));
  }
  return {};
}

void GuestMemfdFile::last_close() {
  vm_->memory().slots().between_updates([this] { object_.release(); });
  // A child of fork may have the pages still open, and nobody has a use for them.
  constexpr int kPunch = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;
  static_cast<void>(mem::GuestMemfd::fallocate_unbound(pages_.number().use().get(), object_.size(),
                                                       kPunch, 0, object_.size()));
  forget_file();
  pages_.close();
  stand_in_.close();
  std::exchange(vm_, nullptr)->put();
}

Box<host::Description> attach_guest_memfd(std::string_view kind, host::DescriptorSpec* spec) {
  Named named;
  if (!kind.starts_with(kKind) || !read_name(kind, &named)) return {};
  *spec = spec_of(host::StateHome::kDescription);
  auto file = make_box<ForeignGuestMemfd>("abi.attach", named);
  if (!file) return {};
  return std::move(*file);
}

}  // namespace stagetwo::abi_kvm
