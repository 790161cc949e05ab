// SPDX-License-Identifier: Apache-2.0
// A device's section against an unmap: what was posted before the wait is not used after it.

#include "tests/sched/dma_line_scenarios.h"

namespace stagetwo::test {
namespace {

TEST(DmaLine, NothingIsUsedAfterTheWait) {
  expect_holds<EngineAgainstUnmap<true>>();
}
TEST(DmaLineTwin, AnEngineThatDoesNotHeedIsFound) {
  expect_found<EngineAgainstUnmap<false>>();
}

// Two posts and an engine that reads between them: it never misses one.
struct HeedAgainstPosts {
  static constexpr unsigned kThreads = 2;
  iommu::InvalidationQueue queue;
  iommu::DmaLine* line = queue.add(0);
  unsigned seen = 0;
  void heed() {
    queue.heed(*line, [&](const iommu::Invalidation* one) {
      ++seen;
      sched::expect(one != nullptr && one->domain_id() == seen, "half written, lost or twice");
    });
  }
  void thread(unsigned me) {
    if (me == 0) {
      heed();
      heed();
      return;
    }
    for (u16 id = 1; id <= 3; ++id) queue.post(iommu::forget_domain(id));
  }
};
TEST(DmaLine, EachDescriptorIsReadWholeAndOnce) {
  expect_holds<HeedAgainstPosts>();
}

}  // namespace
}  // namespace stagetwo::test
