// SPDX-License-Identifier: Apache-2.0
// Goal: a frame is one holder's, and holds nothing of the one before.
#include "uv/process_frames.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <set>
#include <string>

#include "addr/addr.h"
#include "base/failpoint.h"

namespace stagetwo::uv {
namespace {

u8* bytes(u64 frame) {
  return reinterpret_cast<u8*>(frame);
}

void expect_zeros_again(u64 page_bytes, int count) {
  ProcessFrames frames(page_bytes);
  for (const bool empty : {false, true, false}) {
    std::set<u64> held;
    for (int i = 0; i < count; ++i) {
      const u64 frame = empty ? frames.empty() : frames.full();
      ASSERT_TRUE(held.insert(frame).second) << "another's";
      for (u64 at = 0; at < page_bytes; ++at) ASSERT_EQ(bytes(frame)[at], 0);
      std::memset(bytes(frame), 0x5a, page_bytes);
    }
    EXPECT_EQ(frames.in_use(), held.size());
    for (const u64 frame : held) frames.drop(frame);
    EXPECT_EQ(frames.in_use(), 0u);
  }
  frames.drop(0);
  frames.drop(ProcessFrames::kZeros);
}

TEST(ProcessFrames, OneThatComesAgainIsZeros) {
  expect_zeros_again(kPageSize, 200);
  expect_zeros_again(16 * kPageSize, 70);
}

// Its mapping's flags (proc_pid_smaps(5)): "dd" no core dump has it, "dc" no child of fork.
bool is_nobody_elses(u64 frame) {
  std::ifstream smaps("/proc/self/smaps");
  bool here = false;
  for (std::string line; std::getline(smaps, line);) {
    unsigned long long from = 0, to = 0;
    if (std::sscanf(line.c_str(), "%llx-%llx ", &from, &to) == 2)
      here = from <= frame && frame < to;
    if (!here || !line.starts_with("VmFlags:")) continue;
    return line.find(" dd") != std::string::npos && line.find(" dc") != std::string::npos;
  }
  return false;
}

TEST(ProcessFrames, AreInNoCoreDumpAndNoChildHasThem) {
  ProcessFrames frames(kPageSize);
  const u64 frame = frames.full(), place = frames.run(2);
  EXPECT_TRUE(is_nobody_elses(frame));
  EXPECT_TRUE(is_nobody_elses(place));
  EXPECT_FALSE(is_nobody_elses(reinterpret_cast<u64>(&frames)));
  frames.drop(frame);
  frames.give_places(place, 2);
}

TEST(ProcessFrames, ARunIsGivenAgainWhenItsLastPlaceIsBack) {
  ProcessFrames frames(kPageSize);
  std::set<u64> runs;
  u64 run = 0;
  while ((run = frames.run(3)) != 0) ASSERT_TRUE(runs.insert(run).second);
  EXPECT_EQ(frames.in_use(), 3 * runs.size());
  const u64 first = *runs.begin();
  std::memset(bytes(first), 0x5a, 3 * kPageSize);
  frames.drop(first + kPageSize);
  frames.give_places(first + 2 * kPageSize, 1);
  EXPECT_EQ(frames.run(2), 0u) << "one of its places is somebody's";
  frames.drop(first);
  EXPECT_EQ(frames.run(ProcessFrames::kRun), first);
  for (u64 at = 0; at < 3 * kPageSize; ++at) ASSERT_EQ(bytes(first)[at], 0);
  for (u64 i = 0; i < ProcessFrames::kRun; ++i) frames.drop(first + i * kPageSize);
  runs.erase(first);
  for (const u64 other : runs) frames.give_places(other, 3);
  EXPECT_EQ(frames.in_use(), 0u);
}

TEST(ProcessFrames, WithoutMemoryThereIsNone) {
  ProcessFrames frames(kPageSize);
  failpoint::arm(nullptr, 1, failpoint::kForever);
  EXPECT_EQ(frames.full(), 0u);
  EXPECT_EQ(frames.empty(), 0u);
  EXPECT_EQ(frames.run(4), 0u);
  failpoint::disarm();
  const u64 frame = frames.empty();
  EXPECT_NE(frame, 0u);
  frames.drop(frame);
}

}  // namespace
}  // namespace stagetwo::uv
