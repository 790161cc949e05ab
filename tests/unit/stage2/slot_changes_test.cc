// SPDX-License-Identifier: Apache-2.0
// Goal: what a change of slots does, step by step, and what readers see meanwhile. Method: the
// world around the slots writes down what it is asked and looks at the slots at that moment.
#include <gtest/gtest.h>

#include <map>

#include "stage2/memslots.h"
#include "tests/unit/stage2/slot_world.h"

namespace stagetwo::stage2 {
namespace {

TEST(SlotChanges, AFrameIsFoundInItsSlotAndNowhereElse) {
  World w;
  w.good(plain(3, kMiB));
  const Memslots::Reader reader(*w.slots);
  const Slot* slot = reader.find(0, Gfn(0x100));
  ASSERT_NE(nullptr, slot);
  EXPECT_EQ(slot, reader.find(0, Gfn(0x10f)));
  EXPECT_EQ(Hva(kHva + 0xf000), slot->gfn_to_hva(Gfn(0x10f)));
  EXPECT_EQ(nullptr, reader.find(0, Gfn(0xff)));
  EXPECT_EQ(nullptr, reader.find(0, Gfn(0x110)));
  EXPECT_EQ(nullptr, reader.find(1, Gfn(0x100)));
}

TEST(SlotChanges, HvaIsJudgedByLegalityNotByExistence) {
  World w;
  EXPECT_EQ(0, w.set(plain(0, 0, 4096, 0)));
  EXPECT_EQ(0, w.set(plain(1, kMiB, 4096, 0x123000)));
  EXPECT_EQ(EINVAL, w.set(plain(2, 2 * kMiB, 4096, u64{1} << 63)));
  EXPECT_EQ(EINVAL, w.set(plain(2, 2 * kMiB, 4096, u64{1} << 47)));
  EXPECT_EQ(EINVAL, w.set(plain(2, 2 * kMiB, 8192, 0x7fffffffe000)));
  EXPECT_EQ(0, w.set(plain(2, 2 * kMiB, 4096, 0x7fffffffe000)));
}

TEST(SlotChanges, TheHighestFrameIsThePolicys) {
  World w;
  w.lower_max_gfn((u64{1} << 40) - 1);
  EXPECT_EQ(0, w.set(plain(0, u64{1} << 48)));
  EXPECT_EQ(EINVAL, w.set(plain(1, u64{1} << 52)));
}

TEST(SlotChanges, DeleteIgnoresNothing) {
  World w;
  w.good(plain(0, 0));
  Region region = erase(0);
  region.hva = 1;
  EXPECT_EQ(EINVAL, w.set(region));
  region = erase(0);
  region.gpa = 1;
  EXPECT_EQ(EINVAL, w.set(region));
  region = erase(0);
  test::name_memfd(&region, test::kMemfdClosed);
  EXPECT_EQ(0, w.set(region));
  EXPECT_EQ(0U, w.slots->count());
}

TEST(SlotChanges, DeletePublishesInvalidBeforeItFlushesAndRemovesAfter) {
  World w;
  w.good(plain(0, 0));
  w.host.at_flush = [&] {
    const Memslots::Reader reader(*w.slots);
    const Slot* slot = reader.find(0, Gfn(0));
    ASSERT_NE(nullptr, slot);  // never "no slot" while a translation may live
    EXPECT_EQ(kInvalid, slot->flags & kInvalid);
  };
  w.host.log.clear();
  w.good(erase(0));
  EXPECT_EQ("close zap flush open changed ", w.host.log);
  const Memslots::Reader reader(*w.slots);
  EXPECT_EQ(nullptr, reader.find(0, Gfn(0)));
}

TEST(SlotChanges, MoveKeepsTheHvaAndLeavesTheOldPlaceEmpty) {
  World w;
  w.good(plain(0, 0));
  w.host.at_flush = [&] {
    const Memslots::Reader reader(*w.slots);
    EXPECT_EQ(kInvalid, reader.find(0, Gfn(0))->flags & kInvalid);
    EXPECT_EQ(nullptr, reader.find(0, Gfn(0x100)));
  };
  w.good(plain(0, kMiB));
  const Memslots::Reader reader(*w.slots);
  EXPECT_EQ(nullptr, reader.find(0, Gfn(0)));
  EXPECT_EQ(Hva(kHva), reader.find(0, Gfn(0x100))->hva);
}

TEST(SlotChanges, MoveOntoItsOwnOldPlaceIsLegal) {
  World w;
  w.good(plain(0, 0));
  w.good(plain(0, 4096));
  w.slots->check_world();
}

TEST(SlotChanges, MoveMayChangeLoggingInTheSameCall) {
  World w;
  w.good(plain(0, 0));
  w.good(plain(0, kMiB, 16 * 4096, kHva, kLogDirtyPages));
  const Memslots::Reader reader(*w.slots);
  EXPECT_NE(nullptr, reader.find(0, Gfn(0x100))->dirty);
}

TEST(SlotChanges, CreateNeedsNoFlush) {
  World w;
  w.good(plain(0, 0));
  EXPECT_EQ("changed ", w.host.log);
}

TEST(SlotChanges, FlagsChangeClosesTheRangeAroundThePublication) {
  World w;
  w.good(plain(0, 0));
  w.host.log.clear();
  w.good(plain(0, 0, 16 * 4096, kHva, kLogDirtyPages));
  EXPECT_EQ("close logging flush open changed ", w.host.log);
  w.good(plain(0, 0));
  const Memslots::Reader reader(*w.slots);
  EXPECT_EQ(nullptr, reader.find(0, Gfn(0))->dirty);
}

TEST(SlotChanges, AnIdenticalReissueDoesNothing) {
  World w;
  w.good(plain(0, 0));
  const u64 generation = w.slots->generation();
  w.host.log.clear();
  EXPECT_EQ(0, w.set(plain(0, 0)));
  EXPECT_EQ("", w.host.log);
  EXPECT_EQ(generation, w.slots->generation());
}

TEST(SlotChanges, AnIdenticalReissueOfAFileSlotIsRefused) {
  World w(true);
  Region region = plain(0, 0, 4096, kHva, kGuestMemfd);
  test::name_memfd(&region, test::kMemfdGood);
  w.good(region);
  EXPECT_EQ(EINVAL, w.set(region));
  EXPECT_EQ(1, w.binder.bound);
  region = erase(0);
  region.flags = kGuestMemfd;
  w.good(region);
  EXPECT_EQ(0, w.binder.bound);
}

TEST(SlotChanges, AliasesOfOneHvaAreAllFound) {
  World w;
  for (u32 i = 0; i < 20; ++i) w.good(plain(i, i * kMiB));
  w.good(erase(7));
  {
    const Memslots::Reader reader(*w.slots);
    EXPECT_TRUE(reader.overlaps(HvaRange(Hva(kHva + 0xf000), 4096)));
    EXPECT_FALSE(reader.overlaps(HvaRange(Hva(kHva + 0x10000), 4096)));
    EXPECT_FALSE(reader.overlaps(HvaRange(Hva(kHva - 4096), 4096)));
  }
  for (u32 i = 0; i < 20; ++i) {
    if (i != 7) w.good(erase(i));
  }
  const Memslots::Reader reader(*w.slots);
  EXPECT_FALSE(reader.overlaps(HvaRange(Hva(kHva), 0x10000)));
}

// The frames that use [start, start + bytes) of the host, by slot.
std::map<u32, GfnRange> users(const Memslots& slots, u64 start, u64 bytes) {
  std::map<u32, GfnRange> found;
  const Memslots::Reader reader(slots);
  reader.for_each_user(HvaRange(Hva(start), bytes), [&](const Slot& slot, GfnRange frames) {
    EXPECT_TRUE(found.emplace(slot.id, frames).second);
  });
  return found;
}

TEST(SlotChanges, AHostRangeLeadsToTheFramesOfEveryAlias) {
  World w(false, 2);
  w.good(plain(0, 0));                                 // 16 pages
  w.good(plain(1, kMiB, 4 * 4096, kHva + 4 * 4096));   // pages 4 to 8 of the same
  w.good(plain(1 << 16, 2 * kMiB));                    // in the other address space
  w.good(plain(2, 4 * kMiB, 4096, kHva + 16 * 4096));  // behind
  EXPECT_EQ(
      (std::map<u32, GfnRange>{{0, {Gfn(5), 2}}, {1, {Gfn(0x101), 2}}, {1 << 16, {Gfn(0x205), 2}}}),
      users(*w.slots, kHva + 5 * 4096, 2 * 4096));
  // Cut at both ends of each slot; a page touched in part is a page.
  EXPECT_EQ((std::map<u32, GfnRange>{
                {0, {Gfn(15), 1}}, {1 << 16, {Gfn(0x20f), 1}}, {2, {Gfn(0x400), 1}}}),
            users(*w.slots, kHva + 16 * 4096 - 1, 2));
  EXPECT_TRUE(users(*w.slots, kHva - 4096, 4096).empty());
}

TEST(SlotChanges, AHostRangeLeadsToTheOldFramesUntilAMoveHasFlushed) {
  World w;
  w.good(plain(0, 0));
  w.host.at_flush = [&] {
    EXPECT_EQ((std::map<u32, GfnRange>{{0, {Gfn(0), 16}}}), users(*w.slots, kHva, 16 * 4096));
  };
  w.good(plain(0, kMiB));
  EXPECT_EQ((std::map<u32, GfnRange>{{0, {Gfn(0x100), 16}}}), users(*w.slots, kHva, 16 * 4096));
  w.host.at_flush = nullptr;
  w.good(plain(0, kMiB, 16 * 4096, kHva, kLogDirtyPages));
  const Memslots::Reader reader(*w.slots);
  reader.for_each_user(HvaRange(Hva(kHva), 1),
                       [&](const Slot& slot, GfnRange) { EXPECT_NE(nullptr, slot.dirty); });
}

TEST(SlotChanges, TwoAddressSpacesDoNotMeet) {
  World w(false, 2);
  w.good(plain(0, 0));
  w.good(plain(1 << 16, 0));
  EXPECT_EQ(EINVAL, w.set(plain(2 << 16, 0)));
  const Memslots::Reader reader(*w.slots);
  EXPECT_EQ(0U, reader.find(0, Gfn(0))->id);
  EXPECT_EQ(1U << 16, reader.find(1, Gfn(0))->id);
}

TEST(SlotChanges, EveryUpdateHasItsOwnGeneration) {
  World w;
  u64 last = w.slots->generation();
  for (const Region& region : {plain(0, 0), plain(0, kMiB), erase(0)}) {
    w.good(region);
    EXPECT_GT(w.slots->generation(), last);
    last = w.slots->generation();
  }
}

TEST(SlotChanges, AnUpdateUnderWayMatchesNoGeneration) {
  World w;
  w.good(plain(0, 0));
  EXPECT_EQ(0U, w.slots->generation() & kUpdateInProgress);
  w.host.at_flush = [&] { EXPECT_NE(0U, w.slots->generation() & kUpdateInProgress); };
  w.good(erase(0));
  EXPECT_EQ(0U, w.slots->generation() & kUpdateInProgress);
}

TEST(SlotChanges, TheWrapOfAGenerationIsToldOnceAndBeforeTheNewNumberCounts) {
  World w;
  w.slots->debug_set_generation(kMmioGenerationMask + 1 - 2 * kMaxAddressSpaces);
  w.good(plain(0, 0));
  EXPECT_EQ(0, w.host.wraps);
  w.host.at_wrap = [&] { EXPECT_NE(0U, w.slots->generation() & kUpdateInProgress); };
  w.good(plain(1, kMiB));
  EXPECT_EQ(1, w.host.wraps);
  EXPECT_EQ(0U, w.slots->generation() & kMmioGenerationMask);
  w.good(erase(1));
  EXPECT_EQ(1, w.host.wraps);
}

TEST(SlotChanges, AllIdsCanBeTakenAndTheNextIsRefused) {
  World w;
  for (u32 i = 0; i < kUserSlots; ++i) {
    ASSERT_EQ(0, w.set(plain(i, u64{i} * 4096, 4096, kHva + u64{i} * 4096))) << i;
  }
  EXPECT_EQ(EINVAL, w.set(plain(kUserSlots, u64{kUserSlots} * 4096, 4096)));
  EXPECT_EQ(EEXIST, w.set(plain(0, 4096, 4096, kHva)));
  w.slots->check_world();
  const Memslots::Reader reader(*w.slots);
  for (u32 i = 0; i < kUserSlots; i += 97) ASSERT_EQ(i, reader.find(0, Gfn(i))->id);
}

}  // namespace
}  // namespace stagetwo::stage2
