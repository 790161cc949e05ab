// SPDX-License-Identifier: Apache-2.0
// Goal: the stand-in answers as hugetlbfs does. Method: a table of calls with the kernel's answers
// (kernel files hugetlbfs/inode.c, mmap.c), then the records and the pool.
#include "host/hugetlb_standin.h"

#include <gtest/gtest.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/failpoint.h"
#include "host/process.h"
#include "host/session.h"

namespace stagetwo::host::hugetlb {
namespace {

constexpr u64 k2M = page_bytes(2);
constexpr int kRw = PROT_READ | PROT_WRITE;
constexpr int kAnonymous = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;

class HugetlbStandin : public testing::Test {
 protected:
  void SetUp() override { enable(); }
  void TearDown() override {
    debug_reset();
    debug_leave_session();
  }
  static u64 mapped(u64 size, int flags = kAnonymous, unsigned level = 2) {
    const auto at = map({nullptr, size, kRw, flags, -1, 0}, level);
    return at ? reinterpret_cast<u64>(*at) : 0;
  }
  static void unmap(u64 at, u64 size) {
    munmap(reinterpret_cast<void*>(at), size);
    forget(at, size);
  }
};

TEST_F(HugetlbStandin, IsAskedOnlyForHugePages) {
  EXPECT_EQ(0U, level_of_map({nullptr, k2M, kRw, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0}));
  EXPECT_EQ(2U, level_of_map({nullptr, k2M, kRw, kAnonymous, -1, 0}));
  EXPECT_EQ(2U, level_of_map({nullptr, k2M, kRw, kAnonymous | 21 << 26, -1, 0}));
  EXPECT_EQ(3U, level_of_map({nullptr, k2M, kRw, kAnonymous | 30 << 26, -1, 0}));
  EXPECT_EQ(0U, level_of_map({nullptr, k2M, kRw, kAnonymous | 24 << 26, -1, 0}));
  debug_reset();
  EXPECT_EQ(0U, level_of_map({nullptr, k2M, kRw, kAnonymous, -1, 0})) << "without the option";
}

TEST_F(HugetlbStandin, MapsWholeAlignedPages) {
  const u64 at = mapped(k2M + 1);
  ASSERT_NE(0U, at);
  EXPECT_EQ(0U, at % k2M);
  reinterpret_cast<char*>(at)[2 * k2M - 1] = 1;
  EXPECT_EQ(2U, pool(2).used);
  unmap(at, 2 * k2M);
  EXPECT_EQ(0U, pool(2).used);
  const u64 giant = mapped(1, kAnonymous | 30 << 26, 3);
  EXPECT_EQ(0U, giant % page_bytes(3));
  unmap(giant, page_bytes(3));
}

TEST_F(HugetlbStandin, RefusesAsHugetlbfs) {
  const u64 at = mapped(4 * k2M);
  ASSERT_NE(0U, at);
  const auto error_of = [](const MapCall& call) {
    const auto result = map(call, 2);
    return result ? 0 : to_int(result.error());
  };
  void* const odd = reinterpret_cast<void*>(at + kPageSize);
  EXPECT_EQ(EINVAL, error_of({nullptr, 0, kRw, kAnonymous, -1, 0}));
  EXPECT_EQ(EINVAL, error_of({odd, k2M, kRw, kAnonymous | MAP_FIXED, -1, 0}));
  EXPECT_EQ(ENOMEM, error_of({nullptr, ~u64{0} - 5, kRw, kAnonymous, -1, 0}));
  void* const taken = reinterpret_cast<void*>(at);
  EXPECT_EQ(EEXIST, error_of({taken, k2M, kRw, kAnonymous | MAP_FIXED_NOREPLACE, -1, 0}));
  reinterpret_cast<char*>(at)[0] = 7;
  EXPECT_EQ(7, reinterpret_cast<char*>(at)[0]) << "what was there is still there";
  unmap(at, 4 * k2M);
}

TEST_F(HugetlbStandin, IsCutAtHugePagesOnly) {
  const u64 at = mapped(4 * k2M);
  EXPECT_TRUE(cuts(at + kPageSize, k2M));
  EXPECT_TRUE(cuts(at, kPageSize));
  EXPECT_TRUE(cuts(at + k2M, k2M + 1)) << "a length is whole small pages";
  EXPECT_FALSE(cuts(at, k2M));
  EXPECT_FALSE(cuts(at, 4 * k2M));
  EXPECT_FALSE(cuts(at - kPageSize, kPageSize)) << "its neighbour";
  EXPECT_FALSE(cuts(at - kPageSize, 5 * k2M + 2 * kPageSize)) << "all of it and more";
  unmap(at + k2M, k2M);
  EXPECT_FALSE(cuts(at + k2M + kPageSize, kPageSize)) << "no longer ours";
  EXPECT_EQ(3U, pool(2).used);
  reinterpret_cast<char*>(at)[0] = 1;
  EXPECT_EQ(2U, level_at(Hva(at)));
  EXPECT_EQ(0U, level_at(Hva(at + k2M)));
  unmap(at, 4 * k2M);
}

TEST_F(HugetlbStandin, TakesTheAdviceOfHugetlbfs) {
  const u64 at = mapped(4 * k2M);
  size_t size = k2M + kPageSize;
  ASSERT_TRUE(check_advice(at, &size, MADV_DONTNEED));
  EXPECT_EQ(k2M, size) << "whole pages are discarded, never part of one";
  size = k2M;
  EXPECT_EQ(EINVAL, to_int(check_advice(at + kPageSize, &size, MADV_DONTNEED).error()));
  EXPECT_EQ(EINVAL, to_int(check_advice(at, &size, MADV_FREE).error()));
  EXPECT_EQ(EINVAL, to_int(check_advice(at, &size, MADV_PAGEOUT).error()));
  EXPECT_TRUE(check_advice(at, &size, MADV_WILLNEED));
  EXPECT_TRUE(check_advice(at - kPageSize, &size, MADV_FREE));
  unmap(at, 4 * k2M);
}

TEST_F(HugetlbStandin, MovesWholePagesAndNeverGrows) {
  const u64 at = mapped(4 * k2M);
  size_t old_size = 2 * k2M;
  size_t new_size = 4 * k2M;
  EXPECT_EQ(EINVAL, to_int(check_remap(at, &old_size, &new_size, MREMAP_MAYMOVE, 0).error()));
  old_size = 4 * k2M;
  new_size = 3 * k2M + 1;
  const int moves = MREMAP_MAYMOVE | MREMAP_FIXED;
  EXPECT_EQ(EINVAL, to_int(check_remap(at, &old_size, &new_size, moves, 4096).error()));
  ASSERT_TRUE(check_remap(at, &old_size, &new_size, 0, 0));
  EXPECT_EQ(4 * k2M, new_size);
  const u64 room = mapped(2 * k2M);
  old_size = new_size = 2 * k2M;
  ASSERT_TRUE(check_remap(at, &old_size, &new_size, moves, room));
  ASSERT_NE(MAP_FAILED, mremap(reinterpret_cast<void*>(at), old_size, new_size, moves, room));
  moved(at, old_size, room, new_size);
  reinterpret_cast<char*>(room)[0] = 1;
  EXPECT_EQ(2U, level_at(Hva(room)));
  EXPECT_EQ(0U, level_at(Hva(at)));
  unmap(room, 2 * k2M);
  unmap(at, 4 * k2M);
  EXPECT_EQ(0U, pool(2).used);
}

TEST_F(HugetlbStandin, PoolIsTheLimit) {
  set_pool(2, 3);
  const u64 at = mapped(2 * k2M);
  ASSERT_NE(0U, at);
  EXPECT_EQ(0U, mapped(2 * k2M));
  EXPECT_EQ(3U, pool(2).total);
  EXPECT_EQ(2U, pool(2).used);
  const u64 beyond = mapped(4 * k2M, kAnonymous | MAP_NORESERVE);
  EXPECT_NE(0U, beyond) << "nothing is reserved";
  EXPECT_EQ(2U, pool(2).used);
  set_pool(2, 0);
  EXPECT_EQ(2U, pool(2).total) << "pages in use stay";
  unmap(at, 2 * k2M);
  unmap(beyond, 4 * k2M);
  EXPECT_EQ(0U, pool(2).total);
}

TEST_F(HugetlbStandin, FileIsKnownByWhatIsBehindItsDescriptor) {
  set_pool(2, 4);
  const auto fd = make_file("test", MFD_HUGETLB | MFD_CLOEXEC);
  ASSERT_TRUE(fd);
  struct ::stat behind{};
  fstat(*fd, &behind);
  EXPECT_EQ(2U, level_of_file(behind));
  ASSERT_EQ(0, ftruncate(*fd, 4 * k2M));
  const int copy = dup(*fd);
  const MapCall call{nullptr, 2 * k2M, kRw, MAP_SHARED, copy, static_cast<off_t>(k2M)};
  EXPECT_EQ(2U, level_of_map(call));
  const auto first = map(call, 2);
  const auto second = map({nullptr, 4 * k2M, kRw, MAP_SHARED, *fd, 0}, 2);
  ASSERT_TRUE(first && second);
  static_cast<char*>(*first)[0] = 7;
  EXPECT_EQ(7, static_cast<char*>(*second)[k2M]);
  EXPECT_EQ(4U, pool(2).used) << "a page of a file counts once";
  EXPECT_EQ(EINVAL, to_int(map({nullptr, k2M, kRw, MAP_SHARED, *fd, 4096}, 2).error()));
  EXPECT_EQ(EINVAL, to_int(make_file("test", MFD_HUGETLB | 24u << 26).error()));
  unmap(reinterpret_cast<u64>(*first), 2 * k2M);
  unmap(reinterpret_cast<u64>(*second), 4 * k2M);
  close(copy);
  close(*fd);
}

TEST_F(HugetlbStandin, WithoutMemoryForTheRecordNothingIsMapped) {
  const u64 runs = failpoint::sweep([&] {
    const u64 at = mapped(k2M);
    if (at == 0) {
      EXPECT_EQ(0U, pool(2).used);
    } else {
      unmap(at, k2M);
    }
    debug_reset();
    enable();
  });
  EXPECT_GE(runs, 1U);
}

TEST_F(HugetlbStandin, IsInheritedByAChild) {
  const u64 at = mapped(k2M);
  reinterpret_cast<char*>(at)[0] = 1;
  const pid_t child = fork();
  if (child == 0) {
    after_fork_child();
    const bool right = level_at(Hva(at)) == 2 && cuts(at, kPageSize) && pool(2).used == 1;
    _exit(right ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(child, waitpid(child, &status, 0));
  EXPECT_EQ(0, status);
  unmap(at, k2M);
}

}  // namespace
}  // namespace stagetwo::host::hugetlb
