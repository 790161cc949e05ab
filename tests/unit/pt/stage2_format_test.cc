// SPDX-License-Identifier: Apache-2.0
// The stage-2 entry: which words are legal, and what a maker made is what the questions answer.

#include <gtest/gtest.h>

#include "pt/fmt/stage2.h"

namespace stagetwo::pt {
namespace {

Stage2::Attributes attributes_of(unsigned bits) {
  return {.write = (bits & 1) != 0,
          .exec = (bits & 2) != 0,
          .accessed = (bits & 4) != 0,
          .dirty = (bits & 8) != 0,
          .host_writable = (bits & 16) != 0,
          .mmu_writable = (bits & 32) != 0,
          .is_private = (bits & 64) != 0};
}

TEST(Stage2FormatTest, EveryLeafAnswersWhatItWasMadeOf) {
  for (unsigned bits = 0; bits < 128; ++bits) {
    for (unsigned level = 1; level <= Stage2::kLargestLeaf; ++level) {
      const u64 hva = u64{0x7f} << 40 | u64{3} << 30;
      const auto word = Stage2::make_leaf(hva, level, attributes_of(bits));
      EXPECT_TRUE(Stage2::is_leaf(word, level));
      EXPECT_FALSE(Stage2::is_table(word, level) || Stage2::is_frozen(word) ||
                   Stage2::is_mmio(word));
      EXPECT_EQ(Stage2::output(word, level), hva);
      EXPECT_EQ(Stage2::attributes(word, level), attributes_of(bits));
    }
  }
}

TEST(Stage2FormatTest, WritabilityIsOneOfFourStates) {
  unsigned legal = 0;
  for (unsigned bits = 0; bits < 128; ++bits) {
    if (!Stage2::is_legal(Stage2::make_leaf(0x1000, 1, attributes_of(bits)), 1)) continue;
    ++legal;
    const auto a = attributes_of(bits);
    EXPECT_LE(a.write, a.mmu_writable);
    EXPECT_LE(a.mmu_writable, a.host_writable);
  }
  EXPECT_EQ(legal, 4U * 16) << "of 8 rights, with 16 states of the other bits each";
}

TEST(Stage2FormatTest, OnlyWhatIsMmuWritableAndNotWrittenIsRestorable) {
  Stage2::Attributes a{.host_writable = true};
  EXPECT_FALSE(Stage2::is_restorable(Stage2::make_leaf(0, 1, a)));
  a.mmu_writable = true;
  const auto word = Stage2::make_leaf(0, 1, a);
  EXPECT_TRUE(Stage2::is_restorable(word));
  EXPECT_FALSE(Stage2::is_restorable(Stage2::written(word)));
  EXPECT_TRUE(Stage2::is_dirty(Stage2::written(word)));
  EXPECT_TRUE(Stage2::is_restorable(Stage2::write_protected(Stage2::written(word))));
  EXPECT_FALSE(Stage2::is_restorable(word & ~Stage2::kPresent));
}

TEST(Stage2FormatTest, TheMmioGenerationHasNineteenBits) {
  for (u64 generation : {u64{0}, u64{1}, u64{0x7ffff}}) {
    const auto word = Stage2::make_mmio(generation);
    EXPECT_TRUE(Stage2::is_mmio(word) && !Stage2::is_present(word));
    EXPECT_EQ(Stage2::mmio_generation(word), generation);
    EXPECT_TRUE(Stage2::is_legal(word, 1));
  }
  EXPECT_EQ(Stage2::make_mmio(u64{1} << 19), Stage2::make_mmio(0));
}

TEST(Stage2FormatTest, StrayBitsAreIllegal) {
  EXPECT_FALSE(Stage2::is_legal(Stage2::make_table(0x1000) | Stage2::kWrite, 2));
  EXPECT_FALSE(Stage2::is_legal(Stage2::make_leaf(0x1000, 1, {}) | bit(60), 1));
  EXPECT_FALSE(Stage2::is_legal(Stage2::kFrozen | 0x1000, 1));
  EXPECT_FALSE(Stage2::is_legal(0x1000, 1)) << "an address that nothing says is present";
}

TEST(Stage2FormatTest, ALeafIsNotFollowedByAnotherPagesLeaf) {
  const auto one = Stage2::make_leaf(0x1000, 1, {.host_writable = true});
  const auto other = Stage2::make_leaf(0x2000, 1, {.host_writable = true});
  EXPECT_FALSE(Stage2::may_follow(one, other));
  EXPECT_TRUE(Stage2::may_follow(one, one | Stage2::kAccessed));
  EXPECT_FALSE(Stage2::may_follow(one, one | Stage2::kPrivate));
  EXPECT_TRUE(Stage2::may_follow(one, Stage2::kFrozen));
  EXPECT_TRUE(Stage2::may_follow(Stage2::kFrozen, other));
}

TEST(Stage2FormatTest, ASplitKeepsWhatTheLeafAllowedAndRemembered) {
  const Stage2::Attributes a{
      .write = true, .accessed = true, .dirty = true, .host_writable = true, .mmu_writable = true};
  const auto large = Stage2::make_leaf(0x4000'0000, 3, a);
  const auto child = split_child<Stage2>(large, 3, 511);
  EXPECT_EQ(Stage2::output(child), 0x4000'0000U + 511 * 0x20'0000U);
  EXPECT_EQ(Stage2::attributes(child), a);
  EXPECT_TRUE(Stage2::is_legal(child, 2));
}

}  // namespace
}  // namespace stagetwo::pt
