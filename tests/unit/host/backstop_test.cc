// SPDX-License-Identifier: Apache-2.0
// Goal: a fault of ours never reaches the client, one of the client's always does, unchanged.
// Method: death and signals in forked children; each child tells by its exit code.
#include "host/backstop.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include <csetjmp>
#include <cstring>

#include "host/access.h"
#include "tests/support/pages.h"

namespace stagetwo::host {
namespace {

constexpr int kPassed = 7;
volatile u64* const kNowhere = reinterpret_cast<u64*>(0x10000);

template <typename F>
int exit_of(F&& body) {
  const pid_t child = fork();
  if (child == 0) {
    // A sanitizer's handlers are not the client's.
    signal(SIGSEGV, SIG_DFL);
    signal(SIGBUS, SIG_DFL);
    body();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

struct sigaction action_of(void (*handler)(int, siginfo_t*, void*), int flags) {
  struct sigaction action{};
  action.sa_sigaction = handler;
  action.sa_flags = flags;
  return action;
}

TEST(Backstop, AForeignFaultStillKillsByDefault) {
  EXPECT_EQ(128 + SIGSEGV, exit_of([] {
              if (!backstop::install()) _exit(1);
              *kNowhere = 1;
            }));
}

TEST(Backstop, AClientHandlerInstalledBeforeGetsItsFaultWithAddressAndCode) {
  EXPECT_EQ(kPassed, exit_of([] {
              const struct sigaction client = action_of(
                  [](int, siginfo_t* info, void*) {
                    _exit(info->si_addr == kNowhere && info->si_code == SEGV_MAPERR ? kPassed : 2);
                  },
                  SA_SIGINFO);
              sigaction(SIGSEGV, &client, nullptr);
              if (!backstop::install()) _exit(1);
              u64 value = 0;
              if (load(Hva(0x10000), &value)) _exit(3);  // ours: unseen
              *kNowhere = 1;
            }));
}

TEST(Backstop, AClientHandlerInstalledAfterGetsItsFaultAndItsMaskAndStack) {
  EXPECT_EQ(
      kPassed, exit_of([] {
        static char stack[65536];
        const stack_t alternative{stack, 0, sizeof(stack)};
        sigaltstack(&alternative, nullptr);
        if (!backstop::install()) _exit(1);
        struct sigaction client = action_of(
            [](int, siginfo_t*, void*) {
              char here = 0;
              sigset_t mask;
              sigprocmask(SIG_BLOCK, nullptr, &mask);
              const bool on_stack = &here >= stack && &here < stack + sizeof(stack);
              _exit(on_stack && sigismember(&mask, SIGUSR2) == 1 && sigismember(&mask, SIGUSR1) == 0
                        ? kPassed
                        : 2);
            },
            SA_SIGINFO | SA_ONSTACK);
        sigaddset(&client.sa_mask, SIGUSR2);
        if (!backstop::exchange_client_action(SIGSEGV, &client, nullptr)) _exit(3);
        *kNowhere = 1;
      }));
}

sigjmp_buf jump;
TEST(Backstop, AClientMayJumpOutOfItsHandlerAndFaultAgain) {
  EXPECT_EQ(kPassed, exit_of([] {
              if (!backstop::install()) _exit(1);
              const struct sigaction client =
                  action_of([](int, siginfo_t*, void*) { siglongjmp(jump, 1); }, SA_SIGINFO);
              if (!backstop::exchange_client_action(SIGSEGV, &client, nullptr)) _exit(2);
              static int rounds = 0;
              while (rounds++ < 3) {
                if (sigsetjmp(jump, 1) == 0) {
                  *kNowhere = 1;
                  _exit(3);
                }
                u64 value = 0;
                if (load(Hva(0x10000), &value)) _exit(4);
              }
              _exit(kPassed);
            }));
}

TEST(Backstop, ResetHandlerCountsOnceThenDefaultKills) {
  EXPECT_EQ(128 + SIGSEGV, exit_of([] {
              if (!backstop::install()) _exit(1);
              const struct sigaction client = action_of(
                  [](int, siginfo_t*, void*) {}, SA_SIGINFO | static_cast<int>(SA_RESETHAND));
              if (!backstop::exchange_client_action(SIGSEGV, &client, nullptr)) _exit(2);
              *kNowhere = 1;  // handled once, faults again
            }));
}

TEST(Backstop, ASentSignalFollowsTheClientsAction) {
  EXPECT_EQ(128 + SIGBUS, exit_of([] {
              if (!backstop::install()) _exit(1);
              raise(SIGBUS);
            }));
  EXPECT_EQ(0, exit_of([] {
              signal(SIGBUS, SIG_IGN);
              if (!backstop::install()) _exit(1);
              raise(SIGBUS);
            }));
}

TEST(Backstop, AnIgnoredFaultIsFatalAsTheKernelMakesIt) {
  EXPECT_EQ(128 + SIGSEGV, exit_of([] {
              signal(SIGSEGV, SIG_IGN);
              if (!backstop::install()) _exit(1);
              *kNowhere = 1;
            }));
}

TEST(Backstop, ExchangeReportsWhatTheClientHad) {
  EXPECT_EQ(kPassed, exit_of([] {
              if (!backstop::install()) _exit(1);
              struct sigaction old{};
              if (!backstop::exchange_client_action(SIGSEGV, nullptr, &old)) _exit(2);
              if (old.sa_handler != SIG_DFL) _exit(3);
              struct sigaction ignore{};
              ignore.sa_handler = SIG_IGN;
              if (!backstop::exchange_client_action(SIGSEGV, &ignore, nullptr)) _exit(4);
              if (!backstop::exchange_client_action(SIGSEGV, nullptr, &old)) _exit(5);
              _exit(old.sa_handler == SIG_IGN ? kPassed : 6);
            }));
}

TEST(Backstop, OtherSignalsAreNotItsBusiness) {
  ASSERT_TRUE(backstop::install());
  struct sigaction old{};
  const auto refused = backstop::exchange_client_action(SIGUSR1, nullptr, &old);
  ASSERT_FALSE(refused);
  EXPECT_EQ(EINVAL, to_int(refused.error()));
}

TEST(Backstop, CodeMadeAtRunTimeIsFixedUpInItsRange) {
  ASSERT_TRUE(backstop::install());
  // mov (%rdi),%rax ; ret ; or eax,-1 ; ret
  const u8 code[] = {0x48, 0x8b, 0x07, 0xc3, 0x83, 0xc8, 0xff, 0xc3};
  test::GuardedPages page(1);
  constexpr u64 kAt = 64;  // a sanitizer looks at what stands before a function
  std::memcpy(page.bytes_at(kAt), code, sizeof(code));
  ASSERT_EQ(0, mprotect(page.pointer(), 4096, PROT_READ | PROT_EXEC));
  const auto run = reinterpret_cast<int (*)(const void*)>(page.address() + kAt);
  ASSERT_TRUE(backstop::add_code_range({page.address() + kAt, 4, [](u64 pc) { return pc + 4; }}));
  const u64 good = 42;
  EXPECT_EQ(42, run(&good));
  EXPECT_EQ(-1, run(reinterpret_cast<const void*>(0x10000)));
  backstop::remove_code_range(page.address() + kAt);
}

TEST(Backstop, CodeRangesRunOut) {
  const auto same = [](u64 pc) { return pc; };
  for (u64 i = 0; i < backstop::kMaxCodeRanges; ++i) {
    ASSERT_TRUE(backstop::add_code_range({0x1000 + i, 1, same}));
  }
  const auto refused = backstop::add_code_range({0x2000, 1, same});
  ASSERT_FALSE(refused);
  EXPECT_EQ(ENOSPC, to_int(refused.error()));
  for (u64 i = 0; i < backstop::kMaxCodeRanges; ++i) backstop::remove_code_range(0x1000 + i);
}

TEST(Backstop, APoisonedPageIsToldFromAMissingOne) {
  ASSERT_TRUE(backstop::install());
  u64 value = 0;
  EXPECT_FALSE(load(Hva(0x10000), &value));
  EXPECT_FALSE(take_poison());
  // The machine cannot be made to break a page here: the handler is shown the report itself, at a
  // guarded instruction found by faulting once.
  ASSERT_EQ(kPassed, exit_of([] {
              struct sigaction spy = action_of(
                  [](int, siginfo_t* info, void* context) {
                    auto* uc = static_cast<ucontext_t*>(context);
                    siginfo_t report = *info;
                    report.si_code = BUS_MCEERR_AR;
                    report.si_addr = reinterpret_cast<void*>(0x123456);
                    const bool ours = backstop::handle(SIGBUS, &report, uc);
                    const auto page = take_poison();
                    _exit(ours && page && page->raw() == 0x123000 && !take_poison() ? kPassed : 3);
                  },
                  SA_SIGINFO);
              sigaction(SIGSEGV, &spy, nullptr);
              u64 other = 0;
              static_cast<void>(load(Hva(0x10000), &other));
            }));
}

TEST(Backstop, CountsWhatItFixed) {
  ASSERT_TRUE(backstop::install());
  const u64 before = backstop::fixed_count();
  u64 value = 0;
  EXPECT_FALSE(load(Hva(0x10000), &value));
  EXPECT_EQ(before + 1, backstop::fixed_count());
}

}  // namespace
}  // namespace stagetwo::host
