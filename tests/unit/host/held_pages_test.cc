// SPDX-License-Identifier: Apache-2.0
// Buffers of system calls: brought back first, and not taken while the call lasts.
#include "host/held_pages.h"

#include <gtest/gtest.h>
#include <setjmp.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstring>
#include <new>
#include <thread>

#include "host/backstop.h"
#include "host/userfault.h"
#include "tests/support/one_place_owner.h"
#include "tests/support/pages.h"

namespace stagetwo {
namespace {

using host::HeldPages;

class Held : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    host::userfault::debug_deny(true);
    std::memset(memory_.bytes_at(0), 7, kPageSize);
    ASSERT_EQ(1u, take());
  }
  void TearDown() override {
    host::bring_back_range(range());
    host::userfault::debug_deny(false);
  }
  HvaRange range() { return HvaRange(Hva(memory_.address()), kPageSize); }
  u64 take() {
    const auto taken = host::take_away(range(), &owner_, this, host::Which::kAnonymous);
    return taken ? *taken : ~u64{0};
  }

  test::OnePlaceOwner owner_;
  test::GuardedPages memory_{1};
};

TEST_F(Held, FetchBringsBackAndNobodyTakesItUntilTheRelease) {
  HeldPages held(range());
  EXPECT_TRUE(held.holds());
  EXPECT_EQ(1u, held.fetch());
  EXPECT_FALSE(host::is_absent(range().start()));
  EXPECT_EQ(0u, take());
  held.release();
  EXPECT_EQ(1u, take());
}

TEST_F(Held, WhatIsNotInTheRangeIsNotHeld) {
  const HeldPages next(HvaRange(range().end(), kPageSize));
  host::bring_back_range(range());
  EXPECT_EQ(1u, take());
}

// Where a touch by the kernel is not reported, a hole in watched memory is its EFAULT. In a program
// of its own, where nothing was opened before.
TEST(HeldForUserMode, ASystemCallFindsNoHoleInMemoryThatIsWatched) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto runs = [] {
    host::userfault::debug_user_mode_only();
    if (!host::userfault::open()) return 2;
    test::OnePlaceOwner owner;
    test::GuardedPages memory{3};
    std::memset(memory.bytes_at(2 * kPageSize), 7, kPageSize);
    const HvaRange both(Hva(memory.address()), 2 * kPageSize);
    const HvaRange all_three(both.start(), 3 * kPageSize);
    // One that stays away, for which the memory is watched.
    const HvaRange last(both.end(), kPageSize);
    if (host::take_away(last, &owner, &owner, host::Which::kPresent, &all_three) != u64{1})
      return 3;
    int ends[2];
    if (::pipe(ends) != 0) return 4;
    const ssize_t all = 2 * kPageSize;
    char nothing[2 * kPageSize];
    HeldPages held(both);
    if (held.fetch() != 2) return 5;
    if (::write(ends[1], memory.bytes_at(0), 2 * kPageSize) != all) return 6;
    if (::read(ends[0], nothing, 2 * kPageSize) != all || nothing[kPageSize - 1] != 0) return 7;
    if (held.fetch() != 0) return 8;
    return 0;
  };
  EXPECT_EXIT(_exit(runs()), ::testing::ExitedWithCode(0), "");
}

TEST_F(Held, TwoOfOneCallHoldBoth) {
  HeldPages first(range());
  HeldPages second(HvaRange(range().end(), kPageSize));
  first.fetch();
  EXPECT_TRUE(second.holds());
  EXPECT_EQ(0u, take());
}

TEST_F(Held, AHoldOfAThreadThatIsGoneHoldsNothing) {
  std::thread([&] {
    alignas(HeldPages) std::byte frame[sizeof(HeldPages)];
    auto* left = new (frame) HeldPages(range());  // as after pthread_cancel: never released
    left->fetch();
  }).join();
  EXPECT_EQ(1u, take());
}

jmp_buf back_up;
// From further down the stack than the next hold's own calls reach.
[[gnu::noinline]] void hold_and_jump(HvaRange range) {
  volatile char further[1024] = {};
  HeldPages held(range);
  held.fetch();
  longjmp(back_up, 1 + further[0]);
}
TEST_F(Held, AHoldThatWasJumpedOutOfEndsWithTheThreadsNext) {
  if (setjmp(back_up) == 0) hold_and_jump(range());
  EXPECT_EQ(0u, take()) << "nobody can know yet";
  {
    const HeldPages next(HvaRange(range().end(), kPageSize));
  }
  EXPECT_EQ(1u, take());
}

TEST_F(Held, ThreadsThatHoldAndAThreadThatTakesNeverMeetAHiddenPage) {
  std::atomic<bool> stop{false};
  std::atomic<u64> wrong{0};
  const auto use = [&] {
    for (int i = 0; i < 400; ++i) {
      HeldPages held(range());
      held.fetch();
      if (host::is_absent(range().start())) ++wrong;
    }
  };
  std::thread one(use), two(use);
  std::thread taker([&] {
    while (!stop) {
      if (take() > 1) ++wrong;
    }
  });
  one.join();
  two.join();
  stop = true;
  taker.join();
  EXPECT_EQ(0u, wrong);
}

}  // namespace
}  // namespace stagetwo
