// SPDX-License-Identifier: Apache-2.0
#pragma once

// Atomic<T> with the deterministic scheduler behind it: the other half of sync/atomic.h, which
// includes it in ST_SCHED builds. Nobody else does.

#include "sync/atomic.h"
#include "sync/schedule_seam.h"

#if defined(ST_SCHED)

namespace stagetwo::sync {

inline void spin_hint() {
  sched::spin();
}

inline void made_anew(const void* memory, u64 bytes) {
  sched::forget(memory, bytes);
}

// The same face with the scheduler behind it. The newest value stands in `value_`, so that code
// outside a scheduled run sees an ordinary atomic; older values are the scheduler's memory.
template <typename T>
class Atomic {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);

 public:
  constexpr Atomic() : Atomic(T{}) {}
  explicit constexpr Atomic(T value) : value_(value) {
    if (!std::is_constant_evaluated()) sched::forget(this, sizeof(*this));
  }
  Atomic(const Atomic&) = delete;
  Atomic& operator=(const Atomic&) = delete;

  [[nodiscard]] T load(std::memory_order order = kSeqCst) const {
    if (!sched::active()) return value_.load(order);
    return narrow(sched::load(this, wide(value_.load(kRelaxed)), order));
  }
  void store(T value, std::memory_order order = kSeqCst) {
    if (!sched::active()) return value_.store(value, order);
    sched::before_write(this, wide(value_.load(kRelaxed)));
    value_.store(value, kSeqCst);
    sched::wrote(this, wide(value), order);
  }
  T exchange(T value, std::memory_order order = kSeqCst) {
    return modify([value](T) { return value; }, order);
  }
  bool compare_exchange(T& expected, T desired, std::memory_order order = kSeqCst) {
    if (!sched::active()) {
      return value_.compare_exchange_strong(expected, desired, order, failure_order(order));
    }
    sched::before_write(this, wide(value_.load(kRelaxed)));
    const T found = value_.load(kRelaxed);
    if (wide(found) != wide(expected)) {
      // A failed exchange reads the newest value, as every machine we know does.
      sched::read_newest(this, failure_order(order));
      expected = found;
      return false;
    }
    sched::read_newest(this, order);
    value_.store(desired, kSeqCst);
    sched::modified(this, wide(desired), order);
    return true;
  }
  bool compare_exchange_weak(T& expected, T desired, std::memory_order order = kSeqCst) {
    if (sched::active() && sched::fail_weakly()) {
      expected = load(failure_order(order));
      return false;
    }
    return compare_exchange(expected, desired, order);
  }
  T fetch_add(T count, std::memory_order order = kSeqCst)
    requires std::is_integral_v<T>
  {
    return modify([count](T old) { return static_cast<T>(old + count); }, order);
  }
  T fetch_sub(T count, std::memory_order order = kSeqCst)
    requires std::is_integral_v<T>
  {
    return modify([count](T old) { return static_cast<T>(old - count); }, order);
  }
  T fetch_or(T bits, std::memory_order order = kSeqCst)
    requires std::is_integral_v<T>
  {
    return modify([bits](T old) { return static_cast<T>(old | bits); }, order);
  }
  T fetch_and(T bits, std::memory_order order = kSeqCst)
    requires std::is_integral_v<T>
  {
    return modify([bits](T old) { return static_cast<T>(old & bits); }, order);
  }
  [[nodiscard]] T* address() { return reinterpret_cast<T*>(&value_); }

 private:
  template <typename F>
  T modify(F&& change, std::memory_order order) {
    if (!sched::active()) {
      T old = value_.load(kRelaxed);
      while (!value_.compare_exchange_weak(old, change(old), order, failure_order(order))) {
      }
      return old;
    }
    sched::before_write(this, wide(value_.load(kRelaxed)));
    const T old = value_.load(kRelaxed);
    sched::read_newest(this, order);
    value_.store(change(old), kSeqCst);
    sched::modified(this, wide(change(old)), order);
    return old;
  }
  static u64 wide(T value) {
    u64 word = 0;
    __builtin_memcpy(&word, &value, sizeof(T));
    return word;
  }
  static T narrow(u64 word) {
    T value;
    __builtin_memcpy(&value, &word, sizeof(T));
    return value;
  }

  std::atomic<T> value_;
};

}  // namespace stagetwo::sync

#endif
