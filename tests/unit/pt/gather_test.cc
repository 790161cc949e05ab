// SPDX-License-Identifier: Apache-2.0
// The bag of a removal: what goes in comes out once, and not before the flush.

#include "pt/gather.h"

#include <gtest/gtest.h>

#include <set>

namespace stagetwo::pt {
namespace {

struct Page {
  int before = 0;
  GatherNode gather;
};

std::multiset<Page*> release_all(Gather& gather) {
  std::multiset<Page*> released;
  gather.release<Page, &Page::gather>([&](Page* page) { released.insert(page); });
  return released;
}

TEST(GatherTest, AnEmptyBagOwesNothing) {
  Gather gather;
  EXPECT_TRUE(gather.empty());
  EXPECT_FALSE(gather.flush_owed());
  EXPECT_TRUE(release_all(gather).empty());
}

TEST(GatherTest, TablesComeOutOnceAfterTheFlush) {
  Gather gather;
  Page a;
  Page b;
  gather.add_table(&a.gather, 512, 512);
  gather.add_table(&b.gather, 0, 512);
  EXPECT_EQ(gather.table_count(), 2U);
  ASSERT_TRUE(gather.flush_owed());
  EXPECT_EQ(gather.flush_start(), 0U);
  EXPECT_EQ(gather.flush_end(), 1024U);
  gather.flushed();
  EXPECT_FALSE(gather.empty());
  EXPECT_EQ(release_all(gather), (std::multiset<Page*>{&a, &b}));
  EXPECT_TRUE(gather.empty());
  EXPECT_TRUE(release_all(gather).empty());
}

TEST(GatherTest, ReleaseBeforeTheFlushEndsTheProcess) {
  EXPECT_DEATH(
      {
        Gather gather;
        Page page;
        gather.add_table(&page.gather, 0, 1);
        release_all(gather);
      },
      "flush_owed");
}

TEST(GatherTest, TheRangeIsTheHullSinceTheLastFlush) {
  Gather gather;
  gather.add_range(100, 1);
  gather.flushed();
  gather.add_range(7, 3);
  gather.add_range(20, 1);
  EXPECT_EQ(gather.flush_start(), 7U);
  EXPECT_EQ(gather.flush_end(), 21U);
  gather.flushed();
}

TEST(GatherTest, OneBagTakesAnother) {
  Gather all;
  Gather some;
  Page a;
  Page b;
  all.add_table(&a.gather, 4, 1);
  some.add_table(&b.gather, 9, 1);
  all.take(some);
  EXPECT_TRUE(some.empty());
  EXPECT_EQ(all.table_count(), 2U);
  EXPECT_EQ(all.flush_end(), 10U);
  all.flushed();
  EXPECT_EQ(release_all(all).size(), 2U);
}

}  // namespace
}  // namespace stagetwo::pt
