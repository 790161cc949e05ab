// SPDX-License-Identifier: Apache-2.0
// Pinned pages: counts, rights, and the same bytes for client and device whatever the client does.
#include "host/pin.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "base/alloc.h"
#include "base/failpoint.h"
#include "host/access.h"
#include "host/backstop.h"
#include "host/change.h"
#include "host/pin_kinds.h"
#include "host/pin_store.h"
#include "host/process_map.h"
#include "tests/support/failing_calls.h"
#include "tests/unit/host/pins_world.h"

namespace stagetwo {
namespace {

using namespace test;

// ---- counts ---------------------------------------------------------------------------------

TEST_F(Pins, ClientAndDeviceSeeTheSameBytes) {
  const Memory memory(3);
  const auto frames = pin(memory.range(0, 3));
  ASSERT_EQ(frames.size(), 3u);
  EXPECT_TRUE(is_filled(frames[1], 2));
  memory.page(1)[7] = 99;
  EXPECT_EQ(byte(frames[1], 7), 99);
  EXPECT_TRUE(put(frames[2], 55, 9));
  EXPECT_EQ(memory.page(2)[9], 55);
}
TEST_F(Pins, AFrameCountsEachPinAndOverlappingRangesMeetInIt) {
  const Memory memory(4);
  const auto first = pin(memory.range(0, 3));
  const auto second = pin(memory.range(1, 3));
  ASSERT_EQ(first.size(), 3u);
  ASSERT_EQ(second.size(), 3u);
  EXPECT_EQ(first[1], second[0]);
  EXPECT_EQ(host::pins_of(first[0]), 1u);
  EXPECT_EQ(host::pins_of(first[1]), 2u);
  EXPECT_EQ(host::pins_of(second[2]), 1u);
  EXPECT_EQ(host::pin_use().pages, 4u);
  // In any order, page by page.
  held_.clear();
  host::unpin_pages({second[1], 1});
  EXPECT_EQ(host::pins_of(first[2]), 1u);
  host::unpin_pages({first[0], 3});
  EXPECT_EQ(host::pins_of(first[1]), 1u);
  EXPECT_EQ(host::pins_of(first[0]), 0u);
  EXPECT_EQ(host::frame_at(memory.hva(0)), std::nullopt);
  EXPECT_EQ(host::frame_at(memory.hva(1)), second[0]);
  host::unpin_pages({second[0], 1});
  host::unpin_pages({second[2], 1});
}
TEST_F(Pins, PagesThatFollowEachOtherAreOneRunAndKeepTheirPlaceIn2MiB) {
  const Memory memory(1200);
  FrameRun runs[4];
  const auto done = host::pin_pages(memory.range(0, 1200), kForWriting, runs, 4);
  ASSERT_TRUE(done);
  EXPECT_EQ(done->pages, 1200u);
  EXPECT_EQ(static_cast<u64>(runs[0].first) % 512, memory.hva(0).raw() / kPageSize % 512);
  for (unsigned i = 0; i < done->runs; ++i) held_.push_back(runs[i]);
}
TEST_F(Pins, WhenTheRunsAreUsedUpTheRestIsNotPinned) {
  const Memory memory(4);
  const auto hole = pin(memory.range(1, 1));
  memory.map_over(1, 1);  // another page now: another frame
  FrameRun run;
  const auto done = host::pin_pages(memory.range(0, 4), kForWriting, &run, 1);
  ASSERT_TRUE(done);
  EXPECT_EQ(done->pages, 1u);
  EXPECT_EQ(done->runs, 1u);
  held_.push_back(run);
  EXPECT_EQ(host::pins_of(run.first), 1u);
  EXPECT_EQ(host::pin_use().pages, 2u);
}

// ---- refusals -------------------------------------------------------------------------------

TEST_F(Pins, AHoleEndsThePinWithTheCountSoFar) {
  const Memory memory(4);
  ASSERT_EQ(memory.unmap(2, 1), 0);
  EXPECT_EQ(pin(memory.range(0, 4)).size(), 2u);
  EXPECT_TRUE(pin(memory.range(2, 2)).empty());
  EXPECT_EQ(errno, EFAULT);
}
TEST_F(Pins, WritingNeedsAMappingThatMayBeWrittenAndReadingOneThatMayBeRead) {
  const Memory memory(2);
  memory.protect(0, 2, PROT_READ);
  EXPECT_TRUE(pin(memory.range(0, 1), kForWriting).empty());
  EXPECT_EQ(errno, EFAULT);
  EXPECT_EQ(pin(memory.range(0, 1), kForReading).size(), 1u);
  memory.protect(0, 2, PROT_NONE);
  EXPECT_TRUE(pin(memory.range(1, 1), kForReading).empty());
  EXPECT_EQ(errno, EFAULT);
}
TEST_F(Pins, WhatWasLookedAtAheadIsAskedAgainAfterAChange) {
  const Memory memory(8);
  // Who goes through memory is asked for once.
  ASSERT_EQ(pin(memory.range(0, 1)).size(), 1u);
  ASSERT_EQ(pin(memory.range(1, 1)).size(), 1u);
  memory.protect(2, 1, PROT_READ);
  EXPECT_TRUE(pin(memory.range(2, 1)).empty());
  EXPECT_EQ(errno, EFAULT);
  ASSERT_EQ(pin(memory.range(3, 1)).size(), 1u);
  ASSERT_EQ(pin(memory.range(4, 1)).size(), 1u);
  ASSERT_EQ(memory.unmap(5, 1), 0);
  EXPECT_TRUE(pin(memory.range(5, 1)).empty());
  EXPECT_EQ(errno, EFAULT);
  ASSERT_EQ(memory.advise(6, 1, MADV_DONTNEED), 0);
  const auto fresh = pin(memory.range(6, 1));
  EXPECT_EQ(memory.unmap(6, 1), 0);
  EXPECT_TRUE(is_filled(fresh.at(0), 0));
}
TEST_F(Pins, PagesThatAreNotThereYetArePinnedLikeOthers) {
  const Memory memory(600, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  memory.page(0)[0] = memory.page(3)[0] = 7;  // between them, and behind, nothing
  EXPECT_EQ(pin(memory.range(0, 600)).size(), 600u);
  EXPECT_EQ(host::present_pages(memory.range(0, 600), true), 600u);
}
TEST_F(Pins, AFileThatIsWrittenBackTakesNoLongPinForWriting) {
  char name[] = "pin_test_XXXXXX";
  const int fd = ::mkstemp(name);
  ASSERT_GE(fd, 0);
  ::unlink(name);
  ASSERT_EQ(::ftruncate(fd, kPageSize), 0);
  struct stat file{};
  ASSERT_EQ(::fstat(fd, &file), 0);
  const Memory memory(1, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  const auto mapping = host::mapping_at(memory.hva(0));
  ASSERT_TRUE(mapping);
  const bool in_memory = host::may_pin(*mapping, true, true).has_value();
  if (in_memory) GTEST_SKIP() << "the working directory is in memory";
  EXPECT_TRUE(pin(memory.range(0, 1), kForWriting).empty());
  EXPECT_EQ(errno, EFAULT);
  EXPECT_EQ(pin(memory.range(0, 1), kForReading).size(), 1u);
  EXPECT_EQ(pin(memory.range(0, 1), {.write = true, .long_term = false}).size(), 1u);
  ::close(fd);
}
TEST_F(Pins, BeyondTheEndOfAFileIsNoPage) {
  const int fd = ::memfd_create("pins", 0);
  ASSERT_EQ(::ftruncate(fd, kPageSize), 0);
  const Memory memory(2, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  EXPECT_EQ(pin(memory.range(0, 2)).size(), 1u);
  EXPECT_TRUE(pin(memory.range(1, 1)).empty());
  EXPECT_EQ(errno, EFAULT);
  ::close(fd);
}

// ---- identity -------------------------------------------------------------------------------

// Both ways into the store have to do.
class StoredPins : public Pins, public testing::WithParamInterface<bool> {
 protected:
  void SetUp() override {
    Pins::SetUp();
    host::pin_store::debug_copy_only(GetParam());
  }
};
INSTANTIATE_TEST_SUITE_P(Ways, StoredPins, testing::Bool(),
                         [](const auto& way) { return way.param ? "Copied" : "Moved"; });

TEST_P(StoredPins, APageSurvivesMunmap) {
  const Memory memory(3);
  const auto frames = pin(memory.range(0, 3));
  ASSERT_EQ(memory.unmap(0, 3), 0);
  EXPECT_EQ(host::pin_use().stored, 3u);
  EXPECT_TRUE(is_filled(frames[0], 1));
  EXPECT_TRUE(is_filled(frames[2], 3));
  EXPECT_TRUE(put(frames[1], 77, 5));
  EXPECT_EQ(byte(frames[1], 5), 77);
  EXPECT_EQ(host::frame_at(memory.hva(0)), std::nullopt);
}
TEST_P(StoredPins, AfterADiscardClientAndDeviceHaveDifferentPages) {
  const Memory memory(2);
  const auto frames = pin(memory.range(0, 2));
  ASSERT_EQ(memory.advise(0, 2, MADV_DONTNEED), 0);
  EXPECT_EQ(memory.page(0)[0], 0);
  EXPECT_TRUE(is_filled(frames[0], 1));
  memory.page(0)[0] = 9;
  EXPECT_EQ(byte(frames[0]), 1);
  EXPECT_TRUE(put(frames[1], 8));
  EXPECT_EQ(memory.page(1)[0], 0);
  // What is pinned there now is another page.
  const auto again = pin(memory.range(0, 2));
  EXPECT_NE(again[0], frames[0]);
  EXPECT_EQ(byte(again[0]), 9);
  EXPECT_EQ(host::pins_of(frames[0]), 1u);
}
TEST_P(StoredPins, AMappingOverItLeavesThePageWithTheDevice) {
  const Memory memory(2);
  const auto frames = pin(memory.range(0, 2));
  ASSERT_NE(memory.map_over(0, 1), MAP_FAILED);
  EXPECT_TRUE(is_filled(frames[0], 1));
  memory.page(0)[0] = 3;
  EXPECT_TRUE(is_filled(frames[0], 1));
  EXPECT_EQ(host::frame_at(memory.hva(1)), frames[1]);
}
TEST_P(StoredPins, AChangeThatIsRefusedChangesNothing) {
  const Memory memory(2);
  const auto frames = pin(memory.range(0, 2));
  const int refused = host::change(memory.hva(0).raw(), 2 * kPageSize, EventKind::kUnmap, [&] {
    errno = ENOMEM;
    return -1;
  });
  EXPECT_EQ(refused, -1);
  EXPECT_EQ(memory.page(0)[100], 1);
  EXPECT_EQ(memory.page(1)[100], 2);
  EXPECT_EQ(host::pin_use().stored, 0u);
  memory.page(0)[100] = 42;
  EXPECT_EQ(byte(frames[0], 100), 42);
}
TEST_P(StoredPins, AMappingOverItThatFailsAfterTheKernelUnmappedLeavesThePageWithTheDevice) {
  const Memory memory(3);
  const auto frames = pin(memory.range(0, 3));
  void* over = host::change(memory.hva(1).raw(), 2 * kPageSize, EventKind::kUnmap,
                            [&] { return test::map_socket_over(memory.page(1), 2 * kPageSize); });
  ASSERT_EQ(over, MAP_FAILED);
  EXPECT_FALSE(host::mapping_at(memory.hva(1))) << "nothing is mapped where the kernel unmapped";
  EXPECT_EQ(host::pin_use().stored, 2u);
  EXPECT_TRUE(is_filled(frames[1], 2));
  EXPECT_TRUE(put(frames[2], 42));
  EXPECT_EQ(byte(frames[2]), 42);
  EXPECT_EQ(host::frame_at(memory.hva(0)), frames[0]);
}
TEST_P(StoredPins, WhatIsMappedThereWhenTheCallHasFailedKeepsItsBytes) {
  const Memory memory(1);
  const auto frames = pin(memory.range(0, 1));
  host::change(memory.hva(0).raw(), kPageSize, EventKind::kUnmap, [&] {
    void* failed = test::map_socket_over(memory.page(0), kPageSize);
    EXPECT_EQ(memory.page(0), ::mmap(memory.page(0), kPageSize, PROT_READ,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
    return failed;
  });
  EXPECT_EQ(memory.page(0)[0], 0);
  EXPECT_TRUE(is_filled(frames[0], 1));
}
TEST_P(StoredPins, ADiscardOfWhatTheClientMayOnlyRead) {
  const Memory memory(1);
  const auto frames = pin(memory.range(0, 1));
  memory.protect(0, 1, PROT_READ);
  ASSERT_EQ(memory.advise(0, 1, MADV_DONTNEED), 0);
  EXPECT_TRUE(put(frames[0], 5));
  EXPECT_EQ(byte(frames[0]), 5);
  EXPECT_EQ(memory.page(0)[0], 0);
}
TEST_P(StoredPins, AFilesPrivatePageIsTheClientsOwnOnceItIsPinned) {
  const int fd = ::memfd_create("pins", 0);
  ASSERT_EQ(::ftruncate(fd, kPageSize), 0);
  ASSERT_EQ(::pwrite(fd, "file", 4, 0), 4);
  const Memory memory(1, PROT_READ, MAP_PRIVATE, fd);
  const auto frames = pin(memory.range(0, 1), kForReading);
  ASSERT_EQ(frames.size(), 1u);
  ASSERT_EQ(::pwrite(fd, "FILE", 4, 0), 4);
  EXPECT_EQ(byte(frames[0]), 'f');
  EXPECT_EQ(memory.page(0)[0], 'f');
  ASSERT_EQ(memory.unmap(0, 1), 0);
  EXPECT_EQ(byte(frames[0]), 'f');
  ::close(fd);
}
TEST_P(StoredPins, PagesOfSeveralMappingsGoAtOnce) {
  const Memory memory(4);
  memory.protect(1, 1, PROT_READ);
  const auto frames = pin(memory.range(0, 4), kForReading);
  ASSERT_EQ(frames.size(), 4u);
  ASSERT_EQ(memory.unmap(0, 4), 0);
  for (u8 i = 0; i < 4; ++i) EXPECT_TRUE(is_filled(frames[i], i + 1)) << int{i};
}

TEST_F(Pins, MovedPagesAreTheSamePages) {
  const Memory memory(1);
  if (::geteuid() != 0) GTEST_SKIP() << "needs root (frame numbers)";
  const auto frame_number = [](Hva at) {
    u64 word = 0;
    const int fd = ::open("/proc/self/pagemap", O_RDONLY);
    EXPECT_EQ(::pread(fd, &word, 8, static_cast<off_t>(at.raw() / kPageSize * 8)), 8);
    ::close(fd);
    return word & ((u64{1} << 55) - 1);
  };
  const u64 before = frame_number(memory.hva(0));
  const auto frames = pin(memory.range(0, 1));
  ASSERT_EQ(memory.unmap(0, 1), 0);
  const host::FrameSection section;
  EXPECT_EQ(frame_number(*section.at(frames[0], Access::kRead)), before);
}
TEST_F(Pins, MremapTakesThePageAlong) {
  const Memory memory(4);
  const auto frames = pin(memory.range(1, 2));
  u8* there =
      memory.remap(1, 2, 2, MREMAP_MAYMOVE | MREMAP_FIXED,
                   ::mmap(nullptr, 8 * kPageSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(there, MAP_FAILED);
  EXPECT_TRUE(is_filled(frames[1], 3));
  there[kPageSize] = 88;
  EXPECT_EQ(byte(frames[1]), 88);
  EXPECT_TRUE(put(frames[0], 66));
  EXPECT_EQ(there[0], 66);
  EXPECT_EQ(host::frame_at(Hva(reinterpret_cast<u64>(there))), frames[0]);
  EXPECT_EQ(host::frame_at(memory.hva(1)), std::nullopt);
  // And from there to the store.
  host::change(reinterpret_cast<u64>(there), 8 * kPageSize, EventKind::kUnmap,
               [&] { return ::munmap(there, 8 * kPageSize); });
  EXPECT_EQ(byte(frames[1]), 88);
  EXPECT_EQ(host::pin_use().stored, 2u);
}
TEST_F(Pins, MremapThatShrinksLeavesTheTailWithTheDevice) {
  const Memory memory(3);
  const auto frames = pin(memory.range(0, 3));
  ASSERT_EQ(memory.remap(0, 3, 1, MREMAP_MAYMOVE), memory.page(0));
  EXPECT_EQ(host::frame_at(memory.hva(0)), frames[0]);
  EXPECT_TRUE(is_filled(frames[1], 2));
  EXPECT_TRUE(is_filled(frames[2], 3));
  EXPECT_EQ(host::pin_use().stored, 2u);
}
TEST_F(Pins, TheDeviceGoesOnWhenTheClientMayNoLonger) {
  const Memory memory(2);
  const auto frames = pin(memory.range(0, 2));
  ASSERT_EQ(memory.protect(0, 2, PROT_NONE), 0);
  EXPECT_TRUE(is_filled(frames[0], 1));
  EXPECT_TRUE(put(frames[1], 31, 4));
  {
    const host::FrameSection section;
    EXPECT_EQ(section.at(frames[0], Access::kRead), std::nullopt);
  }
  ASSERT_EQ(memory.protect(0, 2, PROT_READ), 0);
  EXPECT_EQ(memory.page(1)[4], 31);
  {
    const host::FrameSection section;
    EXPECT_EQ(section.at(frames[1], Access::kRead), memory.hva(1));
    EXPECT_EQ(section.at(frames[1], Access::kWrite), std::nullopt);
  }
  EXPECT_TRUE(put(frames[1], 32, 4));
  EXPECT_EQ(memory.page(1)[4], 32);
  ASSERT_EQ(memory.protect(0, 2, PROT_READ | PROT_WRITE), 0);
  const host::FrameSection section;
  EXPECT_EQ(section.at(frames[1], Access::kWrite), memory.hva(1));
}
TEST_F(Pins, AfterAForkTheDeviceSeesTheParentsPage) {
  const Memory memory(2);
  const auto frames = pin(memory.range(0, 2));
  int go[2], done[2];
  ASSERT_EQ(::pipe(go) | ::pipe(done), 0);
  host::pins_before_fork();
  const pid_t child = ::fork();
  if (child == 0) {
    char word = 0;
    ::read(go[0], &word, 1);
    _exit(memory.page(0)[0] == 1 && memory.page(1)[0] == 2 ? 0 : 1);
  }
  host::pins_after_fork_parent();
  EXPECT_TRUE(put(frames[0], 70));
  memory.page(1)[0] = 71;
  ASSERT_EQ(::write(go[1], "g", 1), 1);
  EXPECT_EQ(memory.page(0)[0], 70);
  EXPECT_EQ(byte(frames[1]), 71);
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0) << "the child saw what was written after the fork";
  for (const int fd : {go[0], go[1], done[0], done[1]}) ::close(fd);
}
TEST_F(Pins, AChildHasNoPinsAndNotTheStore) {
  const Memory memory(1);
  const auto frames = pin(memory.range(0, 1));
  memory.unmap(0, 1);
  Hva stored;
  {
    const host::FrameSection section;
    stored = *section.at(frames[0], Access::kRead);
  }
  host::pins_before_fork();
  const pid_t child = ::fork();
  if (child == 0) {
    host::pins_after_fork_child();
    u8 byte = 0;
    _exit(host::pin_use().pages == 0 && !host::load(stored, &byte) ? 0 : 1);
  }
  host::pins_after_fork_parent();
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

// ---- shared memory --------------------------------------------------------------------------

TEST_F(Pins, ASharedPageIsTheFilesWhateverTheClientUnmaps) {
  const int fd = ::memfd_create("pins", 0);
  ASSERT_EQ(::ftruncate(fd, 4 * kPageSize), 0);
  const Memory memory(4, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  const Memory other(2, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 2 * kPageSize);
  memory.page(2)[0] = 5;
  const auto frames = pin(memory.range(0, 4));
  const auto same = pin(other.range(0, 1));
  ASSERT_EQ(same.size(), 1u);
  EXPECT_EQ(same[0], frames[2]) << "two addresses, one page";
  ASSERT_EQ(memory.unmap(0, 4), 0);
  EXPECT_EQ(byte(frames[2]), 5);
  EXPECT_TRUE(put(frames[2], 6));
  EXPECT_EQ(other.page(0)[0], 6);
  EXPECT_EQ(other.advise(0, 2, MADV_DONTNEED), 0);
  EXPECT_EQ(other.page(0)[0], 6) << "a discard of shared memory forgets nothing";
  EXPECT_EQ(host::pin_use().stored, 0u);
  ::close(fd);
}
TEST_F(Pins, APunchedPageStaysWithTheDeviceAlone) {
  const int fd = ::memfd_create("pins", 0);
  ASSERT_EQ(::ftruncate(fd, 4 * kPageSize), 0);
  const Memory memory(4, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  for (u8 i = 0; i < 4; ++i) memory.page(i)[0] = i + 1;
  const auto frames = pin(memory.range(0, 4));
  struct stat file{};
  ASSERT_EQ(::fstat(fd, &file), 0);
  {
    host::PinnedPunch punch(file.st_dev, file.st_ino, kPageSize, 2 * kPageSize);
    ASSERT_EQ(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, kPageSize, 2 * kPageSize),
              0);
    punch.succeeded();
  }
  EXPECT_EQ(memory.page(1)[0], 0);
  EXPECT_EQ(byte(frames[1]), 2);
  EXPECT_TRUE(put(frames[2], 50));
  EXPECT_EQ(memory.page(2)[0], 0);
  EXPECT_TRUE(put(frames[3], 60));
  EXPECT_EQ(memory.page(3)[0], 60);
  // The file's new page is another one.
  const auto again = pin(memory.range(1, 1));
  EXPECT_NE(again[0], frames[1]);
  EXPECT_EQ(byte(again[0]), 0);
  ::close(fd);
}
TEST_F(Pins, APinForWritingAfterOneForReading) {
  const int fd = ::memfd_create("pins", 0);
  ASSERT_EQ(::ftruncate(fd, kPageSize), 0);
  char path[64];
  snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
  const int readonly = ::open(path, O_RDONLY);
  const Memory reader(1, PROT_READ, MAP_SHARED, readonly);
  const Memory writer(1, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  const auto read = pin(reader.range(0, 1), kForReading);
  ASSERT_EQ(read.size(), 1u);
  EXPECT_FALSE(put(read[0], 1));
  const auto write = pin(writer.range(0, 1));
  ASSERT_EQ(write.size(), 1u);
  EXPECT_EQ(read[0], write[0]);
  EXPECT_TRUE(put(write[0], 2));
  EXPECT_EQ(reader.page(0)[0], 2);
  ::close(readonly);
  ::close(fd);
}

// ---- memory runs out ------------------------------------------------------------------------

TEST_F(Pins, EachAllocationThatFailsLeavesNothingBehind) {
  const Memory warm(1);
  pin(warm.range(0, 1));
  unpin_all();
  const int fd = ::memfd_create("pins", 0);
  ASSERT_EQ(::ftruncate(fd, 2 * kPageSize), 0);
  const u64 fired = failpoint::sweep([&] {
    const Memory memory(2);
    const Memory shared(2, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
    pin(memory.range(0, 2));
    pin(shared.range(0, 2));
    memory.unmap(0, 2);
    unpin_all();
    EXPECT_EQ(host::pin_use().pages, 0u);
    EXPECT_EQ(host::pin_use().stored, 0u);
    EXPECT_EQ(host::pin_use().blocks, 0u);
  });
  EXPECT_GE(fired, 5u);
  ::close(fd);
}
}  // namespace
}  // namespace stagetwo
