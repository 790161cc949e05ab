// SPDX-License-Identifier: Apache-2.0
// Goal: memory that guests use stays under its limit, what is used least goes, and every byte comes
// back to whoever touches it, however he does.
#include "reclaim/reclaim.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "host/given_files.h"
#include "host/piecewise.h"
#include "host/pin.h"
#include "sync/futex.h"
#include "tests/support/one_place_owner.h"
#include "tests/support/reclaimed_guest.h"

namespace stagetwo {
namespace {

using test::kMiB;
constexpr size_t kPages = 2048;  // 8 MiB

class Reclaim : public test::ReclaimedGuest {
 protected:
  void fill_all(u8* at, size_t pages) {
    for (size_t i = 0; i < pages; ++i) fill(at + (i << kPageShift), i);
  }
  size_t wrong_pages(const u8* at, size_t pages) {
    size_t wrong = 0;
    for (size_t i = 0; i < pages; ++i) wrong += is_filled(at + (i << kPageShift), i) ? 0U : 1U;
    return wrong;
  }
};

TEST_F(Reclaim, IsNotThereUntilItIsStarted) {
  EXPECT_FALSE(reclaim::active());
  reclaim::Guest guest;
  EXPECT_TRUE(guest.use(0, HvaRange(Hva(0x10000), kPageSize)));
  EXPECT_EQ(0U, reclaim::statistics().taken);
}

TEST_F(Reclaim, KeepsTheLimitAndEveryByte) {
  start(2 * kMiB);
  u8* const memory = map(kPages);
  ASSERT_TRUE(guest_->use(0, range_of(memory, kPages)));
  fill_all(memory, kPages);
  EXPECT_TRUE(soon([] { return kept() <= 2 * kMiB && reclaim::statistics().taken > kPages / 2; }));
  const reclaim::Statistics full = reclaim::statistics();
  EXPECT_GT(full.on_disk, kMiB / 2) << "half of it does not get smaller";
  EXPECT_GT(full.absent, kPages / 2);
  EXPECT_EQ(0U, wrong_pages(memory, kPages));
  EXPECT_GT(reclaim::statistics().refaults + reclaim::statistics().ahead, kPages / 2);
  EXPECT_TRUE(soon([] { return kept() <= 2 * kMiB; }));
  EXPECT_EQ(0U, wrong_pages(memory, kPages));
  EXPECT_EQ(0U, reclaim::statistics().lost);
  EXPECT_TRUE(test::said().empty()) << test::said().front();
}

TEST_F(Reclaim, KeepsSharedMemoryUnderItsLimitToo) {
  start(2 * kMiB);
  u8* const memory = map(kPages, MAP_SHARED);
  ASSERT_TRUE(guest_->use(0, range_of(memory, kPages)));
  fill_all(memory, kPages);
  EXPECT_TRUE(soon([] { return kept() <= 2 * kMiB && reclaim::statistics().taken > kPages / 2; }));
  EXPECT_EQ(0U, wrong_pages(memory, kPages));
  EXPECT_GT(reclaim::statistics().refaults + reclaim::statistics().ahead, kPages / 4);
}

TEST_F(Reclaim, PagesOfOneWordCostNothing) {
  start(kMiB, Swap::kNone);
  u8* const memory = map(kPages);
  ASSERT_TRUE(guest_->use(0, range_of(memory, kPages)));
  for (size_t i = 0; i < kPages; ++i) {
    std::memset(memory + (i << kPageShift), static_cast<int>(i % 256), kPageSize);
  }
  EXPECT_TRUE(
      soon([] { return kept() <= kMiB && reclaim::statistics().same_filled > kPages / 2; }));
  EXPECT_GT(reclaim::statistics().same_filled, kPages / 2);
  for (size_t i = 0; i < kPages; ++i) {
    ASSERT_EQ(static_cast<u8>(i % 256), memory[(i << kPageShift) + i % kPageSize]) << i;
  }
}

// Check 14 of the specification: hot 25 %, cold 75 %, budget 50 %.
TEST_F(Reclaim, HotPagesStay) {
  constexpr size_t kHot = kPages / 4;
  start(kPages / 2 * kPageSize);
  u8* const memory = map(kPages);
  ASSERT_TRUE(guest_->use(0, range_of(memory, kPages)));
  test::FakeGuest guest(memory, kPages);
  test::RandomSource random(test::announced_seed("hot pages"));
  u64 hot_faults = 0;
  const auto run = [&](int rounds) {
    for (int round = 0; round < rounds; ++round) {
      for (size_t page = 0; page < kHot; ++page) {
        const u64 before = guest.faults;
        guest.use(page);
        hot_faults += guest.faults - before;
      }
      for (int i = 0; i < 64; ++i) guest.use(kHot + random.below(kPages - kHot));
    }
  };
  for (size_t page = 0; page < kPages; ++page) fill(memory + (page << kPageShift), page);
  run(50);  // warm-up
  const u64 warm = reclaim::statistics().refaults;
  const u64 faults = guest.faults;
  hot_faults = 0;
  run(100);
  const u64 refaults = reclaim::statistics().refaults - warm;
  EXPECT_GT(refaults, 500U) << "the cold ones are not all there";
  EXPECT_LE(hot_faults * 100, refaults) << hot_faults << " of " << guest.faults - faults;
}

TEST_F(Reclaim, AGuestsFaultWaitsForRoom) {
  start(2 * kMiB);
  u8* const memory = map(kPages);
  ASSERT_TRUE(guest_->use(0, range_of(memory, kPages)));
  test::FakeGuest guest(memory, kPages);
  u64 most = 0;
  for (size_t page = 0; page < kPages; ++page) {
    guest.use(page);
    fill(memory + (page << kPageShift), page);
    if (page % 64 != 0) continue;
    u64 bits[kPages / 64];
    const auto resident = host::resident_pages(range_of(memory, kPages), false, bits);
    most = std::max(most, (*resident << kPageShift) + reclaim::statistics().compressed);
  }
  EXPECT_LE(most, 2 * kMiB * 105 / 100 + kMiB);
  EXPECT_EQ(0U, wrong_pages(memory, kPages));
}

TEST_F(Reclaim, AGuestHasALimitOfItsOwn) {
  start(reclaim::kNoLimit);
  u8* const memory = map(kPages);
  u8* const others = map(512);
  reclaim::Guest other;
  ASSERT_TRUE(guest_->use(0, range_of(memory, kPages)));
  ASSERT_TRUE(other.use(0, range_of(others, 512)));
  fill_all(memory, kPages);
  fill_all(others, 512);
  guest_->set_limit(2 * kMiB);
  u64 bits[kPages / 64];
  EXPECT_TRUE(soon([&] {
    return *host::resident_pages(range_of(memory, kPages), false, bits) <= 2 * kMiB / kPageSize;
  }));
  EXPECT_EQ(512U, *host::resident_pages(range_of(others, 512), false, bits));
  EXPECT_EQ(0U, wrong_pages(memory, kPages));
}

TEST_F(Reclaim, TheLimitMayBeChangedWhileItRuns) {
  start(reclaim::kNoLimit);
  u8* const memory = map(kPages);
  ASSERT_TRUE(guest_->use(0, range_of(memory, kPages)));
  fill_all(memory, kPages);
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_EQ(0U, reclaim::statistics().taken);
  reclaim::set_memory_limit(4 * kMiB);
  EXPECT_TRUE(soon([] { return kept() <= 4 * kMiB && reclaim::statistics().taken > kPages / 4; }));
  reclaim::set_memory_limit(kMiB);
  EXPECT_TRUE(soon([] { return kept() <= kMiB; }));
  reclaim::set_memory_limit(reclaim::kNoLimit);
  EXPECT_EQ(0U, wrong_pages(memory, kPages));
}

TEST_F(Reclaim, WithoutAFileItSaysThatTheLimitIsNotKept) {
  start(kMiB, Swap::kNone);
  u8* const memory = map(1024);
  ASSERT_TRUE(guest_->use(0, range_of(memory, 1024)));
  test::RandomSource random(3);
  for (size_t i = 0; i < 1024 * kPageSize; i += 8) {
    const u64 word = random.next();
    std::memcpy(memory + i, &word, 8);
  }
  EXPECT_TRUE(soon([] { return !test::said().empty(); }));
  EXPECT_NE(std::string::npos, test::said().front().find("--swap")) << test::said().front();
  EXPECT_GT(reclaim::statistics().not_stored, 0U);
  test::RandomSource again(3);
  for (size_t i = 0; i < 1024 * kPageSize; i += 8) {
    const u64 word = again.next();
    ASSERT_EQ(0, std::memcmp(memory + i, &word, 8)) << i;
  }
}

TEST_F(Reclaim, AFileThatCannotBeWrittenIsSaidWithItsErrno) {
  start(kMiB);
  const int file = swap_fd();
  ASSERT_LE(0, file);
  const std::string name = "/proc/self/fd/" + std::to_string(file);
  const int readable = ::open(name.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_EQ(file, ::dup3(readable, file, O_CLOEXEC));
  ::close(readable);
  u8* const memory = map(1024);
  ASSERT_TRUE(guest_->use(0, range_of(memory, 1024)));
  fill_all(memory, 1024);
  EXPECT_TRUE(soon([] { return !test::said().empty(); }));
  const std::string wanted =
      "the swap file cannot be written (errno " + std::to_string(EBADF) + ")";
  EXPECT_NE(std::string::npos, test::said().front().find(wanted)) << test::said().front();
  EXPECT_GT(reclaim::statistics().write_errors, 0U);
  EXPECT_EQ(0U, wrong_pages(memory, 1024));
}

// ---- what is left alone ---------------------------------------------------------------------

TEST_F(Reclaim, LockedPagesAreLeftAloneAndCounted) {
  start(kMiB);
  u8* const memory = map(1024);
  ASSERT_EQ(0, ::syscall(SYS_mlock, memory, 1024 * kPageSize));  // a sanitizer's mlock does nothing
  ASSERT_TRUE(guest_->use(0, range_of(memory, 1024)));
  fill_all(memory, 1024);
  EXPECT_TRUE(soon([] { return reclaim::statistics().locked == 1024 * kPageSize; }));
  EXPECT_TRUE(soon([] { return !test::said().empty(); })) << "the limit is not kept";
  EXPECT_EQ(0U, reclaim::statistics().taken);
}

TEST_F(Reclaim, PinnedPagesAreLeftAloneAndCounted) {
  u8* const memory = map(kPages);
  fill_all(memory, kPages);
  host::FrameRun run;
  const auto pinned = host::pin_pages(range_of(memory + 8 * kPageSize, 8), {}, &run, 1);
  ASSERT_TRUE(pinned);
  ASSERT_EQ(8U, pinned->pages);
  start(kMiB);
  ASSERT_TRUE(guest_->use(0, range_of(memory, kPages)));
  EXPECT_TRUE(soon([] { return kept() <= kMiB && reclaim::statistics().taken > kPages / 2; }));
  for (size_t i = 8; i < 16; ++i) {
    EXPECT_FALSE(host::is_absent(Hva(reinterpret_cast<u64>(memory + (i << kPageShift))))) << i;
  }
  EXPECT_GE(reclaim::statistics().pinned, 8U);
  host::unpin_pages(run);
  EXPECT_EQ(0U, wrong_pages(memory, kPages));
}

TEST_F(Reclaim, WhatTheClientWatchesItselfIsLeftAloneAndCounted) {
  u8* const memory = map(1024);
  fill_all(memory, 1024);
  const int fd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
  if (fd < 0) GTEST_SKIP() << "userfaultfd is denied here";
  uffdio_api api{UFFD_API, 0, 0};
  ASSERT_EQ(0, ::ioctl(fd, UFFDIO_API, &api));
  uffdio_register mine{
      {reinterpret_cast<u64>(memory), 1024 * kPageSize}, UFFDIO_REGISTER_MODE_MISSING, 0};
  ASSERT_EQ(0, ::ioctl(fd, UFFDIO_REGISTER, &mine));
  start(kMiB);
  ASSERT_TRUE(guest_->use(0, range_of(memory, 1024)));
  EXPECT_TRUE(soon([] { return reclaim::statistics().watched >= 512; }));
  EXPECT_EQ(0U, reclaim::statistics().taken);
  EXPECT_EQ(0U, wrong_pages(memory, 1024));
  ::close(fd);
}

// What stays is asked for three times, then after 50 ms and after twice as long each time, not with
// every turn.
TEST_F(Reclaim, WhatStaysIsAskedForLessAndLess) {
  constexpr u64 kWatched = 512;
  u8* const memory = map(1024);
  fill_all(memory, 1024);
  const int fd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
  if (fd < 0) GTEST_SKIP() << "userfaultfd is denied here";
  uffdio_api api{UFFD_API, 0, 0};
  ASSERT_EQ(0, ::ioctl(fd, UFFDIO_API, &api));
  uffdio_register mine{
      {reinterpret_cast<u64>(memory), kWatched * kPageSize}, UFFDIO_REGISTER_MODE_MISSING, 0};
  ASSERT_EQ(0, ::ioctl(fd, UFFDIO_REGISTER, &mine));
  const u64 before = host::owner_counts().refused_watch;
  start(kMiB);
  const u64 begun = sync::now_ns();
  ASSERT_TRUE(guest_->use(0, range_of(memory, kWatched)));
  ASSERT_TRUE(guest_->use(1, range_of(memory + kWatched * kPageSize, 1024 - kWatched)));
  EXPECT_TRUE(soon([] { return reclaim::statistics().taken >= 512; })) << "the others go";
  EXPECT_TRUE(soon([&] { return sync::now_ns() - begun > 700'000'000; }));
  const u64 asked = reclaim::statistics().watched - before;
  u64 rounds = 4;
  for (u64 at = 50'000'000; at < sync::now_ns() - begun; at *= 2) ++rounds;
  EXPECT_GE(asked, kWatched);
  EXPECT_LE(asked, rounds * kWatched);
  EXPECT_EQ(0U, wrong_pages(memory, 1024));
  ::close(fd);
}

TEST_F(Reclaim, WhatWasStuckGoesWhenItCan) {
  u8* const memory = map(1024);
  fill_all(memory, 1024);
  host::FrameRun run;
  const auto pinned = host::pin_pages(range_of(memory, 1024), {}, &run, 1);
  ASSERT_TRUE(pinned);
  ASSERT_EQ(1024U, pinned->pages);
  const u64 before = host::owner_counts().refused_held;
  start(kMiB);
  ASSERT_TRUE(guest_->use(0, range_of(memory, 1024)));
  EXPECT_TRUE(soon([&] { return reclaim::statistics().pinned >= before + 1024; }));
  EXPECT_EQ(0U, reclaim::statistics().taken);
  host::unpin_pages(run);
  EXPECT_TRUE(soon([] { return kept() <= kMiB && reclaim::statistics().taken > 512; }));
  EXPECT_EQ(0U, wrong_pages(memory, 1024));
}

TEST_F(Reclaim, APrivateMappingOfAFileIsLeftAloneAndCounted) {
  const int file = ::memfd_create("kernel image", MFD_CLOEXEC);
  ASSERT_EQ(0, ::ftruncate(file, 1024 * kPageSize));
  void* const at = ::mmap(nullptr, 1024 * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
  ASSERT_NE(MAP_FAILED, at);
  mappings_.push_back({at, 1024 * kPageSize});
  u8* const memory = static_cast<u8*>(at);
  fill_all(memory, 1024);
  const u64 before = host::owner_counts().refused_watch;
  start(kMiB);
  ASSERT_TRUE(guest_->use(0, range_of(memory, 1024)));
  EXPECT_TRUE(soon([] { return reclaim::statistics().private_files == 1024 * kPageSize; }));
  EXPECT_TRUE(soon([] { return !test::said().empty(); })) << "the limit is not kept";
  EXPECT_EQ(0U, reclaim::statistics().taken);
  EXPECT_EQ(before, reclaim::statistics().watched);
  EXPECT_EQ(0U, wrong_pages(memory, 1024));
  ::close(file);
}

TEST_F(Reclaim, SharedMemoryThatOthersHaveIsLeftAloneAndCounted) {
  start(kMiB);
  const int file = ::memfd_create("of others", MFD_CLOEXEC);
  ASSERT_EQ(0, ::ftruncate(file, 1024 * kPageSize));
  host::shared_file_made(file);
  void* const at = ::mmap(nullptr, 1024 * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  ASSERT_NE(MAP_FAILED, at);
  mappings_.push_back({at, 1024 * kPageSize});
  u8* const memory = static_cast<u8*>(at);
  fill_all(memory, 1024);
  ASSERT_TRUE(guest_->use(0, range_of(memory, 1024)));
  EXPECT_TRUE(soon([] { return reclaim::statistics().taken > 512; })) << "ours alone";
  {
    host::GivenFiles given;
    EXPECT_TRUE(given.add(file, host::GivenTo::kProgram));
    given.keep();
  }
  EXPECT_TRUE(soon([] { return reclaim::statistics().shared_with_others == 1024 * kPageSize; }));
  EXPECT_EQ(0U, wrong_pages(memory, 1024));
  ::close(file);
}

// A device, or a secure guest, has one page: it is not here, so it cannot go.
TEST_F(Reclaim, WhatAnotherOwnerHasIsLeftAloneAndCounted) {
  test::OnePlaceOwner other;
  u8* const memory = map(1024);
  fill_all(memory, 1024);
  const HvaRange page = range_of(memory + 8 * kPageSize, 1);
  ASSERT_EQ(1U, *host::take_away(page, &other, &other, host::Which::kAnonymous));
  start(kMiB);
  ASSERT_TRUE(guest_->use(0, range_of(memory, 1024)));
  EXPECT_TRUE(soon([] { return kept() <= kMiB && reclaim::statistics().taken > 512; }));
  EXPECT_TRUE(soon([] { return reclaim::statistics().with_others == 1; }));
  EXPECT_EQ(0U, wrong_pages(memory, 1024));
  EXPECT_TRUE(soon([] { return reclaim::statistics().with_others == 0; }));
}

// The pool has a page for the time of the test, where this user may say so.
TEST_F(Reclaim, HugetlbIsCountedAndLeftAlone) {
  constexpr u64 kHuge = 2 * kMiB;
  const std::filesystem::path pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
  long before = 0;
  std::ifstream(pool) >> before;
  std::ofstream(pool) << before + 1;
  void* const at = ::mmap(nullptr, kHuge, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
  if (at != MAP_FAILED) {
    std::memset(at, 7, kHuge);
    start(kMiB);
    u8* const memory = static_cast<u8*>(at);
    EXPECT_TRUE(guest_->use(0, range_of(memory, kHuge / kPageSize)));
    EXPECT_TRUE(soon([] { return reclaim::statistics().hugetlb == kHuge; }));
    EXPECT_EQ(0U, reclaim::statistics().taken);
    EXPECT_EQ(kHuge, static_cast<u64>(std::count(memory, memory + kHuge, 7)));
    EXPECT_TRUE(guest_->use(0, {}));
    guest_.reset();
    reclaim::stop();
    ::munmap(at, kHuge);
  }
  std::ofstream(pool) << before;
  if (at == MAP_FAILED) GTEST_SKIP() << "needs root (a huge page)";
}

// ---- coming back ----------------------------------------------------------------------------

class Absent : public Reclaim {
 protected:
  static constexpr size_t kFew = 256;
  void SetUp() override {
    Reclaim::SetUp();
    if (IsSkipped()) return;
    memory_ = map(kFew);
    fill_all(memory_, kFew);
    start(16 * kPageSize);
    ASSERT_TRUE(guest_->use(0, range_of(memory_, kFew)));
    ASSERT_TRUE(soon([] { return reclaim::statistics().absent > kFew * 3 / 4; }));
    ASSERT_TRUE(soon([&] { return host::is_absent(at(100)) && host::is_absent(at(101)); }));
  }
  Hva at(size_t page) const { return Hva(reinterpret_cast<u64>(memory_ + (page << kPageShift))); }
  u8* memory_ = nullptr;
};

// Check 17.
TEST_F(Absent, WriteFromAndReadIntoAnAbsentPageAreWhole) {
  if (!host::userfault::serves_kernel()) GTEST_SKIP() << "userfaultfd serves user mode only here";
  int pipe[2];
  ASSERT_EQ(0, ::pipe2(pipe, O_CLOEXEC));
  ASSERT_EQ(static_cast<ssize_t>(kPageSize),
            ::write(pipe[1], memory_ + 100 * kPageSize, kPageSize));
  u8 page[kPageSize];
  ASSERT_EQ(static_cast<ssize_t>(kPageSize), ::read(pipe[0], page, kPageSize));
  EXPECT_TRUE(is_filled(page, 100));
  fill(page, 7777);
  ASSERT_EQ(static_cast<ssize_t>(kPageSize), ::write(pipe[1], page, kPageSize));
  ASSERT_TRUE(soon([&] { return host::is_absent(at(101)); }));
  ASSERT_EQ(static_cast<ssize_t>(kPageSize), ::read(pipe[0], memory_ + 101 * kPageSize, kPageSize));
  EXPECT_TRUE(is_filled(memory_ + 101 * kPageSize, 7777));
  ::close(pipe[0]);
  ::close(pipe[1]);
}

// Check 18.
TEST_F(Absent, WhatTheClientGivesUpReadsZeroAndLeavesTheStore) {
  const u64 before = reclaim::statistics().absent;
  host::change(at(0).raw(), kFew * kPageSize, host::EventKind::kClear,
               [&] { return ::madvise(memory_, kFew * kPageSize, MADV_DONTNEED); });
  EXPECT_LT(reclaim::statistics().absent, before);
  // One may just be on its way into the store.
  EXPECT_TRUE(soon([] { return reclaim::statistics().absent == 0; }));
  EXPECT_TRUE(soon([] { return reclaim::statistics().on_disk == 0; }));
  for (size_t i = 0; i < kFew * kPageSize; ++i) ASSERT_EQ(0, memory_[i]) << i;
}

// MADV_FREE gives a swapped page up at once, as the kernel does.
TEST_F(Absent, WhatTheClientFreesReadsZeroAndLeavesTheStore) {
  const u64 before = reclaim::statistics().discarded;
  ASSERT_EQ(0, host::discard(at(100).raw(), 2 * kPageSize, MADV_FREE, [](u64 from, u64 size) {
              return ::madvise(reinterpret_cast<void*>(from), size, MADV_FREE);
            }));
  EXPECT_EQ(before + 2, reclaim::statistics().discarded);
  for (size_t i = 100 * kPageSize; i < 102 * kPageSize; ++i) ASSERT_EQ(0, memory_[i]) << i;
}

TEST_F(Absent, NeighboursComeWithPagesThatAreWantedOneAfterAnother) {
  reclaim::set_memory_limit(64 * kMiB);
  ASSERT_TRUE(soon([] { return host::budget::left() > 1024; }));
  EXPECT_EQ(0U, wrong_pages(memory_, kFew));
  EXPECT_GT(reclaim::statistics().ahead, kFew / 2);
  EXPECT_LT(reclaim::statistics().refaults, kFew / 2);
}

TEST_F(Absent, PagesWantedHereAndThereComeAlone) {
  reclaim::set_memory_limit(64 * kMiB);
  ASSERT_TRUE(soon([] { return host::budget::left() > 1024; }));
  for (size_t i = 0; i < kFew; i += 2) ASSERT_TRUE(is_filled(memory_ + (i << kPageShift), i));
  EXPECT_EQ(0U, reclaim::statistics().ahead);
}

TEST_F(Absent, ADamagedPageFailsAndNoOther) {
  // What does not get smaller is on the disk as it is: find page 100 there, and damage it.
  u8 wanted[kPageSize], found[kPageSize];
  fill(wanted, 100);
  const auto damage = [&] {
    for (off_t offset = 0; offset < static_cast<off_t>(4 * kFew * kPageSize);
         offset += static_cast<off_t>(kPageSize)) {
      if (::pread(swap_fd(), found, kPageSize, offset) != static_cast<ssize_t>(kPageSize)) continue;
      if (std::memcmp(wanted, found, kPageSize) != 0) continue;
      found[17] ^= 1;
      return ::pwrite(swap_fd(), found + 17, 1, offset + 17) == 1;
    }
    return false;
  };
  ASSERT_TRUE(soon(damage));
  EXPECT_FALSE(host::faultin(at(100), Access::kRead));
  EXPECT_EQ(1U, reclaim::statistics().lost);
  EXPECT_EQ(0U, reclaim::statistics().with_others) << "nobody has it";
  ASSERT_FALSE(test::said().empty());
  EXPECT_NE(std::string::npos, test::said().back().find("lost")) << test::said().back();
  for (size_t i = 0; i < kFew; ++i) {
    ASSERT_TRUE(i == 100 || is_filled(memory_ + (i << kPageShift), i)) << i;
  }
  host::change(at(100).raw(), kPageSize, host::EventKind::kClear,
               [&] { return ::madvise(memory_ + 100 * kPageSize, kPageSize, MADV_DONTNEED); });
  EXPECT_EQ(0, memory_[100 * kPageSize]) << "given up, it is an ordinary page again";
}

TEST_F(Absent, IsToldApartFromWhatIsHere) {
  EXPECT_TRUE(reclaim::keeps(at(100)));
  EXPECT_TRUE(is_filled(memory_ + 100 * kPageSize, 100));
  reclaim::set_memory_limit(reclaim::kNoLimit);
  EXPECT_TRUE(is_filled(memory_ + 100 * kPageSize, 100));
  EXPECT_FALSE(reclaim::keeps(at(100)));
  EXPECT_FALSE(reclaim::keeps(at(kFew)));
}

TEST_F(Absent, WithNothingAwayNoMemoryIsTakenForIt) {
  const reclaim::Statistics now = reclaim::statistics();
  EXPECT_GT(now.account, 0U);
  EXPECT_LE(now.account, now.compressed);
  reclaim::set_memory_limit(reclaim::kNoLimit);
  EXPECT_EQ(0U, wrong_pages(memory_, kFew));
  // Not for the sake of the last page of the account.
  EXPECT_TRUE(soon([] { return reclaim::statistics().compressed < kPageSize; }))
      << reclaim::statistics().compressed;
}

TEST_F(Absent, StoppingBringsEverythingBack) {
  ASSERT_TRUE(guest_->use(0, {}));
  reclaim::stop();
  u64 bits[kFew / 64];
  EXPECT_EQ(kFew, *host::resident_pages(range_of(memory_, kFew), false, bits));
  EXPECT_EQ(0U, wrong_pages(memory_, kFew));
}

// Nobody makes room meanwhile, so whoever waited for it would wait for nothing, page after page.
TEST_F(Absent, AForkBringsEverythingBackAndWaitsForNoRoom) {
  const u64 before = reclaim::statistics().waits;
  host::owners_before_fork();
  // By the pages themselves: what came back while it was being compressed is kept a moment longer.
  u64 bits[kFew / 64];
  EXPECT_EQ(kFew, *host::resident_pages(range_of(memory_, kFew), false, bits));
  EXPECT_EQ(before, reclaim::statistics().waits);
  host::owners_after_fork_parent();
  EXPECT_EQ(0U, wrong_pages(memory_, kFew));
}

TEST_F(Absent, AGuestThatLetsGoLeavesItsPagesReachable) {
  ASSERT_TRUE(guest_->use(0, {}));
  EXPECT_EQ(0U, wrong_pages(memory_, kFew));
  ASSERT_TRUE(guest_->use(0, range_of(memory_, kFew)));
  EXPECT_TRUE(soon([&] { return host::is_absent(at(100)); }));
  EXPECT_EQ(0U, wrong_pages(memory_, kFew));
}

// A child shares the pages, and did when it is gone: the parent has to make each its own before it
// can leave, and many at once.
TEST_F(Reclaim, MemoryThatAChildSharesGoesAsFastAsAny) {
  start(2 * kMiB);
  u8* const memory = map(kPages);
  ASSERT_TRUE(guest_->use(0, range_of(memory, kPages)));
  fill_all(memory, kPages);
  int wait[2];
  ASSERT_EQ(0, ::pipe(wait));
  host::owners_before_fork();
  const reclaim::Statistics before = reclaim::statistics();  // all of it is back
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(wait[1]);
    char byte = 0;
    ::_exit(::read(wait[0], &byte, 1) == 0 ? 0 : 1);
  }
  host::owners_after_fork_parent();
  ::close(wait[0]);
  const bool kept_soon = soon([&] {
    const u64 gone = reclaim::statistics().taken - before.taken;
    return gone > kPages / 2 && kept() <= 2 * kMiB;
  });
  const reclaim::Statistics after = reclaim::statistics();
  ::close(wait[1]);
  int status = 0;
  ASSERT_EQ(child, ::waitpid(child, &status, 0));
  EXPECT_TRUE(kept_soon) << (kept() >> 20) << " MiB";
  EXPECT_EQ(0, status);
  EXPECT_EQ(before.not_movable, after.not_movable) << "what found no place was not refused";
  EXPECT_EQ(0U, wrong_pages(memory, kPages));
}

// ---- the working set ------------------------------------------------------------------------

TEST_F(Reclaim, TheWorkingSetIsWhatWasUsedInAnInterval) {
  start(reclaim::kNoLimit, Swap::kNone, 20'000'000);
  u8* const memory = map(kPages);
  ASSERT_TRUE(guest_->use(0, range_of(memory, kPages)));
  test::FakeGuest guest(memory, kPages);
  for (size_t page = 0; page < kPages; ++page) guest.use(page);
  std::atomic<bool> stop{false};
  std::thread user([&] {
    while (!stop) {
      for (size_t page = 0; page < 300; ++page) guest.use(page * 5);
    }
  });
  EXPECT_TRUE(soon([] { return reclaim::statistics().working_set == 300 * kPageSize; }));
  stop = true;
  user.join();
  EXPECT_TRUE(soon([] { return reclaim::statistics().working_set == 0; }));
  reclaim::Sample samples[64];
  u64 first = 0;
  const unsigned count = reclaim::samples(&first, samples, 64);
  ASSERT_GE(count, 2U);
  for (unsigned i = 1; i < count; ++i) EXPECT_GT(samples[i].at_ns, samples[i - 1].at_ns);
}

}  // namespace
}  // namespace stagetwo
