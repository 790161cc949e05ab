// SPDX-License-Identifier: Apache-2.0
#pragma once

// Atomic<T>: the only atomic of the house, so that the deterministic scheduler can stand behind
// every shared access (docs/decisions/0004-the-schedule-seam.md).
//
// In a normal build it is std::atomic<T> and nothing else. With ST_SCHED, inside a scheduled run,
// every operation is a schedule point and a load may return any value the C++ memory model permits
// it (an older store not yet ordered before it), so that a missing release, acquire or
// store-to-load ordering is found by a test on any machine.
//
// There is no stand-alone fence: an order names its partner, and ThreadSanitizer understands it.
// Default order: sequentially consistent. Each shared word has a comment at its declaration: who
// writes, who reads, which orders, which partner.

#include <atomic>
#include <bit>
#include <type_traits>

#include "base/types.h"

namespace stagetwo::sync {

inline constexpr auto kRelaxed = std::memory_order_relaxed;
inline constexpr auto kAcquire = std::memory_order_acquire;
inline constexpr auto kRelease = std::memory_order_release;
inline constexpr auto kAcqRel = std::memory_order_acq_rel;
inline constexpr auto kSeqCst = std::memory_order_seq_cst;

// The order of a failed compare-and-exchange that goes with `order`.
constexpr std::memory_order failure_order(std::memory_order order) {
  if (order == kAcqRel) return kAcquire;
  return order == kRelease ? kRelaxed : order;
}

#if !defined(ST_SCHED)

// Tells the processor that this is a wait loop; under the scheduler, lets the others go first.
inline void spin_hint() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

// Plain stores have made this memory anew (a block that was zeroed for another use): what stood in
// its words before is no older value of theirs to the scheduler.
inline void made_anew(const void* /*memory*/, u64 /*bytes*/) {}

template <typename T>
class Atomic {
  static_assert(std::is_trivially_copyable_v<T>);
  static_assert(std::atomic<T>::is_always_lock_free || sizeof(T) == 16);

 public:
  constexpr Atomic() : value_(T{}) {}
  explicit constexpr Atomic(T value) : value_(value) {}
  Atomic(const Atomic&) = delete;
  Atomic& operator=(const Atomic&) = delete;

  [[nodiscard]] T load(std::memory_order order = kSeqCst) const { return value_.load(order); }
  void store(T value, std::memory_order order = kSeqCst) { value_.store(value, order); }
  T exchange(T value, std::memory_order order = kSeqCst) { return value_.exchange(value, order); }
  // On failure `expected` is what was found.
  bool compare_exchange(T& expected, T desired, std::memory_order order = kSeqCst) {
    return value_.compare_exchange_strong(expected, desired, order, failure_order(order));
  }
  bool compare_exchange_weak(T& expected, T desired, std::memory_order order = kSeqCst) {
    return value_.compare_exchange_weak(expected, desired, order, failure_order(order));
  }
  T fetch_add(T count, std::memory_order order = kSeqCst)
    requires std::is_integral_v<T>
  {
    return value_.fetch_add(count, order);
  }
  T fetch_sub(T count, std::memory_order order = kSeqCst)
    requires std::is_integral_v<T>
  {
    return value_.fetch_sub(count, order);
  }
  T fetch_or(T bits, std::memory_order order = kSeqCst)
    requires std::is_integral_v<T>
  {
    return value_.fetch_or(bits, order);
  }
  T fetch_and(T bits, std::memory_order order = kSeqCst)
    requires std::is_integral_v<T>
  {
    return value_.fetch_and(bits, order);
  }
  // The word itself, for a futex or for a table of addresses; never for access.
  [[nodiscard]] T* address() { return reinterpret_cast<T*>(&value_); }

 private:
  std::atomic<T> value_;
};

#endif  // !ST_SCHED

}  // namespace stagetwo::sync

#if defined(ST_SCHED)
#include "sync/atomic_scheduled.h"
#endif

namespace stagetwo::sync {

static_assert(sizeof(Atomic<u64>) == 8,
              "the seam costs no space: shared layouts stay what they are");

}  // namespace stagetwo::sync
