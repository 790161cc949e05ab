// SPDX-License-Identifier: Apache-2.0
// IOVAs: what may be mapped where.
#include "tests/unit/iommu/iommufd_world.h"

namespace stagetwo::iommu {
namespace {

class IoasTest : public IommufdWorld {
 protected:
  void SetUp() override {
    IommufdWorld::SetUp();
    ioas_ = make_ioas();
  }
  void TearDown() override {
    EXPECT_EQ(unmap_all(ioas_), 0);
    EXPECT_EQ(destroy(ioas_), 0);
    IommufdWorld::TearDown();
  }
  int reserve(u64 start, u64 last) {
    Locked locked(*context_);
    return error_of(locked.reserve(**locked.find<Ioas>(ioas_), start, last, 0));
  }
  int allow(std::initializer_list<IovaRanges> ranges) {
    Locked locked(*context_);
    return error_of(locked.allow(**locked.find<Ioas>(ioas_), {ranges.begin(), ranges.size()}));
  }
  u64 choose(u64 address, u64 length) {
    u64 iova = 0;
    EXPECT_EQ(map(ioas_, address, length, &iova, false), 0);
    return iova;
  }

  u32 ioas_ = 0;
  // Without a domain nothing is looked at: any number is an address.
  static constexpr u64 kAddress = u64{1} << 31;
};

TEST_F(IoasTest, MapsByteForByteWithoutADomain) {
  EXPECT_EQ(map_at(ioas_, kAddress + 3, 77, 5), 0);
  EXPECT_EQ(map_at(ioas_, kAddress, 1, 82), 0);
  EXPECT_EQ(map_at(ioas_, kAddress, 1, 81), EEXIST);
  u64 bytes = 0;
  EXPECT_EQ(unmap(ioas_, 5, 78, &bytes), 0);
  EXPECT_EQ(bytes, 78u);
}

TEST_F(IoasTest, RefusesWhatOverlapsOrWraps) {
  ASSERT_EQ(map_at(ioas_, kAddress, 0x2000, 0x10000), 0);
  for (const u64 iova : {0xf000u, 0x10000u, 0x11000u}) {
    EXPECT_EQ(map_at(ioas_, kAddress, 0x2000, iova), EEXIST) << iova;
  }
  EXPECT_EQ(map_at(ioas_, kAddress, 0x2000, ~u64{0} - 0xfff), EOVERFLOW);
  EXPECT_EQ(map_at(ioas_, kAddress, 0, 0x20000), EINVAL);
  EXPECT_EQ(map_at(ioas_, kAddress, ~u64{0} - 5, 0x20000), EINVAL);
}

TEST_F(IoasTest, UnmapsWholeAreasOnly) {
  ASSERT_EQ(map_at(ioas_, kAddress, 0x1000, 0x10000), 0);
  ASSERT_EQ(map_at(ioas_, kAddress, 0x2000, 0x12000), 0);
  u64 bytes = 0;
  // What stands before the area that would be cut is gone, as in the kernel.
  EXPECT_EQ(unmap(ioas_, 0x10000, 0x3000, &bytes), ENOENT);
  EXPECT_EQ(bytes, 0x1000u);
  EXPECT_EQ(unmap(ioas_, 0x13000, 0x1000, &bytes), ENOENT);
  EXPECT_EQ(unmap(ioas_, 0, 0x20000, &bytes), 0);
  EXPECT_EQ(bytes, 0x2000u);
  EXPECT_EQ(unmap(ioas_, 0, 0x20000, &bytes), 0);
  EXPECT_EQ(bytes, 0u);
}

TEST_F(IoasTest, ChoosesAlignedPlacesAndKeepsTheOffset) {
  EXPECT_EQ(choose(kAddress, 0x1000) % 0x1000, 0u);
  EXPECT_EQ(choose(kAddress, 0x10000) % 0x10000, 0u);
  EXPECT_EQ(choose(kAddress + 0x234, 16) % 0x1000, 0x234u);
  EXPECT_EQ(choose(u64{1} << 40, u64{8} << 20) % (u64{2} << 20), 0u);
  u64 iova = 0;
  EXPECT_EQ(map(ioas_, kAddress, u64{1} << 63, &iova, false), EOVERFLOW);
}

TEST_F(IoasTest, FillsTheLowestHoleThatFits) {
  const u64 first = choose(kAddress, 0x1000);
  EXPECT_EQ(first, 0x1000u);  // never 0
  ASSERT_EQ(map_at(ioas_, kAddress, 0x1000, 0x4000), 0);
  EXPECT_EQ(choose(kAddress, 0x1000), 0x2000u);
  EXPECT_EQ(choose(kAddress, 0x2000), 0x6000u);
  EXPECT_EQ(choose(kAddress, 0x1000), 0x3000u);
}

TEST_F(IoasTest, StaysOutOfReservedAndInsideAllowed) {
  ASSERT_EQ(reserve(0, 0xffff), 0);
  EXPECT_EQ(map_at(ioas_, kAddress, 0x1000, 0xf000), EINVAL);
  EXPECT_EQ(choose(kAddress, 0x1000), 0x10000u);
  EXPECT_EQ(reserve(0x10000, 0x10fff), EADDRINUSE);
  ASSERT_EQ(allow({{0x40000, 0x40fff}, {0x20000, 0x20fff}}), 0);
  EXPECT_EQ(choose(kAddress, 0x1000), 0x20000u);
  EXPECT_EQ(choose(kAddress, 0x1000), 0x40000u);
  u64 iova = 0;
  EXPECT_EQ(map(ioas_, kAddress, 0x1000, &iova, false), ENOSPC);
  EXPECT_EQ(reserve(0x20000, 0x20000), EADDRINUSE);
  EXPECT_EQ(allow({{0x8000, 0x9000}}), EADDRINUSE);
  EXPECT_EQ(allow({{5, 5}}), EINVAL);
  EXPECT_EQ(allow({{0x50000, 0x51000}, {0x51000, 0x52000}}), EINVAL);
  // Refused lists change nothing.
  EXPECT_EQ(map(ioas_, kAddress, 0x1000, &iova, false), ENOSPC);
  EXPECT_EQ(allow({}), 0);
  EXPECT_EQ(choose(kAddress, 0x1000), 0x11000u);
}

TEST_F(IoasTest, AllowedRangesThatTouchAreOneToChooseFrom) {
  ASSERT_EQ(allow({{0x103000, 0x103fff},
                   {0x101000, 0x101fff},
                   {0x100000, 0x100fff},
                   {~u64{0} - 0x1fff, ~u64{0}}}),
            0);
  EXPECT_EQ(choose(kAddress, 0x2000), 0x100000u) << "across the edge";
  u64 iova = 0;
  EXPECT_EQ(map(ioas_, kAddress, 0x2000, &iova, false), ENOSPC) << "across a gap";
  EXPECT_EQ(unmap(ioas_, 0x100000, 0x2000), 0);
  ASSERT_EQ(map_at(ioas_, kAddress, 0x800, 0x100000), 0);
  EXPECT_EQ(choose(kAddress + 0x800, 0x800), 0x100800u);
  EXPECT_EQ(choose(kAddress, 0x1000), 0x101000u);
  EXPECT_EQ(choose(kAddress, 0x1000), 0x103000u);
  EXPECT_EQ(choose(kAddress, 0x1000), ~u64{0} - 0x1fff) << "never the last page";
  EXPECT_EQ(map(ioas_, kAddress, 0x1000, &iova, false), ENOSPC);
}

TEST_F(IoasTest, TellsItsRanges) {
  ASSERT_EQ(reserve(0, 0xfff), 0);
  ASSERT_EQ(reserve(0x1000, 0x1fff), 0);
  ASSERT_EQ(reserve(0x8000, 0x8fff), 0);
  ASSERT_EQ(reserve(~u64{0} - 0xfff, ~u64{0}), 0);
  Locked locked(*context_);
  const Ioas& ioas = **locked.find<Ioas>(ioas_);
  IovaRanges range{};
  ASSERT_TRUE(Locked::next_range(ioas, 0, &range));
  EXPECT_EQ(range.start, 0x2000u);
  EXPECT_EQ(range.last, 0x7fffu);
  ASSERT_TRUE(Locked::next_range(ioas, range.last + 1, &range));
  EXPECT_EQ(range.start, 0x9000u);
  EXPECT_EQ(range.last, ~u64{0} - 0x1000);
  EXPECT_FALSE(Locked::next_range(ioas, range.last + 1, &range));
}

TEST_F(IoasTest, CopiesShareTheMemory) {
  test::GuardedPages memory(4);
  ASSERT_EQ(map_at(ioas_, memory.address(), 0x2000, 0x10000, kMayRead), 0);
  ASSERT_EQ(map_at(ioas_, memory.address() + 0x2000, 0x2000, 0x12000), 0);
  const u32 other = make_ioas();
  const auto copy = [&](u64 from, u64 length, u64 to, u32 rights) {
    Locked locked(*context_);
    Locked::MapRequest request{true, to, length, rights};
    return error_of(locked.copy(**locked.find<Ioas>(ioas_), from, other, &request));
  };
  EXPECT_EQ(copy(0x10000, 0x5000, 0, kMayRead), ENOENT);  // longer than what is there
  EXPECT_EQ(copy(0xf000, 0x2000, 0, kMayRead), ENOENT);
  EXPECT_EQ(copy(0x10000, 0, 0, kMayRead), EINVAL);
  EXPECT_EQ(copy(0x10000, 0x4000, 0, kReadWrite), EPERM);  // the first part is read only
  {
    Locked locked(*context_);
    EXPECT_TRUE(locked.areas(**locked.find<Ioas>(other)).empty());
  }
  EXPECT_EQ(copy(0x11000, 0x2000, 0x800, kMayRead), 0);
  const u32 unknown = 9999;
  {
    Locked locked(*context_);
    Locked::MapRequest request{true, 0, 0x1000, kMayRead};
    EXPECT_EQ(error_of(locked.copy(**locked.find<Ioas>(ioas_), 0x10000, unknown, &request)),
              ENOENT);
  }
  // The memory lives as long as either knows it.
  EXPECT_EQ(unmap_all(ioas_), 0);
  EXPECT_EQ(unmap(other, 0x800, 0x2000), 0);
  EXPECT_EQ(destroy(other), 0);
}

TEST_F(IoasTest, IsCutOnRequest) {
  ASSERT_EQ(map_at(ioas_, kAddress, 0x4000, 0x10000), 0);
  {
    Locked locked(*context_);
    Ioas& ioas = **locked.find<Ioas>(ioas_);
    EXPECT_EQ(error_of(locked.cut(ioas, 0x11fff)), 0);
    EXPECT_EQ(error_of(locked.cut(ioas, 0x50000)), 0);  // nothing there
    EXPECT_EQ(locked.areas(ioas).first()->last(), 0x11fffu);
    EXPECT_EQ(locked.areas(ioas).next(locked.areas(ioas).first())->start_byte, 0x2000u);
  }
  EXPECT_EQ(unmap(ioas_, 0x10000, 0x2000), 0);
  EXPECT_EQ(unmap(ioas_, 0x12000, 0x2000), 0);
}

// The area behind the one that went is known; whatever becomes of it is heeded.
TEST_F(IoasTest, UnmapsInOrderWhatChangesMeanwhile) {
  const auto map_page = [&](u64 i) { return map_at(ioas_, kAddress, 0x1000, i * 0x1000); };
  for (u64 i = 16; i < 24; ++i) ASSERT_EQ(map_page(i), 0);
  EXPECT_EQ(unmap(ioas_, 0x10000, 0x1000), 0);
  ASSERT_EQ(map_page(16), 0);                   // before it
  EXPECT_EQ(unmap(ioas_, 0x11000, 0x1000), 0);  // itself
  EXPECT_EQ(unmap(ioas_, 0x10000, 0x1000), 0);
  EXPECT_EQ(unmap(ioas_, 0x12000, 0x800), ENOENT);
  EXPECT_EQ(unmap(ioas_, 0x13000, 0x1000), 0);
  EXPECT_EQ(unmap(ioas_, 0x12000, 0x1000), 0);
  EXPECT_EQ(unmap(ioas_, 0x17000, 0x1000), 0);
  EXPECT_EQ(unmap_all(ioas_), 0);
}

}  // namespace
}  // namespace stagetwo::iommu
