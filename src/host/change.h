// SPDX-License-Identifier: Apache-2.0
#pragma once

// What an interposed system call does to the client's addresses, and the one form of ringing the
// bell around it: start, call, end. A loss of meaning or of rights rings; a gain does not: it is
// learnt by the next fault.
//
//   return host::change(address, size, host::EventKind::kUnmap, [&] { return real_munmap(...); });
//
// Context: the client's thread, with no engine lock held and no ack line of its own RUNNING.
// Handlers of the client are deferred until after the end (host/run_section.h): one that left by
// siglongjmp would leave the range closed for ever.

#include <sys/mman.h>

#include <cerrno>
#include <optional>
#include <type_traits>
#include <utility>

#include "addr/addr.h"
#include "base/bits.h"
#include "host/mmu_notifier.h"
#include "host/owned_change.h"
#include "host/pin.h"

namespace stagetwo::host {

// The pages [start, start + size) touches; nullopt when it is empty or wraps, which is when the
// kernel refuses the call.
[[nodiscard]] constexpr std::optional<HvaRange> pages_of(u64 start, u64 size) {
  const u64 first = start & kPageMask;
  u64 end = 0;
  if (size == 0 || __builtin_add_overflow(start, size, &end)) return std::nullopt;
  const u64 last = (end - 1) & kPageMask;
  if (last > ~u64{0} - kPageSize) return std::nullopt;
  return HvaRange(Hva(first), last + kPageSize - first);
}

// Did the call do what it was asked? Of a madvise that met a hole in its range (ENOMEM) the kernel
// has done the rest.
[[nodiscard]] inline bool has_changed(int result, EventKind kind) {
  return result == 0 || (kind == EventKind::kClear && errno == ENOMEM);
}
[[nodiscard]] inline bool has_changed(const void* result, EventKind) {
  return result != MAP_FAILED;
}
template <typename T>
[[nodiscard]] bool has_changed(const Result<T>& result, EventKind) {
  return result.has_value();
}

// A call that is not made, because there is no memory for what has to come first.
template <typename T>
[[nodiscard]] T no_memory() {
  if constexpr (std::is_integral_v<T>) {
    errno = ENOMEM;
    return -1;
  } else if constexpr (std::is_pointer_v<T>) {
    errno = ENOMEM;
    return static_cast<T>(MAP_FAILED);
  } else {
    return refuse(ENOMEM);
  }
}

// Where mremap put the range; for other calls, where it was.
template <typename T>
[[nodiscard]] Hva new_place(const T& result, Hva start) {
  if constexpr (std::is_pointer_v<T>) return Hva(reinterpret_cast<u64>(result));
  return start;
}

[[nodiscard]] constexpr Announced announced_by(EventKind kind) {
  switch (kind) {
    case EventKind::kUnmap:
      return Announced::kUnmaps;
    case EventKind::kClear:
      return Announced::kClears;
    case EventKind::kProtection:
    case EventKind::kProtectPage:
      return Announced::kProtects;
    case EventKind::kSoftDirty:
    case EventKind::kMigrate:
    case EventKind::kExclusive:
    case EventKind::kRelease:
      break;  // of no single range, or not of a system call
  }
  __builtin_unreachable();
}

inline constexpr u64 kWholeRange = ~u64{0};

// Runs `system_call` between start and end; with nothing to ring it is called straight. `kept`: of
// kMoves, how much of the range comes along.
template <typename F>
auto change(u64 start, u64 size, EventKind kind, Announced what, F&& system_call,
            u64 kept = kWholeRange) {
  const std::optional<HvaRange> range = pages_of(start, size);
  if (!range) return std::forward<F>(system_call)();
  const EvenSides sides(what == Announced::kProtects ? *range : HvaRange(), false);
  const InvalidateSection section(InvalidateEvent{*range, kind});
  OwnedChange absent(*range, what);
  using Answer = decltype(system_call());
  if constexpr (std::is_void_v<Answer>) {
    PinnedChange pinned(*range, what, kept);
    std::forward<F>(system_call)();  // cannot fail
    absent.succeeded();
    pinned.succeeded(range->start());
  } else {
    if (absent.refused()) return no_memory<Answer>();
    PinnedChange pinned(*range, what, kept);
    if (pinned.refused()) return no_memory<Answer>();
    auto result = std::forward<F>(system_call)();
    if (has_changed(result, kind)) {
      absent.succeeded();
      pinned.succeeded(new_place(result, range->start()));
    }
    return result;
  }
}
template <typename F>
auto change(u64 start, u64 size, EventKind kind, F&& system_call) {
  return change(start, size, kind, announced_by(kind), std::forward<F>(system_call));
}

// An mmap over what may be mapped there.
template <typename F>
auto replace(u64 start, u64 size, F&& system_call) {
  const EvenSides sides(pages_of(start, size).value_or(HvaRange()), true);
  return change(start, size, EventKind::kUnmap, std::forward<F>(system_call));
}

// A change that takes nothing from anybody, so that no bell rings: rights that are gained.
template <typename F>
auto gain(u64 start, u64 size, F&& system_call) {
  const std::optional<HvaRange> range = pages_of(start, size);
  if (!range || (!owners_active() && !pins_active())) return std::forward<F>(system_call)();
  const EvenSides sides(*range, false);
  const OwnedChange absent(*range, Announced::kProtects);
  if (absent.refused()) return no_memory<decltype(system_call())>();
  const PinnedChange pinned(*range, Announced::kProtects, kWholeRange);
  return std::forward<F>(system_call)();
}

// A change that takes nothing, of a range whose mappings the kernel is to find as the client made
// them.
template <typename F>
auto undivided(u64 start, u64 size, F&& system_call) {
  const std::optional<HvaRange> range = pages_of(start, size);
  if (!range || !owners_active()) return std::forward<F>(system_call)();
  const OwnedChange absent(*range, Announced::kMoves);
  if (absent.refused()) return no_memory<decltype(system_call())>();
  return std::forward<F>(system_call)();
}

// A write to /proc/self/clear_refs that makes the next store to every page count.
template <typename F>
auto clear_soft_dirty(F&& system_call) {
  const InvalidateSection section(InvalidateEvent{kWholeAddressSpace, EventKind::kSoftDirty});
  return std::forward<F>(system_call)();
}

// What an mprotect to `prot` takes away: reading or writing. With both left, nothing a guest has
// can be lost (execution by the host is no right of a guest).
[[nodiscard]] constexpr std::optional<EventKind> loss_by_mprotect(int prot) {
  const int all = PROT_READ | PROT_WRITE;
  if ((prot & all) == all) return std::nullopt;
  return EventKind::kProtection;
}

// What a madvise takes away. Unknown advice is none: the kernel refuses it.
[[nodiscard]] constexpr std::optional<EventKind> loss_by_madvise(int advice) {
  constexpr int kDontneedLocked = 24;  // Linux 5.18
  constexpr int kPoison = 100;         // MADV_HWPOISON: a bus error from now on
  constexpr int kGuard = 102;          // MADV_GUARD_INSTALL, Linux 6.13: a fault from now on
  switch (advice) {
    case MADV_DONTNEED:
    case MADV_FREE:  // may turn to zero at any later time: gone from now on
    case MADV_REMOVE:
    case kDontneedLocked:
    case kPoison:
    case kGuard:
      return EventKind::kClear;
    default:
      return std::nullopt;
  }
}

// Does an mmap with these flags replace what is mapped there?
[[nodiscard]] constexpr bool mmap_replaces(int flags) {
  constexpr int kFixedNoreplace = 0x100000;
  return (flags & MAP_FIXED) != 0 && (flags & kFixedNoreplace) == 0;
}

}  // namespace stagetwo::host
