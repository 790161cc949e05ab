// SPDX-License-Identifier: Apache-2.0
// Format × feature × level: what every page table does, whatever its entries look like.

#include <gtest/gtest.h>

#include "tests/pt_matrix/formats.h"

namespace stagetwo::pt::test {
namespace {

template <typename R>
class PtMatrix : public ::testing::Test {
 protected:
  using TheFormat = typename R::F;
  using TheWorld = World<TheFormat, R::kRootLevel>;
  static constexpr unsigned kRoot = R::kRootLevel;

  // A frame at which a leaf of any size in use may begin, that is neither the first nor the last.
  static u64 frame_for(LeafSize size) {
    const u64 frames = leaf_frames<TheFormat>(size);
    return frames * 2 <= TheWorld::kLimit ? frames : 0;
  }
  static u64 bytes(u64 frames) { return frames << TheFormat::kGranuleLg2; }
  void expect_mapped(u64 frame, u64 address, const typename TheFormat::Attributes& attributes) {
    const auto found = world.mapper.translate(frame);
    ASSERT_TRUE(found.has_value()) << "frame " << frame;
    EXPECT_EQ(found->address, address) << "frame " << frame;
    EXPECT_EQ(found->attributes, attributes) << "frame " << frame;
  }
  void expect_nothing(u64 frame) {
    EXPECT_FALSE(world.mapper.translate(frame).has_value()) << "frame " << frame;
  }

  TheWorld world;
};

TYPED_TEST_SUITE(PtMatrix, Rows, RowNames);

TYPED_TEST(PtMatrix, AWordIsOneKindAndItsMakerIsUndone) {
  using F = typename TypeParam::F;
  for (unsigned level = 1; level <= F::kMaxLevel; ++level) {
    for (const auto word : {F::kNonpresent, F::kFrozen}) {
      EXPECT_FALSE(F::is_present(word) || F::is_leaf(word, level) || F::is_table(word, level));
    }
    if (level > 1) {
      const auto table = F::make_table(0x7654'3000, level);
      EXPECT_TRUE(F::is_present(table) && F::is_table(table, level) && !F::is_leaf(table, level));
      EXPECT_EQ(F::output(table, level), 0x7654'3000U);
    }
    if (!F::can_be_leaf(level)) continue;
    for (const auto& attributes : all_attributes<F>()) {
      const auto leaf = F::make_leaf(kTarget<F>, level, attributes);
      EXPECT_TRUE(F::is_present(leaf) && F::is_leaf(leaf, level) && !F::is_table(leaf, level));
      EXPECT_EQ(F::output(leaf, level), kTarget<F>);
      EXPECT_EQ(F::attributes(leaf, level), attributes);
    }
  }
}

TYPED_TEST(PtMatrix, EverySizeOfLeafMapsItsFramesAndNoOther) {
  using F = typename TypeParam::F;
  for (const LeafSize size : leaf_sizes<F>(this->kRoot)) {
    SCOPED_TRACE(::testing::Message() << "level " << size.level << " x 2^" << size.contig_lg2);
    const u64 frames = leaf_frames<F>(size);
    const u64 first = this->frame_for(size);
    for (const auto& attributes : all_attributes<F>()) {
      ASSERT_EQ(this->world.map(first, frames, kTarget<F>, attributes), Errno{0});
      for (const u64 offset : {u64{0}, frames / 3, frames - 1}) {
        this->expect_mapped(first + offset, kTarget<F> + this->bytes(offset), attributes);
        const auto found = this->world.mapper.translate(first + offset);
        EXPECT_EQ(found->level, size.level);
        EXPECT_EQ(u64{1} << found->frames_lg2, frames);
      }
      if (first != 0) this->expect_nothing(first - 1);
      if (first + frames < this->world.kLimit) this->expect_nothing(first + frames);
      EXPECT_EQ(this->world.count().frames, frames);
      EXPECT_EQ(this->world.unmap(first, frames), frames);
      this->expect_nothing(first);
    }
  }
}

TYPED_TEST(PtMatrix, ALeafIsAsLargeAsAlignmentPermits) {
  using F = typename TypeParam::F;
  const LeafSize page{};
  if (this->kRoot == 1) return;
  const u64 span = span_of<F>(2);
  // One frame before a boundary of level 2, to one after the next but one.
  const u64 first = 2 * span - 1;
  const u64 frames = 2 * span + 2;
  if (first + frames > this->world.kLimit) return;
  const u64 address = kTarget<F> + this->bytes(span - 1);
  ASSERT_EQ(this->world.map(first, frames, address, read_only<F>()), Errno{0});
  EXPECT_EQ(u64{1} << this->world.mapper.translate(first)->frames_lg2, leaf_frames<F>(page));
  EXPECT_GE(this->world.mapper.translate(2 * span)->level, 2U);
  EXPECT_EQ(u64{1} << this->world.mapper.translate(4 * span)->frames_lg2, leaf_frames<F>(page));
  for (u64 i = 0; i < frames; ++i) {
    this->expect_mapped(first + i, address + this->bytes(i), read_only<F>());
  }
  this->world.unmap(first, frames);

  // The address being off by one frame, none is larger than one.
  ASSERT_EQ(this->world.map(2 * span, span, kTarget<F> + this->bytes(1), read_only<F>()), Errno{0});
  EXPECT_EQ(this->world.mapper.translate(2 * span)->level, 1U);
  EXPECT_EQ(this->world.mapper.translate(2 * span)->frames_lg2, 0U);
  this->world.unmap(2 * span, span);

  // Nor where the caller permits no more.
  ASSERT_EQ(this->world.map(2 * span, span, kTarget<F>, read_only<F>(), 1), Errno{0});
  EXPECT_EQ(this->world.mapper.translate(2 * span)->level, 1U);
}

TYPED_TEST(PtMatrix, TheLastFrameOfTheRootCanBeMapped) {
  using F = typename TypeParam::F;
  const u64 last = this->world.kLimit - 1;
  ASSERT_EQ(this->world.map(last, 1, kTarget<F>, writable<F>()), Errno{0});
  this->expect_mapped(last, kTarget<F>, writable<F>());
  this->expect_nothing(last - 1);
  EXPECT_EQ(this->world.unmap(last, 1), 1U);
}

TYPED_TEST(PtMatrix, WhatIsMappedIsNotMappedOver) {
  using F = typename TypeParam::F;
  for (const LeafSize there : leaf_sizes<F>(this->kRoot)) {
    const u64 frames = leaf_frames<F>(there);
    const u64 first = this->frame_for(there);
    ASSERT_EQ(this->world.map(first, frames, kTarget<F>, read_only<F>()), Errno{0});
    const auto before = this->world.count();
    // In it, around it, and a range that only ends in it.
    EXPECT_EQ(this->world.map(first + frames - 1, 1, 0, writable<F>()), Errno{EADDRINUSE});
    EXPECT_EQ(this->world.map(first, frames, 0, writable<F>()), Errno{EADDRINUSE});
    if (first > 5) {
      EXPECT_EQ(this->world.map(first - 5, 6, 0, writable<F>()), Errno{EADDRINUSE});
      this->expect_nothing(first - 5);
    }
    EXPECT_EQ(this->world.count().frames, before.frames) << "a refusal changes nothing";
    this->expect_mapped(first + frames - 1, kTarget<F> + this->bytes(frames - 1), read_only<F>());
    this->world.unmap(0, this->world.kLimit);
  }
}

TYPED_TEST(PtMatrix, EveryAllocationMayFail) {
  using F = typename TypeParam::F;
  const LeafSize small{};
  const u64 first = this->kRoot == 1 ? 5 : span_of<F>(2) - 3;
  Errno error{ENOMEM};
  unsigned failures = 0;
  for (u64 n = 0; error != Errno{0}; ++n) {
    this->world.arena.allocations_left = n;
    error = this->world.map(first, 6, kTarget<F>, read_only<F>(), 1);
    if (error == Errno{0}) break;
    ++failures;
    EXPECT_EQ(error, Errno{ENOMEM});
    EXPECT_EQ(this->world.count().frames, 0U);
    EXPECT_EQ(this->world.count().tables, this->world.arena.live_tables) << "none is lost";
    this->world.unmap(0, this->world.kLimit);  // the empty ones that stayed
  }
  EXPECT_GE(failures, this->kRoot - 1) << "a table a level below the root";
  this->world.arena.allocations_left = 0;
  EXPECT_EQ(this->world.unmap(first, 6), 6 * leaf_frames<F>(small)) << "teardown needs no memory";
}

TYPED_TEST(PtMatrix, UnmapLeavesALeafThatReachesOverAnEnd) {
  using F = typename TypeParam::F;
  for (const LeafSize size : leaf_sizes<F>(this->kRoot)) {
    const u64 frames = leaf_frames<F>(size);
    if (frames < 4) continue;
    const u64 first = this->frame_for(size);
    ASSERT_EQ(this->world.map(first, frames, kTarget<F>, read_only<F>()), Errno{0});
    EXPECT_EQ(this->world.unmap(first, frames - 1), 0U);
    EXPECT_EQ(this->world.unmap(first + 1, frames - 1), 0U);
    EXPECT_EQ(this->world.unmap(first + 1, 2), 0U);
    EXPECT_EQ(this->world.count().frames, frames);
    EXPECT_EQ(this->world.unmap(first, frames), frames);
  }
}

TYPED_TEST(PtMatrix, AnEmptyTableGivesWayToALargeLeaf) {
  using F = typename TypeParam::F;
  for (const LeafSize size : leaf_sizes<F>(this->kRoot)) {
    if (size.level == 1) continue;
    const u64 frames = leaf_frames<F>(size);
    const u64 first = this->frame_for(size);
    ASSERT_EQ(this->world.map(first, 3, kTarget<F>, read_only<F>(), 1), Errno{0});
    EXPECT_EQ(this->world.unmap(first, 3), 3U) << "the tables stay: they cover more";
    EXPECT_GT(this->world.count().tables, 1U);
    ASSERT_EQ(this->world.map(first, frames, kTarget<F>, writable<F>()), Errno{0});
    this->expect_mapped(first + frames - 1, kTarget<F> + this->bytes(frames - 1), writable<F>());
    EXPECT_EQ(this->world.count().tables, this->world.arena.live_tables);
    EXPECT_EQ(this->world.unmap(first, frames), frames);
  }
}

TYPED_TEST(PtMatrix, ASplitChangesNoTranslation) {
  using F = typename TypeParam::F;
  for (const LeafSize size : leaf_sizes<F>(this->kRoot)) {
    const u64 frames = leaf_frames<F>(size);
    const u64 first = this->frame_for(size);
    for (unsigned target = 1; target <= size.level; ++target) {
      for (const auto& attributes : all_attributes<F>()) {
        ASSERT_EQ(this->world.map(first, frames, kTarget<F>, attributes), Errno{0});
        const u64 frame = first + frames / 2;
        ASSERT_TRUE(this->world.mapper.split(frame, target));
        EXPECT_EQ(this->world.mapper.translate(frame)->level, target);
        EXPECT_EQ(u64{1} << this->world.mapper.translate(frame)->frames_lg2, span_of<F>(target));
        for (const u64 offset : {u64{0}, frames / 2, frames / 2 + 1, frames - 1}) {
          if (offset >= frames) continue;
          this->expect_mapped(first + offset, kTarget<F> + this->bytes(offset), attributes);
        }
        EXPECT_EQ(this->world.count().frames, frames);
        EXPECT_EQ(this->world.unmap(first, frames), frames);
        if (target < size.level && size.level > 3) break;  // one is as good as all, and quicker
      }
    }
  }
}

TYPED_TEST(PtMatrix, ASplitWithoutMemoryChangesNothing) {
  using F = typename TypeParam::F;
  if (this->kRoot < 2 || !F::can_be_leaf(2)) return;
  const u64 frames = span_of<F>(2);
  ASSERT_EQ(this->world.map(frames, frames, kTarget<F>, writable<F>()), Errno{0});
  this->world.arena.allocations_left = 0;
  EXPECT_EQ(this->world.mapper.split(frames, 1).error(), Errno{ENOMEM});
  EXPECT_EQ(this->world.mapper.translate(frames)->level, 2U);
}

TYPED_TEST(PtMatrix, ACollapseUndoesASplit) {
  using F = typename TypeParam::F;
  for (unsigned level = 2; level <= this->kRoot; ++level) {
    if (!F::can_be_leaf(level)) continue;
    const u64 frames = span_of<F>(level);
    const u64 first = frames * 2 <= this->world.kLimit ? frames : 0;
    const u64 tables = this->world.arena.live_tables;
    ASSERT_EQ(this->world.map(first, frames, kTarget<F>, writable<F>()), Errno{0});
    ASSERT_TRUE(this->world.mapper.split(first + 1, level - 1));
    EXPECT_TRUE(this->world.collapse(first + 1, level));
    this->expect_mapped(first + frames - 1, kTarget<F> + this->bytes(frames - 1), writable<F>());
    EXPECT_EQ(this->world.mapper.translate(first)->level, level);
    EXPECT_FALSE(this->world.collapse(first, level)) << "it is a leaf already";
    EXPECT_EQ(this->world.unmap(first, frames), frames);
    this->world.unmap(0, this->world.kLimit);
    EXPECT_EQ(this->world.arena.live_tables, tables);
  }
}

TYPED_TEST(PtMatrix, OnlyWhatOneLeafCanSayIsCollapsed) {
  using F = typename TypeParam::F;
  if (this->kRoot < 2 || !F::can_be_leaf(2)) return;
  const u64 frames = span_of<F>(2);
  const u64 first = frames;
  const auto fill = [&](u64 from, u64 count, u64 address, typename F::Attributes attributes) {
    ASSERT_EQ(this->world.map(first + from, count, address + this->bytes(from), attributes, 1),
              Errno{0});
  };
  const auto refused = [&](const char* why) {
    EXPECT_FALSE(this->world.collapse(first, 2)) << why;
    EXPECT_EQ(this->world.mapper.translate(first)->level, 1U);
    this->world.unmap(first, frames);
  };
  fill(0, frames - 1, kTarget<F>, read_only<F>());
  refused("a hole at the end");
  fill(0, 7, kTarget<F>, read_only<F>());
  fill(7, 1, kTarget<F>, writable<F>());
  fill(8, frames - 8, kTarget<F>, read_only<F>());
  refused("one has other rights");
  fill(0, 7, kTarget<F>, read_only<F>());
  fill(7, 1, kTarget<F> + this->bytes(1), read_only<F>());
  fill(8, frames - 8, kTarget<F>, read_only<F>());
  refused("one is of another page");
  fill(0, frames, kTarget<F> + this->bytes(1), read_only<F>());
  refused("the address is not aligned");
}

TYPED_TEST(PtMatrix, ACollapsedLeafIsAsDirtyAsAnyPageWas) {
  using F = typename TypeParam::F;
  if (this->kRoot < 2 || !F::can_be_leaf(2)) return;
  const u64 frames = span_of<F>(2);
  auto touched = writable<F>();
  touched.accessed = touched.dirty = true;
  ASSERT_EQ(this->world.map(frames, 9, kTarget<F>, writable<F>(), 1), Errno{0});
  ASSERT_EQ(this->world.map(frames + 9, 1, kTarget<F> + this->bytes(9), touched, 1), Errno{0});
  ASSERT_EQ(
      this->world.map(frames + 10, frames - 10, kTarget<F> + this->bytes(10), writable<F>(), 1),
      Errno{0});
  ASSERT_TRUE(this->world.collapse(frames, 2));
  this->expect_mapped(frames, kTarget<F>, touched);
}

TYPED_TEST(PtMatrix, AFrozenEntryIsNobodysButItsFreezers) {
  using F = typename TypeParam::F;
  Entry<F>* entry = this->world.root + 1;
  entry->store(F::kFrozen);
  const u64 frame = span_of<F>(this->kRoot);
  this->expect_nothing(frame);
  EXPECT_EQ(this->world.map(frame, 1, kTarget<F>, read_only<F>()), Errno{EADDRINUSE});
  EXPECT_EQ(this->world.unmap(frame, 1), 0U);
  EXPECT_EQ(entry->load(), F::kFrozen);
}

}  // namespace
}  // namespace stagetwo::pt::test
