// SPDX-License-Identifier: Apache-2.0
#pragma once

// Numbers of a table that others change, which are ours for a moment: from the call that makes one
// until it is closed, given away, or written down as kept (sync/kept_number.h). Nobody can ask
// whose such a number is; so who would put something of his own on a number looks when none is.
//
//   const PassingNumber mine;      |  const auto look = PassingNumber::look();
//   const int fd = open(…);        |  is the number taken? by one that is written down?
//   …; close(fd);                  |  if (look.holds()) it is the client's own, and stays so
//
// Analogue: a number that fd_install() has not reached yet (kernel file: fs/file.c), where dup2 is
// EBUSY.
//
// I1: a number that is taken at a moment between look() and holds(), and not written down then, is
//     not one of ours.
// Locking: none; who passes never waits. Context: any thread, signal handlers included.
//
// begun_, ended_: added to by who passes (seq_cst), read by who looks (seq_cst): begun_ before the
// call that makes a number, ended_ after the number is none of ours.

#include "base/types.h"
#include "sync/atomic.h"

namespace stagetwo::sync {

//   who passes                        | who looks
//   begun + 1                         |
//   makes 7                           |
//                                     | look: begun is not ended, so it does not hold
//   closes 7; ended + 1               |
//                                     | look: nobody is inside
//   begun + 1                         |
//   makes 7                           |
//                                     | 7 is taken, and not written down
//                                     | holds? begun has changed: look again
//
// A number that is the client's at that moment cannot become ours while it stays open.

class PassingNumber {
 public:
  PassingNumber() { begin(); }
  PassingNumber(const PassingNumber&) = delete;
  PassingNumber& operator=(const PassingNumber&) = delete;
  ~PassingNumber() { end(); }

  // The same in two calls.
  static void begin() { begun_.fetch_add(1); }
  static void end() { ended_.fetch_add(1); }
  // Of a number that stays ours behind the caller: ends where that says so, or at once where there
  // is none.
  template <typename F>
  static auto begin_with(F&& open) {
    begin();
    auto opened = open();
    if (!opened) end();
    return opened;
  }

  class Look {
   public:
    // Has nobody passed since, nor was about to?
    [[nodiscard]] bool holds() const { return quiet_ && begun_.load() == begun_then_; }

   private:
    friend class PassingNumber;
    Look(u64 ended, u64 begun) : begun_then_(begun), quiet_(ended == begun) {}
    u64 begun_then_;
    bool quiet_;
  };
  [[nodiscard]] static Look look() {
    const u64 ended = ended_.load();
    return {ended, begun_.load()};
  }
  // In a child of fork: those of other threads are over.
  static void after_fork_child() { ended_.store(begun_.load()); }

 private:
  inline static constinit Atomic<u64> begun_{0};
  inline static constinit Atomic<u64> ended_{0};
};

}  // namespace stagetwo::sync
