// SPDX-License-Identifier: Apache-2.0
// Fault against invalidation: the gate and the ack line together let no translation survive that
// was looked up before an overlapping invalidation ended. `meaning` is what the client's system
// call changes; it lives outside the memory model, as the kernel's tables do.

#include "sync/ack_line.h"
#include "sync/invalidation_gate.h"
#include "tests/sched/sched_support.h"

namespace stagetwo::test {
namespace {

using namespace stagetwo::sync;

constexpr u64 kPage = 5;

// The real gate with the real barrier.
struct RealGate {
  InvalidationGate gate;
  AckSet set;
  void begin() {
    gate.begin(kPage, kPage + 2);
    set.barrier();
  }
  void end() { gate.end(kPage, kPage + 2); }
  u64 snapshot() { return gate.snapshot().sequence; }
  bool must_retry(u64 s) { return gate.must_retry({s}, kPage); }
};

// Twins, each with one thing wrong.
struct TwinGate : RealGate {
  Atomic<u64> count{0}, sequence{0};
  void begin() {
    count.fetch_add(1);
    set.barrier();
  }
  void end() {
    sequence.fetch_add(1);
    count.fetch_sub(1);
  }
  u64 snapshot() { return sequence.load(kAcquire); }
  bool must_retry(u64 s) { return count.load() != 0 || sequence.load() != s; }
};
struct CountDropsFirst : TwinGate {
  void end() {
    count.fetch_sub(1);
    sequence.fetch_add(1);
  }
};
struct SequenceReadFirst : TwinGate {
  bool must_retry(u64 s) {
    const bool moved = sequence.load() != s;
    return count.load() != 0 || moved;
  }
};
struct NoBarrier : TwinGate {
  void begin() { count.fetch_add(1); }
};
struct NoCount : TwinGate {
  bool must_retry(u64 s) { return sequence.load() != s; }
};
struct NoSequence : TwinGate {
  bool must_retry(u64) { return count.load() != 0; }
};

// One vCPU faults, installs, uses and keeps; one thread invalidates.
template <typename Gate>
struct FaultAgainstInvalidation {
  static constexpr unsigned kThreads = 2;
  Gate gate;
  AckLine line;
  Atomic<u64> entry{0};  // 0: none, else 1 + meaning
  u64 meaning = 0;
  FaultAgainstInvalidation() { gate.set.add(line); }
  ~FaultAgainstInvalidation() { gate.set.remove(line); }

  u64 ask_host() {
    sched::point();
    return meaning;
  }
  void access(u64 cached) {
    sched::point();
    sched::expect(cached == 1 + meaning, "an old translation is used");
  }
  // One fault: true when it installed.
  bool fault() {
    const u64 s = gate.snapshot();
    const u64 found = ask_host();
    const RunningSection section(line);
    if (gate.must_retry(s)) return false;
    u64 empty = 0;
    if (!entry.compare_exchange(empty, 1 + found)) return false;
    access(1 + found);
    for (int block = 0; block < 2; ++block) {
      if (line.poll()) return true;
      access(1 + found);
    }
    return true;
  }
  void vcpu() {
    for (int tries = 0; tries < 3 && !fault();) ++tries;
  }
  void invalidate() {
    gate.begin();
    entry.store(0, kRelease);
    sched::point();
    ++meaning;
    gate.end();
    const u64 left = entry.load();
    sched::expect(left == 0 || left == 1 + meaning, "an old entry survived");
  }
  void thread(unsigned me) { me == 0 ? vcpu() : invalidate(); }
};

TEST(FaultAgainstInvalidation, NothingOldSurvives) {
  expect_holds<FaultAgainstInvalidation<RealGate>>(3000);
}
TEST(FaultAgainstInvalidation, TheTwinWithoutAFaultHolds) {
  expect_holds<FaultAgainstInvalidation<TwinGate>>();
}
TEST(FaultAgainstInvalidation, CountDroppedBeforeTheSequenceRoseIsFound) {
  expect_found<FaultAgainstInvalidation<CountDropsFirst>>(5000);
}
TEST(FaultAgainstInvalidation, SequenceReadBeforeTheCountIsFound) {
  expect_found<FaultAgainstInvalidation<SequenceReadFirst>>(5000);
}
TEST(FaultAgainstInvalidation, ZapWithoutABarrierIsFound) {
  expect_found<FaultAgainstInvalidation<NoBarrier>>(5000);
}
TEST(FaultAgainstInvalidation, MissingCountIsFound) {
  expect_found<FaultAgainstInvalidation<NoCount>>(5000);
}
TEST(FaultAgainstInvalidation, MissingSequenceIsFound) {
  expect_found<FaultAgainstInvalidation<NoSequence>>(5000);
}

// Two invalidations, one elsewhere: the hull is reset between them and must not let the fault pass.
struct HullReset : FaultAgainstInvalidation<RealGate> {
  static constexpr unsigned kThreads = 3;
  void thread(unsigned me) {
    if (me < 2) {
      FaultAgainstInvalidation<RealGate>::thread(me);
    } else {
      gate.gate.begin(1000, 1001);
      gate.set.barrier();
      gate.gate.end(1000, 1001);
    }
  }
};
TEST(FaultAgainstInvalidation, AnotherRangeDoesNotOpenTheGate) {
  expect_holds<HullReset>();
}

// Two vCPUs fault for one page while it is invalidated.
struct TwoFaults : FaultAgainstInvalidation<RealGate> {
  static constexpr unsigned kThreads = 3;
  AckLine second;
  TwoFaults() { gate.set.add(second); }
  ~TwoFaults() { gate.set.remove(second); }
  void thread(unsigned me) {
    if (me == 2) {
      const u64 s = gate.snapshot();
      const u64 found = ask_host();
      const RunningSection section(second);
      if (gate.must_retry(s)) return;
      u64 empty = 0;
      if (entry.compare_exchange(empty, 1 + found)) access(1 + found);
    } else {
      FaultAgainstInvalidation<RealGate>::thread(me);
    }
  }
};
TEST(FaultAgainstInvalidation, TwoInstallersHold) {
  expect_holds<TwoFaults>();
}

}  // namespace
}  // namespace stagetwo::test
