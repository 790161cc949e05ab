// SPDX-License-Identifier: Apache-2.0
#include "shim/signals.h"

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>

#include <new>

#include "base/sys.h"
#include "host/access.h"
#include "host/backstop.h"
#include "host/blocked_faults.h"
#include "host/kernel_action.h"
#include "host/run_section.h"
#include "shim/engine.h"
#include "shim/next.h"
#include "sync/mutex.h"

namespace stagetwo::shim {
namespace {

constexpr int kFirstReserved = 32;  // libc's own: cancellation and set*id
constexpr int kLastReserved = 33;
constexpr int kSignals = 65;
constexpr u32 kBeingWritten = 1;

using Handler = void (*)(int, siginfo_t*, void*);

// A client's action in words, so that a handler can read it while another thread writes: the
// version is odd during a write and rises with each.
struct Record {
  sync::Atomic<u32> version{0};
  sync::Atomic<u64> handler{0};
  sync::Atomic<u32> flags{0};
  sync::Atomic<u64> mask{0};
};

Record records[kSignals];
sync::Mutex action_lock{sync::Rank::kLeaf};

// All signals stay out while the table changes: sigaction may be called in a handler.
class Quiet {
 public:
  Quiet() { change(SIG_BLOCK, ~u64{0}, &before_); }
  ~Quiet() { change(SIG_SETMASK, before_, nullptr); }
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;

 private:
  static void change(int how, u64 set, u64* before) {
    static_cast<void>(sys::call(SYS_rt_sigprocmask, how, sys::arg(&set), sys::arg(before), 8));
  }
  u64 before_ = 0;
};

struct Action {
  u64 handler;
  u32 flags;
  u64 mask;
};

Action load(const Record& record) {
  for (;;) {
    const u32 before = record.version.load(sync::kAcquire);
    const Action action{record.handler.load(sync::kAcquire), record.flags.load(sync::kAcquire),
                        record.mask.load(sync::kAcquire)};
    if ((before & kBeingWritten) == 0 && record.version.load(sync::kAcquire) == before)
      return action;
    sync::spin_hint();
  }
}

void store(Record& record, const struct sigaction& action) TA_REQ(action_lock) {
  u64 mask = 0;
  memcpy(&mask, &action.sa_mask, sizeof(mask));
  record.version.fetch_add(1, sync::kAcqRel);
  record.handler.store(reinterpret_cast<u64>(action.sa_sigaction), sync::kRelease);
  record.flags.store(static_cast<u32>(action.sa_flags), sync::kRelease);
  record.mask.store(mask, sync::kRelease);
  record.version.fetch_add(1, sync::kRelease);
}

struct sigaction to_libc(const Action& action) {
  struct sigaction result{};
  result.sa_sigaction = reinterpret_cast<Handler>(action.handler);
  result.sa_flags = static_cast<int>(action.flags);
  memcpy(&result.sa_mask, &action.mask, sizeof(action.mask));
  return result;
}

bool is_handler(u64 handler) {
  return handler != reinterpret_cast<u64>(SIG_DFL) && handler != reinterpret_cast<u64>(SIG_IGN);
}

// Raised by the instruction that was running, not sent: deferring it would raise it again for ever.
bool is_synchronous(int signal, const siginfo_t* info) {
  const bool fault = signal == SIGILL || signal == SIGFPE || signal == SIGTRAP || signal == SIGSYS;
  return fault && info->si_code > 0;
}

void take_default_action(int signal, siginfo_t* info) {
  struct sigaction standard{};
  static_cast<void>(next::sigaction(signal, &standard, nullptr));
  static_cast<void>(
      sys::call(SYS_rt_tgsigqueueinfo, sys::getpid(), sys::gettid(), signal, sys::arg(info)));
}

void wrapper(int signal, siginfo_t* info, void* context) {
  if (!is_synchronous(signal, info) && host::record_signal(signal, info, context)) return;
  const Action action = load(records[signal]);
  // The client took its handler away between the kernel's decision and ours.
  if (action.handler == reinterpret_cast<u64>(SIG_IGN)) return;
  if (action.handler == reinterpret_cast<u64>(SIG_DFL)) return take_default_action(signal, info);
  if ((action.flags & static_cast<u32>(SA_RESETHAND)) != 0) {
    struct sigaction standard{};
    static_cast<void>(set_action(signal, &standard, nullptr));
  }
  reinterpret_cast<Handler>(action.handler)(signal, info, context);
}

// What the kernel gets for a client's handler. SA_RESETHAND is ours to do: the kernel would reset
// when the wrapper has only recorded.
struct sigaction wrapped(const struct sigaction& clients) {
  struct sigaction action = clients;
  action.sa_sigaction = wrapper;
  action.sa_flags = (clients.sa_flags | SA_SIGINFO) & ~static_cast<int>(SA_RESETHAND);
  if (host::touches_are_signals()) {
    u64 mask = 0;
    memcpy(&mask, &clients.sa_mask, sizeof(mask));
    mask = host::mask_in_kernel(mask);
    memcpy(&action.sa_mask, &mask, sizeof(mask));
  }
  return action;
}

bool is_wrappable(int signal) {
  return signal >= 1 && signal < kSignals && signal != SIGKILL && signal != SIGSTOP &&
         (signal < kFirstReserved || signal > kLastReserved);
}

// False: errno says why, and nothing changed.
bool exchange(int signal, const struct sigaction* asked, struct sigaction* before) {
  const Quiet quiet;
  const sync::MutexGuard guard(action_lock);
  Record& record = records[signal];
  *before = to_libc(load(record));
  if (asked == nullptr) return true;
  const bool handled = is_handler(reinterpret_cast<u64>(asked->sa_sigaction));
  const struct sigaction ours = handled ? wrapped(*asked) : *asked;
  // A handler must be in the table before the kernel can call the wrapper for it.
  if (handled) store(record, *asked);
  if (next::sigaction(signal, &ours, nullptr) != 0) {
    store(record, *before);
    return false;
  }
  if (!handled) store(record, *asked);
  return true;
}

bool fetch(void* to, const void* from, size_t size) {
  host::EngineSection section(host::Touches::kClientMemory);
  const bool all = host::copy_from(to, Hva(reinterpret_cast<u64>(from)), size) == size;
  section.leave();
  return all;
}
bool store(void* to, const void* from, size_t size) {
  host::EngineSection section(host::Touches::kClientMemory);
  const bool all = host::copy_to(Hva(reinterpret_cast<u64>(to)), from, size) == size;
  section.leave();
  return all;
}

bool is_backstops(int signal) {
  return signal == SIGSEGV || signal == SIGBUS;
}

}  // namespace

void wrap_signals() {
  const Quiet quiet;
  const sync::MutexGuard guard(action_lock);
  for (int signal = 1; signal < kSignals; ++signal) {
    struct sigaction clients{};
    if (!is_wrappable(signal) || is_backstops(signal) ||
        next::sigaction(signal, nullptr, &clients) != 0) {
      continue;
    }
    store(records[signal], clients);
    if (!is_handler(reinterpret_cast<u64>(clients.sa_sigaction))) continue;
    const struct sigaction ours = wrapped(clients);
    static_cast<void>(next::sigaction(signal, &ours, nullptr));
  }
}

void signals_after_fork_child() {
  ::new (&action_lock) sync::Mutex(sync::Rank::kLeaf);
}

// What returns from the handler is libc's whoever asked: it does the same.
long raw_set_action(int signal, const void* set, void* old, size_t size) {
  if (size != sizeof(u64)) return as_libc(-EINVAL);
  struct sigaction asked{};
  struct sigaction before{};
  host::KernelAction copy{};
  if (set != nullptr && !fetch(&copy, set, sizeof(copy))) return as_libc(-EFAULT);
  const u32 flags = static_cast<u32>(copy.flags & ~host::kRestorerFlag);
  asked = to_libc(Action{copy.handler, flags, copy.mask});
  if (set_action(signal, set == nullptr ? nullptr : &asked, &before) != 0) return -1;
  if (old == nullptr) return 0;
  const u64 handler = reinterpret_cast<u64>(before.sa_sigaction);
  copy = host::KernelAction{handler, static_cast<u32>(before.sa_flags), 0, 0};
  memcpy(&copy.mask, &before.sa_mask, sizeof(copy.mask));
  return store(old, &copy, sizeof(copy)) ? 0 : as_libc(-EFAULT);
}

int set_action(int signal, const struct sigaction* set, struct sigaction* old) {
  if (!is_wrappable(signal)) return next::sigaction(signal, set, old);
  if (is_backstops(signal)) {
    return static_cast<int>(as_libc(host::backstop::exchange_client_action(signal, set, old)));
  }
  // The client's memory is read and written while its own fault handlers can run.
  struct sigaction asked{};
  if (set != nullptr) asked = *set;
  struct sigaction before{};
  if (!exchange(signal, set == nullptr ? nullptr : &asked, &before)) return -1;
  if (old != nullptr) *old = before;
  return 0;
}

}  // namespace stagetwo::shim
