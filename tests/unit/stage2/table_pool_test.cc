// SPDX-License-Identifier: Apache-2.0
#include "stage2/table_pool.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

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

// Has the host given this page memory of its own? Asked without touching it, and not by mincore():
// that says yes to the page of zeros, too.
bool has_memory(const void* page) {
  constexpr u64 kPresent = u64{1} << 63;
  constexpr u64 kExclusive = u64{1} << 56;  // the page of zeros is everybody's
  static const int file = ::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  u64 word = 0;
  const auto at = static_cast<off_t>(reinterpret_cast<u64>(page) / kPageSize * sizeof(word));
  EXPECT_EQ(::pread(file, &word, sizeof(word), at), static_cast<ssize_t>(sizeof(word)));
  return (word & (kPresent | kExclusive)) == (kPresent | kExclusive);
}

TEST(TableCache, ALookThatOnlyMapsThePageOfZerosIsToldFromMemory) {
  void* const page =
      ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(page, MAP_FAILED);
  auto* const byte = static_cast<volatile char*>(page);
  EXPECT_FALSE(has_memory(page));
  EXPECT_EQ(*byte, 0);
  EXPECT_FALSE(has_memory(page));
  *byte = 1;
  EXPECT_TRUE(has_memory(page));
  ::munmap(page, kPageSize);
}

// A table whose memory came with the first look at it would cost every processor an interrupt at
// the first store, under a lock. So it is there before the fault takes any: what take() gives then
// is looked at before it is taken.
TEST(TableCache, WhatTheNextFaultMayTakeHasItsMemory) {
  TablePool pool;
  TableCache cache(pool);
  std::set<TablePage*> taken;
  for (int fault = 0; fault < 20; ++fault) {
    ASSERT_TRUE(cache.top_up());
    std::set<TablePage*> ready;
    pool.for_each([&](TablePage& page) {
      if (has_memory(page.entries)) ready.insert(&page);
    });
    for (unsigned i = 0; i < TableCache::kEnoughForAFault; ++i) {
      TablePage* const page = cache.take();
      EXPECT_TRUE(ready.contains(page)) << "fault " << fault << ", table " << i;
      EXPECT_TRUE(taken.insert(page).second) << "never used before: none comes back";
    }
  }
  for (TablePage* page : taken) cache.put_back(page);
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
