// SPDX-License-Identifier: Apache-2.0
// Goal: a limit of one guest's own is kept as the process's is: what it uses least goes, and what
// is kept compressed of it counts.
#include <sys/syscall.h>
#include <unistd.h>

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

// Whatever it does, and from the moment on that the limit is set.
TEST_F(GuestLimit, AGuestThatWantsAllOfItIsHeldToIt) {
  constexpr u64 kLimit = 2 * kMiB;
  test::FakeGuest guest(memory_, kPages);
  test::RandomSource random(test::announced_seed("a guest that wants all"));
  std::atomic<bool> stop{false};
  std::thread vcpu([&] {
    for (size_t i = 0; !stop; ++i) {
      for (size_t page = 0; page < kPages && !stop; ++page) {
        guest.use(i % 2 == 0 ? page : random.below(kPages));
      }
    }
  });
  guest_->set_limit(kLimit);
  u64 bits[kPages / 64];
  const auto resident = [&] {
    return *host::resident_pages(range_of(memory_, kPages), false, bits) << kPageShift;
  };
  EXPECT_TRUE(soon([&] { return resident() <= kLimit; }));
  u64 most = 0;
  const auto has_run = [] { return reclaim::statistics().refaults > 100; };
  for (int i = 0; i < 150 || (i < 5000 && !has_run()); ++i) {
    most = std::max(most, resident());
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  stop = true;
  vcpu.join();
  EXPECT_LE(most, kLimit * 105 / 100 + 2 * kMiB) << "what somebody may owe is 2 MiB";
  EXPECT_TRUE(has_run());
  guest_->set_limit(reclaim::kNoLimit);
  EXPECT_TRUE(soon([&] {
    for (size_t page = 0; page < kPages; ++page) {
      EXPECT_TRUE(host::faultin(range_of(memory_ + (page << kPageShift), 1).start(), Access::kWrite,
                                host::Ask::kTouch));
    }
    return resident() == kPages << kPageShift;
  })) << "nobody limits it";
}

// 8 MiB of which 6 have a second and a third name, under a limit of 12.
TEST_F(GuestLimit, MemoryOfSeveralSlotsIsThereOnce) {
  ASSERT_TRUE(guest_->use(1, range_of(memory_, kPages / 2)));
  ASSERT_TRUE(guest_->use(2, range_of(memory_ + kPages / 4 * kPageSize, kPages / 2)));
  guest_->set_limit(12 * kMiB);
  test::FakeGuest guest(memory_, kPages);
  for (int round = 0; round < 50; ++round) {
    for (size_t page = 0; page < kPages; ++page) guest.use(page);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_EQ(0U, reclaim::statistics().taken);
}

TEST_F(GuestLimit, WhatCannotBeKeptIsSaidOnce) {
  const auto lines = [] {
    size_t count = 0;
    for (const std::string& line : test::said()) {
      count += line.find("the memory limit of a VM is not kept") != std::string::npos ? 1U : 0U;
    }
    return count;
  };
  EXPECT_EQ(0U, lines());
  // A sanitizer's mlock does nothing.
  ASSERT_EQ(0, ::syscall(SYS_mlock, memory_, kPages << kPageShift));
  guest_->set_limit(2 * kMiB);
  EXPECT_TRUE(soon([&] { return lines() != 0; }));
  // It stands, and takes no time of who uses it.
  const u64 begun = sync::now_ns();
  test::FakeGuest guest(memory_, kPages);
  for (size_t page = 0; page < kPages; ++page) guest.use(page);
  EXPECT_LT(sync::now_ns() - begun, 1'000'000'000U) << "not a millisecond a page";
  EXPECT_EQ(1U, lines());
  EXPECT_EQ(0, ::syscall(SYS_munlock, memory_, kPages << kPageShift));
}

}  // namespace
}  // namespace stagetwo
