// SPDX-License-Identifier: Apache-2.0
// The software TLB remembers which slots it filled while they are few: whatever it remembers, a
// flush leaves nothing, and a page that became code is stored to by nobody.
#include "vcpu/soft_tlb.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

namespace stagetwo::vcpu {
namespace {

constexpr u64 kCounts[] = {1, 2, 23, 24, 25, 26, 100, kTlbEntries};

class SoftTlbTest : public testing::TestWithParam<u64> {
 protected:
  // As a fill for a store, all of one host page.
  void fill(u64 linear) {
    TlbEntry& e = tlb_->slot_to_fill(linear, true);
    e.read_tag = e.write_tag = linear;
    e.addend = kHost - linear;
  }
  // Slots spread over the whole array.
  static u64 page(u64 i) { return (i * 37 % kTlbEntries) << kPageShift; }
  void fill_pages() {
    for (u64 i = 0; i < GetParam(); ++i) fill(page(i));
  }
  template <typename F>
  u64 count(F&& fn) {
    u64 found = 0;
    for (const TlbEntry& e : tlb_->entry) found += fn(e) ? u64{1} : u64{0};
    return found;
  }

  static constexpr u64 kHost = 0x7000'0000;
  const std::unique_ptr<SoftTlb> tlb_ = std::make_unique<SoftTlb>();
};

TEST_P(SoftTlbTest, AFlushLeavesNothing) {
  for (int round = 0; round < 3; ++round) {
    fill_pages();
    EXPECT_EQ(count([](const TlbEntry& e) { return !e.is_empty(); }), GetParam());
    tlb_->flush();
    EXPECT_EQ(count([](const TlbEntry& e) { return !e.is_empty(); }), 0U);
  }
}

TEST_P(SoftTlbTest, APageThatBecameCodeIsStoredToByNobody) {
  fill_pages();
  tlb_->forbid_writes(kHost + kPageSize);
  EXPECT_EQ(count([](const TlbEntry& e) { return e.write_tag != kNoTag; }), GetParam());
  tlb_->forbid_writes(kHost);
  EXPECT_EQ(count([](const TlbEntry& e) { return e.write_tag != kNoTag; }), 0U);
  EXPECT_EQ(count([](const TlbEntry& e) { return e.read_tag != kNoTag; }), GetParam());
}

TEST_P(SoftTlbTest, ASlotThatIsEmptiedAndFilledAgainIsFlushed) {
  for (int round = 0; round < 3; ++round) {
    fill_pages();
    for (u64 i = 0; i < GetParam(); ++i) tlb_->flush_page(page(i));
  }
  fill_pages();
  tlb_->flush();
  EXPECT_EQ(count([](const TlbEntry& e) { return !e.is_empty(); }), 0U);
}

INSTANTIATE_TEST_SUITE_P(Pages, SoftTlbTest, testing::ValuesIn(kCounts));

TEST(SoftTlbAlone, ASlotThatChangesItsPageIsFlushed) {
  const auto tlb = std::make_unique<SoftTlb>();
  for (u64 i = 0; i < 100; ++i) {
    tlb->slot_to_fill(i * kTlbEntries << kPageShift, false).read_tag = i * kTlbEntries
                                                                       << kPageShift;
  }
  tlb->flush();
  EXPECT_TRUE(tlb->slot(0).is_empty());
}

}  // namespace
}  // namespace stagetwo::vcpu
