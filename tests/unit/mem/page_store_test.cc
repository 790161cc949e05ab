// SPDX-License-Identifier: Apache-2.0
// Goal: a page comes back as it went or is said to be lost; where it stands meanwhile is where it
// takes least; memory and disk have their limits, and a disk that fails harms nobody else's pages.
#include "mem/page_store.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/failpoint.h"
#include "base/sys.h"
#include "tests/support/random_source.h"

namespace stagetwo::mem {
namespace {

namespace fs = std::filesystem;

struct Page {
  alignas(8) u8 bytes[kPageSize];
  friend bool operator==(const Page& a, const Page& b) {
    return std::memcmp(a.bytes, b.bytes, kPageSize) == 0;
  }
};
Page filled(u64 word) {
  Page page;
  for (size_t i = 0; i < kPageSize; i += sizeof(word)) std::memcpy(page.bytes + i, &word, 8);
  return page;
}
// Half of it repeats: lz4 makes it about half as large.
Page text_like(u64 seed) {
  Page page;
  test::RandomSource random(seed);
  for (size_t i = 0; i < kPageSize; ++i) {
    page.bytes[i] = i % 64 < 24 ? random.byte() : static_cast<u8>(seed);
  }
  return page;
}
Page noise(u64 seed) {
  Page page;
  test::RandomSource random(seed);
  for (u8& byte : page.bytes) byte = random.byte();
  return page;
}

class PageStoreTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("page-store-" + std::to_string(::getpid()));
    fs::create_directory(folder_);
  }
  void TearDown() override {
    if (fd_ >= 0) static_cast<void>(sys::close(fd_));
    EXPECT_TRUE(fs::is_empty(folder_)) << "something was left behind";
    fs::remove_all(folder_);
  }
  void with_file(u64 limit = kSwapForever) {
    fd_ = *SwapFile::create(folder_.c_str());
    store_.set_file_limit(limit);
  }
  Result<StoredPage> put(const Page& page) { return store_.put(page.bytes, bench_.get(), fd_); }
  int refusal_of(const Page& page) {
    const auto put_it = put(page);
    return put_it ? 0 : to_int(put_it.error());
  }
  Result<Page> get(const StoredPage& stored) {
    Page page = filled(0xaa);
    const auto got = store_.get(stored, page.bytes, fd_);
    if (!got) return refuse(got.error());
    return page;
  }
  bool is(const StoredPage& stored, const Page& page) {
    const auto got = get(stored);
    return got && *got == page;
  }
  u64 disk_blocks() const {
    struct ::stat now{};
    EXPECT_TRUE(sys::fstat(fd_, &now));
    return static_cast<u64>(now.st_blocks) * 512;
  }

  fs::path folder_;
  int fd_ = -1;
  PageStore store_;
  std::unique_ptr<PageStore::Bench> bench_ = std::make_unique<PageStore::Bench>();
};

TEST_F(PageStoreTest, ARepeatedWordCostsNothing) {
  for (const u64 word : {u64{0}, ~u64{0}, u64{0x1234'5678'9abc'def0}}) {
    const StoredPage stored = *put(filled(word));
    EXPECT_TRUE(is(stored, filled(word)));
    store_.drop(stored);
  }
  EXPECT_LE(store_.memory_bytes(), 64U) << "an entry of the account, and zeros not even that";
  Page nearly = filled(0);
  nearly.bytes[kPageSize - 1] = 1;
  const StoredPage stored = *put(nearly);
  EXPECT_TRUE(is(stored, nearly));
  EXPECT_EQ(1U, store_.use().in_memory);
}

TEST_F(PageStoreTest, WhatGetsSmallerStandsInMemory) {
  std::vector<StoredPage> stored;
  for (u64 i = 0; i < 512; ++i) stored.push_back(*put(text_like(i)));
  EXPECT_EQ(512U, store_.use().in_memory);
  EXPECT_LT(store_.memory_bytes(), 512 * kPageSize * 6 / 10 + 1024 * 1024);
  for (u64 i = 0; i < 512; ++i) EXPECT_TRUE(is(stored[i], text_like(i))) << i;
  for (const StoredPage& one : stored) store_.drop(one);
  EXPECT_EQ(0U, store_.use().in_memory);
}

TEST_F(PageStoreTest, WithNothingStoredNoMemoryIsTaken) {
  with_file();
  for (int round = 0; round < 2; ++round) {
    std::vector<StoredPage> stored;
    for (u64 i = 0; i < 2048; ++i) stored.push_back(*put(i % 8 == 0 ? noise(i) : filled(i + 1)));
    const StoreUse full = store_.use();
    EXPECT_GE(full.account_bytes, 2048 * 32U);
    EXPECT_LE(full.account_bytes, full.memory_bytes);
    EXPECT_EQ(full.memory_bytes, store_.memory_bytes());
    for (u64 i = 0; i < 2048; ++i) {
      EXPECT_TRUE(is(stored[i], i % 8 == 0 ? noise(i) : filled(i + 1))) << i;
      store_.drop(stored[i]);
    }
    for (int i = 0; i < 100 && store_.memory_bytes() != 0; ++i) store_.give_back(fd_);
    EXPECT_EQ(0U, store_.memory_bytes());
    EXPECT_EQ(0U, store_.use().account_bytes);
  }
}

TEST_F(PageStoreTest, WhatDoesNotGetSmallerNeedsAFile) {
  EXPECT_EQ(ENOSPC, refusal_of(noise(1)));
  with_file();
  const StoredPage stored = *put(noise(1));
  EXPECT_EQ(1U, store_.use().on_disk);
  EXPECT_GE(disk_blocks(), kPageSize);
  EXPECT_TRUE(is(stored, noise(1)));
}

TEST_F(PageStoreTest, TheOldestGoesToTheFileWhenMemoryIsShort) {
  with_file();
  store_.set_memory_limit(4 * CompressedPool::kSlabBytes);
  std::vector<StoredPage> stored;
  for (u64 i = 0; i < 1024; ++i) {
    stored.push_back(*put(text_like(i)));
    ASSERT_LE(store_.use().in_memory * 2048, 5 * CompressedPool::kSlabBytes);
  }
  EXPECT_GT(store_.use().moved_to_disk, 500U);
  EXPECT_GE(store_.debug_offset(stored[0]), 0);
  EXPECT_EQ(-1, store_.debug_offset(stored[1023]));
  for (u64 i = 0; i < 1024; ++i) EXPECT_TRUE(is(stored[i], text_like(i))) << i;
  // Compressed on the disk, too.
  EXPECT_LT(store_.use().disk_bytes, store_.use().on_disk * kPageSize * 3 / 4);
}

TEST_F(PageStoreTest, WithoutAFileMemorysLimitIsTheEnd) {
  store_.set_memory_limit(2 * CompressedPool::kSlabBytes);
  u64 kept = 0;
  while (put(text_like(kept))) ++kept;
  EXPECT_EQ(ENOSPC, refusal_of(text_like(kept)));
  EXPECT_GT(kept, 40U);
  EXPECT_EQ(0, refusal_of(filled(3))) << "costs nothing";
}

TEST_F(PageStoreTest, TheFileKeepsItsLimitAndIsUsedAgain) {
  with_file(8 * kPageSize);
  std::vector<StoredPage> stored;
  for (u64 i = 0; i < 8; ++i) stored.push_back(*put(noise(i)));
  EXPECT_EQ(ENOSPC, refusal_of(noise(8)));
  store_.drop(stored[3]);
  const StoredPage again = *put(noise(9));
  EXPECT_EQ(store_.debug_offset(again), static_cast<s64>(3 * kPageSize));
  EXPECT_TRUE(is(again, noise(9)));
  EXPECT_TRUE(is(stored[2], noise(2)));
  EXPECT_TRUE(is(stored[4], noise(4)));
}

TEST_F(PageStoreTest, BlocksThatNobodyNeedsLeaveTheDisk) {
  with_file();
  std::vector<StoredPage> stored;
  for (u64 i = 0; i < 256; ++i) stored.push_back(*put(noise(i)));
  EXPECT_GE(disk_blocks(), 256 * kPageSize);
  for (const StoredPage& one : stored) store_.drop(one);
  EXPECT_EQ(0U, store_.use().disk_bytes);
  EXPECT_GE(disk_blocks(), 256 * kPageSize) << "a drop does not wait for the disk";
  store_.give_back(fd_);
  EXPECT_EQ(0U, disk_blocks());
  EXPECT_TRUE(is(*put(noise(1)), noise(1)));
}

TEST_F(PageStoreTest, ADamagedPageIsLostAndNoOther) {
  with_file();
  std::vector<StoredPage> stored;
  for (u64 i = 0; i < 4; ++i) stored.push_back(*put(noise(i)));
  const u8 other = static_cast<u8>(noise(1).bytes[100] ^ 1);
  ASSERT_TRUE(sys::pwrite(fd_, &other, 1, store_.debug_offset(stored[1]) + 100));
  const auto got = get(stored[1]);
  ASSERT_FALSE(got);
  EXPECT_EQ(EBADMSG, to_int(got.error()));
  EXPECT_EQ(1U, store_.use().lost);
  for (const u64 i : {0U, 2U, 3U}) EXPECT_TRUE(is(stored[i], noise(i))) << i;
  store_.drop(stored[1]);
}

TEST_F(PageStoreTest, BytesOfAnotherPlaceDoNotPassForItsOwn) {
  with_file();
  const StoredPage first = *put(noise(1));
  const StoredPage second = *put(noise(2));
  const Page wrong = noise(2);  // a whole page, with a good checksum elsewhere
  ASSERT_TRUE(sys::pwrite(fd_, wrong.bytes, kPageSize, store_.debug_offset(first)));
  EXPECT_FALSE(get(first));
  EXPECT_TRUE(is(second, noise(2)));
}

TEST_F(PageStoreTest, AFileThatWasCutIsLostBeyondTheCut) {
  with_file();
  const StoredPage first = *put(noise(1));
  const StoredPage second = *put(noise(2));
  ASSERT_TRUE(sys::ftruncate(fd_, static_cast<off_t>(kPageSize)));
  EXPECT_TRUE(is(first, noise(1)));
  EXPECT_FALSE(get(second));
}

TEST_F(PageStoreTest, AFullDiskRefusesAndKeepsWhatItHas) {
  with_file();
  const StoredPage stored = *put(noise(1));
  failpoint::arm("mem.swap_write", 1, failpoint::kForever);
  EXPECT_EQ(ENOSPC, refusal_of(noise(2)));
  failpoint::disarm();
  EXPECT_EQ(1U, store_.use().write_errors);
  EXPECT_TRUE(is(stored, noise(1)));
  EXPECT_EQ(0, refusal_of(noise(2))) << "there is room again";
}

TEST_F(PageStoreTest, AFullDiskLeavesOldPagesInMemory) {
  with_file();
  std::vector<StoredPage> stored;
  for (u64 i = 0; i < 64; ++i) stored.push_back(*put(text_like(i)));
  store_.set_memory_limit(0);
  failpoint::arm("mem.swap_write", 1, failpoint::kForever);
  EXPECT_EQ(ENOSPC, refusal_of(text_like(64)));
  failpoint::disarm();
  EXPECT_EQ(64U, store_.use().in_memory);
  for (u64 i = 0; i < 64; ++i) EXPECT_TRUE(is(stored[i], text_like(i))) << i;
}

// In a process of its own: the limit is the process's, and so is the signal that we must not cause.
TEST_F(PageStoreTest, TheProcesssOwnLimitOfFilesIsARefusalAndNoSignal) {
  with_file();
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_DFL);
    const rlimit limit{2 * kPageSize, 2 * kPageSize};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const bool two = put(noise(1)) && put(noise(2));
    ::_exit(two && refusal_of(noise(3)) == EFBIG ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status)) << WTERMSIG(status);
  EXPECT_EQ(0, WEXITSTATUS(status));
}

TEST_F(PageStoreTest, EveryRefusalOfMemoryLeavesItAsItWas) {
  with_file();
  failpoint::sweep([&] {
    PageStore store;
    for (u64 i = 0; i < 3; ++i) {
      const Page page = i == 1 ? noise(i) : text_like(i);
      const auto stored = store.put(page.bytes, bench_.get(), fd_);
      if (!stored) continue;
      Page back;
      EXPECT_TRUE(store.get(*stored, back.bytes, fd_) || failpoint::failed() != 0);
      store.drop(*stored);
    }
    EXPECT_EQ(0U, store.use().in_memory + store.use().on_disk);
  });
}

// Four threads with pages of their own, memory short enough that every page is on its way to disk
// while others come and go.
TEST_F(PageStoreTest, ThreadsKeepTheirPagesWhileTheOldestAreMoved) {
  with_file();
  store_.set_memory_limit(2 * CompressedPool::kSlabBytes);
  const u64 seed = test::announced_seed("page store threads");
  std::vector<std::thread> threads;
  for (u64 t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const auto bench = std::make_unique<PageStore::Bench>();
      test::RandomSource random(seed + t);
      struct Mine {
        StoredPage stored;
        u64 seed;
      };
      std::vector<Mine> mine;
      const test::Deadline deadline(0.15);
      for (u64 round = 0; deadline.running(); ++round) {
        if (mine.size() > 100) {
          const size_t i = random.small(100);
          Page page;
          ASSERT_TRUE(store_.get(mine[i].stored, page.bytes, fd_));
          ASSERT_TRUE(page == text_like(mine[i].seed));
          store_.drop(mine[i].stored);
          mine[i] = mine.back();
          mine.pop_back();
        }
        const u64 made_of = t << 32 | round;
        const auto stored = store_.put(text_like(made_of).bytes, bench.get(), fd_);
        ASSERT_TRUE(stored);
        mine.push_back({*stored, made_of});
      }
      for (const Mine& one : mine) store_.drop(one.stored);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(0U, store_.use().in_memory + store_.use().on_disk);
  EXPECT_EQ(0U, store_.use().disk_bytes);
  EXPECT_EQ(0U, store_.use().lost);
}

}  // namespace
}  // namespace stagetwo::mem
