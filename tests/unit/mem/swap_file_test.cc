// SPDX-License-Identifier: Apache-2.0
// Goal: no name leads to the file, ever; extents never overlap, keep to the limit, and are found
// again after any order of giving back.
#include "mem/swap_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "base/sys.h"
#include "tests/support/random_source.h"

namespace stagetwo::mem {
namespace {

namespace fs = std::filesystem;

class SwapFileTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("swap-file-" + std::to_string(::getpid()));
    fs::create_directory(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  static int refusal_of(const fs::path& path) {
    const auto made = SwapFile::create(path.c_str());
    if (made) static_cast<void>(sys::close(*made));
    return made ? 0 : to_int(made.error());
  }
  fs::path folder_;
};

TEST_F(SwapFileTest, NoNameLeadsToIt) {
  EXPECT_EQ(0, refusal_of(folder_));
  const auto named = SwapFile::create((folder_ / "named").c_str());
  ASSERT_TRUE(named);
  EXPECT_TRUE(fs::is_empty(folder_));
  struct ::stat now{};
  ASSERT_TRUE(sys::fstat(*named, &now));
  EXPECT_EQ(0U, now.st_nlink);
  EXPECT_GE(*named, sys::kFirstEngineFd);
  static_cast<void>(sys::close(*named));
}

TEST_F(SwapFileTest, SomebodysFileIsNotOursToUse) {
  const fs::path there = folder_ / "there";
  ::close(::open(there.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
  EXPECT_EQ(EEXIST, refusal_of(there));
  EXPECT_TRUE(fs::exists(there));
}

TEST_F(SwapFileTest, SaysWhatTheKernelSaysOfThePath) {
  EXPECT_EQ(ENOENT, refusal_of(folder_ / "no" / "folder"));
  EXPECT_EQ(ENAMETOOLONG, refusal_of(fs::path(std::string(5000, 'x'))));
}

TEST_F(SwapFileTest, ExtentsNeverOverlapAndKeepToTheLimit) {
  constexpr u64 kBlocks = 64;
  const int fd = *SwapFile::create(folder_.c_str());
  SwapFile file;
  file.set_limit(kBlocks * kPageSize);
  test::RandomSource random(test::announced_seed("swap file"));
  std::map<u32, SwapExtent> held;  // by unit
  u64 units = 0;
  for (int round = 0; round < 20'000; ++round) {
    if (!held.empty() && random.one_in(2)) {
      auto victim = held.lower_bound(random.small(kBlocks * 8));
      if (victim == held.end()) victim = held.begin();
      units -= (victim->second.bytes + kSwapUnit - 1) / kSwapUnit;
      file.release(victim->second);
      held.erase(victim);
      continue;
    }
    const u16 bytes = static_cast<u16>(1 + random.small(kPageSize));
    const auto extent = file.allocate(bytes);
    const u64 wanted = (bytes + kSwapUnit - 1) / kSwapUnit;
    if (!extent) {
      ASSERT_GT(units + wanted, kBlocks * 8 / 2) << "refused with half of it free";
      continue;
    }
    ASSERT_LE(extent->unit + wanted, kBlocks * 8);
    const auto after = held.lower_bound(extent->unit);
    ASSERT_TRUE(after == held.end() || extent->unit + wanted <= after->first);
    if (after != held.begin()) {
      const SwapExtent& before = std::prev(after)->second;
      ASSERT_LE(before.unit + (before.bytes + kSwapUnit - 1) / kSwapUnit, extent->unit);
    }
    held.emplace(extent->unit, *extent);
    units += wanted;
    ASSERT_EQ(units * kSwapUnit, file.bytes());
  }
  for (const auto& [unit, extent] : held) file.release(extent);
  EXPECT_EQ(0U, file.bytes());
  EXPECT_EQ(0U, file.blocks());
  static_cast<void>(sys::close(fd));
}

// What one give-back makes free is found at once, however full the rest is.
TEST_F(SwapFileTest, TheRoomThatWasGivenBackIsFoundInAFullFile) {
  constexpr u64 kBlocks = 4096;
  const int fd = *SwapFile::create(folder_.c_str());
  SwapFile file;
  file.set_limit(kBlocks * kPageSize);
  std::vector<SwapExtent> held;
  for (u64 i = 0; i < kBlocks; ++i) held.push_back(*file.allocate(kPageSize));
  EXPECT_FALSE(file.allocate(1));
  for (const u64 i : {u64{17}, u64{4000}, u64{0}, kBlocks - 1}) {
    file.release(held[i]);
    const auto again = file.allocate(kPageSize);
    ASSERT_TRUE(again);
    EXPECT_EQ(held[i].unit, again->unit);
    EXPECT_FALSE(file.allocate(512));
  }
  static_cast<void>(sys::close(fd));
}

TEST_F(SwapFileTest, WhatNobodyNeedsIsUsedAgainBeforeTheFileGetsLonger) {
  constexpr u64 kBlocks = 1024;
  SwapFile file;
  std::vector<SwapExtent> held;
  for (u64 i = 0; i < kBlocks; ++i) held.push_back(*file.allocate(kPageSize));
  for (u64 i = 128; i < 256; ++i) file.release(held[i]);
  file.release(held[1000]);  // where the next search begins, and finds one
  for (u64 i = 0; i < 129; ++i) EXPECT_LT(file.allocate(kPageSize)->unit, kBlocks * 8) << i;
  EXPECT_EQ(kBlocks * 8, file.allocate(kPageSize)->unit);
}

TEST_F(SwapFileTest, NobodyIsGivenABlockThatIsBeingPunched) {
  SwapFile file;
  file.set_limit(192 * kPageSize);
  std::vector<SwapExtent> held;
  for (u64 i = 0; i < 192; ++i) held.push_back(*file.allocate(kPageSize));
  EXPECT_EQ(0U, file.begin_hole().blocks);
  for (u64 i = 64; i < 129; ++i) file.release(held[i]);
  const SwapFile::Hole hole = file.begin_hole();
  EXPECT_EQ(64U, hole.first);
  EXPECT_EQ(64U, hole.blocks) << "of the last block's neighbours one is needed";
  EXPECT_EQ(held[128].unit, file.allocate(kPageSize)->unit);
  EXPECT_FALSE(file.allocate(1));
  EXPECT_EQ(0U, file.begin_hole().blocks);
  file.end_hole(hole);
  EXPECT_EQ(held[64].unit, file.allocate(kPageSize)->unit);
  EXPECT_EQ(129 * kPageSize, file.bytes());
}

}  // namespace
}  // namespace stagetwo::mem
