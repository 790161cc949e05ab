// SPDX-License-Identifier: Apache-2.0
// Shared memory of a program whose calls are seen: which of it is ours alone, and what its files
// show while pages of it are absent.
#include "shim/shared_files.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <thread>

#include "base/sys.h"
#include "host/page_owner.h"
#include "host/shared_objects.h"
#include "host/userfault.h"
#include "shim/absent_buffers.h"
#include "shim/files.h"
#include "shim/memory.h"
#include "shim/programs.h"
#include "tests/support/fd_message.h"
#include "tests/support/pages.h"

namespace stagetwo::shim {
namespace {

using host::BringBack;
constexpr size_t kPages = 4;

class Store final : public host::PageOwner {
 public:
  bool take(const host::AbsentPage& page, host::PageExit& exit) override {
    return exit.to(place_of(page));
  }
  BringBack bring_back(const host::AbsentPage& page, host::PageEntry& entry) override {
    if (loses) return BringBack::kLost;
    return entry.from(place_of(page)) ? BringBack::kBack : BringBack::kRetry;
  }
  void discard(const host::AbsentPage&) override { ++discarded; }
  bool loses = false;
  int discarded = 0;

 private:
  Hva place_of(const host::AbsentPage& page) const {
    return Hva(places_.address() + page.key.index * kPageSize);
  }
  test::GuardedPages places_{kPages};
};

class SharedFiles : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(wake());
    file_ = memory_file("shared", MFD_CLOEXEC);
    ASSERT_EQ(0, truncate_fd(file_, kPages * kPageSize));
    bytes_ = static_cast<u8*>(
        map(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0));
    for (size_t i = 0; i < kPages; ++i) {
      std::memset(bytes_ + i * kPageSize, static_cast<int>(i + 1), kPageSize);
    }
  }
  void TearDown() override {
    unmap(bytes_, kPages * kPageSize);
    ::close(file_);
  }
  u64 take() {
    const HvaRange all(Hva(reinterpret_cast<u64>(bytes_)), kPages * kPageSize);
    const auto taken = host::take_away(all, &store_, this, host::Which::kAll);
    return taken ? *taken : ~u64{0};
  }
  ssize_t read_at(off_t at, u8* to, size_t size) const {
    return with_buffer(file_, true, &at, to, size, [&] { return ::pread(file_, to, size, at); });
  }

  int file_ = -1;
  u8* bytes_ = nullptr;
  Store store_;
};

TEST_F(SharedFiles, AReadOfTheFileFindsWhatIsAbsent) {
  ASSERT_EQ(kPages, take());
  u8 got[2] = {};
  ASSERT_EQ(2, read_at(2 * kPageSize - 1, got, 2));
  EXPECT_EQ(2, got[0]);
  EXPECT_EQ(3, got[1]);
  ASSERT_EQ(0, ::lseek(file_, 3 * kPageSize, SEEK_SET) - off_t{3 * kPageSize});
  ASSERT_EQ(1, with_buffer(file_, true, nullptr, got, 1, [&] { return ::read(file_, got, 1); }));
  EXPECT_EQ(4, got[0]);
}

TEST_F(SharedFiles, AWriteChangesAPartOfAnAbsentPage) {
  ASSERT_EQ(kPages, take());
  const u8 put = 99;
  const off_t at = 5;
  ASSERT_EQ(1,
            with_buffer(file_, false, &at, &put, 1, [&] { return ::pwrite(file_, &put, 1, at); }));
  EXPECT_EQ(1, bytes_[4]);
  EXPECT_EQ(99, bytes_[5]);
}

// Of what file it is read does not say whether a driver writes into its pages meanwhile.
TEST_F(SharedFiles, ABufferStaysWhileAFileIsReadIntoIt) {
  ASSERT_EQ(kPages, take());
  const int other = ::open("/dev/zero", O_RDONLY | O_CLOEXEC);
  const auto call = [&] {
    EXPECT_EQ(0u, take());
    return ::read(other, bytes_, kPageSize);
  };
  ASSERT_EQ(ssize_t{kPageSize},
            with_buffer(other, true, nullptr, bytes_, kPages * kPageSize, [&] { return call(); }));
  EXPECT_EQ(0, bytes_[0]);
  EXPECT_EQ(2, bytes_[kPageSize]);
  const iovec part{bytes_, kPages * kPageSize};
  ASSERT_EQ(ssize_t{kPageSize}, with_parts(other, true, nullptr, &part, 1, [&] { return call(); }));
  EXPECT_EQ(kPages, take()) << "and goes again";
  ::close(other);
}

// A guest's whole memory may be read or written at once; it need not be there at once for that.
TEST_F(SharedFiles, ABufferMayGoWhileAFileIsReadThroughTheCache) {
  const int other = ::memfd_create("other", MFD_CLOEXEC);
  ASSERT_EQ(0, ::ftruncate(other, kPageSize));
  EXPECT_EQ(ssize_t{kPageSize}, with_buffer(other, true, nullptr, bytes_, kPageSize, [&] {
              EXPECT_EQ(kPages, take());
              return ::read(other, bytes_, kPageSize);
            }));
  EXPECT_EQ(0, bytes_[0]);
  ::close(other);
}

TEST_F(SharedFiles, WhatIsWrittenToAFileMayGoMeanwhile) {
  const int other = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
  EXPECT_EQ(ssize_t{kPageSize}, with_buffer(other, false, nullptr, bytes_, kPageSize, [&] {
              EXPECT_EQ(kPages, take());
              return ::write(other, bytes_, kPageSize);
            }));
  ::close(other);
}

TEST_F(SharedFiles, AReadOfALostPageIsAnErrorAndNeverZeros) {
  ASSERT_EQ(kPages, take());
  store_.loses = true;
  u8 got = 7;
  EXPECT_EQ(-1, read_at(0, &got, 1));
  EXPECT_EQ(EIO, errno);
  EXPECT_EQ(7, got);
}

TEST_F(SharedFiles, AHoleAndAnEndDiscard) {
  ASSERT_EQ(kPages, take());
  ASSERT_EQ(0, fallocate_fd(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kPageSize));
  EXPECT_EQ(1, store_.discarded);
  EXPECT_EQ(0, bytes_[0]);
  ASSERT_EQ(0, advise(bytes_ + kPageSize, kPageSize, MADV_REMOVE));
  EXPECT_EQ(2, store_.discarded);
  EXPECT_EQ(0, bytes_[kPageSize]);
  ASSERT_EQ(0, truncate_fd(file_, 3 * kPageSize));
  EXPECT_EQ(3, store_.discarded);
  EXPECT_EQ(3, bytes_[2 * kPageSize]);
}

TEST_F(SharedFiles, AHoleThatIsRefusedDiscardsNothing) {
  ASSERT_EQ(kPages, take());
  EXPECT_EQ(-1, fallocate_fd(file_, FALLOC_FL_PUNCH_HOLE, 0, kPageSize));
  EXPECT_EQ(0, store_.discarded);
  EXPECT_EQ(1, bytes_[0]);
}

TEST_F(SharedFiles, ASecondMappingShowsTheBytes) {
  ASSERT_EQ(kPages, take());
  auto* two = static_cast<u8*>(remap(bytes_, 0, kPages * kPageSize, MREMAP_MAYMOVE, nullptr));
  EXPECT_EQ(2, two[kPageSize]);
  ASSERT_EQ(kPages, take());
  EXPECT_EQ(4, two[3 * kPageSize]);
  EXPECT_EQ(1, bytes_[0]);
  unmap(two, kPages * kPageSize);
}

TEST_F(SharedFiles, OtherPagesOfTheFileInItsPlaceShowTheirBytes) {
  ASSERT_EQ(kPages, take());
  ASSERT_EQ(0, remap_pages(bytes_, kPageSize, 0, 2, 0)) << errno;
  EXPECT_EQ(3, bytes_[0]);
  EXPECT_EQ(2, bytes_[kPageSize]);
  EXPECT_EQ(3, bytes_[2 * kPageSize]);
}

// Other threads know the address: what they touch may be the new pages before the call is over.
TEST_F(SharedFiles, WhoTouchesWhatIsMappedInItsPlaceLosesNothing) {
  std::atomic<bool> over{false};
  std::thread other([&] {
    while (!over.load()) __atomic_fetch_add(bytes_, 1, __ATOMIC_RELAXED);
  });
  for (int round = 0; round < 40; ++round) {
    EXPECT_LE(1u, take());
    const size_t page = 2 + static_cast<size_t>(round % 2);
    const auto offset = static_cast<off_t>(page * kPageSize);
    if (round % 4 < 2) {
      EXPECT_EQ(bytes_, map(bytes_, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                            file_, offset));
    } else {
      EXPECT_EQ(0, remap_pages(bytes_, kPageSize, 0, page, 0)) << errno;
    }
    EXPECT_EQ(page + 1, bytes_[8]) << round;
  }
  over.store(true);
  other.join();
  EXPECT_EQ(2, bytes_[kPageSize]);
}

TEST_F(SharedFiles, AnonymousSharedMemoryIsOursToo) {
  auto* mine = static_cast<u8*>(
      map(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  mine[0] = 6;
  const HvaRange one(Hva(reinterpret_cast<u64>(mine)), kPageSize);
  EXPECT_EQ(1u, *host::take_away(one, &store_, this, host::Which::kAll));
  EXPECT_EQ(6, mine[0]);
  unmap(mine, kPageSize);
}

// What the file has, asked without us.
size_t holes_of(int file) {
  size_t holes = 0;
  for (size_t i = 0; i < kPages; ++i) {
    u8 page[kPageSize] = {};
    EXPECT_TRUE(sys::pread(file, page, kPageSize, static_cast<off_t>(i * kPageSize)));
    holes += page[0] == i + 1 && page[kPageSize - 1] == i + 1 ? 0U : 1U;
  }
  return holes;
}

class MoreViews : public SharedFiles {
 protected:
  void SetUp() override {
    SharedFiles::SetUp();
    if (!host::userfault::open() || !host::userfault::serves_kernel()) {
      GTEST_SKIP() << "userfaultfd does not serve system calls here";
    }
  }
  u8* again(int prot, int flags) const {
    return static_cast<u8*>(map(nullptr, kPages * kPageSize, prot, flags, file_, 0));
  }
};

TEST_F(MoreViews, ANewOneBringsNothingBack) {
  ASSERT_EQ(kPages, take());
  u8* const two = again(PROT_READ | PROT_WRITE, MAP_SHARED);
  u8* const three = again(PROT_READ, MAP_SHARED | MAP_NORESERVE);
  u8* const none = again(PROT_NONE, MAP_SHARED);
  EXPECT_EQ(kPages, holes_of(file_));
  EXPECT_EQ(3, two[2 * kPageSize]);
  two[2 * kPageSize] = 33;
  EXPECT_EQ(33, three[2 * kPageSize]);
  EXPECT_EQ(33, bytes_[2 * kPageSize]);
  EXPECT_EQ(4, three[4 * kPageSize - 1]);
  ASSERT_EQ(0, protect(none, kPages * kPageSize, PROT_READ, -1));
  EXPECT_EQ(1, none[0]);
  EXPECT_EQ(3u, take()) << "and what it showed goes again";
  EXPECT_EQ(33, two[2 * kPageSize]);
  for (u8* const view : {two, three, none}) unmap(view, kPages * kPageSize);
  for (size_t i = 0; i < kPages; ++i) EXPECT_EQ(i == 2 ? 33 : i + 1, bytes_[i * kPageSize]);
}

TEST_F(MoreViews, OneThatTheKernelFillsShowsEveryByte) {
  for (const int fills : {MAP_POPULATE, MAP_LOCKED}) {
    ASSERT_EQ(kPages, take());
    u8* const two = again(PROT_READ | PROT_WRITE, MAP_SHARED | fills);
    EXPECT_EQ(0u, holes_of(file_));
    for (size_t i = 0; i < kPages; ++i) EXPECT_EQ(i + 1, two[i * kPageSize]);
    unmap(two, kPages * kPageSize);
  }
  // Of which nobody is told by the call.
  ASSERT_EQ(kPages, take());
  ASSERT_EQ(0, sys::call(SYS_mlockall, MCL_FUTURE));
  u8* const two = again(PROT_READ | PROT_WRITE, MAP_SHARED);
  sys::call(SYS_munlockall);
  EXPECT_EQ(0u, holes_of(file_));
  for (size_t i = 0; i < kPages; ++i) EXPECT_EQ(i + 1, two[i * kPageSize]);
  unmap(two, kPages * kPageSize);
}

TEST_F(MoreViews, WhatTheKernelRefusesIsRefusedAsItSays) {
  ASSERT_EQ(kPages, take());
  char path[64];
  std::snprintf(path, sizeof(path), "/proc/self/fd/%d", file_);
  const int reads = ::open(path, O_RDONLY | O_CLOEXEC);
  ASSERT_LE(0, reads);
  errno = 0;
  EXPECT_EQ(MAP_FAILED, map(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, reads, 0));
  EXPECT_EQ(EACCES, errno);
  auto* const two =
      static_cast<u8*>(map(nullptr, kPages * kPageSize, PROT_READ, MAP_SHARED, reads, 0));
  for (size_t i = 0; i < kPages; ++i) EXPECT_EQ(i + 1, two[i * kPageSize]);
  unmap(two, kPages * kPageSize);
  ::close(reads);
}

TEST_F(SharedFiles, AFileThatIsSentAwayIsWholeAndNotOursAlone) {
  ASSERT_NE(0u, host::object_behind(file_));
  ASSERT_EQ(kPages, take());
  ASSERT_EQ(kPages, holes_of(file_));
  const test::FdMessage<2> message({0, file_});
  EXPECT_FALSE(giving_refused(message.header()));
  EXPECT_EQ(0u, holes_of(file_));
  EXPECT_EQ(0u, take());
}

TEST_F(SharedFiles, AFileOfWhichBytesAreLostIsNotSentAway) {
  ASSERT_EQ(kPages, take());
  store_.loses = true;
  const test::FdMessage<2> message({0, file_});
  EXPECT_TRUE(giving_refused(message.header()));
  EXPECT_EQ(EIO, errno);
  mmsghdr several{*message.header(), 0};
  EXPECT_TRUE(giving_refused(&several, 1));
}

// As start_program() is used: -1 is a failure.
template <typename F>
int start(const posix_spawn_file_actions_t* steps, F&& call) {
  return start_program(steps, kMinusOne, -1, call);
}

TEST_F(SharedFiles, AFileThatAProgramInheritsIsWholeAndNotOursAlone) {
  ASSERT_EQ(kPages, take());
  ASSERT_EQ(0, ::fcntl(file_, F_SETFD, 0));
  ASSERT_EQ(7, start(nullptr, [&] {
              EXPECT_EQ(0u, holes_of(file_));
              EXPECT_EQ(0u, take());
              return 7;
            }));
  EXPECT_EQ(0u, take());
}

TEST_F(SharedFiles, WhereNoProgramStartedTheFileIsOursAsBefore) {
  ASSERT_EQ(0, ::fcntl(file_, F_SETFD, 0));
  EXPECT_EQ(-1, start(nullptr, [&] {
    EXPECT_EQ(0u, take());
    return -1;
  }));
  EXPECT_EQ(kPages, take());
}

TEST_F(SharedFiles, AFileThatNoProgramInheritsStaysAway) {
  ASSERT_EQ(kPages, take());
  EXPECT_EQ(0, start(nullptr, [&] { return 0; }));
  EXPECT_EQ(kPages, holes_of(file_));
}

TEST_F(SharedFiles, WhatAChildDuplicatesItInherits) {
  ASSERT_EQ(kPages, take());
  posix_spawn_file_actions_t steps;
  ASSERT_EQ(0, ::posix_spawn_file_actions_init(&steps));
  ::posix_spawn_file_actions_addopen(&steps, 0, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_adddup2(&steps, file_, 100);
  EXPECT_EQ(0, start(&steps, [&] { return 0; }));
  ::posix_spawn_file_actions_destroy(&steps);
  EXPECT_EQ(0u, holes_of(file_));
  EXPECT_EQ(0u, take());
}

TEST_F(SharedFiles, WithLostBytesNoProgramStarts) {
  ASSERT_EQ(kPages, take());
  ASSERT_EQ(0, ::fcntl(file_, F_SETFD, 0));
  store_.loses = true;
  EXPECT_EQ(-1, start(nullptr, [] {
    ADD_FAILURE() << "it would read zeros";
    return 0;
  }));
  EXPECT_EQ(EIO, errno);
}

// Somebody takes pages all the time while programs start and fail to.
TEST_F(SharedFiles, NothingIsTakenWhileAProgramStarts) {
  ASSERT_EQ(0, ::fcntl(file_, F_SETFD, 0));
  std::atomic<bool> over{false};
  std::atomic<u64> taken{0};
  std::thread taker([&] {
    while (!over) taken += take();
  });
  for (int round = 0; round < 300 || taken == 0; ++round) {
    EXPECT_EQ(-1, start(nullptr, [&] {
      EXPECT_EQ(0u, holes_of(file_));
      return -1;
    }));
    std::this_thread::yield();
  }
  over = true;
  taker.join();
}

}  // namespace
}  // namespace stagetwo::shim
