// SPDX-License-Identifier: Apache-2.0
#include "iommu/arena.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "base/failpoint.h"

namespace stagetwo::iommu {
namespace {

class ArenaTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(arena_.attach(backing_.fd())); }
  host::Backing backing_ = *Arena::make_file("test-arena");
  Arena arena_;
};

TEST_F(ArenaTest, BlocksAreZeroAlsoTheSecondTime) {
  const Arena::Guard guard(arena_);
  for (const u64 bytes : {u64{1}, u64{16}, u64{100}, u64{4096}, u64{5000}, u64{1} << 20}) {
    for (int round = 0; round < 2; ++round) {
      auto* const block = static_cast<u8*>(arena_.alloc(bytes, "test"));
      ASSERT_NE(block, nullptr);
      for (u64 i = 0; i < bytes; ++i) ASSERT_EQ(block[i], 0) << bytes << " round " << round;
      memset(block, 0xa5, bytes);
      arena_.free(block, bytes);
    }
  }
  EXPECT_EQ(arena_.blocks_in_use(), 0);
}

TEST_F(ArenaTest, BlocksDoNotOverlap) {
  const Arena::Guard guard(arena_);
  u8* blocks[300];
  for (u32 i = 0; i < 300; ++i) {
    blocks[i] = static_cast<u8*>(arena_.alloc(48, "test"));
    ASSERT_NE(blocks[i], nullptr);
    memset(blocks[i], static_cast<int>(i % 251), 48);
  }
  for (u32 i = 0; i < 300; ++i) {
    for (int b = 0; b < 48; ++b) ASSERT_EQ(blocks[i][b], i % 251);
    arena_.free(blocks[i], 48);
  }
}

TEST_F(ArenaTest, PagesAreAlignedAndHaveAWordOfTheirOwn) {
  const Arena::Guard guard(arena_);
  void* const a = arena_.alloc(4096, "test");
  void* const b = arena_.alloc(4096, "test");
  EXPECT_EQ(arena_.offset_of(a) % 4096, 0u);
  EXPECT_NE(arena_.node_of(a), arena_.node_of(b));
  EXPECT_EQ(arena_.block_of(arena_.node_of(b)), b);
  arena_.free(a, 4096);
  arena_.free(b, 4096);
}

TEST_F(ArenaTest, EveryAllocationCanBeRefused) {
  const Arena::Guard guard(arena_);
  failpoint::arm("test", 1);
  EXPECT_EQ(arena_.alloc(16, "test"), nullptr);
  failpoint::disarm();
  EXPECT_EQ(arena_.alloc(Arena::kFileBytes + 1, "test"), nullptr);
  EXPECT_EQ(arena_.blocks_in_use(), 0);
}

TEST_F(ArenaTest, ASecondViewSeesTheSameMemoryAtAnotherAddress) {
  Arena other;
  ASSERT_TRUE(other.attach(backing_.fd()));
  ASSERT_NE(other.root(), arena_.root());
  struct Link {
    RelPtr<u64> to;
  };
  const Arena::Guard guard(arena_);
  auto* const value = static_cast<u64*>(arena_.alloc(8, "test"));
  *value = 7;
  static_cast<Link*>(arena_.root())->to = value;
  EXPECT_EQ(*static_cast<Link*>(other.root())->to, 7u);
}

TEST_F(ArenaTest, AChildWorksOnTheSameArena) {
  const pid_t child = ::fork();
  if (child == 0) {
    {
      const Arena::Guard guard(arena_);
      static_cast<u64*>(arena_.root())[0] = guard.ok() ? 42 : 1;
    }
    ::_exit(0);
  }
  ASSERT_EQ(child, ::waitpid(child, nullptr, 0));
  const Arena::Guard guard(arena_);
  EXPECT_TRUE(guard.ok());
  EXPECT_EQ(static_cast<u64*>(arena_.root())[0], 42u);
}

// Whoever dies inside leaves it broken, for everybody and for ever.
TEST_F(ArenaTest, AHolderThatDiesLeavesItBroken) {
  const pid_t child = ::fork();
  if (child == 0) {
    const Arena::Guard guard(arena_);
    ::_exit(0);
  }
  ASSERT_EQ(child, ::waitpid(child, nullptr, 0));
  for (int round = 0; round < 2; ++round) {
    const Arena::Guard guard(arena_);
    EXPECT_FALSE(guard.ok());
  }
}

TEST(Arena, AForeignFileIsRefused) {
  const int fd = ::memfd_create("else", MFD_CLOEXEC);
  ASSERT_EQ(0, ::ftruncate(fd, Arena::kFileBytes));
  const u64 words[2] = {1, 1};
  ASSERT_EQ(16, ::pwrite(fd, words, sizeof(words), 0));
  Arena arena;
  EXPECT_EQ(to_int(arena.attach(fd).error()), EIO);
  ::close(fd);
}

}  // namespace
}  // namespace stagetwo::iommu
