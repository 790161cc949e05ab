// SPDX-License-Identifier: Apache-2.0
#pragma once

// A flush that ageing owes the vCPUs' soft TLBs, asked for at most once in kInterval and waited for
// by nobody. ageing.cc says why.
//
// What is owed is a ticket of the lines: who marks a page old owes the next request there will be,
// whoever makes it, and the debt is paid when every line has passed that one. No word is ever taken
// back, so the order in which two threads store does not matter.
//
// I1: marking_ and owed_ together are never behind: a page that was made old and may still be in a
//     soft TLB has its marker in marking_, or a ticket in owed_ that not every line has passed.
// I2: owed_ and asked_ only grow. asked_ is a hint (one request too many); outstanding() does not
//     look at it.
//
//   marks quietly (M)        | asks (Q)                 | clear_flush_young (C)
//   marking = 1              |                          |
//   A off                    |                          |
//                            |                          | A is off, marking 1: flushes
//   owed = 7; marking = 0    |                          |
//                            |                          | marking 0, so owed 7; passed 6: flushes
//                            | request 7 is raised      |
//                            |                          | not every line passed 7: flushes
//                            | asked = 7                | (asked is not looked at)
//                            | another stored 8: stays  |
//   the vCPU passes 7        |                          | passed 7: it holds nothing of before
//
//   C reads A (acquire) before marking (acquire) before owed. If it finds off what M took off
//   (release), it sees marking 1, or what M stored after: owed, released by the end of marking.
//
// Locking: none. Nothing can fail.

#include "sync/ack_line.h"
#include "sync/futex.h"

namespace stagetwo::stage2 {

class AgeFlush {
 public:
  static constexpr u64 kInterval = 1'000'000;  // nanoseconds

  // `age` takes accessed bits away and says whether there were any.
  template <typename F>
  bool mark_old(sync::AckSet& lines, F&& age) {
    marking_.fetch_add(1, sync::kRelaxed);
    const bool young = age();
    if (young) raise(owed_, lines.next_ticket());
    marking_.fetch_sub(1, sync::kRelease);
    return young;
  }
  // Did nobody ask since?
  [[nodiscard]] bool owed() const {
    return owed_.load(sync::kRelaxed) > asked_.load(sync::kRelaxed);
  }
  void ask(sync::AckSet& lines) {
    asked_at_.store(sync::now_ns(), sync::kRelaxed);
    raise(asked_, lines.bump_all());
  }
  void ask_if_due(sync::AckSet& lines) {
    if (owed() && sync::now_ns() - asked_at_.load(sync::kRelaxed) >= kInterval) ask(lines);
  }
  // May a vCPU still use what was marked old before?
  [[nodiscard]] bool outstanding(sync::AckSet& lines) const {
    if (marking_.load(sync::kAcquire) != 0) return true;
    const u64 owed = owed_.load(sync::kRelaxed);
    return owed != 0 && lines.passed() < owed;
  }
  // `flush` makes a request and waits for it: what is owed before it is asked for by it.
  template <typename F>
  void settle(F&& flush) {
    const u64 owed = owed_.load(sync::kRelaxed);
    flush();
    raise(asked_, owed);
  }

 private:
  static void raise(sync::Atomic<u64>& word, u64 ticket) {
    u64 seen = word.load(sync::kRelaxed);
    while (seen < ticket && !word.compare_exchange_weak(seen, ticket, sync::kRelaxed)) {
    }
  }

  sync::Atomic<u64> marking_{0};   // how many are at it
  sync::Atomic<u64> owed_{0};      // the request that the youngest debt needs; 0: never any
  sync::Atomic<u64> asked_{0};     // the last request made for it
  sync::Atomic<u64> asked_at_{0};  // a hint
};

}  // namespace stagetwo::stage2
