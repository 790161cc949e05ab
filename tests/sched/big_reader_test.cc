// SPDX-License-Identifier: Apache-2.0
// The big-reader lock under every schedule: exclusion, publication, no lost wake-up, and the grace
// period of its readers. With a twin whose readers look before they speak.

#include "sync/big_reader_mutex.h"

#include "tests/sched/big_reader_yields.h"
#include "tests/sched/sched_support.h"

namespace stagetwo::test {
namespace {

using namespace stagetwo::sync;

template <unsigned kReaders, unsigned kWriters>
struct ReadersAndWriters {
  static constexpr unsigned kThreads = kReaders + kWriters;
  BigReaderMutex lock{Rank::kSecondary};
  sched::PlainWord a, b;
  void thread(unsigned me) {
    if (me < kReaders) {
      for (int i = 0; i < 2; ++i) {
        const BigReaderGuard guard(lock);
        sched::expect(a.read() == b.read(), "a reader saw half a write");
      }
    } else {
      BigWriterGuard guard(lock);
      a.write(a.read() + 1);
      b.write(b.read() + 1);
      guard.drop();
      guard.retake();
      a.write(a.read() + 1);
      b.write(b.read() + 1);
    }
  }
};
TEST(BigReaderMutex, ReadersSeeWholeWrites) {
  expect_holds<ReadersAndWriters<2, 1>>();
}
TEST(BigReaderMutex, WritersExcludeEachOther) {
  expect_holds<ReadersAndWriters<1, 2>>();
}

// A holder that works long lets go and comes back at once. Who waits gets in between: else the
// yield is none, and a fault waits for a whole zap.
TEST(BigReaderMutex, AWriterThatYieldsLetsAWaitingReaderIn) {
  EXPECT_EQ(readers_let_in(500), 500U);
}

// A reader whose announcement is not ordered before its look.
struct HastyLock {
  Atomic<u32> readers{0};
  Atomic<u32> writer{0};
  void lock_shared() {
    for (;;) {
      readers.fetch_add(1, kRelaxed);
      if (writer.load(kAcquire) == 0) return;
      readers.fetch_sub(1, kRelease);
      while (writer.load(kRelaxed) != 0) spin_hint();
    }
  }
  void unlock_shared() { readers.fetch_sub(1, kRelease); }
  void lock() {
    writer.store(1, kRelaxed);
    while (readers.load(kAcquire) != 0) spin_hint();
  }
  void unlock() { writer.store(0, kRelease); }
};
struct HastyReader {
  static constexpr unsigned kThreads = 2;
  HastyLock lock;
  sched::PlainWord a, b;
  void thread(unsigned me) {
    if (me == 0) {
      lock.lock_shared();
      sched::expect(a.read() == b.read(), "a reader saw half a write");
      lock.unlock_shared();
    } else {
      lock.lock();
      a.write(1);
      b.write(1);
      lock.unlock();
    }
  }
};
TEST(BigReaderTwin, AHandshakeWithoutSequentialConsistencyIsFound) {
  expect_found<HastyReader>();
}

// What readers reach by an acquiring load is freed after the grace period.
struct GracePeriod {
  static constexpr unsigned kThreads = 3;
  BigReaderMutex lock{Rank::kSecondary};
  Atomic<u32> link{1};
  sched::PlainWord page{1};
  void thread(unsigned me) {
    if (me < 2) {
      const BigReaderGuard guard(lock);
      if (link.load(kAcquire) == 1) sched::expect(page.read() == 1, "used after the grace period");
    } else {
      {
        const BigReaderGuard guard(lock);
        link.exchange(0, kAcqRel);
      }
      lock.wait_for_shared();
      page.write(0);
    }
  }
};
TEST(BigReaderMutex, NothingUnlinkedIsUsedAfterTheGracePeriod) {
  expect_holds<GracePeriod>(2500);
}

// The same with a wait that leaves no mark: an acquiring load may still find the old link.
struct GraceWithoutMarks : GracePeriod {
  Passage readers;
  void thread(unsigned me) {
    if (me < 2) {
      const Passage::Ticket ticket = readers.enter();
      if (link.load(kAcquire) == 1) sched::expect(page.read() == 1, "used after the grace period");
      readers.leave(ticket);
    } else {
      link.exchange(0, kAcqRel);
      readers.wait();
      page.write(0);
    }
  }
};
TEST(BigReaderTwin, AGracePeriodWithoutMarksIsFound) {
  expect_found<GraceWithoutMarks>(5000);
}

}  // namespace
}  // namespace stagetwo::test
