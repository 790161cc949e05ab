// SPDX-License-Identifier: Apache-2.0
// Random operations on every format against a map from frame to address that knows nothing of
// tables, levels or leaves.

#include <gtest/gtest.h>

#include <map>

#include "tests/pt_matrix/formats.h"
#include "tests/support/seeds.h"

namespace stagetwo::pt::test {
namespace {

// What is mapped, page by page.
template <Format F>
struct NaiveMap {
  struct Page {
    u64 address;
    bool writable;
  };

  bool map(u64 first, u64 frames, u64 address, bool writable) {
    const auto after = pages.lower_bound(first);
    if (after != pages.end() && after->first < first + frames) return false;
    for (u64 i = 0; i < frames; ++i) {
      pages[first + i] = {address + (i << F::kGranuleLg2), writable};
    }
    return true;
  }
  u64 unmap(u64 first, u64 frames) {
    const auto begin = pages.lower_bound(first);
    const auto end = pages.lower_bound(first + frames);
    const auto count = static_cast<u64>(std::distance(begin, end));
    pages.erase(begin, end);
    return count;
  }

  std::map<u64, Page> pages;
};

template <typename R>
class PtRandom : public ::testing::Test {
 protected:
  using F = typename R::F;
  static constexpr unsigned kRoot = R::kRootLevel;

  // A window that crosses a boundary of level 3 where the root is above.
  static constexpr u64 kWindow = kRoot == 1 ? frame_limit<F>(1) : 4 * span_of<F>(2);
  static constexpr u64 kBase = kRoot == 1   ? 0
                               : kRoot == 2 ? 4 * span_of<F>(2)
                                            : span_of<F>(3) - kWindow / 2;

  u64 below(u64 limit) { return random_() % limit; }
  bool one_in(u64 count) { return below(count) == 0; }

  // A number of frames or an offset: often a power of two, sometimes anything.
  u64 some_frames() {
    if (one_in(3)) return 1 + below(kWindow);
    return u64{1} << below(log2_floor(kWindow) + 1);
  }

  void map_something() {
    u64 frames = some_frames();
    u64 first = below(kWindow);
    if (!one_in(4)) first = align_down(first, u64{1} << log2_floor(frames));
    if (first + frames > kWindow) frames = kWindow - first;
    u64 page = below(4 * kWindow);
    if (!one_in(4)) page = align_down(page, u64{1} << log2_floor(frames));
    const u64 address = kTarget<F> + (page << F::kGranuleLg2);
    const bool write = one_in(2);
    const auto attributes = write ? writable<F>() : read_only<F>();
    const Errno error = world_.map(kBase + first, frames, address, attributes,
                                   1 + static_cast<unsigned>(below(F::kMaxLevel)));
    const bool possible = naive_.map(kBase + first, frames, address, write);
    ASSERT_EQ(error, possible ? Errno{0} : Errno{EADDRINUSE});
  }
  void unmap_something() {
    u64 frames = some_frames();
    const u64 first = below(kWindow);
    if (first + frames > kWindow) frames = kWindow - first;
    // Leaves that reach over an end are cut, so that exactly the range goes.
    ASSERT_TRUE(world_.mapper.split(kBase + first, 1));
    if (first + frames < kWindow) {
      ASSERT_TRUE(world_.mapper.split(kBase + first + frames, 1));
    }
    if (first != 0) {
      ASSERT_TRUE(world_.mapper.split(kBase + first - 1, 1));
    }
    ASSERT_TRUE(world_.mapper.split(kBase + first + frames - 1, 1));
    ASSERT_EQ(world_.unmap(kBase + first, frames), naive_.unmap(kBase + first, frames));
  }
  void split_something() {
    const auto level = 1 + static_cast<unsigned>(below(kRoot));
    ASSERT_TRUE(world_.mapper.split(kBase + below(kWindow), level));
  }
  void collapse_something() {
    if (kRoot == 1) return;
    const auto level = 2 + static_cast<unsigned>(below(kRoot - 1));
    world_.collapse(kBase + below(kWindow), level);
  }

  void expect_same(u64 frame) {
    const auto found = world_.mapper.translate(frame);
    const auto want = naive_.pages.find(frame);
    ASSERT_EQ(found.has_value(), want != naive_.pages.end()) << "frame " << frame;
    if (!found) return;
    ASSERT_EQ(found->address, want->second.address) << "frame " << frame;
    ASSERT_EQ(found->attributes, want->second.writable ? writable<F>() : read_only<F>());
  }

  void step() {
    switch (below(8)) {
      case 0:
      case 1:
      case 2:
        return map_something();
      case 3:
      case 4:
        return unmap_something();
      case 5:
        return split_something();
      default:
        return collapse_something();
    }
  }

  std::mt19937_64 random_{::stagetwo::test::seed()};
  World<F, kRoot> world_;
  NaiveMap<F> naive_;
};

TYPED_TEST_SUITE(PtRandom, Rows, RowNames);

TYPED_TEST(PtRandom, IsTheNaiveMap) {
  SCOPED_TRACE("STAGETWO_SEED=" + std::to_string(::stagetwo::test::seed()));
  for (unsigned i = 0; i < 1500; ++i) {
    ASSERT_NO_FATAL_FAILURE(this->step()) << "step " << i;
    for (unsigned k = 0; k < 16; ++k) {
      ASSERT_NO_FATAL_FAILURE(this->expect_same(this->kBase + this->below(this->kWindow)));
    }
    if (i % 100 != 0) continue;
    for (u64 frame = 0; frame < this->kWindow; ++frame) {
      ASSERT_NO_FATAL_FAILURE(this->expect_same(this->kBase + frame)) << "step " << i;
    }
    const auto all = this->world_.count();
    ASSERT_EQ(all.frames, this->naive_.pages.size());
    ASSERT_EQ(all.tables, this->world_.arena.live_tables) << "a table is lost, or is used after";
  }
}

}  // namespace
}  // namespace stagetwo::pt::test
