// SPDX-License-Identifier: Apache-2.0
#include "host/run_section.h"

#include <errno.h>
#include <sys/syscall.h>
#include <ucontext.h>

#include <cstring>
#include <new>

#include "base/check.h"
#include "base/sys.h"
#include "sync/mutex.h"

// Why the recorded signal is queued again instead of its handler being called: the kernel then
// chooses the order among all that wait, the stack, the mask and the restart rules, as it does when
// a system call returns. Why the mask is widened: only one siginfo has to be kept, and a flood of
// signals costs one handler call per section.
//
//   client thread                            another thread
//   EngineSection: mask read, current := it
//     RunSection: kick is known
//                                            tgkill(SIGUSR1)
//     wrapper: recorded, mask := everything, kick
//     vCPU polls, leaves
//   leave: current := none, queue again, mask := the client's  → handler runs, EINTR

namespace stagetwo::host {
namespace {

constexpr KernelSigset bit_of(int signal) {
  return KernelSigset{1} << (signal - 1);
}
// Raised by the instruction that runs: blocking one of them would end the process.
constexpr KernelSigset kFaults = bit_of(SIGSEGV) | bit_of(SIGBUS) | bit_of(SIGILL) |
                                 bit_of(SIGFPE) | bit_of(SIGTRAP) | bit_of(SIGSYS);
constexpr KernelSigset kGuarded = bit_of(SIGSEGV) | bit_of(SIGBUS);
constexpr KernelSigset kNeverBlocked = bit_of(SIGKILL) | bit_of(SIGSTOP);
constexpr long kSigsetBytes = sizeof(KernelSigset);

// The outermost section of this thread. Read by its signal handlers, so written in program order.
thread_local EngineSection* volatile current = nullptr;

// Sections whose cancellation is deferred for the time being, and threads that were cancelled while
// they were in none: one of those may just be on its way in.
constexpr unsigned kCancelMarks = 16;
sync::Mutex cancel_lock{sync::Rank::kLeaf};
EngineSection* cancellable = nullptr;
pthread_t cancel_marks[kCancelMarks];
unsigned next_mark = 0;

KernelSigset change_mask(int how, KernelSigset set) {
  KernelSigset before = 0;
  static_cast<void>(
      sys::call(SYS_rt_sigprocmask, how, sys::arg(&set), sys::arg(&before), kSigsetBytes));
  return before;
}

void queue_to_self(int signal, siginfo_t* info) {
  static_cast<void>(
      sys::call(SYS_rt_tgsigqueueinfo, sys::getpid(), sys::gettid(), signal, sys::arg(info)));
}

}  // namespace

EngineSection::EngineSection(Touches touches) {
  if (current != nullptr) return;
  outermost_ = true;
  if (touches == Touches::kClientMemory) {
    client_mask_ = change_mask(SIG_UNBLOCK, kGuarded);
    restore_mask_ = (client_mask_ & kGuarded) != 0;
    mask_known_ = true;
  }
  int type = PTHREAD_CANCEL_DEFERRED;
  static_cast<void>(pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, &type));
  if (type == PTHREAD_CANCEL_ASYNCHRONOUS) [[unlikely]]
    await_cancel();
  current = this;
  footing_.enter(__builtin_frame_address(0));
}

void EngineSection::await_cancel() {
  asynchronous_ = true;
  thread_ = pthread_self();
  const sync::MutexGuard guard(cancel_lock);
  for (pthread_t& mark : cancel_marks) {
    if (mark != thread_) continue;
    mark = {};
    cancelled_.store(true, sync::kRelaxed);
  }
  next_ = cancellable;
  cancellable = this;
}

void EngineSection::leave() {
  if (!outermost_) return;
  outermost_ = false;
  if (asynchronous_) {
    const sync::MutexGuard guard(cancel_lock);
    EngineSection** link = &cancellable;
    while (*link != this) link = &(*link)->next_;
    *link = next_;
  }
  footing_.leave();
  current = nullptr;
  // A signal from here on runs its handler; what came before is in recorded_. A handler may spoil
  // errno: after a system call the kernel's would have run before errno was written.
  const int saved_errno = errno;
  const int signal = recorded_.load(sync::kRelaxed);
  if (signal != 0) queue_to_self(signal, &info_);
  if (signal != 0 || restore_mask_) change_mask(SIG_SETMASK, client_mask_);
  if (asynchronous_) {
    static_cast<void>(pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, nullptr));
  }
  errno = saved_errno;
}

void EngineSection::request_exit() {
  RunSection* const run = run_.load(sync::kAcquire);
  if (run == nullptr) return;
  run->exit_.store(true, sync::kRelaxed);
  run->kick_(run->who_);
}

RunSection::RunSection(Kick kick, void* who, const KernelSigset* mask)
    : section_(current), kick_(kick), who_(who) {
  ST_CHECK(section_ != nullptr && section_->mask_known_);
  if (mask != nullptr) {
    const KernelSigset to_block = *mask & ~section_->client_mask_ & ~kFaults & ~kNeverBlocked;
    if (to_block != 0) {
      section_->restore_mask_ = true;
      change_mask(SIG_BLOCK, to_block);
    }
    polled_ = section_->client_mask_ & ~*mask & ~kNeverBlocked;
  }
  section_->run_.store(this, sync::kRelease);
  // What came before the line above found no run to end.
  if (section_->recorded_.load(sync::kRelaxed) != 0 || section_->cancelled_.load()) {
    section_->request_exit();
  }
  if (polled_ != 0) static_cast<void>(poll_pending());
}

RunSection::~RunSection() {
  if (section_->asynchronous_) {
    const sync::MutexGuard guard(cancel_lock);  // a canceller may be using this object
    section_->run_.store(nullptr, sync::kRelaxed);
  } else {
    section_->run_.store(nullptr, sync::kRelaxed);
  }
}

bool RunSection::poll_pending() {
  KernelSigset pending = 0;
  static_cast<void>(sys::call(SYS_rt_sigpending, sys::arg(&pending), kSigsetBytes));
  if ((pending & polled_) == 0) return false;
  exit_.store(true, sync::kRelaxed);
  return true;
}

bool record_signal(int signal, siginfo_t* info, void* context) {
  EngineSection* const section = current;
  if (section == nullptr) return false;
  // The kernel keeps 8 bytes of mask, the C type is larger.
  auto* const ucontext = static_cast<ucontext_t*>(context);
  const KernelSigset everything = ~kFaults & ~kNeverBlocked;
  // Of handlers that interrupt each other the outermost writes last, and it knows the client's
  // mask.
  if (!section->mask_known_) {
    std::memcpy(&section->client_mask_, &ucontext->uc_sigmask, sizeof(everything));
  }
  std::memcpy(&ucontext->uc_sigmask, &everything, sizeof(everything));
  if (section->recorded_.load(sync::kRelaxed) != 0) {
    queue_to_self(signal, info);  // stays pending until leave()
    return true;
  }
  std::memcpy(&section->info_, info, sizeof(siginfo_t));
  section->recorded_.store(signal, sync::kRelaxed);
  section->request_exit();
  return true;
}

bool in_engine() {
  return current != nullptr;
}

void kick_cancelled(pthread_t thread) {
  const sync::MutexGuard guard(cancel_lock);
  for (EngineSection* section = cancellable; section != nullptr; section = section->next_) {
    if (section->thread_ != thread) continue;
    section->cancelled_.store(true);
    section->request_exit();
    return;
  }
  cancel_marks[next_mark++ % kCancelMarks] = thread;
}

void run_sections_after_fork_child() {
  ::new (&cancel_lock) sync::Mutex(sync::Rank::kLeaf);
  cancellable = nullptr;
  for (pthread_t& mark : cancel_marks) mark = {};
}

}  // namespace stagetwo::host
