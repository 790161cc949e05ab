// SPDX-License-Identifier: Apache-2.0
#pragma once

// A client's signal handler never runs inside the engine.
//
//   shim:     EngineSection section(touches);   every call that enters the engine
//   abi/kvm:    RunSection run(kick, who, mask);  KVM_RUN alone: a signal ends it
//   vcpu:         polls; leaves its loop when kick was called
//             section.leave();                  handlers run here, no engine frame is left
//
// A signal that arrives in a section is recorded with its siginfo and every further one stays
// pending in the kernel (the wrapper widens the mask it returns to); leave() queues the recorded
// one again and restores the mask, so the kernel delivers all of them in its own order, on the
// client's stack, with nothing of the engine below but the entry point. siglongjmp out of a handler
// and thread cancellation therefore find nothing to unwind.
//
// Analogue: signal_pending() in vcpu_enter_guest, kvm_sigset_activate/deactivate.
// Differs: signals the client blocks but KVM_SET_SIGNAL_MASK unblocks are never unblocked for real
// (their default action may be fatal); they are polled with rt_sigpending and stay pending.
//
// I1: between leave() and the client's next instruction no engine lock or reference is held.
// I2: SIGSEGV and SIGBUS are unblocked inside a section that touches the client's memory: guarded
//     accesses need them.
// Locking: none; the sections a canceller may kick stand in a table with a leaf lock.
// Context: one system call to enter for client memory, none else; more to leave when something was
// recorded or is restored. Where an owner takes pages, entering may wait for one
// (host/footing.h).

#include <pthread.h>
#include <signal.h>

#include "base/types.h"
#include "host/footing.h"
#include "sync/atomic.h"

namespace stagetwo::host {

// The kernel's signal set: bit n - 1 is signal n.
using KernelSigset = u64;

// Makes the run stop soon. Called by the thread itself in a signal handler, and by other threads.
using Kick = void (*)(void* who);

// Does the section read or write the client's memory? Then faults must be deliverable in it.
enum class Touches : u8 { kNothing, kClientMemory };

class RunSection;

// The outermost one of a thread does the work; inner ones do nothing.
class EngineSection {
 public:
  explicit EngineSection(Touches touches = Touches::kClientMemory);
  EngineSection(const EngineSection&) = delete;
  EngineSection& operator=(const EngineSection&) = delete;
  // A caller that holds engine objects lets them go first and calls leave() itself.
  ~EngineSection() { leave(); }

  // Handlers run inside this call, and it may never return (siglongjmp, cancellation). errno is
  // kept.
  void leave();

 private:
  friend class RunSection;
  friend bool record_signal(int signal, siginfo_t* info, void* context);
  friend void kick_cancelled(pthread_t thread);
  friend void run_sections_after_fork_child();
  void await_cancel();
  void request_exit();

  bool outermost_ = false;
  bool restore_mask_ = false;     // a mask other than client_mask_ is in force
  bool asynchronous_ = false;     // cancellation was asynchronous, and is deferred meanwhile
  bool mask_known_ = false;       // else the first signal that is recorded brings it
  KernelSigset client_mask_ = 0;  // what the client had when it entered
  sync::Atomic<int> recorded_{
      0};           // the signal that waits, 0: none; written by this thread's handler
  siginfo_t info_;  // of recorded_
  // This thread writes; its handler reads, and a canceller under the table lock.
  sync::Atomic<RunSection*> run_{nullptr};
  sync::Atomic<bool> cancelled_{false};
  pthread_t thread_{};  // of an asynchronous section, which stands in the table
  EngineSection* next_ = nullptr;
  Footing footing_;
};

// The part of a section that a signal interrupts.
class RunSection {
 public:
  // `mask`: what KVM_SET_SIGNAL_MASK set, or nullptr. Pre: an EngineSection of this thread is open
  // that touches client memory.
  RunSection(Kick kick, void* who, const KernelSigset* mask);
  RunSection(const RunSection&) = delete;
  RunSection& operator=(const RunSection&) = delete;
  ~RunSection();

  // KVM_RUN must return EINTR: a signal was recorded, the thread was cancelled, or poll_pending()
  // has found one. A relaxed load.
  [[nodiscard]] bool exit_requested() const { return exit_.load(sync::kRelaxed); }
  // Must poll_pending() be called now and then (every some thousand blocks, at most 1 ms apart)?
  [[nodiscard]] bool needs_polling() const { return polled_ != 0; }
  // Is a signal pending that the client blocks and `mask` lets through? It stays pending.
  bool poll_pending();

 private:
  friend class EngineSection;

  EngineSection* section_;
  Kick kick_;
  void* who_;
  KernelSigset polled_ = 0;
  sync::Atomic<bool> exit_{false};
};

// Called by the signal wrapper first thing. True: the thread was in a section and the signal is
// recorded; the wrapper returns at once. `context` is the handler's ucontext.
bool record_signal(int signal, siginfo_t* info, void* context);

// Is this thread inside the engine? Async-signal-safe.
bool in_engine();

// pthread_cancel has been called for `thread`: a run of it with asynchronous cancellation ends.
void kick_cancelled(pthread_t thread);

// A child of fork has one thread and no section but its own.
void run_sections_after_fork_child();

}  // namespace stagetwo::host
