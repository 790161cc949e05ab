// SPDX-License-Identifier: Apache-2.0
// Goal: published trees never change, have the right contents, are balanced, and leak nothing.
// Method: random edits against a sorted map; every published set is kept and looked at again later.
#include "stage2/slot_tree.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "base/alloc.h"
#include "base/failpoint.h"
#include "tests/support/random_source.h"

namespace stagetwo::stage2 {
namespace {

Slot slot(u32 id, u64 gfn, u64 pages, u64 hva_page) {
  return Slot{id, 0, Gfn(gfn), pages, Hva(hva_page << kPageShift), nullptr};
}

void free_set(const SlotSet* set) {
  if (set == nullptr) return;
  for (const SlotNode* root : set->by_gfn) free_tree(root);
  free_tree(set->by_hva);
  destroy(const_cast<SlotSet*>(set));
}

unsigned depth(const SlotNode* node) {
  return node == nullptr ? 0 : 1 + std::max(depth(node->left), depth(node->right));
}

TEST(SlotTree, AnEmptyBuilderGivesAnEmptySet) {
  const AllocUse before = alloc_use();
  const SlotSet* set = nullptr;
  {
    SlotTreeBuilder builder(nullptr);
    set = builder.snapshot();
    ASSERT_NE(nullptr, set);
    builder.keep();
  }
  EXPECT_EQ(nullptr, find_containing(set->by_gfn[0], 0));
  EXPECT_EQ(nullptr, find_overlap(set->by_hva, 0, ~u64{0}));
  free_set(set);
  EXPECT_EQ(before.blocks, alloc_use().blocks);
}

TEST(SlotTree, ASnapshotDoesNotFollowLaterEdits) {
  const Slot a = slot(1, 10, 5, 100);
  const Slot b = slot(2, 20, 5, 100);
  const SlotSet* second = nullptr;
  {
    SlotTreeBuilder builder(nullptr);
    builder.insert_gfn(a);
    const SlotSet* first = builder.snapshot();
    builder.insert_gfn(b);
    builder.remove_gfn(a);
    second = builder.snapshot();
    ASSERT_NE(nullptr, second);
    EXPECT_NE(nullptr, find_containing(first->by_gfn[0], 12));
    EXPECT_EQ(nullptr, find_containing(first->by_gfn[0], 22));
    builder.keep();
  }
  EXPECT_EQ(nullptr, find_containing(second->by_gfn[0], 12));
  EXPECT_NE(nullptr, find_containing(second->by_gfn[0], 22));
  free_set(second);
}

TEST(SlotTree, OverlapLooksThroughAliasesAndCanSkipOne) {
  const Slot a = slot(1, 10, 5, 100);
  const Slot b = slot(2, 20, 50, 100);
  const SlotSet* set = nullptr;
  {
    SlotTreeBuilder builder(nullptr);
    builder.insert_hva(a);
    builder.insert_hva(b);
    set = builder.snapshot();
    builder.keep();
  }
  const u64 page = kPageSize;
  EXPECT_NE(nullptr, find_overlap(set->by_hva, 149 * page, 200 * page));
  EXPECT_EQ(nullptr, find_overlap(set->by_hva, 149 * page, 200 * page, 2));
  EXPECT_NE(nullptr, find_overlap(set->by_hva, 104 * page, 105 * page, 2));
  EXPECT_EQ(nullptr, find_overlap(set->by_hva, 150 * page, 200 * page));
  EXPECT_EQ(nullptr, find_overlap(set->by_hva, 0, 100 * page));
  free_set(set);
}

TEST(SlotTree, StaysShallowWhateverTheOrder) {
  std::vector<std::unique_ptr<Slot>> slots;
  const SlotSet* set = nullptr;
  for (u32 i = 0; i < 4096; ++i) {
    slots.push_back(std::make_unique<Slot>(slot(i, i, 1, i)));
    SlotTreeBuilder builder(set);
    builder.insert_gfn(*slots.back());
    set = builder.snapshot();
    ASSERT_NE(nullptr, set);
    builder.keep();
  }
  EXPECT_EQ(4096U, check_tree(set->by_gfn[0], true));
  EXPECT_LE(depth(set->by_gfn[0]), 40U);
  free_set(set);
}

// The state of one published set, told independently.
using Contents = std::map<u64, const Slot*>;

void expect_contents(const SlotSet* set, const Contents& contents) {
  ASSERT_EQ(contents.size(), check_tree(set == nullptr ? nullptr : set->by_gfn[0], true));
  for (const auto& [gfn, one] : contents) {
    const SlotNode* node = find_containing(set->by_gfn[0], gfn);
    ASSERT_NE(nullptr, node);
    ASSERT_EQ(one, node->slot);
  }
}

// What the hva tree leads to for one page: every slot that uses it, and no other.
void expect_users(const SlotSet* set, const Contents& contents, u64 page) {
  std::set<const Slot*> expected;
  for (const auto& [gfn, one] : contents) {
    if (one->hva.raw() == page << kPageShift) expected.insert(one);
  }
  std::set<const Slot*> found;
  for_each_overlap(set->by_hva, page << kPageShift, (page << kPageShift) + 1,
                   [&](const Slot& one) { found.insert(&one); });
  ASSERT_EQ(expected, found);
}

TEST(SlotTree, RandomEditsMatchASortedMapAndLeakNothing) {
  test::RandomSource random(test::announced_seed("SlotTree"));
  const AllocUse before = alloc_use();
  {
    std::vector<std::unique_ptr<Slot>> slots;
    const SlotSet* set = nullptr;
    Contents contents;
    for (u32 round = 0; round < 3000; ++round) {
      SlotTreeBuilder builder(set);
      Contents next = contents;
      const u64 gfn = random.below(200);
      const auto found = next.find(gfn);
      if (found == next.end()) {
        slots.push_back(std::make_unique<Slot>(slot(round, gfn, 1, random.below(50))));
        builder.insert_hva(*slots.back());
        const SlotSet* half = builder.snapshot();
        builder.insert_gfn(*slots.back());
        next[gfn] = slots.back().get();
        if (half != nullptr) expect_contents(half, contents);
      } else if (random.one_in(3)) {
        slots.push_back(std::make_unique<Slot>(*found->second));
        builder.replace_gfn(*slots.back());
        builder.replace_hva(*slots.back());
        found->second = slots.back().get();
      } else {
        builder.remove_gfn(*found->second);
        builder.remove_hva(*found->second);
        next.erase(found);
      }
      if (random.one_in(5)) failpoint::arm("stage2.slot_set", 1);  // this update is thrown away
      const SlotSet* made = builder.snapshot();
      failpoint::disarm();
      if (made == nullptr) continue;
      builder.keep();
      set = made;
      contents = next;
      if (round % 16 == 0) expect_contents(set, contents);
      ASSERT_EQ(contents.size(), check_tree(set->by_hva, false));
      expect_users(set, contents, random.below(50));
    }
    free_set(set);
  }
  EXPECT_EQ(before.blocks, alloc_use().blocks);
}

TEST(SlotTree, ABuilderWithoutMemoryGivesNoSet) {
  const AllocUse before = alloc_use();
  std::vector<std::unique_ptr<Slot>> slots;
  const SlotSet* set = nullptr;
  for (u32 i = 0; i < 64; ++i) {
    slots.push_back(std::make_unique<Slot>(slot(i, i * 2, 1, i)));
    SlotTreeBuilder builder(set);
    builder.insert_gfn(*slots.back());
    builder.insert_hva(*slots.back());
    set = builder.snapshot();
    builder.keep();
  }
  const Slot more = slot(100, 33, 1, 7);
  u64 refused = 0;
  for (u64 n = 1;; ++n) {
    failpoint::arm(nullptr, n);
    SlotTreeBuilder builder(set);
    builder.insert_gfn(more);
    builder.remove_gfn(*slots[20]);
    builder.replace_gfn(*slots[40]);
    builder.insert_hva(more);
    const SlotSet* made = builder.snapshot();
    failpoint::disarm();
    if (made != nullptr) break;
    ++refused;
    ASSERT_EQ(64U, check_tree(set->by_gfn[0], true));
    ASSERT_EQ(64U, check_tree(set->by_hva, false));
  }
  EXPECT_GT(refused, 10U);
  free_set(set);
  EXPECT_EQ(before.blocks, alloc_use().blocks);
}

TEST(DirtyBitmap, InitialBitsEndAtTheLastPage) {
  const auto made = DirtyBitmap::create(100);
  ASSERT_TRUE(made);
  (*made)->set_first(100);
  EXPECT_EQ(2U, (*made)->word_count);
  EXPECT_EQ(~u64{0}, (*made)->words[0].load());
  EXPECT_EQ((u64{1} << 36) - 1, (*made)->words[1].load());
  DirtyBitmap::destroy(*made);
}

}  // namespace
}  // namespace stagetwo::stage2
