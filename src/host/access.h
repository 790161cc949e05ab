// SPDX-License-Identifier: Apache-2.0
#pragma once

// The only door to client memory. Every read or write of an address that a client or a guest chose
// goes through here; a tidy test finds other dereferences.
//
// Analogue: get_user/put_user and copy_from_user (kernel file: uaccess.h). Differs: an access is
// one host instruction, so what is one access for a guest is one access for every other observer.
//
// Invariants: I1  false (or a short count) means the address faulted; the faulting access changed
//                 nothing and the client saw no signal.
//             I2  on the hot path an access is one mov and no branch is taken.
//             I3  a fault is the backstop, never the mechanism: a translation is held only until
//                 the next acknowledged flush (docs/journeys/munmap.md).
// Locking: none. Orders: as a guest sees them; plain forms relaxed, LOCK forms sequentially
// consistent. Context: any, backstop::install() must have run. May block in the kernel if the page
// is not resident: see faultin.h.

#include <cstddef>
#include <optional>

#include "addr/addr.h"
#include "base/arch/guarded.h"
#include "base/arch/restartable.h"
#include "base/types.h"

namespace stagetwo::host {

// T: trivially copyable, 1, 2, 4, 8 or 16 bytes. The access may be unaligned; a caller whose
// translation covers one page splits at the page's end first.
template <typename T>
[[nodiscard, gnu::always_inline]] inline bool load(Hva from, T* out) {
  return arch::guarded_load(from.raw(), out);
}
template <typename T>
[[nodiscard, gnu::always_inline]] inline bool store(Hva to, T value) {
  return arch::guarded_store(to.raw(), value);
}

// A hint that the line is wanted soon; where there is no page, nothing happens.
[[gnu::always_inline]] inline void prefetch(Hva at, Access access) {
  void* const line = reinterpret_cast<void*>(at.raw());
  if (access == Access::kWrite) {
    __builtin_prefetch(line, 1);
  } else {
    __builtin_prefetch(line, 0);
  }
}

// LOCK forms. *old receives what was there before.
template <typename T>
[[nodiscard, gnu::always_inline]] inline bool exchange(Hva at, T value, T* old) {
  return arch::guarded_exchange(at.raw(), value, old);
}
template <typename T>
[[nodiscard, gnu::always_inline]] inline bool fetch_add(Hva at, T value, T* old) {
  return arch::guarded_fetch_add(at.raw(), value, old);
}
// *expected receives what was there; *swapped: it was as expected and is `desired` now.
template <typename T>
[[nodiscard, gnu::always_inline]] inline bool cmpxchg(Hva at, T* expected, T desired,
                                                      bool* swapped) {
  return arch::guarded_cmpxchg(at.raw(), expected, desired, swapped);
}
// Pre: `at` is 16-byte aligned. Index 0 is the low half.
[[nodiscard]] inline bool cmpxchg16b(Hva at, u64 expected[2], const u64 desired[2], bool* swapped) {
  return arch::guarded_cmpxchg16b(at.raw(), expected, desired, swapped);
}

// Are the `size` bytes at `from` those of `words`, whose last one holds the last 8 bytes? Pre:
// size >= 8. False also for a fault.
[[nodiscard]] inline bool equal(Hva from, const u64* words, u64 count, u64 size) {
  u64 word = 0;
  for (u64 i = 0; i + 1 < count; ++i) {
    if (!load(from + 8 * i, &word) || word != words[i]) return false;
  }
  return load(from + (size - 8), &word) && word == words[count - 1];
}

// Four of these, by an address whose owner may let go inside its section (sync/ack_line.h): false
// also if a request is pending or the access was taken back; then the slow way is taken, never a
// loop.
template <typename T>
[[nodiscard, gnu::always_inline]] inline bool load(Hva from, T* out, const arch::Restart& r) {
  if constexpr (!arch::kRestartable) return load(from, out);
  return arch::restartable_load(from.raw(), out, r);
}
template <typename T>
[[nodiscard, gnu::always_inline]] inline bool store(Hva to, T value, const arch::Restart& r) {
  if constexpr (!arch::kRestartable) return store(to, value);
  return arch::restartable_store(to.raw(), value, r);
}
template <typename T>
[[nodiscard, gnu::always_inline]] inline bool cmpxchg(Hva at, T* expected, T desired, bool* swapped,
                                                      const arch::Restart& r) {
  if constexpr (!arch::kRestartable) return cmpxchg(at, expected, desired, swapped);
  return arch::restartable_cmpxchg(at.raw(), expected, desired, swapped, r);
}
[[nodiscard, gnu::always_inline]] inline bool equal(Hva from, const u64* words, u64 count, u64 size,
                                                    const arch::Restart& r) {
  if constexpr (!arch::kRestartable) return equal(from, words, count, size);
  return arch::restartable_equal(from.raw(), words, count, size, r);
}

// One atomic step of any kind: `change(old)` gives the new value and may run more than once.
template <typename T, typename F>
[[nodiscard]] inline bool fetch_update(Hva at, T* old, F&& change) {
  if (!load(at, old)) return false;
  for (;;) {
    bool swapped = false;
    if (!cmpxchg(at, old, static_cast<T>(change(*old)), &swapped)) return false;
    if (swapped) return true;  // progress: another thread's success is the only reason to loop
  }
}
template <typename T>
[[nodiscard]] inline bool fetch_and(Hva at, T value, T* old) {
  return fetch_update(at, old, [value](T x) { return x & value; });
}
template <typename T>
[[nodiscard]] inline bool fetch_or(Hva at, T value, T* old) {
  return fetch_update(at, old, [value](T x) { return x | value; });
}
template <typename T>
[[nodiscard]] inline bool fetch_xor(Hva at, T value, T* old) {
  return fetch_update(at, old, [value](T x) { return x ^ value; });
}

// Copies in words of the machine, not bytes. Returns how much was copied before the first fault,
// which is `bytes` when all is well; the count is exact or up to one word short.
[[nodiscard]] size_t copy_from(void* to, Hva from, size_t bytes);
[[nodiscard]] size_t copy_to(Hva to, const void* from, size_t bytes);

// A whole struct of an ioctl. False: EFAULT.
template <typename T>
[[nodiscard]] inline bool read_struct(Hva from, T* out) {
  return copy_from(out, from, sizeof(T)) == sizeof(T);
}
template <typename T>
[[nodiscard]] inline bool write_struct(Hva to, const T& value) {
  return copy_to(to, &value, sizeof(T)) == sizeof(T);
}

// Could [start, start + size) be an address of the client at all? Analogue: access_ok.
inline constexpr u64 kUserEnd = (u64{1} << 47) - kPageSize;
[[nodiscard]] constexpr bool is_user_range(Hva start, u64 size) {
  return size <= kUserEnd && start.raw() <= kUserEnd - size;
}

// The page of this thread's last fault, if the machine reported its memory as poisoned
// (BUS_MCEERR_AR): the refusal is then EHWPOISON, not EFAULT. Asking forgets it.
[[nodiscard]] std::optional<Hva> take_poison();

}  // namespace stagetwo::host
