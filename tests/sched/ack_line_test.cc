// SPDX-License-Identifier: Apache-2.0
// The ack line: after a barrier nobody uses what was borrowed before it. `page` is plain data that
// the invalidator overwrites once its barrier returned; a reader that still reaches it is a race.

#include "sync/ack_line.h"

#include "tests/sched/sched_support.h"

namespace stagetwo::test {
namespace {

using namespace stagetwo::sync;

constexpr u64 kAlive = 7;
constexpr u64 kGone = 666;

// What every scenario here shares: a link that leads to the page while it is 1.
struct Borrowed {
  Atomic<u32> link{1};
  sched::PlainWord page{kAlive};
  void use() {
    if (link.load(kRelaxed) == 1) sched::expect(page.read() == kAlive, "used after the barrier");
  }
  void take_away() { link.store(0, kRelaxed); }
  void overwrite() { page.write(kGone); }
};

// Enter against request: one section after the other.
struct EnterAgainstRequest : Borrowed {
  static constexpr unsigned kThreads = 2;
  AckSet set;
  AckLine line;
  EnterAgainstRequest() { set.add(line); }
  ~EnterAgainstRequest() { set.remove(line); }
  void thread(unsigned me) {
    if (me == 0) {
      for (int i = 0; i < 3; ++i) {
        static_cast<void>(line.enter());
        use();
        line.leave();
      }
    } else {
      take_away();
      set.barrier();
      overwrite();
    }
  }
};
TEST(AckLine, EnterAndRequestCannotMissEachOther) {
  expect_holds<EnterAgainstRequest>();
}

// A cached address is kept over blocks and dropped when poll says so.
struct PollAgainstRequest {
  static constexpr unsigned kThreads = 2;
  Borrowed borrowed;
  AckSet set;
  AckLine line;
  bool cached = false;
  PollAgainstRequest() { set.add(line); }
  ~PollAgainstRequest() { set.remove(line); }
  void thread(unsigned me) {
    if (me == 0) {
      cached = !line.enter() || cached;
      if (borrowed.link.load(kRelaxed) != 1) cached = false;
      for (int block = 0; block < 4; ++block) {
        if (cached)
          sched::expect(borrowed.page.read() == kAlive, "a cached address outlived the ack");
        if (line.poll()) cached = false;
      }
      line.leave();
    } else {
      borrowed.take_away();
      set.barrier();
      borrowed.overwrite();
    }
  }
};
TEST(AckLine, PollDropsWhatWasCached) {
  expect_holds<PollAgainstRequest>();
}

// What was waited for has passed, though the line has entered again and not answered yet.
struct PassedIsKept {
  static constexpr unsigned kThreads = 2;
  AckSet set;
  AckLine line;
  PassedIsKept() { set.add(line); }
  ~PassedIsKept() { set.remove(line); }
  void thread(unsigned me) {
    if (me == 0) {
      for (int i = 0; i < 2; ++i) {
        static_cast<void>(line.enter());
        line.leave();
      }
      return;
    }
    const u64 ticket = set.bump_all();
    set.wait_all(ticket);
    sched::expect(set.passed() >= ticket, "a request that was waited for has not passed");
  }
};
TEST(AckLine, WhatWasWaitedForHasPassed) {
  expect_holds<PassedIsKept>();
}

// Two invalidators, two lines.
struct ManyOfEach {
  static constexpr unsigned kThreads = 4;
  Borrowed borrowed[2];
  AckSet set;
  AckLine line[2];
  ManyOfEach() {
    for (AckLine& l : line) set.add(l);
  }
  ~ManyOfEach() {
    for (AckLine& l : line) set.remove(l);
  }
  void thread(unsigned me) {
    if (me < 2) {
      static_cast<void>(line[me].enter());
      for (int i = 0; i < 2; ++i) {
        for (Borrowed& b : borrowed) b.use();
        static_cast<void>(line[me].poll());
      }
      line[me].leave();
    } else {
      borrowed[me - 2].take_away();
      set.barrier();
      borrowed[me - 2].overwrite();
    }
  }
};
TEST(AckLine, TwoInvalidatorsAndTwoOwnersHold) {
  expect_holds<ManyOfEach>(800);
}

// Two owners invalidate from inside their own sections: neither waits for the other for ever.
struct InvalidateFromInside {
  static constexpr unsigned kThreads = 2;
  AckSet set;
  AckLine line[2];
  InvalidateFromInside() {
    for (AckLine& l : line) set.add(l);
  }
  ~InvalidateFromInside() {
    for (AckLine& l : line) set.remove(l);
  }
  void thread(unsigned me) {
    static_cast<void>(line[me].enter());
    set.barrier();
    sched::expect(line[me].running(), "the section is running again");
    sched::expect(line[me].poll(), "the own request is still pending");
    line[me].leave();
  }
};
TEST(AckLine, OwnersThatInvalidateDoNotWaitForEachOther) {
  expect_holds<InvalidateFromInside>(800);
}

// The same while a third thread wants the set for itself: the owner that waits for the set's lock
// must not be waited for by whoever holds it.
struct InvalidateFromInsideWhileAnotherJoins : InvalidateFromInside {
  static constexpr unsigned kThreads = 3;
  AckLine third;
  void thread(unsigned me) {
    if (me < 2) {
      InvalidateFromInside::thread(me);
    } else {
      set.add(third);
      set.remove(third);
    }
  }
};
TEST(AckLine, OwnersThatInvalidateDoNotHoldUpTheSet) {
  expect_holds<InvalidateFromInsideWhileAnotherJoins>(3000);
}

// Lines come and go while others invalidate.
struct AddAgainstBarrier : Borrowed {
  static constexpr unsigned kThreads = 2;
  AckSet set;
  AckLine line;
  void thread(unsigned me) {
    if (me == 0) {
      set.add(line);
      static_cast<void>(line.enter());
      use();
      line.leave();
      set.remove(line);
    } else {
      take_away();
      set.barrier();
      overwrite();
    }
  }
};
TEST(AckLine, JoiningASetIsOrderedAgainstItsBarriers) {
  expect_holds<AddAgainstBarrier>();
}

// A kick reaches the next poll and nobody waits for it.
struct Kick {
  static constexpr unsigned kThreads = 2;
  AckSet set;
  AckLine line;
  Atomic<u32> reason;
  Kick() { set.add(line); }
  ~Kick() { set.remove(line); }
  void thread(unsigned me) {
    if (me == 0) {
      if (!line.enter()) {
        while (!line.poll()) spin_hint();
      }
      sched::expect(reason.load(kRelaxed) == 1, "the reason is visible behind the kick");
      line.leave();
    } else {
      reason.store(1, kRelaxed);
      set.kick(line);
    }
  }
};
TEST(AckLine, AKickBringsItsReasonAlong) {
  expect_holds<Kick>();
}

// An owner that answers by leaving (its accesses are refused while something is asked) enters with
// nothing asked, also where it acknowledged in the middle of the request.
struct LeaveAndEnter {
  static constexpr unsigned kThreads = 2;
  AckSet set;
  AckLine line;
  Atomic<u32> made{0};
  LeaveAndEnter() { set.add(line); }
  ~LeaveAndEnter() { set.remove(line); }
  void thread(unsigned me) {
    if (me == 1) {
      set.kick(line);
      made.store(1, kRelease);
      return;
    }
    static_cast<void>(line.enter());
    line.leave();
    while (made.load(kAcquire) == 0) spin_hint();
    static_cast<void>(line.enter());
    sched::expect(!line.pending(), "what was acknowledged is asked for ever");
    line.leave();
  }
};
TEST(AckLine, WhoAnswersByLeavingIsNotAskedForEver) {
  expect_holds<LeaveAndEnter>();
}

// The broken twins: the same handshake with one order too weak, or one step missing.
template <std::memory_order Enter, std::memory_order Look>
struct WeakDekker : Borrowed {
  static constexpr unsigned kThreads = 2;
  Atomic<u64> request{0}, ack{0};
  Atomic<u32> running{0};
  void thread(unsigned me) {
    if (me == 0) {
      for (int i = 0; i < 3; ++i) {
        running.store(1, Enter);
        ack.store(request.load(Enter == kSeqCst ? kSeqCst : kAcquire), kRelease);
        use();
        running.store(0, kRelease);
      }
    } else {
      take_away();
      request.fetch_add(1, Look == kSeqCst ? kSeqCst : kAcqRel);
      while (running.load(Look) != 0 && ack.load(kAcquire) == 0) spin_hint();
      overwrite();
    }
  }
};
TEST(AckLineTwin, TheHandshakeWithAllOrdersHolds) {
  expect_holds<WeakDekker<kSeqCst, kSeqCst>>();
}
TEST(AckLineTwin, EnterWithoutStoreLoadOrderIsFound) {
  expect_found<WeakDekker<kRelease, kSeqCst>>();
}
TEST(AckLineTwin, InvalidatorWithoutStoreLoadOrderIsFound) {
  expect_found<WeakDekker<kSeqCst, kAcquire>>();
}

struct NoWaiting : EnterAgainstRequest {
  void thread(unsigned me) {
    if (me == 0) {
      EnterAgainstRequest::thread(me);
    } else {
      take_away();
      set.bump_all();
      overwrite();
    }
  }
};
TEST(AckLineTwin, ABarrierThatDoesNotWaitIsFound) {
  expect_found<NoWaiting>();
}

}  // namespace
}  // namespace stagetwo::test
