// SPDX-License-Identifier: Apache-2.0
#pragma once

// A number that stands for something of ours in a table that others change: a descriptor of the
// engine's among the client's. Whoever makes a call on it says so until the call is over; who has
// to give the number away moves what it stands for, and waits for those calls.
//
//   const KeptNumber::Use file = number.use();       |  const int old = number.exchange(fresh);
//   system_call(file.get());                         |  number.wait_for_users();   // then old is
//   free
//
// Analogue: fdget(), fdput() (kernel file: fs/file.c). Differs: the kernel counts the file, and so
// needs not wait.
//
// I1: what a use says is right until its end.
// I2: a use costs a passage's section (sync/passage.h): no lock, and a mover waits, never a user.
// Locking: none of its own; exchange() is for who holds the owner's lock. A waiter holds no lock
// that a user may want, and is inside no use. Lifetime: the passage is shared and outlives all.
//
// number_: written by movers (seq_cst), read by users (seq_cst): the partner is the passage's
// count.

#include "sync/atomic.h"
#include "sync/passage.h"

namespace stagetwo::sync {

class KeptNumber {
 public:
  static constexpr int kNone = -1;
  // Of calls that end by themselves.
  static Passage brief_users;
  // Of calls that may wait for the client: a mover gives up waiting for them.
  static Passage patient_users;

  explicit constexpr KeptNumber(int number = kNone, const Passage& users = brief_users)
      : number_(number), users_(&users) {}
  KeptNumber(const KeptNumber&) = delete;
  KeptNumber& operator=(const KeptNumber&) = delete;

  class Use {
   public:
    Use(Use&& other) noexcept
        : users_(other.users_), ticket_(other.ticket_), number_(other.number_) {
      other.users_ = nullptr;
    }
    Use& operator=(Use&&) = delete;
    ~Use() {
      if (users_ != nullptr) users_->leave(ticket_);
    }
    // kNone: it stands for nothing now.
    [[nodiscard]] int get() const { return number_; }

   private:
    friend class KeptNumber;
    Use(const Passage* users, Passage::Ticket ticket, int number)
        : users_(users), ticket_(ticket), number_(number) {}
    const Passage* users_;
    Passage::Ticket ticket_;
    int number_;
  };

  // Context: any thread, signal handlers included.
  [[nodiscard]] Use use() const {
    const Passage::Ticket ticket = users_->enter();
    return Use(users_, ticket, number_.load(kSeqCst));
  }
  // Which it is; it may be another at once.
  [[nodiscard]] int peek() const { return number_.load(kRelaxed); }
  // Returns the old one, which calls under way may still be made on.
  int exchange(int fresh) { return number_.exchange(fresh, kSeqCst); }
  // No call is made any more on a number that exchange() has returned before. The number itself may
  // be no more when its users are waited for.
  void wait_for_users() const { wait_for(*users_); }
  static void wait_for(const Passage& users);
  [[nodiscard]] const Passage& users() const { return *users_; }

  // In a child of fork: the calls of other threads are not under way there.
  static void after_fork_child();

 private:
  Atomic<int> number_;
  const Passage* users_;
};

}  // namespace stagetwo::sync
