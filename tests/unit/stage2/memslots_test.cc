// SPDX-License-Identifier: Apache-2.0
// Goal: KVM_SET_USER_MEMORY_REGION(2) refuses in the kernel's order and changes what it says.
// Method: each line of the order violated alone; each pair of lines that can be violated together;
// and random calls against the naive model of tests/support/slot_model.h.
#include "stage2/memslots.h"

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/failpoint.h"
#include "tests/support/random_source.h"
#include "tests/support/slot_model.h"

namespace stagetwo::stage2 {
namespace {

using test::SlotModel;

class RecordingHost final : public SlotUpdateHost {
 public:
  void close_range(HvaRange range) override {
    ++closed;
    last = range;
    log += "close ";
  }
  void zap_slot(const Slot& slot) override {
    EXPECT_EQ(last, slot.hvas());
    log += "zap ";
  }
  void zap_frames(u32 address_space, GfnRange frames) override {
    EXPECT_EQ(0U, address_space);
    zapped = frames;
    log += "frames ";
  }
  void logging_changed(const Slot& old, const Slot& fresh) override {
    EXPECT_NE(old.flags & kLogDirtyPages, fresh.flags & kLogDirtyPages);
    log += "logging ";
  }
  void generation_wraps() override {
    ++wraps;
    if (at_wrap) at_wrap();
  }
  void flush_and_wait() override {
    log += "flush ";
    if (at_flush) at_flush();
  }
  void open_range(HvaRange range) override {
    EXPECT_EQ(last, range);
    --closed;
    log += "open ";
  }
  int closed = 0;
  int wraps = 0;
  HvaRange last;
  GfnRange zapped;
  std::string log;
  std::function<void()> at_wrap;
  std::function<void()> at_flush;
};

class Binder final : public MemfdBinder {
 public:
  Result<void> bind(const Slot&, int memfd, u64) override {
    if (memfd == test::kMemfdClosed) return refuse(EBADF);
    if (memfd == test::kMemfdForeign) return refuse(EINVAL);
    ++bound;
    return {};
  }
  void unbind(const Slot&) override { --bound; }
  int bound = 0;
};

// A world of slots and its model, side by side.
struct World {
  RecordingHost host;
  Binder binder;
  SlotModel model;
  std::unique_ptr<Memslots> slots;

  explicit World(bool memfd = false, u32 spaces = 1) {
    model.memfd = memfd;
    model.spaces = spaces;
    SlotPolicy policy;
    policy.address_spaces = spaces;
    policy.max_gfn = model.max_gfn;
    policy.binder = memfd ? &binder : nullptr;
    slots = std::make_unique<Memslots>(&host, policy);
    EXPECT_TRUE(slots->init());
  }
  ~World() {
    failpoint::disarm();
    slots.reset();
    EXPECT_EQ(0, host.closed);
  }
  int set(const Region& region) {
    const auto done = slots->set_region(region);
    return done ? 0 : to_int(done.error());
  }
  // A call that must succeed, made to both.
  void good(const Region& region) {
    ASSERT_EQ(0, model.first_line(region));
    ASSERT_EQ(0, set(region));
    model.apply(region);
  }
  void lower_max_gfn(u64 max_gfn) {
    model.max_gfn = max_gfn;
    slots->set_max_gfn(max_gfn);
  }
  void track_writes() {
    model.tracked = true;
    slots->set_write_tracked(true);
  }
  void set_total(u64 pages) {
    model.total = pages;
    slots->debug_set_total_pages(pages);
  }
  void run_out_of_memory() {
    model.no_memory = true;
    failpoint::arm(nullptr, 1, failpoint::kForever);
  }
};

constexpr u64 kMiB = 1 << 20;
constexpr u64 kHva = 0x7f0000000000;

Region plain(u32 slot, u64 gpa, u64 size = 16 * 4096, u64 hva = kHva, u32 flags = 0) {
  Region region;
  region.slot = slot;
  region.flags = flags;
  region.gpa = gpa;
  region.size = size;
  region.hva = hva;
  return region;
}
Region erase(u32 slot) {
  return plain(slot, 0, 0, 0);
}

// --- what a call does ---

TEST(Memslots, AFrameIsFoundInItsSlotAndNowhereElse) {
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

TEST(Memslots, HvaIsJudgedByLegalityNotByExistence) {
  World w;
  EXPECT_EQ(0, w.set(plain(0, 0, 4096, 0)));
  EXPECT_EQ(0, w.set(plain(1, kMiB, 4096, 0x123000)));
  EXPECT_EQ(EINVAL, w.set(plain(2, 2 * kMiB, 4096, u64{1} << 63)));
  EXPECT_EQ(EINVAL, w.set(plain(2, 2 * kMiB, 4096, u64{1} << 47)));
  EXPECT_EQ(EINVAL, w.set(plain(2, 2 * kMiB, 8192, 0x7fffffffe000)));
  EXPECT_EQ(0, w.set(plain(2, 2 * kMiB, 4096, 0x7fffffffe000)));
}

TEST(Memslots, TheHighestFrameIsThePolicys) {
  World w;
  w.lower_max_gfn((u64{1} << 40) - 1);
  EXPECT_EQ(0, w.set(plain(0, u64{1} << 48)));
  EXPECT_EQ(EINVAL, w.set(plain(1, u64{1} << 52)));
}

TEST(Memslots, DeleteIgnoresNothing) {
  World w;
  w.good(plain(0, 0));
  Region region = erase(0);
  region.hva = 1;
  EXPECT_EQ(EINVAL, w.set(region));
  region = erase(0);
  region.gpa = 1;
  EXPECT_EQ(EINVAL, w.set(region));
  region = erase(0);
  region.memfd = -1;
  EXPECT_EQ(0, w.set(region));
  EXPECT_EQ(0U, w.slots->count());
}

TEST(Memslots, DeletePublishesInvalidBeforeItFlushesAndRemovesAfter) {
  World w;
  w.good(plain(0, 0));
  w.host.at_flush = [&] {
    const Memslots::Reader reader(*w.slots);
    const Slot* slot = reader.find(0, Gfn(0));
    ASSERT_NE(nullptr, slot);  // never "no slot" while a translation may live
    EXPECT_EQ(kInvalid, slot->flags & kInvalid);
  };
  w.good(erase(0));
  EXPECT_EQ("close zap flush open ", w.host.log);
  const Memslots::Reader reader(*w.slots);
  EXPECT_EQ(nullptr, reader.find(0, Gfn(0)));
}

TEST(Memslots, MoveKeepsTheHvaAndLeavesTheOldPlaceEmpty) {
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

TEST(Memslots, MoveOntoItsOwnOldPlaceIsLegal) {
  World w;
  w.good(plain(0, 0));
  w.good(plain(0, 4096));
  w.slots->check_world();
}

TEST(Memslots, MoveMayChangeLoggingInTheSameCall) {
  World w;
  w.good(plain(0, 0));
  w.good(plain(0, kMiB, 16 * 4096, kHva, kLogDirtyPages));
  const Memslots::Reader reader(*w.slots);
  EXPECT_NE(nullptr, reader.find(0, Gfn(0x100))->dirty);
}

TEST(Memslots, CreateNeedsNoFlush) {
  World w;
  w.good(plain(0, 0));
  EXPECT_EQ("", w.host.log);
}

TEST(Memslots, FlagsChangeClosesTheRangeAroundThePublication) {
  World w;
  w.good(plain(0, 0));
  w.good(plain(0, 0, 16 * 4096, kHva, kLogDirtyPages));
  EXPECT_EQ("close logging flush open ", w.host.log);
  w.good(plain(0, 0));
  const Memslots::Reader reader(*w.slots);
  EXPECT_EQ(nullptr, reader.find(0, Gfn(0))->dirty);
}

TEST(Memslots, AnIdenticalReissueDoesNothing) {
  World w;
  w.good(plain(0, 0));
  const u64 generation = w.slots->generation();
  EXPECT_EQ(0, w.set(plain(0, 0)));
  EXPECT_EQ("", w.host.log);
  EXPECT_EQ(generation, w.slots->generation());
}

TEST(Memslots, AnIdenticalReissueOfAFileSlotIsRefused) {
  World w(true);
  Region region = plain(0, 0, 4096, kHva, kGuestMemfd);
  region.memfd = test::kMemfdGood;
  w.good(region);
  EXPECT_EQ(EINVAL, w.set(region));
  EXPECT_EQ(1, w.binder.bound);
  region = erase(0);
  region.flags = kGuestMemfd;
  w.good(region);
  EXPECT_EQ(0, w.binder.bound);
}

TEST(Memslots, AliasesOfOneHvaAreAllFound) {
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

TEST(Memslots, AHostRangeLeadsToTheFramesOfEveryAlias) {
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

TEST(Memslots, AHostRangeLeadsToTheOldFramesUntilAMoveHasFlushed) {
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

TEST(Memslots, TwoAddressSpacesDoNotMeet) {
  World w(false, 2);
  w.good(plain(0, 0));
  w.good(plain(1 << 16, 0));
  EXPECT_EQ(EINVAL, w.set(plain(2 << 16, 0)));
  const Memslots::Reader reader(*w.slots);
  EXPECT_EQ(0U, reader.find(0, Gfn(0))->id);
  EXPECT_EQ(1U << 16, reader.find(1, Gfn(0))->id);
}

TEST(Memslots, EveryUpdateHasItsOwnGeneration) {
  World w;
  u64 last = w.slots->generation();
  for (const Region& region : {plain(0, 0), plain(0, kMiB), erase(0)}) {
    w.good(region);
    EXPECT_GT(w.slots->generation(), last);
    last = w.slots->generation();
  }
}

TEST(Memslots, AnUpdateUnderWayMatchesNoGeneration) {
  World w;
  w.good(plain(0, 0));
  EXPECT_EQ(0U, w.slots->generation() & kUpdateInProgress);
  w.host.at_flush = [&] { EXPECT_NE(0U, w.slots->generation() & kUpdateInProgress); };
  w.good(erase(0));
  EXPECT_EQ(0U, w.slots->generation() & kUpdateInProgress);
}

TEST(Memslots, TheWrapOfAGenerationIsToldOnceAndBeforeTheNewNumberCounts) {
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

TEST(Memslots, AllIdsCanBeTakenAndTheNextIsRefused) {
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

// --- the order of the refusals ---

// One way to violate one line: what it does to the world and to the call.
struct Violation {
  int line;
  const char* how;
  std::function<void(World&, Region&)> make;
};

// The call the violations are applied to.
enum class Base { kCreate, kDelete, kModify };

constexpr u32 kThere = 5;            // a plain slot at 1 MiB
constexpr u32 kFileSlot = 6;         // a guest_memfd slot at 2 MiB
constexpr u64 kHigh = u64{1} << 46;  // slot 8 lies here, beyond a lowered highest frame

void furnish(World& w) {
  w.good(plain(kThere, kMiB));
  w.good(plain(8, kHigh));
  Region file = plain(kFileSlot, 2 * kMiB, 16 * 4096, kHva + kMiB, kGuestMemfd);
  file.memfd = test::kMemfdGood;
  if (w.model.memfd) w.good(file);
}

Region base_call(Base base, bool memfd) {
  Region region = base == Base::kCreate   ? plain(1, 16 * kMiB)
                  : base == Base::kDelete ? erase(kThere)
                                          : plain(kThere, 17 * kMiB);
  region.memfd = memfd ? test::kMemfdGood : -1;
  return region;
}

std::vector<Violation> violations() {
  const auto with_file = [](Region& r) { r.flags |= kGuestMemfd; };
  return {
      {2, "old ioctl, unknown flag",
       [](World&, Region& r) {
         r.first_version = true;
         r.flags |= 8;
       }},
      {2, "old ioctl, file flag",
       [=](World&, Region& r) {
         r.first_version = true;
         with_file(r);
       }},
      {3, "id", [](World&, Region& r) { r.slot = (r.slot & ~0xffffU) | kUserSlots; }},
      {4, "unknown flag", [](World&, Region& r) { r.flags |= 16; }},
      {4, "file and logging",
       [=](World&, Region& r) {
         with_file(r);
         r.flags |= kLogDirtyPages;
       }},
      {4, "file and read-only",
       [=](World&, Region& r) {
         with_file(r);
         r.flags |= kReadonly;
       }},
      {4, "internal flag", [](World&, Region& r) { r.flags |= kInvalid; }},
      {5, "size", [](World&, Region& r) { r.size += 1; }},
      {6, "gpa", [](World&, Region& r) { r.gpa |= 8; }},
      {7, "hva alignment", [](World&, Region& r) { r.hva |= 16; }},
      {7, "hva in the kernel's half", [](World&, Region& r) { r.hva = u64{0xffff8} << 44; }},
      {8, "file offset",
       [=](World&, Region& r) {
         with_file(r);
         r.memfd_offset = 4095;
       }},
      {8, "file offset wraps",
       [=](World&, Region& r) {
         with_file(r);
         r.memfd_offset = ~u64{0} & kPageMask;
         r.size += 4096;
       }},
      {9, "address space", [](World&, Region& r) { r.slot |= 1U << 16; }},
      {10, "gpa wraps", [](World&, Region& r) { r.gpa = (~u64{0} & kPageMask) | (r.gpa & 0xfff); }},
      {11, "pages",
       [](World&, Region& r) {
         r.size += u64{1} << 43;
         r.hva &= 0xffff000000000fff;
       }},
      {12, "no such slot",
       [](World&, Region& r) {
         r.slot = (r.slot & ~0xffffU) | 77;
         r.size = 0;
       }},
      {13, "accounting",
       [](World& w, Region& r) {
         r.size = 0;
         r.slot = kThere;
         w.set_total(3);
       }},
      {14, "total wraps", [](World& w, Region&) { w.set_total(~u64{0} - 3); }},
      {15, "file flag on a slot",
       [=](World&, Region& r) {
         r.slot = kThere;
         with_file(r);
       }},
      {15, "file slot again",
       [=](World& w, Region& r) {
         if (!w.model.memfd) return;
         r = plain(kFileSlot, 2 * kMiB, 16 * 4096, kHva + kMiB, kGuestMemfd);
         r.memfd = test::kMemfdGood;
       }},
      {16, "other hva",
       [](World&, Region& r) {
         r.slot = kThere;
         r.hva += 4096;
       }},
      {16, "other size",
       [](World&, Region& r) {
         r.slot = kThere;
         r.size += 4096;
       }},
      {16, "read-only toggles",
       [](World&, Region& r) {
         r.slot = kThere;
         r.flags ^= kReadonly;
       }},
      {17, "identical", [](World&, Region& r) { r = plain(kThere, kMiB); }},
      {18, "overlap", [](World&, Region& r) { r.gpa = kHigh | (r.gpa & 0xfff); }},
      {19, "no memory", [](World& w, Region&) { w.run_out_of_memory(); }},
      {20, "file not open",
       [=](World&, Region& r) {
         with_file(r);
         r.memfd = test::kMemfdClosed;
       }},
      {21, "not its file",
       [=](World&, Region& r) {
         with_file(r);
         r.memfd = test::kMemfdForeign;
       }},
      {22, "beyond the highest frame",
       [](World& w, Region& r) {
         w.lower_max_gfn((u64{1} << 30) - 1);
         if (r.gpa >> 42 == 0) r.gpa += u64{1} << 45;
       }},
      {23, "tracked move", [](World& w, Region&) { w.track_writes(); }},
  };
}

// Applies the violations to each base call and keeps the worlds in which all of them hold.
// Returns how many there were.
int expect_first_wins(const std::vector<const Violation*>& chosen) {
  int constructed = 0;
  for (const bool memfd : {false, true}) {
    for (const Base base : {Base::kCreate, Base::kDelete, Base::kModify}) {
      World w(memfd);
      furnish(w);
      Region region = base_call(base, memfd);
      for (const Violation* one : chosen) one->make(w, region);
      bool all = true;
      for (const Violation* one : chosen) all &= w.model.violates(one->line, region);
      if (!all) continue;
      const int line = w.model.first_line(region);
      // Another line may hold as well and come first; then it is that one's pair.
      bool mine = false;
      for (const Violation* one : chosen) mine |= one->line == line;
      if (!mine) continue;
      ++constructed;
      const u64 generation = w.slots->generation();
      const u32 count = w.slots->count();
      EXPECT_EQ(SlotModel::errno_of(line), w.set(region))
          << "line " << line << ", " << chosen.front()->how << " and " << chosen.back()->how;
      failpoint::disarm();
      if (line < 19) {
        EXPECT_EQ(line, int{w.slots->debug_verdict(region).line});
      }
      EXPECT_EQ(generation, w.slots->generation());
      EXPECT_EQ(count, w.slots->count());
      EXPECT_EQ(0, w.host.closed);
      if (w.model.total < 1000) w.slots->debug_set_total_pages(1000);
      w.slots->check_world();
    }
  }
  return constructed;
}

class SlotOrder : public testing::TestWithParam<int> {};

TEST_P(SlotOrder, TheLineAloneGivesItsErrnoAndChangesNothing) {
  const int line = GetParam();
  const std::vector<Violation> all = violations();
  int constructed = 0;
  for (const Violation& one : all) {
    if (one.line == line) constructed += expect_first_wins({&one});
  }
  EXPECT_GT(constructed, 0);
}
INSTANTIATE_TEST_SUITE_P(Line, SlotOrder, testing::Range(2, 24));

TEST(SlotOrderPairs, OfTwoViolatedLinesTheEarlierAnswers) {
  const std::vector<Violation> all = violations();
  int pairs = 0;
  for (int early = 2; early <= 23; ++early) {
    for (int late = early + 1; late <= 23; ++late) {
      int constructed = 0;
      for (const Violation& a : all) {
        for (const Violation& b : all) {
          if (a.line != early || b.line != late) continue;
          constructed += expect_first_wins({&a, &b});
          constructed += expect_first_wins({&b, &a});
        }
      }
      pairs += constructed > 0;
    }
  }
  std::printf("%d of 231 pairs can be violated together\n", pairs);
  EXPECT_GE(pairs, 168);
}

TEST(SlotOrderPairs, AnOverlapComesBeforeTheFile) {
  World w(true);
  furnish(w);
  Region region = plain(1, kMiB, 4096, kHva, kGuestMemfd);
  region.memfd = test::kMemfdForeign;
  EXPECT_EQ(EEXIST, w.set(region));
  region.gpa = 3 * kMiB;
  EXPECT_EQ(EINVAL, w.set(region));
}

// --- against the model ---

Region random_region(test::RandomSource& random, const SlotModel& model) {
  Region region;
  region.slot = random.small(12) + (random.one_in(20) ? 32760 : 0);
  if (random.one_in(8)) region.slot |= random.small(3) << 16;
  region.gpa = random.below(64) * 4096;
  region.size = random.one_in(4) ? 0 : (1 + random.below(12)) * 4096;
  region.hva = kHva + random.below(32) * 4096;
  if (random.one_in(3)) region.flags = random.small(8);
  if (random.one_in(30)) region.flags |= 1U << random.small(20);
  const auto known = model.slots.find(region.slot);
  if (known != model.slots.end() && !random.one_in(4)) {
    region.hva = known->second.hva;
    if (region.size != 0) region.size = known->second.pages * 4096;
    if (random.one_in(2)) region.gpa = known->second.gfn * 4096;
  }
  region.first_version = random.one_in(3);
  region.memfd = random.one_in(4)   ? test::kMemfdClosed
                 : random.one_in(4) ? test::kMemfdForeign
                                    : test::kMemfdGood;
  for (u64* field : {&region.gpa, &region.size, &region.hva, &region.memfd_offset}) {
    if (random.one_in(40)) *field ^= u64{1} << random.small(64);
  }
  return region;
}

void expect_same(const World& w) {
  const Memslots::Reader reader(*w.slots);
  for (u32 space = 0; space < w.model.spaces; ++space) {
    for (u64 gfn = 0; gfn < 80; ++gfn) {
      const Slot* found = reader.find(space, Gfn(gfn));
      const test::ModelSlot* expected = nullptr;
      for (const auto& [id, slot] : w.model.slots) {
        if (id >> 16 == space && gfn >= slot.gfn && gfn < slot.gfn + slot.pages) expected = &slot;
      }
      ASSERT_EQ(expected == nullptr, found == nullptr) << gfn;
      if (expected == nullptr) continue;
      ASSERT_EQ(expected->hva + (gfn - expected->gfn) * 4096, found->gfn_to_hva(Gfn(gfn)).raw());
      ASSERT_EQ(expected->flags, found->flags);
    }
  }
  for (u64 page = 0; page < 50; ++page) {
    const u64 hva = kHva + page * 4096;
    bool expected = false;
    for (const auto& [id, slot] : w.model.slots) {
      expected |= hva >= slot.hva && hva < slot.hva + slot.pages * 4096;
    }
    ASSERT_EQ(expected, reader.overlaps(HvaRange(Hva(hva), 4096)));
  }
}

TEST(MemslotsModel, RandomCallsAnswerAndActAsTheModel) {
  test::RandomSource random(test::announced_seed("MemslotsModel"));
  const test::Deadline deadline(1.0 / 3);
  u64 calls = 0;
  u64 done = 0;
  while (deadline.running()) {
    World w(random.one_in(2), 1 + random.small(2));
    for (int i = 0; i < 200; ++i, ++calls) {
      const Region region = random_region(random, w.model);
      const int line = w.model.first_line(region);
      ASSERT_EQ(SlotModel::errno_of(line), w.set(region)) << "line " << line;
      if (line == 0) {
        w.model.apply(region);
        ++done;
      }
      if (i % 10 == 0) {
        w.slots->check_world();
        expect_same(w);
      }
    }
  }
  std::printf("%llu calls, %llu changes\n", static_cast<unsigned long long>(calls),
              static_cast<unsigned long long>(done));
}

TEST(MemslotsMemory, ARefusedCallLeavesTheWorldAndNoBlockBehind) {
  const AllocUse before = alloc_use();
  {
    World w(true);
    furnish(w);
    const std::vector<Region> calls = {plain(20, 64 * kMiB), plain(kThere, 65 * kMiB),
                                       plain(kThere, kMiB, 16 * 4096, kHva, kLogDirtyPages),
                                       erase(8)};
    for (const Region& call : calls) {
      u64 n = 1;
      for (int answer = ENOMEM; answer != 0; ++n) {
        const u64 generation = w.slots->generation();
        failpoint::arm(nullptr, n);
        answer = w.set(call);
        failpoint::disarm();
        ASSERT_TRUE(answer == 0 || answer == ENOMEM) << answer;
        if (answer != 0) {
          EXPECT_EQ(generation, w.slots->generation());
        }
        w.slots->check_world();
      }
      EXPECT_GT(n, 3U);
    }
  }
  EXPECT_EQ(before.blocks, alloc_use().blocks);
  EXPECT_EQ(before.bytes, alloc_use().bytes);
}

}  // namespace
}  // namespace stagetwo::stage2
