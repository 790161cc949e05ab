// SPDX-License-Identifier: Apache-2.0
#pragma once

// When a vCPU in its section holds host addresses, and when it only makes accesses that can be
// taken away from it (sync/restartable.h, docs/decisions/0023-passing-a-vcpu-that-does-not-run.md).
//
//   lets go   the loop, and the handlers of hot_*.cc: an address is taken from the TLB and used by
//             host::load, store, cmpxchg or equal with restartable(c), which look at the request;
//             what they refuse goes the slow way
//   holds     from Hold to its end: everything that keeps an address from one instruction to the
//             next or uses it otherwise: resolving and filling, pieces of accesses, page walks,
//             string runs, cmpxchg16b, decoding
//
// I1  Where a vCPU lets go nothing is borrowed: taking hold may find a request, acknowledge it and
//     empty the TLB, in the middle of an instruction. Who holds a host address has taken hold
//     before he got it, and who holds already is not asked again.
// I2  An address of the TLB is good in a restartable access as long as nothing was acknowledged
//     since: the access fails if a request is pending, and acknowledging empties the TLB.
// I3  Outside run_guest(), and where accesses are not restartable, a vCPU in its section holds.
// Locking: none; the vCPU's thread.

#include "vcpu/cpu.h"

namespace stagetwo::vcpu {

// The request was acknowledged: every translation is forgotten.
void request_answered(Cpu& c);

class [[nodiscard]] Hold {
 public:
  explicit Hold(Cpu& c) : c_(c) {
    if (c.holds++ == 0 && c.line.hold()) [[unlikely]]
      request_answered(c);
  }
  ~Hold() {
    if (--c_.holds == 0) c_.line.let_go();
  }
  Hold(const Hold&) = delete;
  Hold& operator=(const Hold&) = delete;

 private:
  Cpu& c_;
};

// The opposite, for the loop. Pre: holding, once.
class [[nodiscard]] LetGo {
 public:
  explicit LetGo(Cpu& c);
  ~LetGo();
  LetGo(const LetGo&) = delete;
  LetGo& operator=(const LetGo&) = delete;

 private:
  Cpu& c_;
};

// The quiescent point: acknowledges what is asked, and forgets every translation. Context: nothing
// is held but, perhaps, for I3.
void answer_request(Cpu& c);

// What a restartable access of this vCPU is asked with.
[[nodiscard, gnu::always_inline]] inline arch::Restart restartable(Cpu& c) {
  return c.line.restart(c.restart_section);
}

}  // namespace stagetwo::vcpu
