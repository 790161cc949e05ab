// SPDX-License-Identifier: Apache-2.0
#include "host/pin_store.h"
#include "host/process_map.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "base/alloc.h"
#include "base/failpoint.h"
#include "base/kernel_numbers.h"
#include "base/own_memory.h"
#include "base/sys.h"
#include "base/text.h"
#include "host/kept_fd.h"
#include "host/process_files.h"
#include "sync/atomic.h"
#include "sync/passing_number.h"

namespace stagetwo::host::pin_store {
namespace {

constexpr u64 kWindowsPerStep = 64;

constinit sync::Atomic<bool> copy_only{false};

void* pointer(Hva at) {
  return reinterpret_cast<void*>(at.raw());
}

void withhold_from_children(Hva at, u64 bytes) {
  static_cast<void>(sys::madvise(pointer(at), bytes, MADV_DONTFORK));
}

bool remap_leaving(Hva from, Hva to, u64 bytes) {
  return sys::mremap(pointer(from), bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
                     pointer(to))
      .has_value();
}

// Some mappings to be without when there are as many as there may be (vm.max_map_count): a page is
// given back by mapping nothing over it, which needs room for one more, and makes room for two.
constinit sync::Atomic<u64> spare{0};
constexpr u64 kSpareBytes = 8 * kPageSize;

void keep_spare() {
  if (spare.load(sync::kRelaxed) != 0) [[likely]]
    return;
  const auto made = reserve_pages(kSpareBytes, "host.pin_spare");
  if (!made) return;
  const u64 start = reinterpret_cast<u64>(*made);
  for (u64 at = start; at < start + kSpareBytes; at += 2 * kPageSize) {
    static_cast<void>(sys::mprotect(reinterpret_cast<void*>(at), kPageSize, PROT_READ));
  }
  u64 none = 0;
  if (!spare.compare_exchange(none, start)) unmap_pages(*made, kSpareBytes);
}

void spend_spare() {
  if (const u64 at = spare.exchange(0)) unmap_pages(reinterpret_cast<void*>(at), kSpareBytes);
}

bool map_nothing(Hva place, u64 bytes) {
  return sys::mmap(pointer(place), bytes, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0)
      .has_value();
}

}  // namespace

// The whole windows of a fresh reservation, which is one too large.
Result<void> Windows::make_more() {
  void* fresh = ST_TRY(reserve_pages((kWindowsPerStep + 1) * kWindowBytes, "host.pin_windows"));
  const Hva first((reinterpret_cast<u64>(fresh) + kWindowBytes - 1) & ~(kWindowBytes - 1));
  const sync::MutexGuard guard(lock_);
  // Room for every window there is: giving one back needs no memory.
  const auto room = free_.reserve(made_ + kWindowsPerStep);
  if (!room) {
    unmap_pages(fresh, (kWindowsPerStep + 1) * kWindowBytes);
    return room;
  }
  made_ += kWindowsPerStep;
  for (u64 i = kWindowsPerStep; i > 0; --i) {
    static_cast<void>(free_.push_back(first + (i - 1) * kWindowBytes));
  }
  return {};
}

Result<Hva> Windows::take() {
  keep_spare();
  for (;;) {
    {
      const sync::MutexGuard guard(lock_);
      if (!free_.empty()) {
        const Hva window = free_.back();
        free_.pop_back();
        return window;
      }
    }
    ST_TRY(make_more());
  }
}

void Windows::give(Hva window) {
  const sync::MutexGuard guard(lock_);
  static_cast<void>(free_.push_back(window));  // there is room
}

bool move_in(Hva page, Hva place, u64 bytes) {
  if (copy_only.load(sync::kRelaxed) || failpoint::should_fail("host.pin_move")) return false;
  return remap_leaving(page, place, bytes);
}

Result<void> copy_in(Hva page, Hva place, u64 bytes) {
  if (failpoint::should_fail("host.pin_copy")) return refuse(ENOMEM);
  const auto mapped = sys::mmap(pointer(place), bytes, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (!mapped) return refuse(mapped.error());
  if (read_behind(page, pointer(place), bytes)) return {};
  drop(place, bytes);
  return refuse(EFAULT);
}

// What is left at the place is the moved mapping without pages.
void move_back(Hva place, Hva page, u64 bytes) {
  for (u64 done = 0; done < bytes;) {
    const u64 part = in_one_mapping(place + done, bytes - done);
    const bool all = remap_leaving(place + done, page + done, part);
    for (u64 at = done; !all && at < done + part; at += kPageSize) {
      if (remap_leaving(place + at, page + at, kPageSize)) continue;
      static_cast<void>(write_behind(page + at, pointer(place + at), kPageSize));
    }
    done += part;
  }
  drop(place, bytes);
}

bool settle(Hva place, u64 bytes) {
  // What the client has locked counts no longer, when it has unmapped it.
  static_cast<void>(
      sys::call(SYS_munlock, static_cast<long>(place.raw()), static_cast<long>(bytes)));
  withhold_from_children(place, bytes);
  return sys::mprotect(pointer(place), bytes, PROT_READ | PROT_WRITE).has_value();
}

void drop(Hva place, u64 bytes) {
  bool mapped = map_nothing(place, bytes);
  if (!mapped) {
    spend_spare();
    mapped = map_nothing(place, bytes);
  }
  if (!mapped) {  // it stays a mapping, without memory
    static_cast<void>(sys::madvise(pointer(place), bytes, MADV_DONTNEED));
    static_cast<void>(sys::mprotect(pointer(place), bytes, PROT_NONE));
  }
  static_cast<void>(sys::madvise(pointer(place), bytes, MADV_DONTDUMP));
}

namespace {

// A second open of the file of `mapping`: allowed to the machine's administrator only.
Result<int> open_again(const Mapping& mapping, int mode) {
  FixedString<64> path;
  path.append("/proc/self/map_files/")
      .append_digits(mapping.range.start().raw(), 16, 1)
      .append_char('-')
      .append_digits(mapping.range.end().raw(), 16, 1);
  return open_proc(path.c_str(), mode | O_CLOEXEC);
}

Result<Alias> map_again(const Mapping& mapping, Hva page, u64 bytes) {
  const sync::PassingNumber passing;
  bool writable = true;
  auto fd = open_again(mapping, O_RDWR);
  if (!fd) {
    writable = false;
    fd = open_again(mapping, O_RDONLY);
  }
  if (!fd) return refuse(EFAULT);
  const int prot = PROT_READ | (writable ? PROT_WRITE : 0);
  const u64 offset = mapping.offset + (page - mapping.range.start());
  const auto made =
      map_file(bytes, prot, MAP_SHARED, *fd, static_cast<long>(offset), "host.pin_alias");
  static_cast<void>(sys::close(*fd));
  if (!made) return refuse(made.error());
  return Alias{Hva(reinterpret_cast<u64>(*made)), bytes, writable, true};
}

}  // namespace

Result<Alias> make_alias(const Mapping& mapping, Hva page, u64 bytes, bool second_open) {
  Alias alias;
  if (second_open) {
    alias = ST_TRY(map_again(mapping, page, bytes));
  } else {
    if (failpoint::should_fail("host.pin_alias")) return refuse(ENOMEM);
    const auto made = map_again_apart(pointer(page), bytes);
    if (!made) return refuse(to_int(made.error()) == ENOMEM ? ENOMEM : EFAULT);
    alias = {Hva(reinterpret_cast<u64>(*made)), bytes, mapping.prot.write, false};
    // Rights the client may take from its own mapping, and may give later.
    if (sys::mprotect(*made, bytes, PROT_READ | PROT_WRITE)) {
      alias.writable = true;
    } else {
      static_cast<void>(sys::mprotect(*made, bytes, PROT_READ));
      alias.writable = false;
    }
  }
  withhold_from_children(alias.at, bytes);
  static_cast<void>(sys::madvise(pointer(alias.at), bytes, MADV_DONTDUMP));
  return alias;
}

void drop_alias(const Alias& alias) {
  if (alias.opened) return unmap_pages(pointer(alias.at), alias.bytes);
  unmap_again(pointer(alias.at), alias.bytes);
}

bool read_behind(Hva at, void* to, size_t size) {
  const auto fd = memory_file();
  if (!fd) return false;
  const auto got = sys::pread(fd->get(), to, size, static_cast<off_t>(at.raw()));
  return got && *got == size;
}

bool write_behind(Hva at, const void* from, size_t size) {
  const auto fd = memory_file();
  if (!fd) return false;
  const auto put = sys::pwrite(fd->get(), from, size, static_cast<off_t>(at.raw()));
  return put && *put == size;
}

void debug_copy_only(bool only) {
  copy_only.store(only, sync::kRelaxed);
}

}  // namespace stagetwo::host::pin_store
