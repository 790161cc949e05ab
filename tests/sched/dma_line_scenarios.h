// SPDX-License-Identifier: Apache-2.0
#pragma once

// A device's section against an unmap, for schedules and for their guards.

#include "iommu/invalidation_queue.h"
#include "tests/sched/sched_support.h"

namespace stagetwo::test {

using namespace stagetwo::sync;

template <bool kHeeds>
struct EngineAgainstUnmap {
  static constexpr unsigned kThreads = 3;
  iommu::InvalidationQueue queue;
  iommu::DmaLine* lines[2] = {queue.add(0), queue.add(0)};
  sched::PlainWord page{1};
  bool cached[2] = {true, true};  // each its engine's own

  void section(unsigned me) {
    iommu::DmaLine& line = *lines[me];
    queue.enter(line, me + 1);
    if (kHeeds && queue.owes(line)) {
      queue.heed(line, [&](const iommu::Invalidation*) { cached[me] = false; });
    }
    if (cached[me]) sched::expect(page.read() == 1, "used after the wait");
    queue.leave(line);
  }
  void thread(unsigned me) {
    if (me < 2) {
      section(me);
      section(me);
      return;
    }
    queue.post(iommu::forget_domain(7));
    queue.wait();
    page.write(0);
  }
};

}  // namespace stagetwo::test
