// SPDX-License-Identifier: Apache-2.0
#include "stage2/table_pool.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <set>

#include "base/alloc.h"
#include "base/failpoint.h"

namespace stagetwo::stage2 {
namespace {

TEST(TablePool, GivesEmptyTablesWhoseHeaderIsFoundFromTheEntries) {
  TablePool pool;
  std::set<TablePage*> seen;
  for (int i = 0; i < 600; ++i) {  // more than two chunks
    TablePage* page = pool.allocate();
    ASSERT_NE(page, nullptr);
    EXPECT_TRUE(seen.insert(page).second);
    EXPECT_EQ(reinterpret_cast<u64>(page->entries) % kPageSize, 0U);
    EXPECT_EQ(TablePage::of(page->entries), page);
    EXPECT_EQ(TablePage::of(page->entries + kTableEntries - 1), page);
    for (unsigned n = 0; n < kTableEntries; ++n) {
      ASSERT_EQ(page->entries[n].load(), Format::kNonpresent);
    }
  }
  EXPECT_EQ(pool.live(), 600U);
  for (TablePage* page : seen) pool.give_back(page);
  EXPECT_EQ(pool.live(), 0U);
}

TEST(TablePool, AUsedTableComesBackEmpty) {
  TablePool pool;
  TablePage* page = pool.allocate();
  ASSERT_NE(page, nullptr);
  page->entries[7].store(Format::kFrozen);
  page->nx_huge_page_disallowed.store(true);
  pool.give_back(page);
  TablePage* again = pool.allocate();
  EXPECT_EQ(again, page);
  EXPECT_EQ(again->entries[7].load(), Format::kNonpresent);
  EXPECT_FALSE(again->nx_huge_page_disallowed.load());
  pool.give_back(again);
}

TEST(TablePage, IsLookedThroughOnlyWhereSomethingWasPut) {
  TablePool pool;
  TablePage* page = pool.allocate();
  ASSERT_NE(page, nullptr);
  EXPECT_EQ(kTableEntries, page->next_used(0));
  const Word leaf = Format::make_leaf(0x1000, 1, {});
  for (const unsigned index : {3U, 100U, 101U, 511U}) {
    page->note_used(index);
    page->entries[index].store(leaf);
  }
  EXPECT_EQ(3U, page->next_used(0));
  EXPECT_EQ(100U, page->next_used(4));
  EXPECT_EQ(101U, page->next_used(101));
  EXPECT_EQ(511U, page->next_used(102));
  // What is empty is lowered when it is looked at, and only that.
  for (const unsigned index : {3U, 100U}) page->entries[index].store(Format::kNonpresent);
  EXPECT_EQ(101U, page->next_used(0));
  EXPECT_EQ(TablePage::line_of(100) | TablePage::line_of(511), page->used.load());
  pool.give_back(page);
  page = pool.allocate();
  EXPECT_EQ(0U, page->used.load());
  pool.give_back(page);
}

// A table whose memory came with the first look at it would cost every processor an interrupt at
// the first store.
TEST(TableCache, WhatTheNextFaultMayTakeHasItsMemory) {
  TablePool pool;
  TableCache cache(pool);
  for (int fault = 0; fault < 20; ++fault) {
    ASSERT_TRUE(cache.top_up());
    TablePage* taken[TableCache::kEnoughForAFault];
    for (TablePage*& page : taken) {
      page = cache.take();
      unsigned char present = 0;
      ASSERT_EQ(0, mincore(page->entries, kPageSize, &present));
      EXPECT_EQ(1, present & 1);
    }
    for (unsigned i = 1; i < TableCache::kEnoughForAFault; ++i) cache.put_back(taken[i]);
    taken[0]->entries[3].store(Format::kFrozen);
    cache.put_back(taken[0]);
  }
}

TEST(TableCache, HasEnoughForAFaultOrSaysSo) {
  const AllocUse before = alloc_use();
  {
    TablePool pool;
    TableCache cache(pool);
    ASSERT_TRUE(cache.top_up());
    EXPECT_GE(cache.count(), TableCache::kEnoughForAFault);
    while (cache.count() > 2) pool.give_back(cache.take());
    failpoint::arm("stage2.table_page", 1, failpoint::kForever);
    const auto refused = cache.top_up();
    EXPECT_FALSE(refused);
    EXPECT_EQ(to_int(refused.error()), ENOMEM);
    EXPECT_EQ(cache.count(), 2U);
    failpoint::disarm();
    EXPECT_TRUE(cache.top_up());
  }
  EXPECT_EQ(alloc_use().blocks, before.blocks);
  EXPECT_EQ(alloc_use().bytes, before.bytes);
}

TEST(TablePoolDeathTest, ATableThatIsStillListedIsNotTakenBack) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  TablePool pool;
  TablePage* page = pool.allocate();
  List<TablePage, &TablePage::possible_nx> list;
  list.push_back(page);
  EXPECT_DEATH(pool.give_back(page), "possible_nx");
  list.remove(page);
  pool.give_back(page);
}

}  // namespace
}  // namespace stagetwo::stage2
