// SPDX-License-Identifier: Apache-2.0
#include "sync/process_mutex.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/support/on_shared_page.h"

namespace stagetwo::sync {
namespace {

struct Shared {
  ProcessMutex mutex;
  u64 count = 0;
};

class ProcessMutexTest : public testing::Test {
 protected:
  test::OnSharedPage<Shared> shared_;
};

TEST_F(ProcessMutexTest, KeepsProcessesApart) {
  constexpr u64 kRounds = 20'000;
  pid_t children[3];
  for (pid_t& child : children) {
    child = ::fork();
    if (child == 0) {
      for (u64 i = 0; i < kRounds; ++i) {
        const ProcessMutexGuard guard(shared_->mutex, Rank::kIoas);
        const u64 seen = *const_cast<volatile u64*>(&shared_->count);
        if (i % 1000 == 0) ::usleep(10);
        *const_cast<volatile u64*>(&shared_->count) = seen + 1;
      }
      ::_exit(0);
    }
  }
  for (const pid_t child : children) ASSERT_EQ(child, ::waitpid(child, nullptr, 0));
  EXPECT_EQ(shared_->count, 3 * kRounds);
}

TEST_F(ProcessMutexTest, TheDeathOfAHolderIsToldOnce) {
  const pid_t child = ::fork();
  if (child == 0) {
    const ProcessMutexGuard guard(shared_->mutex, Rank::kIoas);
    ::_exit(0);
  }
  ASSERT_EQ(child, ::waitpid(child, nullptr, 0));
  {
    const ProcessMutexGuard guard(shared_->mutex, Rank::kIoas);
    EXPECT_TRUE(guard.died());
  }
  const ProcessMutexGuard guard(shared_->mutex, Rank::kIoas);
  EXPECT_FALSE(guard.died());
}

TEST_F(ProcessMutexTest, AHolderThatSleepsIsWaitedFor) {
  int ends[2];
  ASSERT_EQ(0, ::pipe(ends));
  const pid_t child = ::fork();
  if (child == 0) {
    const ProcessMutexGuard guard(shared_->mutex, Rank::kIoas);
    const char c = 0;
    if (::write(ends[1], &c, 1) != 1) ::_exit(1);
    ::usleep(50'000);  // more than one look of the waiter
    shared_->count = 1;
    ::_exit(0);  // the guard does not end
  }
  char c = 0;
  ASSERT_EQ(1, ::read(ends[0], &c, 1));
  const ProcessMutexGuard guard(shared_->mutex, Rank::kIoas);
  EXPECT_EQ(shared_->count, 1u);
  EXPECT_TRUE(guard.died());
  ASSERT_EQ(child, ::waitpid(child, nullptr, 0));
  ::close(ends[0]);
  ::close(ends[1]);
}

}  // namespace
}  // namespace stagetwo::sync
