// SPDX-License-Identifier: Apache-2.0
// Holders and waiters whose thread numbers mean nothing to each other, and threads that libc has
// told the kernel nothing of.
#include <gtest/gtest.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <optional>
#include <thread>

#include "sync/process_mutex.h"
#include "tests/support/on_shared_page.h"

namespace stagetwo::sync {
namespace {

struct Shared {
  ProcessMutex mutex, outer;
  u64 inside = 0;
};

class ProcessMutexNamespaces : public testing::Test {
 protected:
  // Runs `fn` as the first process of a PID namespace of its own, and answers how it ended, as
  // waitpid does; -1: no such namespace may be made here.
  template <typename F>
  int in_namespace(F&& fn) {
    const pid_t between = ::fork();
    if (between == 0) {
      if (::unshare(CLONE_NEWPID) != 0 && ::unshare(CLONE_NEWUSER | CLONE_NEWPID) != 0) ::_exit(77);
      const pid_t child = ::fork();
      if (child == 0) {
        fn();
        ::_exit(0);
      }
      int status = 0;
      if (child < 0 || ::waitpid(child, &status, 0) != child) ::_exit(78);
      if (WIFSIGNALED(status)) ::_exit(128 + WTERMSIG(status));
      ::_exit(WEXITSTATUS(status));
    }
    int status = 0;
    EXPECT_EQ(::waitpid(between, &status, 0), between);
    return WIFEXITED(status) && WEXITSTATUS(status) == 77 ? -1 : WEXITSTATUS(status);
  }
  static u64 read(const u64& word) { return *const_cast<const volatile u64*>(&word); }
  static void write(u64& word, u64 value) { *const_cast<volatile u64*>(&word) = value; }

  test::OnSharedPage<Shared> shared_;
};

// The waiter's namespace has no such thread as the holder.
TEST_F(ProcessMutexNamespaces, AHolderOfAnotherNamespaceThatLivesIsWaitedFor) {
  int status = 0;
  std::optional<ProcessMutexGuard> guard;
  guard.emplace(shared_->mutex, Rank::kIoas);
  std::thread child([&] {
    status = in_namespace([this] {
      const ProcessMutexGuard inner(shared_->mutex, Rank::kIoas);
      ::_exit(inner.died() ? 2 : read(shared_->inside) != 1 ? 3 : 0);
    });
  });
  ::usleep(60'000);  // several looks of the waiter's
  write(shared_->inside, 1);
  guard.reset();
  child.join();
  if (status == -1) GTEST_SKIP() << "no PID namespace: " << std::strerror(errno);
  EXPECT_EQ(status, 0) << (status == 2 ? "the holder was taken for dead" : "it came in too early");
}

TEST_F(ProcessMutexNamespaces, TheDeathOfAHolderOfAnotherNamespaceIsTold) {
  const int status = in_namespace([this] {
    const ProcessMutexGuard guard(shared_->mutex, Rank::kIoas);
    ::raise(SIGKILL);  // no effect on the first of a namespace by itself
    ::_exit(0);
  });
  if (status == -1) GTEST_SKIP() << "no PID namespace: " << std::strerror(errno);
  {
    const ProcessMutexGuard guard(shared_->mutex, Rank::kIoas);
    EXPECT_TRUE(guard.died());
  }
  const ProcessMutexGuard guard(shared_->mutex, Rank::kIoas);
  EXPECT_FALSE(guard.died());
}

// A lock within a lock: both are told of.
TEST_F(ProcessMutexNamespaces, WhoDiesInTwoLocksIsToldToTheNextOfBoth) {
  const pid_t child = ::fork();
  if (child == 0) {
    const ProcessMutexGuard outer(shared_->outer, Rank::kContainer);
    {
      const ProcessMutexGuard inner(shared_->mutex, Rank::kIoas);
    }
    const ProcessMutexGuard inner(shared_->mutex, Rank::kIoas);
    ::_exit(0);
  }
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  const ProcessMutexGuard outer(shared_->outer, Rank::kContainer);
  const ProcessMutexGuard inner(shared_->mutex, Rank::kIoas);
  EXPECT_TRUE(outer.died());
  EXPECT_TRUE(inner.died());
}

// What libc has told the kernel is as it was, whatever we do in between.
TEST_F(ProcessMutexNamespaces, LibcsOwnRobustMutexesGoOn) {
  struct Mutexes {
    pthread_mutex_t one, two;
  };
  const test::OnSharedPage<Mutexes> libc;
  pthread_mutexattr_t attributes;
  ::pthread_mutexattr_init(&attributes);
  ::pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  ::pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  ::pthread_mutex_init(&libc->one, &attributes);
  ::pthread_mutex_init(&libc->two, &attributes);
  const pid_t child = ::fork();
  if (child == 0) {
    ::pthread_mutex_lock(&libc->one);
    {
      const ProcessMutexGuard outer(shared_->outer, Rank::kContainer);
      const ProcessMutexGuard inner(shared_->mutex, Rank::kIoas);
      ::pthread_mutex_lock(&libc->two);
      ::pthread_mutex_unlock(&libc->one);
      ::pthread_mutex_lock(&libc->one);
    }
    const ProcessMutexGuard again(shared_->mutex, Rank::kIoas);
    ::_exit(0);
  }
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_EQ(::pthread_mutex_lock(&libc->one), EOWNERDEAD);
  EXPECT_EQ(::pthread_mutex_lock(&libc->two), EOWNERDEAD);
  {
    const ProcessMutexGuard outer(shared_->outer, Rank::kContainer);
    const ProcessMutexGuard inner(shared_->mutex, Rank::kIoas);
    EXPECT_FALSE(outer.died());
    EXPECT_TRUE(inner.died());
  }
  for (pthread_mutex_t* const one : {&libc->one, &libc->two}) {
    EXPECT_EQ(::pthread_mutex_consistent(one), 0);
    EXPECT_EQ(::pthread_mutex_unlock(one), 0);
  }
}

TEST_F(ProcessMutexNamespaces, AThreadOfWhichTheKernelWasToldNothingIsToldOfByUs) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::syscall(SYS_set_robust_list, nullptr, sizeof(robust_list_head));
    {
      const ProcessMutexGuard guard(shared_->mutex, Rank::kIoas);
    }
    void* head = &head;
    size_t size = 0;
    ::syscall(SYS_get_robust_list, 0, &head, &size);
    if (head != nullptr) ::_exit(1);
    const ProcessMutexGuard outer(shared_->outer, Rank::kContainer);
    const ProcessMutexGuard guard(shared_->mutex, Rank::kIoas);
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  const ProcessMutexGuard outer(shared_->outer, Rank::kContainer);
  const ProcessMutexGuard inner(shared_->mutex, Rank::kIoas);
  EXPECT_TRUE(outer.died());
  EXPECT_TRUE(inner.died());
}

}  // namespace
}  // namespace stagetwo::sync
