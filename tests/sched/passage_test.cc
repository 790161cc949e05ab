// SPDX-License-Identifier: Apache-2.0
// Passages: what was taken away before wait() is not used after it, whatever side a section read.

#include "sync/passage.h"

#include "tests/sched/sched_support.h"

namespace stagetwo::test {
namespace {

using namespace stagetwo::sync;

template <std::memory_order Read>
struct SectionsAgainstWaiters {
  static constexpr unsigned kThreads = 3;
  Passage passage;
  Atomic<u32> link[2] = {Atomic<u32>(1), Atomic<u32>(1)};
  sched::PlainWord page[2] = {sched::PlainWord(1), sched::PlainWord(1)};
  void section() {
    const Passage::Ticket ticket = passage.enter();
    for (int i = 0; i < 2; ++i) {
      if (link[i].load(Read) == 1) sched::expect(page[i].read() == 1, "used after the wait");
    }
    passage.leave(ticket);
  }
  void thread(unsigned me) {
    if (me == 0) {
      section();
      section();
    } else {
      link[me - 1].store(0);
      passage.wait();
      page[me - 1].write(0);
    }
  }
};

TEST(Passage, NothingIsUsedAfterTheWait) {
  expect_holds<SectionsAgainstWaiters<kSeqCst>>(2500);
}
TEST(PassageTwin, AnAcquiringReadOfWhatWasPublishedIsFound) {
  expect_found<SectionsAgainstWaiters<kAcquire>>();
}

}  // namespace
}  // namespace stagetwo::test
