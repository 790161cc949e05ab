// SPDX-License-Identifier: Apache-2.0
#pragma once

// The masks and stacks of the client's threads, where touches of hidden pages are signals
// (host/blocked_faults.h): SIGSEGV is blocked in name only, and stacks stay where the kernel can
// put a signal. Elsewhere all of this goes straight on.
//
// Context: the client's thread, awake or not; errno is the call's.

#include <pthread.h>
#include <signal.h>

#include "base/types.h"

namespace stagetwo::shim {

// sigprocmask and pthread_sigmask, which answer -1 and an errno.
int change_mask(int how, const sigset_t* set, sigset_t* old);
int change_thread_mask(int how, const sigset_t* set, sigset_t* old);
long change_raw_mask(long how, long set, long old, long size);

// While waking: what the calling thread has blocked.
void adopt_mask();

// A mask that a call puts in place while it waits.
class KernelMask {
 public:
  explicit KernelMask(const sigset_t* clients);
  operator const sigset_t*() const { return given_ == nullptr || !own_ ? given_ : &set_; }

 private:
  const sigset_t* given_;
  bool own_ = false;
  sigset_t set_;
};

// While a call that puts another program in this one's place is tried: that one inherits the mask,
// and has no engine that knew what it means.
class ClientsMask {
 public:
  explicit ClientsMask(const char* path);
  ~ClientsMask();
  ClientsMask(const ClientsMask&) = delete;
  ClientsMask& operator=(const ClientsMask&) = delete;
  operator const char*() const { return path_; }

 private:
  const char* path_;
  bool changed_ = false;
  u64 before_ = 0;
};

int create_thread(pthread_t* thread, const pthread_attr_t* about, void* (*run)(void*), void* given);
int set_alternate_stack(const stack_t* set, stack_t* old);

}  // namespace stagetwo::shim
