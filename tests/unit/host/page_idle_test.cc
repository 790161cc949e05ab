// SPDX-License-Identifier: Apache-2.0
// Goal: a page is idle from its mark until its next use. Method: a subscriber with one young bit a
// page.
#include "host/page_idle.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include "base/failpoint.h"
#include "host/hugetlb_standin.h"
#include "host/mmu_notifier.h"

namespace stagetwo::host::page_idle {
namespace {

// Borrows 64 pages from kBase.
constexpr u64 kBase = 0x7000'0000'0000;
class Guest final : public MmuNotifier {
 public:
  Guest() { EXPECT_TRUE(register_notifier(this)); }
  ~Guest() { unregister_notifier(this); }
  bool invalidate_range_start(const InvalidateEvent&) override { return false; }
  void invalidate_range_end(const InvalidateEvent&) override {}
  bool clear_young(HvaRange range) override {
    const bool was = (young & bit(range)) != 0;
    young &= ~bit(range);
    return was;
  }
  bool test_young(HvaRange range) override { return (young & bit(range)) != 0; }
  bool borrows(HvaRange range) override { return bit(range) != 0; }
  u64 young = 0;

 private:
  static u64 bit(HvaRange range) {
    const u64 page = (range.start().raw() - kBase) >> kPageShift;
    return page < 64 ? u64{1} << page : 0;
  }
};
constexpr u64 kFirst = frame_of(Hva(kBase));

TEST(PageIdle, FramesAreNeverZeroAndFarFromReal) {
  EXPECT_LT(u64{1} << 43, frame_of(Hva(0)));
  EXPECT_LT(frame_of(Hva((u64{1} << 47) - kPageSize)), kEndFrame);
  EXPECT_LT(kEndFrame, u64{1} << 55) << "fits into an entry of pagemap";
}

TEST(PageIdle, MarkLastsUntilTheNextUse) {
  Guest guest;
  guest.young = ~u64{0};
  EXPECT_EQ(0U, read_word(kFirst)) << "nothing was marked";
  write_word(kFirst, 0b1011);
  EXPECT_EQ(0b1011U, read_word(kFirst));
  EXPECT_EQ(~u64{0b1011}, guest.young) << "exactly those were made old";
  guest.young |= 0b0010;
  EXPECT_EQ(0b1001U, read_word(kFirst));
  guest.young = 0;
  EXPECT_EQ(0b1001U, read_word(kFirst)) << "once used, not idle until marked again";
  write_word(kFirst, 0b0010);
  EXPECT_EQ(0b1011U, read_word(kFirst)) << "a zero bit changes nothing";
  guest.young = ~u64{0};
  EXPECT_EQ(0U, read_word(kFirst));
}

// Who looks for cold pages clears the same bits.
TEST(PageIdle, AUseThatSomebodyElseCollectedIsOneAllTheSame) {
  Guest guest;
  write_word(kFirst, 0b1111);
  guest.young = 0b0110;
  u64 young = 0;
  host::collect_young(HvaRange(Hva(kBase), 64 * kPageSize), &young);
  EXPECT_EQ(0b0110U, young);
  EXPECT_EQ(0U, guest.young);
  EXPECT_EQ(0b1001U, read_word(kFirst));
  write_word(kFirst, 0b0110);
  EXPECT_EQ(0b1111U, read_word(kFirst));
}

TEST(PageIdle, PagesNobodyBorrowsAreNeverIdle) {
  write_word(kFirst, 0xff);
  EXPECT_EQ(0U, read_word(kFirst));
  {
    Guest guest;
    write_word(kFirst, 0xff);
    EXPECT_EQ(0xffU, read_word(kFirst));
  }
  EXPECT_EQ(0U, read_word(kFirst)) << "its guest is gone";
}

class Borrower final : public MmuNotifier {
 public:
  Borrower() { EXPECT_TRUE(register_notifier(this)); }
  ~Borrower() { unregister_notifier(this); }
  bool invalidate_range_start(const InvalidateEvent&) override { return false; }
  void invalidate_range_end(const InvalidateEvent&) override {}
  bool borrows(HvaRange) override { return true; }
};

TEST(PageIdle, OfAHugePageIsItsFirstFrame) {
  hugetlb::enable();
  constexpr u64 kHuge = u64{2} << 20;
  const auto at = hugetlb::map(
      {nullptr, kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0},
      2);
  ASSERT_TRUE(at);
  static_cast<char*>(*at)[0] = 1;
  Borrower borrower;
  const u64 first = frame_of(Hva(reinterpret_cast<u64>(*at)));
  write_word(first, ~u64{0});
  write_word(first + 64, ~u64{0});
  EXPECT_EQ(1U, read_word(first));
  EXPECT_EQ(0U, read_word(first + 64)) << "none of the others";
  munmap(*at, kHuge);
  hugetlb::debug_reset();
}

TEST(PageIdle, WithoutMemoryAPageLooksUsed) {
  Guest guest;
  failpoint::sweep([] {
    write_word(kFirst, 1);
    EXPECT_LE(read_word(kFirst), 1U);
  });
  guest.young = 1;
  EXPECT_EQ(0U, read_word(kFirst));
}

}  // namespace
}  // namespace stagetwo::host::page_idle
