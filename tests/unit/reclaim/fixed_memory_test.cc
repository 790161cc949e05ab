// SPDX-License-Identifier: Apache-2.0
// Goal: what cannot leave keeps nothing else from leaving, and costs the rest nothing.
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "reclaim/reclaim.h"
#include "tests/support/reclaimed_guest.h"

namespace stagetwo {
namespace {

using test::kMiB;
constexpr size_t kPages = 2048;

class FixedMemory : public test::ReclaimedGuest {
 protected:
  void fill_all(u8* at, size_t pages) {
    for (size_t i = 0; i < pages; ++i) fill(at + (i << kPageShift), i);
  }
};

TEST_F(FixedMemory, OneLockedPageStaysAloneAndIsCountedAlone) {
  start(2 * kMiB);
  u8* const memory = map(kPages);
  // A sanitizer's mlock does nothing.
  ASSERT_EQ(0, ::syscall(SYS_mlock, memory + 600 * kPageSize, kPageSize));
  ASSERT_TRUE(guest_->use(0, range_of(memory, kPages)));
  fill_all(memory, kPages);
  EXPECT_TRUE(soon([] { return kept() <= 2 * kMiB && reclaim::statistics().taken > kPages / 2; }));
  EXPECT_TRUE(soon([] { return reclaim::statistics().locked == kPageSize; }));
  EXPECT_FALSE(host::is_absent(Hva(reinterpret_cast<u64>(memory + 600 * kPageSize))));
  EXPECT_TRUE(test::said().empty()) << test::said().front();
}

TEST_F(FixedMemory, BesideWhatCannotLeaveTheRestIsNotTakenForEver) {
  start(2 * kMiB);
  u8* const locked = map(kPages);
  ASSERT_EQ(0, ::syscall(SYS_mlock, locked, kPages * kPageSize));
  ASSERT_TRUE(guest_->use(0, range_of(locked, kPages)));
  fill_all(locked, kPages);
  EXPECT_TRUE(soon([] { return reclaim::statistics().locked == kPages * kPageSize; }));
  u8* const few = map(64);
  ASSERT_TRUE(guest_->use(1, range_of(few, 64)));
  fill_all(few, 64);
  EXPECT_TRUE(soon([] { return !test::said().empty(); })) << "the limit is not kept";
  const u64 before = reclaim::statistics().taken;
  for (int round = 0; round < 40; ++round) {
    for (size_t i = 0; i < 64; ++i) EXPECT_TRUE(is_filled(few + (i << kPageShift), i));
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_GE(before + 64, reclaim::statistics().taken) << "each of them once";
}

// The file outlives its mapping, so what was taken of it comes back before it is unmapped.
TEST_F(FixedMemory, WhatIsBeingUnmappedIsSaidToBe) {
  start(2 * kMiB);
  u8* const memory = map(kPages, MAP_SHARED);
  ASSERT_TRUE(guest_->use(0, range_of(memory, kPages)));
  fill_all(memory, kPages);
  ASSERT_TRUE(soon([] { return kept() <= 2 * kMiB && reclaim::statistics().taken > kPages / 2; }));
  const auto unmap_later = [] {
    EXPECT_TRUE(soon([] { return !test::said().empty(); })) << "the limit is not kept";
    return -1;
  };
  host::change(reinterpret_cast<u64>(memory), kPages << kPageShift, host::EventKind::kUnmap,
               unmap_later);
  EXPECT_GT(reclaim::statistics().under_change, 0U);
  EXPECT_TRUE(soon([] { return kept() <= 2 * kMiB; }));
  ASSERT_EQ(1U, test::said().size());
  EXPECT_NE(std::string::npos, test::said()[0].find("unmapped or moved")) << test::said()[0];
}

}  // namespace
}  // namespace stagetwo
