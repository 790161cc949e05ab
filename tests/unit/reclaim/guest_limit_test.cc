// SPDX-License-Identifier: Apache-2.0
// Goal: a limit of one guest's own is kept as the process's is: what it uses least goes, and what
// is kept compressed of it counts.
#include "reclaim/reclaim.h"
#include "tests/support/reclaimed_guest.h"

namespace stagetwo {
namespace {

using test::kMiB;
constexpr size_t kPages = 2048;  // 8 MiB

class GuestLimit : public test::ReclaimedGuest {
 protected:
  void SetUp() override {
    ReclaimedGuest::SetUp();
    if (IsSkipped()) return;
    start(reclaim::kNoLimit);
    memory_ = map(kPages);
    ASSERT_TRUE(guest_->use(0, range_of(memory_, kPages)));
    for (size_t i = 0; i < kPages; ++i) fill(memory_ + (i << kPageShift), i);
  }
  u8* memory_ = nullptr;
};

// As Reclaim.HotPagesStay, with a little time for each round: the limit is looked at in between.
TEST_F(GuestLimit, HotPagesStay) {
  constexpr size_t kHot = kPages / 4;
  guest_->set_limit(kPages / 2 * kPageSize);
  test::FakeGuest guest(memory_, kPages);
  test::RandomSource random(test::announced_seed("hot pages of a guest"));
  u64 hot_faults = 0;
  const auto run = [&](int rounds) {
    for (int round = 0; round < rounds; ++round) {
      const u64 before = guest.faults;
      for (size_t page = 0; page < kHot; ++page) guest.use(page);
      hot_faults += guest.faults - before;
      for (int i = 0; i < 16; ++i) guest.use(kHot + random.below(kPages - kHot));
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  };
  run(100);  // warm-up
  const u64 before = guest.faults;
  hot_faults = 0;
  run(200);
  EXPECT_GT(guest.faults - before, 200U) << "the cold ones are not all there";
  EXPECT_LE(hot_faults * 3, guest.faults - before) << "of pages that are in use all the time";
  EXPECT_GT(reclaim::statistics().passes, 1U);
}

TEST_F(GuestLimit, WhatIsKeptCompressedCounts) {
  guest_->set_limit(4 * kMiB);
  EXPECT_TRUE(soon([] { return kept() <= 4 * kMiB && reclaim::statistics().taken != 0; }));
  const reclaim::Statistics now = reclaim::statistics();
  EXPECT_LE(now.compressed, kMiB + kMiB / 4) << "a quarter of it, before pages go to the file";
  EXPECT_GT(now.on_disk, 0U);
}

}  // namespace
}  // namespace stagetwo
