// SPDX-License-Identifier: Apache-2.0
#include "base/own_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "base/alloc.h"

namespace stagetwo {
namespace {

constexpr size_t kPage = 4096;

u64 number(const void* at) {
  return reinterpret_cast<u64>(at);
}
bool is_own(const void* at) {
  return own_memory_in(number(at), number(at) + 1).end != 0;
}

TEST(OwnMemory, IsWhatTheEngineHasMapped) {
  void* const small = alloc(40, kMinAlign, "test");
  void* const large = alloc(3 * kPage, kMinAlign, "test");
  void* const huge = alloc(kMaxSmall + 1, kMinAlign, "test");
  void* const pages = *map_pages(2 * kPage, "test");
  for (const void* at : {small, large, huge, pages}) EXPECT_TRUE(is_own(at)) << at;
  unmap_pages(pages, 2 * kPage);
  dealloc(huge, kMaxSmall + 1);
  EXPECT_FALSE(is_own(pages));
  EXPECT_FALSE(is_own(huge));
  dealloc(large, 3 * kPage);
  dealloc(small, 40);
}

// Of the range's mappings, as /proc/self/smaps shows them, how many are locked.
int locked_in(const void* at) {
  std::ifstream smaps("/proc/self/smaps");
  bool here = false;
  int locked = 0;
  for (std::string line; std::getline(smaps, line);) {
    u64 start = 0;
    u64 end = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &start, &end) == 2) {
      here = start <= number(at) && number(at) < end;
    }
    if (here && line.starts_with("VmFlags:") && line.find(" lo") != line.npos) ++locked;
  }
  return locked;
}

TEST(OwnMemory, IsNotLockedWithTheClients) {
  if (::mlockall(MCL_FUTURE) != 0) GTEST_SKIP() << "this user may lock nothing";
  void* const theirs =
      ::mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  void* const pages = *map_pages(4 * kPage, "test");
  const int file = ::memfd_create("test", MFD_CLOEXEC);
  ASSERT_EQ(0, ::ftruncate(file, 4 * kPage));
  void* const mapped = *map_file(4 * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0, "test");
  EXPECT_EQ(1, locked_in(theirs));
  EXPECT_EQ(0, locked_in(pages));
  EXPECT_EQ(0, locked_in(mapped));
  unsigned char there[4] = {1, 1, 1, 1};
  EXPECT_EQ(0, ::mincore(mapped, 4 * kPage, there));
  EXPECT_EQ(0, (there[0] | there[1] | there[2] | there[3]) & 1) << "nor filled";
  ::munlockall();
  unmap_pages(mapped, 4 * kPage);
  unmap_pages(pages, 4 * kPage);
  ::munmap(theirs, kPage);
  ::close(file);
}

TEST(OwnMemory, IsTheObjectWithItsData) {
  static int word = 1;
  static int zero = 0;
  EXPECT_TRUE(is_own(&word));
  EXPECT_TRUE(is_own(&zero));
  EXPECT_TRUE(is_own(reinterpret_cast<const void*>(&is_own)));
  int on_stack = 0;
  EXPECT_FALSE(is_own(&on_stack));
}

TEST(OwnMemory, OfARangeTheFirstPartIsTold) {
  constexpr size_t kPages = 16;
  auto* const all = static_cast<u8*>(
      mmap(nullptr, kPages * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  const auto part = [&](size_t from, size_t to) {
    const OwnMemory found = own_memory_in(number(all + from * kPage), number(all + to * kPage));
    if (found.end == 0) return std::vector<u64>{};
    return std::vector<u64>{(found.start - number(all)) / kPage, (found.end - number(all)) / kPage};
  };
  EXPECT_EQ((std::vector<u64>{}), part(0, 16));
  ASSERT_TRUE(note_own_memory(all + 8 * kPage, 4 * kPage));
  ASSERT_TRUE(note_own_memory(all + 2 * kPage, 2 * kPage));
  EXPECT_EQ((std::vector<u64>{2, 4}), part(0, 16));
  EXPECT_EQ((std::vector<u64>{3, 4}), part(3, 16));
  EXPECT_EQ((std::vector<u64>{8, 10}), part(4, 10));
  EXPECT_EQ((std::vector<u64>{}), part(4, 8));
  // A hole in the middle of one.
  forget_own_memory(all + 9 * kPage, kPage);
  EXPECT_EQ((std::vector<u64>{8, 9}), part(4, 16));
  EXPECT_EQ((std::vector<u64>{10, 12}), part(9, 16));
  forget_own_memory(all, kPages * kPage);
  EXPECT_EQ((std::vector<u64>{}), part(0, 16));
  munmap(all, kPages * kPage);
}

// Whoever looked at the mappings before looks again.
TEST(OwnMemory, ThatSomeIsForgottenIsSeen) {
  void* const shared =
      mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  const u32 before = own_memory_forgotten();
  void* const again = *map_again_apart(shared, kPage);
  EXPECT_TRUE(is_own(again));
  EXPECT_EQ(before, own_memory_forgotten());
  unmap_again(again, kPage);
  EXPECT_FALSE(is_own(again));
  EXPECT_NE(before, own_memory_forgotten());
  munmap(shared, kPage);
}

TEST(OwnMemory, ManyPiecesAreKnownToo) {
  constexpr size_t kPieces = 3000;
  auto* const all = static_cast<u8*>(
      mmap(nullptr, 2 * kPieces * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  for (size_t i = 0; i < kPieces; ++i) {
    ASSERT_TRUE(note_own_memory(all + 2 * i * kPage, kPage));
  }
  for (size_t i = 0; i < kPieces; ++i) {
    ASSERT_TRUE(is_own(all + 2 * i * kPage));
    ASSERT_FALSE(is_own(all + (2 * i + 1) * kPage));
  }
  for (size_t i = 0; i < kPieces; ++i) forget_own_memory(all + 2 * i * kPage, kPage);
  EXPECT_EQ(0u, own_memory_in(number(all), number(all + 2 * kPieces * kPage)).end);
  munmap(all, 2 * kPieces * kPage);
}

}  // namespace
}  // namespace stagetwo
