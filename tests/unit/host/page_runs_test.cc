// SPDX-License-Identifier: Apache-2.0
// Pages that go and come in runs, the spans that are watched meanwhile, and forks.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <setjmp.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "base/failpoint.h"
#include "tests/support/absent_pages.h"
#include "tests/support/child.h"

namespace stagetwo {
namespace {

using test::AbsentPages;
using test::BringBack;
using test::hiding_name;
using test::Keeper;

class WatchedPages : public AbsentPages {};
INSTANTIATE_TEST_SUITE_P(Hiding, WatchedPages, testing::Values(false), hiding_name);

TEST_P(WatchedPages, AClientsReadIntoAnAbsentPageChangesItsPartOfIt) {
  if (!host::userfault::serves_kernel()) {
    GTEST_SKIP() << "userfaultfd serves user mode only here (vm.unprivileged_userfaultfd)";
  }
  ASSERT_EQ(kPages, take());
  int ends[2];
  ASSERT_EQ(0, ::pipe(ends));
  ASSERT_EQ(64, ::write(ends[1], page(5), 64));
  ASSERT_EQ(64, ::read(ends[0], page(2) + 100, 64));
  EXPECT_EQ(3, page(2)[99]);
  EXPECT_EQ(6, page(2)[100]);
  EXPECT_EQ(6, page(2)[163]);
  EXPECT_EQ(3, page(2)[164]);
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST_P(WatchedPages, NeighboursGoAndComeInOnePiece) {
  ASSERT_EQ(kPages, take());
  EXPECT_EQ(kPages, keeper_.in_runs);
  EXPECT_EQ(kPages, host::bring_back_range(range()));
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(is_page_of(i));
}

// The kernel fills an owner's empty places for mlockall(MCL_FUTURE), and says EEXIST of a move
// there: nothing has moved.
TEST_P(WatchedPages, ARunIsNotTakenForGoneWhereItsPlacesHavePages) {
  std::memset(keeper_.bytes_of(page(2)), 0, 3 * kPageSize);
  ASSERT_EQ(kPages, take());
  for (size_t i = 0; i < kPages; ++i) {
    EXPECT_TRUE(host::is_absent(at(i))) << i;
    EXPECT_EQ(i + 1, keeper_.bytes_of(page(i))[7]) << i;
  }
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(is_page_of(i)) << i;
}

TEST_P(WatchedPages, OnlyWhatHasNoMemoryGoesIfThatIsAllThatIsWanted) {
  for (const size_t i : {1UL, 2UL, 5UL}) ASSERT_EQ(0, ::madvise(page(i), kPageSize, MADV_DONTNEED));
  const auto taken = [&] {
    const auto done = host::take_away(range(), &keeper_, this, host::Which::kMissing);
    return done ? *done : ~u64{0};
  };
  EXPECT_EQ(3U, taken());
  EXPECT_EQ(0U, keeper_.taken) << "nothing moves";
  for (size_t i = 0; i < kPages; ++i) {
    EXPECT_EQ(i == 1 || i == 2 || i == 5, host::is_absent(at(i))) << i;
  }
  EXPECT_EQ(0U, taken());
  // Each is brought back by its owner, whose place for it is empty.
  EXPECT_EQ(0, page(2)[7]);
  EXPECT_EQ(1U, keeper_.back);
  EXPECT_TRUE(host::leave_hole(at(1), &keeper_));
  EXPECT_FALSE(host::leave_hole(at(0), &keeper_)) << "not absent";
  EXPECT_EQ(1U, host::bring_back_range(range()));
  for (const size_t i : {0UL, 3UL, 4UL, 6UL, 7UL}) EXPECT_TRUE(is_page_of(i));
}

// Threads that touch it for the first time meanwhile: what they store stays, whoever was first.
TEST_P(WatchedPages, AFirstTouchAndATakerOfWhatHasNoMemoryLoseNothing) {
  constexpr size_t kMany = Keeper::kPages;
  test::GuardedPages many(kMany);
  Keeper keeper{Hva(many.address())};
  const HvaRange all(Hva(many.address()), kMany * kPageSize);
  std::atomic<bool> go{false};
  std::thread toucher([&] {
    while (!go) {
    }
    for (size_t i = 0; i < kMany; i += 3) many.bytes_at(i * kPageSize)[i % 4096] = 0x77;
  });
  go = true;
  u64 taken = 0;
  for (int i = 0; i < 20; ++i) {
    taken += host::take_away(all, &keeper, this, host::Which::kMissing).value_or(0);
  }
  toucher.join();
  EXPECT_GE(taken, kMany / 2);
  for (size_t i = 0; i < kMany; ++i) {
    ASSERT_EQ(i % 3 == 0 ? 0x77 : 0, many.bytes_at(i * kPageSize)[i % 4096]) << i;
  }
}

TEST_P(WatchedPages, ARunGoesOnBehindAPageThatCannotBeMoved) {
  // A page that a child shares is copied; one that was never touched is zeros.
  ASSERT_EQ(0, ::madvise(page(5), kPageSize, MADV_DONTNEED));
  int ends[2];
  ASSERT_EQ(0, ::pipe(ends));
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(ends[1]);
    u8 byte = 0;
    ::_exit(static_cast<int>(::read(ends[0], &byte, 1)));
  }
  for (const size_t i : {0u, 1u, 2u, 4u, 6u, 7u}) page(i)[0] = static_cast<u8>(i + 1);
  ASSERT_EQ(kPages, take());
  EXPECT_EQ(4, keeper_.bytes_of(page(3))[9]);
  EXPECT_EQ(0, keeper_.bytes_of(page(5))[9]);
  EXPECT_EQ(kPages, host::bring_back_range(range()));
  for (const size_t i : {0u, 1u, 2u, 3u, 4u, 6u, 7u}) EXPECT_TRUE(is_page_of(i)) << i;
  EXPECT_EQ(0, page(5)[9]);
  ::close(ends[1]);
  int status = 0;
  ::waitpid(child, &status, 0);
  ::close(ends[0]);
}

// Linux 6.18 may say EEXIST of pages that it has just moved.
TEST_P(WatchedPages, ARunThatIsSaidToBeThereAlreadyHasGoneAllTheSame) {
  failpoint::arm("host.move_answer", 1, failpoint::kForever);
  EXPECT_EQ(kPages, take());
  EXPECT_EQ(kPages, keeper_.in_runs);
  EXPECT_EQ(kPages, host::bring_back_range(range()));
  failpoint::disarm();
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(is_page_of(i));
}
TEST_P(WatchedPages, APageThatIsSaidToBeThereAlreadyHasGoneAllTheSame) {
  failpoint::arm("host.move_answer", 1, failpoint::kForever);
  ASSERT_EQ(1U, take(3, 1));
  EXPECT_EQ(BringBack::kBack, host::bring_back(at(3)));
  failpoint::disarm();
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(is_page_of(i));
}

class PagesAhead : public AbsentPages {};
INSTANTIATE_TEST_SUITE_P(Hiding, PagesAhead, testing::Bool(), hiding_name);

TEST_P(PagesAhead, ComeUpToTheFirstThatIsNotAbsent) {
  ASSERT_EQ(kPages, take());
  EXPECT_TRUE(is_page_of(4));
  EXPECT_EQ(3u, host::bring_back_ahead(range(1, 7)));
  EXPECT_TRUE(host::is_absent(at(0)));
  EXPECT_FALSE(host::is_absent(at(3)));
  EXPECT_TRUE(host::is_absent(at(5)));
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(is_page_of(i));
}
// An owner that has a page in hand, or the thread that answers touches, must not wait for another.
TEST_P(PagesAhead, LeaveAPageThatSomebodyHasInHand) {
  ASSERT_EQ(kPages - 1, take(1, kPages - 1));
  u64 came = 1;
  keeper_.while_taking = [&](const host::AbsentPage&) {
    came = host::bring_back_ahead(range(0, kPages));
  };
  ASSERT_EQ(1u, take(0, 1));
  keeper_.while_taking = nullptr;
  EXPECT_EQ(0u, came);
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(is_page_of(i));
}

// Whether userfaultfd of ours watches the page: a second one is refused.
bool is_watched(Hva at) {
  const int fd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY));
  uffdio_api api{UFFD_API, 0, 0};
  EXPECT_EQ(0, ::ioctl(fd, UFFDIO_API, &api));
  uffdio_register request{{at.raw(), kPageSize}, UFFDIO_REGISTER_MODE_MISSING, 0};
  const bool refused = ::ioctl(fd, UFFDIO_REGISTER, &request) != 0 && errno == EBUSY;
  ::close(fd);
  return refused;
}

TEST_P(WatchedPages, ASpanIsWatchedWhileSomethingOfItIsAbsent) {
  ASSERT_EQ(2u, take(0, 2));
  ASSERT_EQ(2u, take(6, 2));
  EXPECT_TRUE(is_page_of(0));
  EXPECT_TRUE(is_watched(at(1)));
  EXPECT_TRUE(is_page_of(1));
  EXPECT_FALSE(is_watched(at(1))) << "first touches are the kernel's again";
  EXPECT_TRUE(is_watched(at(7)));
  host::change(at(6).raw(), 2 * kPageSize, host::EventKind::kClear,
               [&] { return ::madvise(page(6), 2 * kPageSize, MADV_DONTNEED); });
  EXPECT_FALSE(is_watched(at(7)));
}

// Spans may lie in one another. What is given up of the smaller one is watched no more, although
// the greater one still is.
TEST_P(WatchedPages, APartThatWasGivenUpIsWatchedAgainWhenItIsTakenAgain) {
  ASSERT_EQ(2u, take(0, 2));
  ASSERT_EQ(kPages - 2, take(2, kPages - 2));
  EXPECT_EQ(1u, host::bring_back_range(range(6, 1)));
  ASSERT_EQ(1u, take()) << "both spans are one mapping by now, and a third one covers them";
  EXPECT_EQ(2u, host::bring_back_range(range(0, 2)));
  EXPECT_TRUE(is_watched(at(5)));
  ASSERT_EQ(2u, take(0, 2));
  EXPECT_TRUE(is_watched(at(0)));
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(is_page_of(i)) << i;
}

class Forks : public AbsentPages {};
INSTANTIATE_TEST_SUITE_P(Hiding, Forks, testing::Bool(), hiding_name);

// A child under which the test's body runs; how it ended.
template <typename F>
int in_a_child(F&& body) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(body());
  return test::exit_of(child);
}

TEST_P(Forks, AForkThatFailsLeavesEverythingAsItWas) {
  ASSERT_EQ(kPages, take());
  host::owners_before_fork();
  host::owners_after_fork_parent();  // libc runs it after a refusal, too
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(is_page_of(i));
  EXPECT_EQ(kPages, take());
}

jmp_buf out_of_fork;
TEST_P(Forks, AForkThatAHandlerJumpedOutOfHoldsNobodyOff) {
  ASSERT_EQ(kPages, take());
  if (setjmp(out_of_fork) == 0) {
    host::owners_before_fork();
    longjmp(out_of_fork, 1);  // a prepare handler of the client's
  }
  EXPECT_TRUE(is_page_of(0));
  EXPECT_EQ(kPages, take()) << "the thread itself";
  std::thread([&] { host::owners_before_fork(); }).join();
  EXPECT_EQ(kPages, take()) << "a thread that ended in the middle of one";
}

TEST_P(Forks, WhatCouldNotComeBackBeforeAForkIsLostInTheChildAndNeverZeros) {
  ASSERT_EQ(kPages, take());
  keeper_.answer = BringBack::kRetry;
  keeper_.before_it_refuses = std::chrono::microseconds(300);  // as on a busy machine
  const auto begun = std::chrono::steady_clock::now();
  host::owners_before_fork();
  EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::seconds(8)) << "all are asked";
  const int status = in_a_child([&] {
    ::signal(SIGBUS, SIG_DFL);
    host::owners_after_fork_child();
    [[maybe_unused]] volatile u8 touched = *page(3);
    return 0;
  });
  EXPECT_EQ(1000 + SIGBUS, status);
  host::owners_after_fork_parent();
  keeper_.answer = BringBack::kBack;
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(is_page_of(i));
}

}  // namespace
}  // namespace stagetwo
