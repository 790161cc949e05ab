// SPDX-License-Identifier: Apache-2.0
#pragma once

// The kernel is told which lock in shared memory a thread is about to take or holds, so that it
// marks the lock when the thread ends, however it ends (set_robust_list(2)). It compares the word
// with the number the thread has in its own PID namespace, so that processes of several may share
// one; who waits need not know the holder.
//
//   outermost lock    the list's "pending" entry, from before the attempt until after the release
//   one within it     the same for the attempt; then in the list, which is libc's
//   no list of libc's, or one whose locks are laid out otherwise: a list of our own for as long
//
// The word: the thread's number in kOwner, kDied is the kernel's mark, kWaiters says that somebody
// sleeps and is to be woken by it.
// Differs from libc's robust mutexes: nothing is linked but where locks nest.
// Locking: a thread's own. Failure: where the kernel refuses to be told (a client's seccomp
// filter), told() is false.

#include "base/sys.h"
#include "base/types.h"

namespace stagetwo::sync {

// In the lock: what the kernel walks from lock to lock.
struct RobustLinks {
  void* previous = nullptr;
  void* next = nullptr;  // the entry
};

class DeathNotice {
 public:
  static constexpr u32 kOwner = (1u << 29) - 1, kDied = 1u << 30, kWaiters = 1u << 31;
  // From the entry to the word, as libc has it.
  static constexpr long kWordOffset = -32;

  DeathNotice() {}  // NOLINT: what is not used is not written
  DeathNotice(const DeathNotice&) = delete;
  DeathNotice& operator=(const DeathNotice&) = delete;

  // Before an attempt. Pre: `thread` is the caller.
  void begin(const sys::ThisThread& thread, RobustLinks* links) {
    head_ = static_cast<Head*>(thread.robust_list);
    if (head_ == nullptr || head_->word_offset != kWordOffset) [[unlikely]]
      use_own_list();
    if (head_ == nullptr) [[unlikely]]
      return;
    outer_ = head_->pending;
    head_->pending = &links->next;
    barrier();
  }
  // The attempt has failed.
  void cancel() {
    if (head_ != nullptr) [[likely]]
      finish();
  }
  // It has succeeded.
  void taken(RobustLinks* links) {
    listed_ = false;
    if (head_ != nullptr && outer_ != nullptr) [[unlikely]]
      enter(links);
  }
  // Before the word is given back, and after whoever sleeps was woken.
  void leave(RobustLinks* links) {
    if (listed_) [[unlikely]]
      remove(links);
  }
  void left() { cancel(); }

  [[nodiscard]] bool told() const { return head_ != nullptr; }

 private:
  // struct robust_list_head
  struct Head {
    void* first;
    long word_offset;
    void* volatile pending;
  };
  static void barrier() { __atomic_signal_fence(__ATOMIC_SEQ_CST); }
  void finish() {
    barrier();
    head_->pending = outer_;
    if (head_ == &own_) [[unlikely]]
      drop_own_list();
  }
  void use_own_list(), drop_own_list();
  void enter(RobustLinks* links), remove(RobustLinks* links);

  Head* head_ = nullptr;
  void* outer_;  // what was pending before
  bool listed_ = false;
  Head own_;
  void* others_;  // the list that was there
};

}  // namespace stagetwo::sync
