// SPDX-License-Identifier: Apache-2.0
#include "host/backstop.h"

#include <sys/syscall.h>
#include <ucontext.h>

#include <memory>

#include "base/arch/guarded.h"
#include "base/check.h"
#include "base/sys.h"
#include "base/trace.h"
#include "host/blocked_faults.h"
#include "host/footing.h"
#include "host/kernel_action.h"
#include "host/page_owner.h"
#include "host/run_section.h"
#include "sync/atomic.h"
#include "sync/futex.h"
#include "sync/mutex.h"

extern "C" {
// The linker's bounds of the section the guarded accesses fill; null where a program has none.
[[gnu::weak,
  gnu::visibility("hidden")]] extern const stagetwo::arch::FaultEntry __start_st_fault_table[];
[[gnu::weak,
  gnu::visibility("hidden")]] extern const stagetwo::arch::FaultEntry __stop_st_fault_table[];
void stagetwo_sigreturn();
}

// The client's action is kept as the kernel would keep it, and ours is installed with its mask and
// its stack flag. The kernel therefore does for our handler what it would have done for the
// client's, and passing a signal on is a call. What is left to do by hand:
//
//   SIG_DFL, SIG_IGN   of a fault: put SIG_DFL back and return; the instruction faults again and
//   the
//                      kernel ends the process, with the core dump the client expects
//                      of a sent signal: SIG_DFL the same way after sending it again; SIG_IGN:
//                      nothing
//   SA_RESETHAND       becomes SIG_DFL before the handler is called
//   SA_SIGINFO missing the handler gets its one argument anyway, the others are in registers it
//   ignores

namespace stagetwo::host::backstop {
namespace {

// The client's action, readable in a signal handler while another thread replaces it: odd while
// it changes. Written under `actions`.
struct ClientAction {
  sync::Atomic<u32> version{0};
  sync::Atomic<u64> handler{0};
  sync::Atomic<u64> flags{0};
  sync::Atomic<u64> restorer{0};
  sync::Atomic<u64> mask{0};
};

struct Range {
  sync::Atomic<u64> start{0};  // 0: free. Stored last (release), loaded first (acquire)
  sync::Atomic<u64> size{0};
  sync::Atomic<FixupOf> fixup{nullptr};
};

constinit sync::Mutex actions{sync::Rank::kLeaf};
constinit ClientAction client_actions[2];
constinit sync::Atomic<u32> is_installed{0};
constinit Range ranges[kMaxCodeRanges];
constinit sync::Atomic<u64> fixed{0};
constinit sync::Atomic<StoreTrap> store_trap{nullptr};
// Written by the handler on the thread it belongs to.
thread_local u64 poisoned_page = 0;

ClientAction* client_of(int signal) {
  if (signal == SIGSEGV) return &client_actions[0];
  if (signal == SIGBUS) return &client_actions[1];
  return nullptr;
}

KernelAction snapshot(ClientAction& client) {
  for (;;) {
    const u32 before = client.version.load(sync::kAcquire);
    const KernelAction copy{client.handler.load(), client.flags.load(), client.restorer.load(),
                            client.mask.load()};
    if ((before & 1) == 0 && client.version.load() == before) return copy;
    sync::spin_hint();
  }
}

void remember(ClientAction& client, const KernelAction& action) {
  client.version.fetch_add(1);
  client.handler.store(action.handler);
  client.flags.store(action.flags);
  client.restorer.store(action.restorer);
  client.mask.store(action.mask);
  client.version.fetch_add(1);
}

Result<void> set_kernel_action(int signal, const KernelAction* set, KernelAction* old) {
  ST_TRY(sys::checked(sys::call(SYS_rt_sigaction, signal, sys::arg(set), sys::arg(old), 8)));
  return {};
}

// Ours, with everything of the client's that a handler can see.
void on_signal(int signal, siginfo_t* info, void* context);
Result<void> put_ours(int signal, const KernelAction& client) {
  u64 flags = client.flags & ~u64{SA_RESETHAND};
  u64 mask = client.mask;
  if (client.handler <= 1) flags = mask = 0;  // SIG_DFL or SIG_IGN: they mean nothing
  if (touches_are_signals()) {
    // A touch of a hidden page inside the client's handler has to come to ours.
    const bool blocks = signal == SIGSEGV && client.handler > 1 && (flags & SA_NODEFER) == 0;
    mask = mask_in_kernel(blocks ? mask | kFaultBit : mask);
    if (signal == SIGSEGV) flags |= SA_NODEFER;
  }
  const KernelAction ours{reinterpret_cast<std::uintptr_t>(&on_signal),
                          flags | SA_SIGINFO | kRestorerFlag,
                          reinterpret_cast<std::uintptr_t>(&stagetwo_sigreturn), mask};
  return set_kernel_action(signal, &ours, nullptr);
}

void die_by(int signal, const siginfo_t* info) {
  const KernelAction fatal{0, kRestorerFlag, reinterpret_cast<std::uintptr_t>(&stagetwo_sigreturn),
                           0};
  static_cast<void>(set_kernel_action(signal, &fatal, nullptr));
  if (info->si_code > 0) return;  // a fault: it happens again, and now it is fatal
  static_cast<void>(
      sys::call(SYS_rt_tgsigqueueinfo, sys::getpid(), sys::gettid(), signal, sys::arg(info)));
}

void pass_to_client(int signal, siginfo_t* info, void* context) {
  ClientAction& client = *client_of(signal);
  const KernelAction action = snapshot(client);
  if (action.handler == 0 || (action.handler == 1 && info->si_code > 0)) {
    die_by(signal, info);
    return;
  }
  if (action.handler == 1) return;
  if ((action.flags & u64{SA_RESETHAND}) != 0) client.handler.store(0);
  reinterpret_cast<void (*)(int, siginfo_t*, void*)>(action.handler)(signal, info, context);
}

// Was it the touch of a page that an owner hides? Then it is there now. The locks this may take are
// held by no code that touches client memory. Other handlers wait meanwhile: one that touched
// another hidden page would wait for a lock of its own thread's.
bool touched_absent(int signal, const siginfo_t* info, const void* context) {
  constexpr greg_t kWriteBit = 2;
  constexpr greg_t kFetchBit = 16;
  if (signal != SIGSEGV || info->si_code != SEGV_ACCERR || !owners_active()) return false;
  if (PagesInHand::any()) return false;
  const greg_t error = static_cast<const ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR];
  const Access access = (error & kFetchBit) != 0   ? Access::kExec
                        : (error & kWriteBit) != 0 ? Access::kWrite
                                                   : Access::kRead;
  EngineSection section(Touches::kNothing);
  const bool resolved =
      resolve_signal(Hva(reinterpret_cast<std::uintptr_t>(info->si_addr)), access);
  section.leave();
  return resolved;
}

// Was it a store that a room above sees?
bool trapped_store(int signal, const siginfo_t* info, void* context) {
  constexpr greg_t kWriteBit = 2;
  const StoreTrap trap = store_trap.load(sync::kAcquire);
  if (trap == nullptr || signal != SIGSEGV || info->si_code != SEGV_ACCERR || in_engine()) {
    return false;
  }
  if ((static_cast<const ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & kWriteBit) == 0) {
    return false;
  }
  EngineSection section;
  const bool answered = trap(Hva(reinterpret_cast<std::uintptr_t>(info->si_addr)), context);
  section.leave();
  return answered;
}

SignalMask mask_of(const void* context) {
  SignalMask mask = 0;
  __builtin_memcpy(&mask, &static_cast<const ucontext_t*>(context)->uc_sigmask, sizeof(mask));
  return mask;
}
void set_mask(void* context, SignalMask mask) {
  __builtin_memcpy(&static_cast<ucontext_t*>(context)->uc_sigmask, &mask, sizeof(mask));
}

// The client blocks the signal, and only the kernel's mask says otherwise.
void meet_blocked(int signal, siginfo_t* info, void* context) {
  if (info->si_code > 0) return die_by(signal, info);
  // For good with the return from here, and until then: this handler does not block it.
  set_mask(context, mask_of(context) | kFaultBit);
  constexpr SignalMask kFault = kFaultBit;
  static_cast<void>(sys::call(SYS_rt_sigprocmask, SIG_BLOCK, sys::arg(&kFault), 0, sizeof(kFault)));
  static_cast<void>(
      sys::call(SYS_rt_tgsigqueueinfo, sys::getpid(), sys::gettid(), signal, sys::arg(info)));
}

void on_signal(int signal, siginfo_t* info, void* context) {
  if (touched_absent(signal, info, context)) return;
  if (handle(signal, info, context)) return;
  if (trapped_store(signal, info, context)) return;
  if (!touches_are_signals()) return pass_to_client(signal, info, context);
  const SignalMask mask = mask_of(context);
  if (signal == SIGSEGV && (mask & kStandInBit) != 0) return meet_blocked(signal, info, context);
  set_mask(context, mask_of_client(mask));
  pass_to_client(signal, info, context);
  set_mask(context, mask_in_kernel(mask_of(context)));
}

u64 fixup_in_table(u64 pc) {
  const auto at = [](const s32& field) {
    return reinterpret_cast<std::uintptr_t>(&field) + static_cast<u64>(s64{field});
  };
  const arch::FaultEntry* end = __stop_st_fault_table;
  for (const arch::FaultEntry* entry = __start_st_fault_table; entry != end; ++entry) {
    if (at(entry->access) == pc) return at(entry->fixup);
  }
  return 0;
}

u64 fixup_in_ranges(u64 pc) {
  for (Range& range : ranges) {
    const u64 start = range.start.load(sync::kAcquire);  // pairs with add_code_range
    if (start == 0 || pc < start || pc - start >= range.size.load(sync::kRelaxed)) continue;
    return range.fixup.load(sync::kRelaxed)(pc);
  }
  return 0;
}

}  // namespace

Result<void> install() {
  const sync::MutexGuard guard(actions);
  if (is_installed.load() != 0) return {};
  for (const int signal : {SIGSEGV, SIGBUS}) {
    KernelAction theirs{};
    ST_TRY(set_kernel_action(signal, nullptr, &theirs));
    remember(*client_of(signal), theirs);
    ST_TRY(put_ours(signal, theirs));
  }
  is_installed.store(1);
  return {};
}

Result<void> exchange_client_action(int signal, const struct sigaction* set,
                                    struct sigaction* old) {
  ClientAction* client = client_of(signal);
  if (client == nullptr || is_installed.load() == 0) return refuse(EINVAL);
  const sync::MutexGuard guard(actions);
  const KernelAction before = snapshot(*client);
  if (set != nullptr) {
    KernelAction after{};
    after.handler = reinterpret_cast<std::uintptr_t>(set->sa_sigaction);
    after.flags = static_cast<u32>(set->sa_flags);
    __builtin_memcpy(&after.mask, &set->sa_mask, sizeof(after.mask));
    remember(*client, after);
    const Result<void> put = put_ours(signal, after);
    if (!put) {
      remember(*client, before);
      return put;
    }
  }
  if (old != nullptr) {
    __builtin_memset(old, 0, sizeof(*old));
    old->sa_sigaction = reinterpret_cast<void (*)(int, siginfo_t*, void*)>(before.handler);
    old->sa_flags = static_cast<int>(before.flags & ~kRestorerFlag);
    __builtin_memcpy(&old->sa_mask, &before.mask, sizeof(before.mask));
  }
  return {};
}

void set_store_trap(StoreTrap trap) {
  store_trap.store(trap, sync::kRelease);
}

bool installed() {
  return is_installed.load(sync::kRelaxed) != 0;
}

bool handle(int signal, const siginfo_t* info, void* ucontext) {
  if (info->si_code <= 0) return false;  // sent by somebody, not a fault
  auto* context = static_cast<ucontext_t*>(ucontext);
  greg_t& pc = context->uc_mcontext.gregs[REG_RIP];
  u64 fixup = fixup_in_table(static_cast<u64>(pc));
  if (fixup == 0) fixup = fixup_in_ranges(static_cast<u64>(pc));
  if (fixup == 0) return false;
  if (signal == SIGBUS && info->si_code == BUS_MCEERR_AR) {
    poisoned_page = reinterpret_cast<std::uintptr_t>(info->si_addr) & kPageMask;
  }
  trace::emit(trace::Event::st_fixup, trace::Room::host,
              reinterpret_cast<std::uintptr_t>(info->si_addr), static_cast<u64>(pc));
  fixed.fetch_add(1, sync::kRelaxed);
  pc = static_cast<greg_t>(fixup);
  return true;
}

Result<void> add_code_range(const CodeRange& range) {
  ST_CHECK(range.start != 0 && range.fixup != nullptr);
  const sync::MutexGuard guard(actions);
  for (Range& place : ranges) {
    if (place.start.load(sync::kRelaxed) != 0) continue;
    place.size.store(range.size, sync::kRelaxed);
    place.fixup.store(range.fixup, sync::kRelaxed);
    place.start.store(range.start, sync::kRelease);
    return {};
  }
  return refuse(ENOSPC);
}

void remove_code_range(u64 start) {
  const sync::MutexGuard guard(actions);
  for (Range& place : ranges) {
    if (place.start.load(sync::kRelaxed) == start) place.start.store(0);
  }
}

void after_fork_child() {
  std::construct_at(&actions, sync::Rank::kLeaf);
}

std::optional<Hva> take_poison() {
  const u64 page = poisoned_page;
  poisoned_page = 0;
  if (page == 0) return std::nullopt;
  return Hva(page);
}

u64 fixed_count() {
  return fixed.load(sync::kRelaxed);
}

}  // namespace stagetwo::host::backstop
