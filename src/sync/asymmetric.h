// SPDX-License-Identifier: Apache-2.0
#pragma once

// A store-to-load barrier with a cheap and a dear side: the frequent side stores and then loads as
// if a full barrier lay between, for the price of a plain store; the rare side pays with
// membarrier(PRIVATE_EXPEDITED).
//
//   frequent side                            rare side
//   store_light(flag, 1);                    request.store(1, kRelaxed);
//   if (request.load(kRelaxed)) …            asymmetric_barrier();
//                                            if (load_heavy(flag)) …
//
// At least one of the two sees the other. Where the kernel refuses the barrier, where the target is
// built for ThreadSanitizer, which does not know it, and before asymmetric_init(), the frequent
// side is an exchange and the rare side a read-modify-write: the plain Dekker handshake.
//
// Pre: the frequent side's later load is kSeqCst in source (free on x86-64), so that the fallback
// is right in C++ orders too.

#include "sync/atomic.h"

namespace stagetwo::sync {

namespace detail {
#if defined(__SANITIZE_THREAD__)
#define ST_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define ST_TSAN 1
#endif
#endif
#if defined(ST_TSAN)
inline constexpr bool kMembarrierKnown = false;
#else
inline constexpr bool kMembarrierKnown = true;
#endif
// Set once, before the first light store that relies on it.
extern Atomic<u32> membarrier_ready;
}  // namespace detail

// Registers the process for the barrier. Idempotent; before threads use the light side, and again
// in a child of fork. False: the fallback is in use.
bool asymmetric_init();
// For tests: the fallback from now on.
void debug_forbid_membarrier();

// The light store, and everything before it, is seen by whoever does the barrier later.
template <typename T>
inline void store_light(Atomic<T>& word, T value) {
  if (detail::kMembarrierKnown && detail::membarrier_ready.load(kRelaxed) != 0) [[likely]] {
    word.store(value, kRelease);
    // Keeps the compiler from moving the later load up; the processor is the barrier's business.
    asm volatile("" ::: "memory");
  } else {
    word.exchange(value, kSeqCst);
  }
}

// Post: every light store that is before its thread's current instruction is visible here, and
// every later load of those threads sees what was stored here before.
void asymmetric_barrier();

// Reads a word that is written by store_light, after the barrier.
template <typename T>
inline T load_heavy(Atomic<T>& word) {
  if (detail::kMembarrierKnown && detail::membarrier_ready.load(kRelaxed) != 0) [[likely]] {
    return word.load(kSeqCst);
  }
  return word.fetch_add(0, kSeqCst);
}

}  // namespace stagetwo::sync
