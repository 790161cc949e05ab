// SPDX-License-Identifier: Apache-2.0
// Epoch reclamation: a retired object is released only when no section can still reach it.

#include "sync/epoch.h"

#include "tests/sched/sched_support.h"

namespace stagetwo::test {
namespace {

using namespace stagetwo::sync;

// Two generations of an object behind one pointer. `alive` is plain data: a reader that reaches a
// released object reads a word it has no order with.
struct Object {
  sched::PlainWord alive{1};
};

struct Table {
  Object object[3];
  Atomic<u32> current{0};
  AckSet set;
  AckLine line;
  Table() { set.add(line); }
  ~Table() { set.remove(line); }

  void read() {
    Object& found = object[current.load(kAcquire)];
    sched::point();
    sched::expect(found.alive.read() == 1, "a released object is read");
  }
  static void release(void* object) { static_cast<Object*>(object)->alive.write(0); }
};

struct Readers : Table {
  void reader() {
    for (int section = 0; section < 2; ++section) {
      const RunningSection running(line);
      read();
      static_cast<void>(line.poll());
      read();
    }
  }
};

struct RetireAndSynchronize : Readers {
  static constexpr unsigned kThreads = 2;
  EpochDomain domain{set};
  void thread(unsigned me) {
    if (me == 0) return reader();
    for (u32 next = 1; next < 3; ++next) {
      current.store(next, kRelease);
      domain.retire(&object[next - 1], release);
      domain.synchronize();
      sched::expect(domain.debug_waiting() == 0, "something waits after synchronize");
    }
  }
};
TEST(Epoch, SynchronizeReleasesNothingThatIsRead) {
  expect_holds<RetireAndSynchronize>();
}

struct RetireAndCollect : Readers {
  static constexpr unsigned kThreads = 3;
  EpochDomain domain{set};
  void thread(unsigned me) {
    if (me == 0) return reader();
    if (me == 1) {
      current.store(1, kRelease);
      domain.retire(&object[0], release);
      for (int i = 0; i < 3; ++i) domain.collect();
    } else {
      set.bump_all();  // somebody's flush
      domain.collect();
    }
  }
};
TEST(Epoch, CollectRidesOnTheFlushesOfOthers) {
  expect_holds<RetireAndCollect>(2500);
}

struct ReleasedAtOnce : Readers {
  static constexpr unsigned kThreads = 2;
  void thread(unsigned me) {
    if (me == 0) return reader();
    current.store(1, kRelease);
    release(&object[0]);
  }
};
TEST(EpochTwin, ReleaseWithoutWaitingIsFound) {
  expect_found<ReleasedAtOnce>();
}

// "Outside" alone is not enough: without a request the next entry may still see the old pointer.
struct OutsideIsEnough : Readers {
  static constexpr unsigned kThreads = 2;
  void thread(unsigned me) {
    if (me == 0) return reader();
    current.store(1, kRelease);
    while (line.running()) spin_hint();
    release(&object[0]);
  }
};
TEST(EpochTwin, OutsideWithoutARequestIsFound) {
  expect_found<OutsideIsEnough>();
}

}  // namespace
}  // namespace stagetwo::test
