// SPDX-License-Identifier: Apache-2.0
// Goal: KVM_SET_USER_MEMORY_REGION(2) refuses in the kernel's order and changes what it says.
// Method: each line of the order violated alone; each pair of lines that can be violated together;
// and random calls against the naive model of tests/support/slot_model.h. What a change does on its
// way is slot_changes_test.cc's.
#include "stage2/memslots.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "base/failpoint.h"
#include "tests/support/random_source.h"
#include "tests/support/slot_violations.h"
#include "tests/unit/stage2/slot_world.h"

namespace stagetwo::stage2 {
namespace {

using test::SlotModel;

// --- the order of the refusals ---

// One way to violate one line: what it does to the world and to the call.
struct Violation {
  int line;
  const char* how;
  std::function<void(World&, Region&)> make;
};

using test::BaseCall;
using test::kFileSlot;
using test::kThere;

constexpr u64 kHigh = u64{1} << 46;  // slot 8 lies here, beyond a lowered highest frame

void furnish(World& w) {
  for (const Region& region : test::furniture(w.model.memfd, kHigh)) w.good(region);
}

std::vector<Violation> violations() {
  std::vector<Violation> all = {
      {13, "accounting",
       [](World& w, Region& r) {
         r.size = 0;
         r.slot = kThere;
         w.set_total(3);
       }},
      {14, "total wraps", [](World& w, Region&) { w.set_total(~u64{0} - 3); }},
      {19, "no memory", [](World& w, Region&) { w.run_out_of_memory(); }},
      {22, "beyond the highest frame",
       [](World& w, Region& r) {
         w.lower_max_gfn((u64{1} << 30) - 1);
         if (r.gpa >> 42 == 0) r.gpa += u64{1} << 45;
       }},
      {23, "tracked move", [](World& w, Region&) { w.track_writes(); }},
  };
  for (const auto& one : test::region_violations(kHigh)) {
    all.push_back({one.line, one.how, [make = one.make](World&, Region& r) { make(r); }});
  }
  return all;
}

// Applies the violations to each base call and keeps the worlds in which all of them hold.
// Returns how many there were.
int expect_first_wins(const std::vector<const Violation*>& chosen) {
  int constructed = 0;
  for (const bool memfd : {false, true}) {
    for (const BaseCall base : test::kBaseCalls) {
      World w(memfd);
      furnish(w);
      Region region = test::base_call(base, memfd);
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
  test::name_memfd(&region, test::kMemfdForeign);
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
  test::name_memfd(&region, random.one_in(4)   ? test::kMemfdClosed
                            : random.one_in(4) ? test::kMemfdForeign
                                               : test::kMemfdGood);
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
