// SPDX-License-Identifier: Apache-2.0
#include "shim/signal_masks.h"

#include <errno.h>
#include <sys/syscall.h>

#include <cstring>

#include "base/alloc.h"
#include "base/sys.h"
#include "host/access.h"
#include "host/blocked_faults.h"
#include "host/change.h"
#include "host/footing.h"
#include "shim/absent_buffers.h"
#include "shim/engine.h"
#include "shim/next.h"

namespace stagetwo::shim {
namespace {

using host::SignalMask;

bool translates() {
  return awake() && host::touches_are_signals();
}

sigset_t as_set(SignalMask mask) {
  sigset_t set{};
  std::memcpy(&set, &mask, sizeof(mask));
  return set;
}
SignalMask as_mask(const sigset_t& set) {
  SignalMask mask = 0;
  std::memcpy(&mask, &set, sizeof(mask));
  return mask;
}

bool fetch(const void* from, SignalMask* mask) {
  host::EngineSection section(host::Touches::kClientMemory);
  const bool read = host::read_struct(Hva(reinterpret_cast<u64>(from)), mask);
  section.leave();
  return read;
}
bool give(void* to, SignalMask mask) {
  host::EngineSection section(host::Touches::kClientMemory);
  const bool written =
      host::copy_to(Hva(reinterpret_cast<u64>(to)), &mask, sizeof(mask)) == sizeof(mask);
  section.leave();
  return written;
}

// What the kernel is asked for; unblocking also ends what a sent signal waits for.
SignalMask asked_of_kernel(int how, SignalMask clients) {
  if (how != SIG_UNBLOCK) return host::mask_in_kernel(clients);
  const SignalMask both = host::kFaultBit | host::kStandInBit;
  return (clients & host::kFaultBit) != 0 ? clients | both : clients & ~both;
}

// `call(how, set, old)` answers 0 or an error.
template <typename F>
int translated(int how, const void* set, void* old, F&& call) {
  SignalMask asked = 0;
  if (set != nullptr && !fetch(set, &asked)) return EFAULT;
  const sigset_t kernels = as_set(asked_of_kernel(how, asked));
  sigset_t before{};
  const int error = call(how, set == nullptr ? nullptr : &kernels, &before);
  if (error != 0 || old == nullptr) return error;
  return give(old, host::mask_of_client(as_mask(before))) ? 0 : EFAULT;
}

struct Start {
  void* (*run)(void*);
  void* given;
  bool own_stack;  // of the program's
};
void* start_thread(void* given) {
  auto* const start = static_cast<Start*>(given);
  const Start copy = *start;
  destroy(start);
  pthread_attr_t about;
  if (pthread_getattr_np(pthread_self(), &about) == 0) {
    void* at = nullptr;
    size_t size = 0;
    if (pthread_attr_getstack(&about, &at, &size) == 0) {
      if (const auto range = host::pages_of(reinterpret_cast<u64>(at), size)) {
        host::note_stack(*range, !copy.own_stack);
      }
    }
    pthread_attr_destroy(&about);
  }
  host::end_thread();
  return copy.run(copy.given);
}

}  // namespace

int change_thread_mask(int how, const sigset_t* set, sigset_t* old) {
  if (translates())
    return translated(how, set, old, [](int h, const sigset_t* s, sigset_t* o) {
      return next::pthread_sigmask(h, s, o);
    });
  return with_buffers_and_error([&](Buffers& buffers) { buffers.value(set).value(old); },
                                [&] { return next::pthread_sigmask(how, set, old); });
}

int change_mask(int how, const sigset_t* set, sigset_t* old) {
  const int error = change_thread_mask(how, set, old);
  return error == 0 ? 0 : static_cast<int>(as_libc(-error));
}

long change_raw_mask(long how, long set, long old, long size) {
  const auto go_on = [&](long s, long o) {
    return next::syscall(SYS_rt_sigprocmask, how, s, o, size, 0, 0);
  };
  auto* const from = reinterpret_cast<const sigset_t*>(set);
  auto* const to = reinterpret_cast<sigset_t*>(old);
  if (!translates() || size != sizeof(SignalMask)) {
    return with_buffers([&](Buffers& b) { b.bytes(from, 8).bytes(to, 8); },
                        [&] { return go_on(set, old); });
  }
  const int error =
      translated(static_cast<int>(how), from, to, [&](int, const sigset_t* s, sigset_t* o) {
        return go_on(sys::arg(s), sys::arg(o)) == 0 ? 0 : errno;
      });
  return as_libc(-error);
}

void adopt_mask() {
  if (!host::touches_are_signals()) return;
  SignalMask mask = 0;
  static_cast<void>(sys::call(SYS_rt_sigprocmask, SIG_SETMASK, 0, sys::arg(&mask), sizeof(mask)));
  mask = host::mask_in_kernel(mask);
  static_cast<void>(sys::call(SYS_rt_sigprocmask, SIG_SETMASK, sys::arg(&mask), 0, sizeof(mask)));
}

KernelMask::KernelMask(const sigset_t* clients) : given_(clients) {
  SignalMask mask = 0;
  if (clients == nullptr || !translates() || !fetch(clients, &mask)) return;
  set_ = as_set(host::mask_in_kernel(mask));
  own_ = true;
}

ClientsMask::ClientsMask(const char* path) : path_(path) {
  if (!translates()) return;
  static_cast<void>(
      sys::call(SYS_rt_sigprocmask, SIG_SETMASK, 0, sys::arg(&before_), sizeof(before_)));
  if ((before_ & host::kStandInBit) == 0) return;
  const SignalMask clients = host::mask_of_client(before_);
  static_cast<void>(
      sys::call(SYS_rt_sigprocmask, SIG_SETMASK, sys::arg(&clients), 0, sizeof(clients)));
  changed_ = true;
}
ClientsMask::~ClientsMask() {
  if (!changed_) return;
  static_cast<void>(
      sys::call(SYS_rt_sigprocmask, SIG_SETMASK, sys::arg(&before_), 0, sizeof(before_)));
}

int create_thread(pthread_t* thread, const pthread_attr_t* about, void* (*run)(void*),
                  void* given) {
  if (!translates() || host::in_engine()) [[likely]]
    return next::pthread_create(thread, about, run, given);
  // A stack of the program's own is there when the thread begins, with every signal blocked.
  void* at = nullptr;
  size_t size = 0;
  if (about != nullptr && pthread_attr_getstack(about, &at, &size) != 0) size = 0;
  const bool own = reinterpret_cast<u64>(at) + size != 0;  // else a size at most
  if (!own) size = 0;
  const auto made = make<Start>("shim.thread_start", run, given, own);
  if (!made) return EAGAIN;
  host::begin_thread();
  const int error = with_buffers_and_error(
      [&](Buffers& buffers) { buffers.value(thread).bytes(at, size); },
      [&] { return next::pthread_create(thread, about, start_thread, *made); });
  if (error != 0) {
    host::end_thread();
    destroy(*made);
  }
  return error;
}

int set_alternate_stack(const stack_t* set, stack_t* old) {
  stack_t asked{};
  if (set != nullptr && translates()) asked = *set;
  const int result = with_buffers(
      [&](Buffers& buffers) { buffers.value(set).value(old).bytes(asked.ss_sp, asked.ss_size); },
      [&] { return next::sigaltstack(set, old); });
  if (result == 0 && set != nullptr) host::alternate_stack_changed();
  if (result != 0 || set == nullptr || !translates()) return result;
  const bool off = (asked.ss_flags & SS_DISABLE) != 0;
  const auto range = host::pages_of(reinterpret_cast<u64>(asked.ss_sp), asked.ss_size);
  host::note_alternate_stack(off || !range ? HvaRange() : *range);
  return 0;
}

}  // namespace stagetwo::shim
