// SPDX-License-Identifier: Apache-2.0
#include "host/run_section.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csetjmp>
#include <cstring>
#include <thread>
#include <vector>

#include "tests/support/sanitizers.h"

namespace stagetwo::host {
namespace {

std::vector<int> delivered;

// What the thread sanitizer forbids a careless handler.
constexpr bool kCareless = !test::kThreadSanitizer;

// What the shim's wrapper does, with a client's handler that notes the value it was sent.
void wrapper(int signal, siginfo_t* info, void* context) {
  if (record_signal(signal, info, context)) return;
  if (kCareless) errno = 1;
  delivered.push_back(info->si_code == SI_QUEUE ? info->si_value.sival_int : signal);
}

// The thread sanitizer keeps a signal that comes from elsewhere until a library call ends.
void end_a_library_call() {
  if (test::kThreadSanitizer) usleep(0);
}

u64 mask_of_thread() {
  sigset_t set;
  pthread_sigmask(SIG_SETMASK, nullptr, &set);
  u64 mask = 0;
  memcpy(&mask, &set, sizeof(mask));
  return mask;
}

constexpr u64 bit_of(int signal) {
  return u64{1} << (signal - 1);
}

void block(int how, int signal) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, signal);
  pthread_sigmask(how, &set, nullptr);
}

class RunSectionTest : public testing::Test {
 protected:
  void SetUp() override {
    delivered.clear();
    delivered.reserve(1 << 16);  // the handler may not allocate
    kicks_ = 0;
    struct sigaction action{};
    action.sa_sigaction = wrapper;
    action.sa_flags = SA_SIGINFO;
    for (const int signal : {SIGUSR1, SIGUSR2, SIGRTMIN + 3}) sigaction(signal, &action, nullptr);
    before_ = mask_of_thread();
  }
  void TearDown() override {
    EXPECT_FALSE(in_engine());
    EXPECT_EQ(mask_of_thread(), before_);
  }
  static void count_kick(void* who) { ++*static_cast<int*>(who); }

  int kicks_ = 0;
  u64 before_ = 0;
};

TEST_F(RunSectionTest, SignalOutsideRunsItsHandlerAtOnce) {
  raise(SIGUSR1);
  EXPECT_EQ(delivered, std::vector<int>{SIGUSR1});
}

TEST_F(RunSectionTest, SignalInsideWaitsForLeave) {
  EngineSection section;
  EXPECT_TRUE(in_engine());
  raise(SIGUSR1);
  EXPECT_TRUE(delivered.empty());
  section.leave();
  end_a_library_call();
  EXPECT_EQ(delivered, std::vector<int>{SIGUSR1});
}

TEST_F(RunSectionTest, MaskIsRightThoughNobodyAskedForIt) {
  block(SIG_BLOCK, SIGUSR2);
  const u64 clients = mask_of_thread();
  EngineSection section(Touches::kNothing);
  raise(SIGUSR1);
  EXPECT_NE(mask_of_thread(), clients);
  section.leave();
  EXPECT_EQ(mask_of_thread(), clients);
  EXPECT_EQ(delivered, std::vector<int>{SIGUSR1});
  block(SIG_UNBLOCK, SIGUSR2);
}

TEST_F(RunSectionTest, ErrnoIsNotTouched) {
  errno = 4242;
  EngineSection section;
  raise(SIGUSR1);
  section.leave();
  EXPECT_EQ(errno, 4242);
}

TEST_F(RunSectionTest, SignalInsideEndsTheRun) {
  EngineSection section;
  {
    RunSection run(count_kick, &kicks_, nullptr);
    EXPECT_FALSE(run.exit_requested());
    raise(SIGUSR1);
    EXPECT_TRUE(run.exit_requested());
    EXPECT_EQ(kicks_, 1);
    EXPECT_TRUE(delivered.empty());
  }
  section.leave();
  end_a_library_call();
  EXPECT_EQ(delivered.size(), 1u);
}

TEST_F(RunSectionTest, SignalBeforeTheRunEndsItAtOnce) {
  EngineSection section;
  raise(SIGUSR1);
  {
    const RunSection run(count_kick, &kicks_, nullptr);
    EXPECT_TRUE(run.exit_requested());
    EXPECT_EQ(kicks_, 1);
  }
  section.leave();
}

TEST_F(RunSectionTest, NoSignalOfAFloodIsLost) {
  if (test::kThreadSanitizer) {
    GTEST_SKIP() << "of all signals with one number the thread sanitizer hands on the first";
  }
  EngineSection section;
  for (int i = 0; i < 20; ++i) {
    sigval value{};
    value.sival_int = i;
    sigqueue(getpid(), SIGRTMIN + 3, value);
  }
  raise(SIGUSR2);
  EXPECT_TRUE(delivered.empty());
  section.leave();
  EXPECT_EQ(delivered.size(), 21u);
  for (int i = 0; i < 20; ++i) {
    EXPECT_NE(std::find(delivered.begin(), delivered.end(), i), delivered.end()) << i;
  }
}

TEST_F(RunSectionTest, InnerSectionLeavesEverythingToTheOuterOne) {
  EngineSection outer;
  {
    EngineSection inner;
    raise(SIGUSR1);
    inner.leave();
    EXPECT_TRUE(delivered.empty());
    EXPECT_TRUE(in_engine());
  }
  outer.leave();
  end_a_library_call();
  EXPECT_EQ(delivered.size(), 1u);
}

TEST_F(RunSectionTest, FaultsAreUnblockedInsideAndBlockedAgainAfterwards) {
  block(SIG_BLOCK, SIGSEGV);
  const u64 clients = mask_of_thread();
  EngineSection section;
  EXPECT_EQ(mask_of_thread() & (bit_of(SIGSEGV) | bit_of(SIGBUS)), 0u);
  section.leave();
  EXPECT_EQ(mask_of_thread(), clients);
  block(SIG_UNBLOCK, SIGSEGV);
}

TEST_F(RunSectionTest, PendingSignalThatTheMaskLetsThroughEndsTheRunAndStaysPending) {
  block(SIG_BLOCK, SIGUSR1);
  raise(SIGUSR1);
  const KernelSigset everything_through = 0;
  EngineSection section;
  {
    const RunSection run(count_kick, &kicks_, &everything_through);
    EXPECT_TRUE(run.needs_polling());
    EXPECT_TRUE(run.exit_requested());
  }
  section.leave();
  EXPECT_TRUE(delivered.empty());
  sigset_t pending;
  sigpending(&pending);
  EXPECT_EQ(sigismember(&pending, SIGUSR1), 1);
  block(SIG_UNBLOCK, SIGUSR1);
  EXPECT_EQ(delivered.size(), 1u);
}

TEST_F(RunSectionTest, LaterPendingSignalIsFoundByPolling) {
  block(SIG_BLOCK, SIGUSR1);
  const KernelSigset everything_through = 0;
  EngineSection section;
  {
    RunSection run(count_kick, &kicks_, &everything_through);
    EXPECT_FALSE(run.poll_pending());
    raise(SIGUSR1);
    EXPECT_TRUE(run.poll_pending());
    EXPECT_TRUE(run.exit_requested());
  }
  section.leave();
  block(SIG_UNBLOCK, SIGUSR1);
}

TEST_F(RunSectionTest, SignalThatTheMaskBlocksWaitsWithoutEndingTheRun) {
  const KernelSigset blocked = bit_of(SIGUSR1);
  EngineSection section;
  {
    const RunSection run(count_kick, &kicks_, &blocked);
    EXPECT_FALSE(run.needs_polling());
    raise(SIGUSR1);
    EXPECT_FALSE(run.exit_requested());
  }
  EXPECT_TRUE(delivered.empty());
  section.leave();
  end_a_library_call();
  EXPECT_EQ(delivered.size(), 1u);
}

sigjmp_buf back;

void jump(int, siginfo_t* info, void* context) {
  if (record_signal(SIGUSR1, info, context)) return;
  siglongjmp(back, 1);
}

TEST_F(RunSectionTest, HandlerMayJumpOutOfLeave) {
  struct sigaction action{};
  action.sa_sigaction = jump;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGUSR1, &action, nullptr);
  if (sigsetjmp(back, 1) == 0) {
    EngineSection section;
    raise(SIGUSR1);
    section.leave();
    FAIL() << "the handler returned";
  }
  EXPECT_FALSE(in_engine());
}

TEST_F(RunSectionTest, AsynchronousCancellationEndsTheRunAndWaitsForLeave) {
  std::atomic<bool> inside{false};
  std::atomic<bool> cleaned{false};
  struct Shared {
    std::atomic<bool>* inside;
    std::atomic<bool>* cleaned;
  } shared{&inside, &cleaned};
  pthread_t thread{};
  const auto body = +[](void* argument) -> void* {
    auto* state = static_cast<Shared*>(argument);
    pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, nullptr);
    EngineSection section;
    {
      int kicks = 0;
      const RunSection run(count_kick, &kicks, nullptr);
      *state->inside = true;
      while (!run.exit_requested()) sched_yield();  // no cancellation point
      *state->cleaned = true;                       // engine code runs to its end
    }
    section.leave();
    return nullptr;
  };
  ASSERT_EQ(pthread_create(&thread, nullptr, body, &shared), 0);
  while (!inside) usleep(100);
  ASSERT_EQ(pthread_cancel(thread), 0);
  kick_cancelled(thread);
  void* result = nullptr;
  pthread_join(thread, &result);
  EXPECT_EQ(result, PTHREAD_CANCELED);
  EXPECT_TRUE(cleaned);
}

}  // namespace
}  // namespace stagetwo::host
