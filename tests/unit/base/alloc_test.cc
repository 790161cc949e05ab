// SPDX-License-Identifier: Apache-2.0
#include "base/alloc.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "base/aligned_pages.h"
#include "base/failpoint.h"
#include "base/own_memory.h"
#include "tests/support/seeds.h"

namespace stagetwo {
namespace {

TEST(Alloc, BlocksAreAlignedAsAsked) {
  for (size_t align = 16; align <= 4096; align *= 2) {
    for (const size_t bytes : {size_t{1}, size_t{24}, size_t{129}, size_t{5000}, size_t{70'000}}) {
      void* block = alloc(bytes, align, "test");
      ASSERT_NE(block, nullptr);
      EXPECT_EQ(reinterpret_cast<u64>(block) % align, 0u) << bytes << " at " << align;
      std::memset(block, 0xa5, bytes);
      dealloc(block, bytes, align);
    }
  }
}

TEST(Alloc, BlocksInUseNeverOverlap) {
  std::mt19937_64 random(test::seed());
  SCOPED_TRACE("STAGETWO_SEED=" + std::to_string(test::seed()));
  struct Block {
    unsigned char* at;
    size_t bytes;
    unsigned char mark;
  };
  std::vector<Block> blocks;
  for (int step = 0; step < 20'000; ++step) {
    if (blocks.size() < 200 && random() % 2 == 0) {
      const size_t bytes = 1 + random() % (random() % 8 == 0 ? 40'000 : 400);
      auto* at = static_cast<unsigned char*>(alloc(bytes, 16, "test"));
      ASSERT_NE(at, nullptr);
      const auto mark = static_cast<unsigned char>(random());
      std::memset(at, mark, bytes);
      blocks.push_back({at, bytes, mark});
    } else if (!blocks.empty()) {
      std::swap(blocks[random() % blocks.size()], blocks.back());
      const Block block = blocks.back();
      blocks.pop_back();
      ASSERT_EQ(block.at[0], block.mark);
      ASSERT_EQ(block.at[block.bytes - 1], block.mark);
      dealloc(block.at, block.bytes);
    }
  }
  for (const Block& block : blocks) dealloc(block.at, block.bytes);
}

TEST(Alloc, UseReturnsToWhatItWas) {
  const AllocUse before = alloc_use();
  void* small = alloc(100, 16, "test");
  void* large = alloc(100'000, 16, "test");
  EXPECT_EQ(alloc_use().blocks, before.blocks + 2);
  dealloc(small, 100);
  dealloc(large, 100'000);
  EXPECT_EQ(alloc_use().blocks, before.blocks);
  EXPECT_EQ(alloc_use().bytes, before.bytes);
}

TEST(Alloc, EveryWayToMemoryAsksTheFailpointOnce) {
  failpoint::count_only();
  dealloc(alloc(10, 16, "a"), 10);
  dealloc(alloc(100'000, 16, "b"), 100'000);
  auto pages = map_pages(4096, "c");
  unmap_pages(*pages, 4096);
  auto reserve = reserve_pages(1 << 20, "d");
  EXPECT_TRUE(commit_pages(*reserve, 4096, "e"));
  unmap_pages(*reserve, 1 << 20);
  auto made = make<int>("f", 3);
  destroy(*made);
  failpoint::disarm();
  for (const char* site : {"a", "b", "c", "d", "e", "f"})
    EXPECT_EQ(failpoint::asked(site), 1u) << site;
  EXPECT_EQ(failpoint::asked(), 6u);
}

TEST(Alloc, AnArmedFailpointIsARefusal) {
  failpoint::arm(nullptr, 1, failpoint::kForever);
  EXPECT_EQ(alloc(10, 16, "a"), nullptr);
  EXPECT_EQ(map_pages(4096, "a").error(), Errno{ENOMEM});
  EXPECT_EQ(reserve_pages(4096, "a").error(), Errno{ENOMEM});
  EXPECT_EQ(map_file(4096, PROT_READ, MAP_SHARED, 0, 0, "a").error(), Errno{ENOMEM});
  EXPECT_FALSE(make<int>("a"));
  failpoint::disarm();
}

TEST(Alloc, AnImpossibleSizeIsARefusal) {
  EXPECT_EQ(alloc(~size_t{0}, 16, "a"), nullptr);
  EXPECT_EQ(map_pages(size_t{1} << 62, "a").error(), Errno{ENOMEM});
}

TEST(Alloc, AReserveCannotBeTouchedBeforeItIsCommitted) {
  auto at = reserve_pages(1 << 20, "test");
  ASSERT_TRUE(at);
  ASSERT_TRUE(commit_pages(static_cast<char*>(*at) + 4096, 4096, "test"));
  static_cast<char*>(*at)[4096] = 1;
  EXPECT_DEATH(*static_cast<volatile char*>(*at) = 1, "");
  unmap_pages(*at, 1 << 20);
}

struct Counted {
  explicit Counted(int& n) : count(n) { ++count; }
  virtual ~Counted() { --count; }
  int& count;
};
struct Derived final : Counted {
  using Counted::Counted;
  char more[500] = {};
};

TEST(Alloc, AlignedPagesAreAlignedZeroAndCountedOnce) {
  const AllocUse before = alloc_use();
  constexpr size_t kBytes = 256 * 1024;
  void* blocks[5];
  for (void*& block : blocks) {
    block = *map_aligned_pages(kBytes, kBytes, "test.aligned");
    EXPECT_EQ(reinterpret_cast<u64>(block) % kBytes, 0U);
    auto* bytes = static_cast<u8*>(block);
    EXPECT_EQ(bytes[0] + bytes[kBytes - 1], 0);
    bytes[0] = bytes[kBytes - 1] = 1;
  }
  EXPECT_EQ(alloc_use().blocks, before.blocks + 5);
  EXPECT_EQ(alloc_use().bytes, before.bytes + s64{5 * kBytes});
  for (void* block : blocks) unmap_pages(block, kBytes);
  EXPECT_EQ(alloc_use().bytes, before.bytes);
  failpoint::arm("test.aligned", 1);
  EXPECT_FALSE(map_aligned_pages(kBytes, kBytes, "test.aligned"));
  failpoint::disarm();
}

TEST(Box, EndsItsObjectOnce) {
  int alive = 0;
  const AllocUse before = alloc_use();
  {
    auto box = make_box<Derived>("test", alive);
    ASSERT_TRUE(box);
    Box<Derived> moved = std::move(*box);
    EXPECT_FALSE(*box);
    EXPECT_EQ(alive, 1);
    moved = Box<Derived>();
    EXPECT_EQ(alive, 0);
  }
  EXPECT_EQ(alloc_use().bytes, before.bytes);
}

TEST(Box, OfABaseGivesTheWholeObjectBack) {
  int alive = 0;
  const AllocUse before = alloc_use();
  {
    auto derived = make_box<Derived>("test", alive);
    const Box<Counted> base = std::move(*derived);
    EXPECT_EQ(base->count, 1);
  }
  EXPECT_EQ(alive, 0);
  EXPECT_EQ(alloc_use().bytes, before.bytes);
}

// Other threads are in the middle of allocating when the child is made.
TEST(Alloc, AChildOfForkHasAnArenaOfItsOwn) {
  bool stop = false;
  std::vector<std::thread> busy;
  for (int i = 0; i < 2; ++i) {
    busy.emplace_back([&stop] {
      while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) dealloc(alloc(64, 16, "busy"), 64);
    });
  }
  void* inherited = alloc(64, 16, "test");
  for (int i = 0; i < 30; ++i) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      // A lock left held by another thread would hang here, a half-linked list would crash.
      for (int n = 0; n < 100; ++n) dealloc(alloc(64, 16, "child"), 64);
      dealloc(inherited, 64);
      void* again = alloc(64, 16, "child");
      std::memset(again, 1, 64);
      _exit(alloc_use().blocks == 0 ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  }
  __atomic_store_n(&stop, true, __ATOMIC_RELAXED);
  for (std::thread& thread : busy) thread.join();
  dealloc(inherited, 64);
}

// A client may unmap a part of its memory and map it again with MAP_FIXED: what nobody of its own
// has mapped there meanwhile is free.
TEST(Alloc, DoesNotComeWhereTheClientHasUnmapped) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "places are the sanitizer's";
#endif
  constexpr size_t kHole = 64 * 1024;
  const auto all = static_cast<u8*>(
      mmap(nullptr, 3 * kHole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_EQ(0, munmap(all + kHole, kHole));
  std::vector<void*> blocks;
  for (int i = 0; i < 64; ++i) {
    blocks.push_back(alloc(kMaxSmall + 1, kMinAlign, "test"));
    blocks.push_back(alloc(kMaxSmall, kMinAlign, "test"));
    const auto at = static_cast<u8*>(blocks[blocks.size() - 2]);
    EXPECT_FALSE(at >= all && at < all + 3 * kHole);
  }
  u8* const again =
      static_cast<u8*>(mmap(all + kHole, kHole, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
  EXPECT_EQ(all + kHole, again);
  for (size_t i = 0; i < blocks.size(); ++i) {
    dealloc(blocks[i], i % 2 == 0 ? kMaxSmall + 1 : kMaxSmall);
  }
  munmap(all, 3 * kHole);
}

// The same for a second mapping of the client's shared pages.
TEST(OwnMemory, ASecondMappingDoesNotComeWhereTheClientHasUnmapped) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "places are the sanitizer's";
#endif
  constexpr size_t kPageBytes = 4096, kHole = 64 * 1024;
  const auto map = [](size_t bytes, int flags) {
    return static_cast<u8*>(
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0));
  };
  u8* const page = map(kPageBytes, MAP_SHARED);
  u8* const hole = map(3 * kHole, MAP_PRIVATE) + kHole;
  ASSERT_EQ(0, munmap(hole, kHole));
  const auto is_in_hole = [&](const void* at) { return at >= hole && at < hole + kHole; };
  std::vector<u8*> before;
  do before.push_back(map(kPageBytes, MAP_SHARED));  // up to where the kernel fills the hole
  while (!is_in_hole(before.back()) && before.size() < 1000);
  ASSERT_TRUE(is_in_hole(before.back()));
  munmap(before.back(), kPageBytes);

  const auto again = map_again_apart(page, kPageBytes);
  ASSERT_TRUE(again);
  EXPECT_FALSE(is_in_hole(*again));
  *page = 5;
  EXPECT_EQ(5, *static_cast<u8*>(*again));
  EXPECT_EQ(EINVAL, to_int(map_again_apart(hole - kHole, kPageBytes).error())) << "private";
  unmap_again(*again, kPageBytes);
  munmap(page, kPageBytes);
  munmap(hole - kHole, 3 * kHole);
  for (u8* one : before) munmap(one, kPageBytes);
}

}  // namespace
}  // namespace stagetwo
