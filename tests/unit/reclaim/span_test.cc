// SPDX-License-Identifier: Apache-2.0
// Goal: every range that some guest uses is covered by spans that do not overlap, each page by one;
// a span goes when nobody uses it and nothing of it is absent, and not before.
#include "reclaim/span.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/alloc.h"
#include "base/failpoint.h"

namespace stagetwo::reclaim {
namespace {

constexpr HvaRange pages(u64 first, u64 count) {
  return HvaRange(Hva(first << kPageShift), count << kPageShift);
}
std::vector<HvaRange> all(SpanTable& table) {
  std::vector<HvaRange> found;
  for (Span* span = table.next(Hva(0)); span != nullptr; span = table.next(span->range.end())) {
    found.push_back(span->range);
  }
  return found;
}
using Ranges = std::vector<HvaRange>;

TEST(Spans, ARangeHasOne) {
  SpanTable table;
  ASSERT_TRUE(table.add(pages(16, 8)));
  EXPECT_EQ(Ranges{pages(16, 8)}, all(table));
  Span* const span = table.next(Hva(0));
  EXPECT_EQ(8U, span->pages);
  EXPECT_EQ(3U, span->index_of(Hva(19 << kPageShift)));
  EXPECT_EQ(Hva(19 << kPageShift), span->at(3));
  EXPECT_EQ(Where::kHere, span->slots[7].where);
}

TEST(Spans, RangesThatOverlapShareThem) {
  SpanTable table;
  ASSERT_TRUE(table.add(pages(16, 8)));
  ASSERT_TRUE(table.add(pages(12, 16)));
  EXPECT_EQ((Ranges{pages(12, 4), pages(16, 8), pages(24, 4)}), all(table));
  table.remove(pages(12, 16));
  table.prune();
  EXPECT_EQ(Ranges{pages(16, 8)}, all(table));
  table.remove(pages(16, 8));
  table.prune();
  EXPECT_TRUE(all(table).empty());
}

TEST(Spans, ASpanWithAbsentPagesStaysAndIsUsedAgain) {
  SpanTable table;
  ASSERT_TRUE(table.add(pages(16, 8)));
  Span* const span = table.next(Hva(0));
  span->absent = 1;
  table.remove(pages(16, 8));
  table.prune();
  EXPECT_EQ(Ranges{pages(16, 8)}, all(table));
  ASSERT_TRUE(table.add(pages(14, 4)));
  EXPECT_EQ((Ranges{pages(14, 2), pages(16, 8)}), all(table));
  EXPECT_EQ(1U, span->users);
  span->absent = 0;
  table.remove(pages(14, 4));
  table.prune();
  EXPECT_TRUE(all(table).empty());
}

TEST(Spans, ARefusalOfMemoryLeavesNothingBehind) {
  const AllocUse before = alloc_use();
  failpoint::sweep([] {
    SpanTable table;
    if (table.add(pages(16, 8)) && table.add(pages(12, 16))) table.remove(pages(12, 16));
    table.prune();
  });
  EXPECT_EQ(before.blocks, alloc_use().blocks);
}

}  // namespace
}  // namespace stagetwo::reclaim
