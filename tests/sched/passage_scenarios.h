// SPDX-License-Identifier: Apache-2.0
#pragma once

// Sections against waiters: what was taken away before the wait is not used after it, whatever side
// a section read and whichever cell it is in. Threads of even numbers share a cell.

#include "sync/passage.h"
#include "tests/sched/sched_support.h"

namespace stagetwo::test {

enum class PassageWait { kAny, kForAcquirers };

// Threads below kReaders pass through, the others wait.
template <unsigned kReaders, std::memory_order Read, PassageWait How>
struct SectionsAgainstWaiters {
  static constexpr unsigned kThreads = kReaders + 2;
  sync::Passage passage;
  sync::Atomic<u32> link[2] = {sync::Atomic<u32>(1), sync::Atomic<u32>(1)};
  sync::sched::PlainWord page[2] = {sync::sched::PlainWord(1), sync::sched::PlainWord(1)};
  void section() {
    const sync::Passage::Ticket ticket = passage.enter();
    for (int i = 0; i < 2; ++i) {
      if (link[i].load(Read) == 1) sync::sched::expect(page[i].read() == 1, "used after the wait");
    }
    passage.leave(ticket);
  }
  void thread(unsigned me) {
    if (me < kReaders) {
      section();
      section();
      return;
    }
    const unsigned mine = me - kReaders;
    link[mine].store(0);
    if (How == PassageWait::kForAcquirers) {
      passage.wait_for_acquirers();
    } else {
      passage.wait();
    }
    page[mine].write(0);
  }
};

template <unsigned kReaders>
using OrderedSections = SectionsAgainstWaiters<kReaders, sync::kSeqCst, PassageWait::kAny>;
template <unsigned kReaders>
using AcquiringSections =
    SectionsAgainstWaiters<kReaders, sync::kAcquire, PassageWait::kForAcquirers>;

}  // namespace stagetwo::test
