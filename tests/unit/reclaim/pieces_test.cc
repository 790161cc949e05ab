// SPDX-License-Identifier: Apache-2.0
// Goal: memory whose mapping was changed goes as any other, or is counted by why it stays.
#include "reclaim/reclaim.h"
#include "tests/support/reclaimed_guest.h"

namespace stagetwo {
namespace {

using test::kMiB;
constexpr size_t kPages = 2048;  // 8 MiB

class Pieces : public test::ReclaimedGuest {
 protected:
  u8* fill_under_no_limit(int flags) {
    start(reclaim::kNoLimit);
    u8* const memory = map(kPages, flags);
    EXPECT_TRUE(guest_->use(0, range_of(memory, kPages)));
    for (size_t i = 0; i < kPages; ++i) fill(memory + (i << kPageShift), i);
    return memory;
  }
  // Each of them, and what is left between them, is a mapping by itself.
  static void divide(u8* memory, size_t pieces) {
    const size_t apart = kPages / (pieces + 1);
    for (size_t i = 1; i <= pieces; ++i) {
      ASSERT_EQ(0, ::madvise(memory + (i * apart << kPageShift), kPageSize, MADV_DONTDUMP));
    }
  }
  static void is_whole(const u8* memory) {
    size_t wrong = 0;
    for (size_t i = 0; i < kPages; ++i) wrong += is_filled(memory + (i << kPageShift), i) ? 0U : 1U;
    EXPECT_EQ(0U, wrong);
  }
};

TEST_F(Pieces, MemoryWithoutRightsStaysAndIsCounted) {
  u8* const memory = fill_under_no_limit(MAP_PRIVATE);
  ASSERT_EQ(0, ::mprotect(memory, kPages << kPageShift, PROT_NONE));
  reclaim::set_memory_limit(2 * kMiB);
  EXPECT_TRUE(soon([] { return reclaim::statistics().unmapped != 0; }));
  EXPECT_EQ(0U, reclaim::statistics().taken);
  ASSERT_EQ(0, ::mprotect(memory, kPages << kPageShift, PROT_READ | PROT_WRITE));
  EXPECT_TRUE(soon([] { return kept() <= 2 * kMiB && reclaim::statistics().taken != 0; }));
  is_whole(memory);
}

TEST_F(Pieces, OfOneFileTheyGoAsOneMapping) {
  u8* const memory = fill_under_no_limit(MAP_SHARED);
  divide(memory, 2);
  reclaim::set_memory_limit(2 * kMiB);
  EXPECT_TRUE(soon([] { return kept() <= 2 * kMiB && reclaim::statistics().taken != 0; }));
  is_whole(memory);
}

TEST_F(Pieces, MoreThanCanBeNamedStayAndAreCounted) {
  u8* const memory = fill_under_no_limit(MAP_SHARED);
  divide(memory, 20);
  reclaim::set_memory_limit(2 * kMiB);
  EXPECT_TRUE(soon([] { return reclaim::statistics().unmapped >= kPages; }));
  EXPECT_EQ(0U, reclaim::statistics().taken);
  is_whole(memory);
}

}  // namespace
}  // namespace stagetwo
