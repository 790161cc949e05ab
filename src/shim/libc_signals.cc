// SPDX-License-Identifier: Apache-2.0
#include "shim/libc_signals.h"

#include <errno.h>

#include "shim/engine.h"
#include "shim/next.h"
#include "shim/signals.h"
#include "sync/atomic.h"

namespace stagetwo::shim {
namespace {

// Bit n - 1: siginterrupt(n, 1) was called, so signal(n, …) does not restart system calls. libc
// keeps its own; while asleep both are kept.
sync::Atomic<u64> interrupting{0};

bool interrupts(int number) {
  return number >= 1 && number <= 64 &&
         (interrupting.load(sync::kRelaxed) >> (number - 1) & 1) != 0;
}

sighandler_t install(int number, const struct sigaction& action) {
  struct sigaction old{};
  return set_action(number, &action, &old) == 0 ? old.sa_handler : SIG_ERR;
}

bool refuse_error_handler(sighandler_t handler) {
  if (handler != SIG_ERR) return false;
  errno = EINVAL;
  return true;
}

}  // namespace

int sigaction_entry(int number, const struct sigaction* set, struct sigaction* old) {
  return awake() ? set_action(number, set, old) : next::sigaction(number, set, old);
}

sighandler_t bsd_signal_entry(int number, sighandler_t handler) {
  if (!awake()) return next::signal(number, handler);
  if (refuse_error_handler(handler)) return SIG_ERR;
  struct sigaction action{};
  action.sa_handler = handler;
  sigemptyset(&action.sa_mask);
  if (sigaddset(&action.sa_mask, number) != 0) return SIG_ERR;
  action.sa_flags = interrupts(number) ? 0 : SA_RESTART;
  return install(number, action);
}

sighandler_t sysv_signal_entry(int number, sighandler_t handler) {
  if (!awake()) return next::sysv_signal(number, handler);
  if (refuse_error_handler(handler)) return SIG_ERR;
  struct sigaction action{};
  action.sa_handler = handler;
  sigemptyset(&action.sa_mask);
  action.sa_flags = static_cast<int>(SA_RESETHAND) | SA_NODEFER;
  return install(number, action);
}

sighandler_t sigset_entry(int number, sighandler_t handler) {
  if (!awake()) return next::sigset(number, handler);
  sigset_t one;
  sigset_t before;
  sigemptyset(&one);
  if (sigaddset(&one, number) != 0) return SIG_ERR;
  const bool hold = handler == SIG_HOLD;
  if (pthread_sigmask(hold ? SIG_BLOCK : SIG_UNBLOCK, &one, &before) != 0) return SIG_ERR;
  struct sigaction action{};
  action.sa_handler = handler;
  struct sigaction old{};
  if (set_action(number, hold ? nullptr : &action, &old) != 0) return SIG_ERR;
  return sigismember(&before, number) == 1 ? SIG_HOLD : old.sa_handler;
}

int siginterrupt_entry(int number, int interrupt) {
  if (number >= 1 && number <= 64) {
    const u64 one = u64{1} << (number - 1);
    if (interrupt != 0) {
      interrupting.fetch_or(one, sync::kRelaxed);
    } else {
      interrupting.fetch_and(~one, sync::kRelaxed);
    }
  }
  if (!awake()) return next::siginterrupt(number, interrupt);
  struct sigaction action{};
  if (set_action(number, nullptr, &action) != 0) return -1;
  action.sa_flags = interrupt != 0 ? action.sa_flags & ~SA_RESTART : action.sa_flags | SA_RESTART;
  return set_action(number, &action, nullptr);
}

int sigignore_entry(int number) {
  if (!awake()) return next::sigignore(number);
  struct sigaction action{};
  action.sa_handler = SIG_IGN;
  return set_action(number, &action, nullptr);
}

}  // namespace stagetwo::shim
