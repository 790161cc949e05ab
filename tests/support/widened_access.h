// SPDX-License-Identifier: Apache-2.0
#pragma once

// A restartable load whose window is wide on purpose: between the look at the request and the
// access it counts to a hundred thousand: longer than an interrupt takes from one virtual processor
// to another. Whoever changes the page behind a barrier that does not abort it is then sure to be
// read. In a page that is "gone" stands kGone.

#include <sched.h>

#include <atomic>
#include <thread>

#include "base/arch/restartable.h"
#include "sync/ack_line.h"
#include "sync/futex.h"
#include "sync/restartable.h"

namespace stagetwo::test {

// clang-format off
ST_FOREIGN_ACCESS inline bool widened_load(const u64* from, u64* out, const arch::Restart& r) {
  u64 raw;
  u64 scratch;
  ST_ASM_GOTO(ST_RESTART_BEGIN
              "mov $120000, %[scratch]\n"
              "8: dec %[scratch]\n"
              "jnz 8b\n"
              "2: mov %[mem], %[out]\n" ST_RESTART_END
              : [out] "=r"(raw), ST_RESTART_OUTPUTS(r)
              : [mem] "m"(*from), ST_RESTART_INPUTS(r)
              : "cc"
              : away);
  *out = raw;
  return true;
away:
  return false;
}
// clang-format on

// Two processors for the two threads: where they share one, each change finds the owner preempted,
// and aborted by that.
class TwoProcessors {
 public:
  TwoProcessors() {
    if (sched_getaffinity(0, sizeof(all_), &all_) != 0) return;
    for (size_t cpu = 0; cpu < CPU_SETSIZE && count_ < 2; ++cpu) {
      if (CPU_ISSET(cpu, &all_)) cpu_[count_++] = cpu;
    }
  }
  ~TwoProcessors() { static_cast<void>(sched_setaffinity(0, sizeof(all_), &all_)); }
  TwoProcessors(const TwoProcessors&) = delete;
  TwoProcessors& operator=(const TwoProcessors&) = delete;

  [[nodiscard]] bool there() const { return count_ == 2; }
  // The calling thread stays on one of them.
  void stay_on(int which) const {
    if (!there()) return;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu_[which], &one);
    static_cast<void>(sched_setaffinity(0, sizeof(one), &one));
  }
  void wait() const {
    if (there()) {
      sync::spin_hint();
    } else {
      sync::yield_thread();
    }
  }

 private:
  cpu_set_t all_{};
  size_t cpu_[2] = {};
  int count_ = 0;
};

struct WidenedRounds {
  u64 accesses = 0;
  u64 aborted = 0;
  u64 late = 0;  // accesses that read what the page became after a barrier
  sync::AckSet::Counts set;
};

// An owner that lives in the window, and an invalidator that changes the page `rounds` times, or
// until the first late access. Pre: the machine has restartable sections.
inline WidenedRounds run_widened(int rounds) {
  constexpr u64 kAlive = 7, kGone = 666;
  sync::AckSet set;
  sync::AckLine line;
  set.add(line);
  alignas(64) static std::atomic<u64> page;
  page = kAlive;
  std::atomic<bool> stop{false};
  std::atomic<bool> closed{false};
  std::atomic<u64> accesses{0};
  std::atomic<u64> late{0};
  const auto enter_while_open = [&] {
    static_cast<void>(line.enter());
    if (closed.load()) {
      line.leave();
      return false;
    }
    line.let_go();
    return true;
  };
  const TwoProcessors processors;
  processors.stay_on(0);
  std::thread owner([&] {
    processors.stay_on(1);
    u64* const section = sync::restartable_section();
    static_cast<void>(enter_while_open());
    while (!stop.load(std::memory_order_relaxed)) {
      u64 value = 0;
      if (widened_load(reinterpret_cast<const u64*>(&page), &value, line.restart(section))) {
        accesses.fetch_add(1, std::memory_order_relaxed);
        if (value != kAlive) late.fetch_add(1);
      } else if (line.pending()) {
        // The address is dropped, and looked up again when nobody changes what it means.
        line.leave();
        do {
          while (closed.load()) sync::yield_thread();
        } while (!enter_while_open());
      }
    }
    sync::forget_restartable_section(section);
    line.leave();
  });
  while (accesses == 0) processors.wait();
  for (int round = 0; round < rounds && late == 0; ++round) {
    const u64 before = accesses;
    closed = true;
    set.barrier();
    page = kGone;
    const u64 start = sync::now_ns();
    while (sync::now_ns() - start < 60'000) sync::spin_hint();
    page = kAlive;
    closed = false;
    while (accesses == before && late == 0) processors.wait();
  }
  stop = true;
  owner.join();
  set.remove(line);
  return {accesses, line.aborted(), late, set.counts()};
}

}  // namespace stagetwo::test
