// SPDX-License-Identifier: Apache-2.0
#include "base/bits.h"

#include <gtest/gtest.h>

namespace stagetwo {
namespace {

TEST(Bits, AlignsDownAndUp) {
  EXPECT_EQ(align_down(u64{4097}, 4096), 4096u);
  EXPECT_EQ(align_up(u64{4097}, 4096), 8192u);
  EXPECT_EQ(align_up(u64{4096}, 4096), 4096u);
  EXPECT_EQ(align_up(~u64{0}, 4096), 0u);
  EXPECT_TRUE(is_aligned(u64{8192}, 4096));
  EXPECT_FALSE(is_aligned(u64{8193}, 4096));
}

TEST(Bits, TakesFieldsApartAndPutsThemTogether) {
  EXPECT_EQ(bit_mask(63, 0), ~u64{0});
  EXPECT_EQ(bit_mask(11, 4), 0xff0u);
  EXPECT_EQ(get_field(0xabcd, 11, 4), 0xbcu);
  EXPECT_EQ(set_field(0xabcd, 11, 4, 0x12), 0xa12du);
  EXPECT_EQ(set_field(0, 3, 0, 0xff), 0xfu);
}

TEST(Bits, ExtendsTheSign) {
  EXPECT_EQ(sign_extend(0x80, 8), -128);
  EXPECT_EQ(sign_extend(0x7f, 8), 127);
  EXPECT_EQ(sign_extend(u64{1} << 47, 48), -(s64{1} << 47));
  EXPECT_EQ(sign_extend(~u64{0}, 64), -1);
}

TEST(Bits, TakesLogarithms) {
  EXPECT_EQ(log2_floor(u64{1}), 0u);
  EXPECT_EQ(log2_floor(u64{4095}), 11u);
  EXPECT_EQ(log2_ceil(u64{4095}), 12u);
  EXPECT_EQ(log2_ceil(u64{4096}), 12u);
  EXPECT_EQ(log2_ceil(u64{1}), 0u);
  EXPECT_TRUE(is_pow2(u64{64}));
  EXPECT_FALSE(is_pow2(u64{0}));
}

TEST(Bits, CheckedSumsSayNo) {
  EXPECT_EQ(checked_add(u64{1}, 2), 3u);
  EXPECT_FALSE(checked_add(~u64{0}, 1));
  EXPECT_EQ(checked_mul(u64{3}, 4), 12u);
  EXPECT_FALSE(checked_mul(u64{1} << 40, u64{1} << 40));
  EXPECT_EQ(div_ceil(u64{9}, 4), 3u);
}

}  // namespace
}  // namespace stagetwo
