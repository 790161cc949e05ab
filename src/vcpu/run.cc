// SPDX-License-Identifier: Apache-2.0
//
// One turn of the loop:
//
//   attend     events, traps, queued MMIO writes; rarely anything
//   find       the block at RIP, verified against memory; the quiescent point: a flush that
//              somebody asked for is acknowledged here
//   run        its instructions; an instruction off the fast path is executed by its operation
//   conclude   what came of it: go on, deliver a fault, leave
//
// Every block boundary, and so every backward branch, is such a point. Nothing that was borrowed
// (host addresses) crosses it. A vCPU that does not get there because its thread does not run is
// passed all the same, unless it holds (holding.h).
// Linux analogue: vcpu_run and vcpu_enter_guest (kernel file: arch/x86/kvm/x86.c).
#include "vcpu/run.h"

#include <cstring>

#include "base/trace.h"
#include "stage2/address_space.h"
#include "vcpu/block_cache.h"
#include "vcpu/holding.h"
#include "vcpu/ops.h"
#include "vcpu/paging.h"

namespace stagetwo::vcpu {
namespace {

constexpr u32 kPollInterval = 4096;  // blocks between looks at a masked signal

u64 mask_rip(const Cpu& c, u64 rip) {
  return c.mode == Mode::k64 ? rip : c.mode == Mode::k32 ? static_cast<u32>(rip) : rip & 0xffffffff;
}

// The operation of one instruction. Post: RIP is where the Step says.
Step execute(Cpu& c, const Insn& insn, u64 rip) {
  c.s.rip = rip;
  c.next_rip = mask_rip(c, rip + insn.length);
  c.insn = &insn;
  c.mmio.position = 0;
  const Step step = exec_function(insn.op)(c, insn);
  if (step == Step::kNext || step == Step::kEnd) c.s.rip = c.next_rip;
  if (step != Step::kExit || c.io.kind != Pending::kMmioRead) c.mmio.answered = 0;
  return step;
}

Step run_block(Cpu& c, const Block& block) {
  const Uop* uop = block.uops;
  for (;;) {
    uop = uop->run(c, uop);
    if (uop == nullptr) return Step::kJump;
    const auto index = static_cast<u64>(uop - block.uops);
    const Step step = execute(c, block.insns[index], mask_rip(c, block.rip + uop->offset));
    if (step != Step::kNext) return step;
    if ((c.attention & kAttendNow) != 0) return Step::kEnd;
    ++uop;
  }
}

// A push that fills the ring asks for attention, and no instruction begins before it was given
// (the ring's I1). True: c.exit is to be reported, until the client resets.
bool ring_is_full(Cpu& c) {
  c.attention &= ~static_cast<u32>(kAttendRing);
  if (c.ring == nullptr || !c.ring->soft_full()) return false;
  c.exit.kind = ExitKind::kDirtyRingFull;
  c.exit.error = 0;
  trace::emit(trace::Event::kvm_dirty_ring_exit, trace::Room::vcpu, c.id);
  return true;
}

bool report_interrupted(Cpu& c) {
  c.exit.kind = ExitKind::kInterrupted;
  c.exit.error = EINTR;
  return false;
}

bool report_mmio_write(Cpu& c) {
  const Mmio::Fragment& f = c.mmio.writes[c.mmio.reported];
  c.exit.kind = ExitKind::kMmio;
  c.exit.error = 0;
  c.exit.mmio = MmioExit{.gpa = f.gpa, .data = {}, .len = f.len, .write = true};
  std::memcpy(c.exit.mmio.data, &f.data, sizeof(c.exit.mmio.data));
  c.io.kind = Pending::kMmioWrite;
  return false;
}

bool report_debug(Cpu& c, u64 dr6_bits) {
  c.exit.kind = ExitKind::kDebug;
  c.exit.error = 0;
  c.exit.debug = DebugExit{
      .exception = kVectorDb, .pc = c.linear_rip(), .dr6 = dr6_bits | 0xffff0ff0, .dr7 = c.s.dr7};
  return false;
}

// What a Step means for the loop. False: c.exit is to be reported.
bool conclude(Cpu& c, Step step) {
  switch (step) {
    case Step::kNext:
    case Step::kJump:
    case Step::kEnd:
    case Step::kAgain:
      return true;
    case Step::kFault:
      return deliver_fault(c, c.fault) != Step::kExit;
    case Step::kExit:
      return false;
  }
  return false;
}

// Events that are ready now. False: c.exit is to be reported.
bool attend_events(Cpu& c) {
  Events& e = c.s.events;
  if (e.triple_fault_pending) {
    e.triple_fault_pending = false;
    c.exit.kind = ExitKind::kShutdown;
    return false;
  }
  if (e.exception_injected || e.exception_pending) {
    const Fault fault{.vector = e.exception_vector,
                      .has_error = e.exception_has_error,
                      .error = e.exception_error,
                      .payload = e.exception_has_payload ? e.exception_payload : c.s.sys.cr2};
    e.exception_injected = e.exception_pending = false;
    return conclude(c, deliver_fault(c, fault));
  }
  if (e.nmi_injected || (e.nmi_pending != 0 && !e.nmi_masked && e.shadow == 0)) {
    if (!e.nmi_injected) --e.nmi_pending;
    e.nmi_injected = false;
    e.nmi_masked = true;
    return conclude(c, deliver_interrupt(c, kVectorNmi));
  }
  if (e.interrupt_injected) {
    e.interrupt_injected = false;
    return conclude(c, deliver_interrupt(c, e.interrupt_vector));
  }
  if (c.window_wanted && interrupt_window_open(c)) {
    c.exit.kind = ExitKind::kIrqWindow;
    return false;
  }
  return true;
}

// TF or guest debugging: one instruction, then the trap it leaves.
bool single_step(Cpu& c) {
  c.trap_due = (c.s.rflags & rflags::kTf) != 0;
  const bool debug = c.debug.enabled && c.debug.single_step;
  const u8 shadow = c.s.events.shadow;
  c.element_done = false;
  const Step step = run_one(c);
  const bool done = step == Step::kNext || step == Step::kJump || step == Step::kEnd ||
                    (step == Step::kAgain && c.element_done);
  if (!conclude(c, step)) return false;
  if (c.mmio.write_waits()) return report_mmio_write(c);
  if (!done) return true;
  if (debug) return report_debug(c, 0x4000);
  if (c.trap_due && shadow != kShadowMovSs) {
    return conclude(c,
                    deliver_fault(c, Fault{.vector = kVectorDb, .trap = true, .payload = 0x4000}));
  }
  return true;
}

// Everything that is not the next block. False: c.exit is to be reported.
bool attend(Cpu& c) {
  c.attention &= ~static_cast<u32>(kAttendCode);
  if ((c.attention & kAttendMmio) != 0) {
    c.attention &= ~static_cast<u32>(kAttendMmio);
    if (c.mmio.write_waits()) return report_mmio_write(c);
  }
  if ((c.attention & kAttendRing) != 0 && ring_is_full(c)) return false;
  if ((c.attention & kAttendExit) != 0) {
    c.attention &= ~static_cast<u32>(kAttendExit);
    if (c.exit_requested.exchange(0) != 0) return report_interrupted(c);
  }
  if (!attend_events(c)) return false;
  const bool step = (c.attention & kAttendTrap) != 0 || c.s.events.shadow != 0;
  if (step && !single_step(c)) return false;
  c.update_attention();
  return true;
}

bool poll_client(Cpu& c) {
  c.poll_countdown = kPollInterval;
  const VmPolicy& p = *c.policy;
  if (p.signal_pending != nullptr && p.signal_pending(p.context, c.id)) {
    return report_interrupted(c);
  }
  return true;
}

// kvm_exit is written when the guest is left, kvm_entry when it is entered.
void trace_entry(const Cpu& c) {
  trace::emit(trace::Event::kvm_entry, trace::Room::vcpu, c.id, c.s.rip);
}
void trace_exit(const Cpu& c) {
  trace::emit(trace::Event::kvm_exit, trace::Room::vcpu, c.id, static_cast<u64>(c.exit.kind),
              c.s.rip);
}

}  // namespace

bool interrupt_window_open(const Cpu& c) {
  return (c.s.rflags & rflags::kIf) != 0 && c.s.events.shadow == 0 &&
         !c.s.events.interrupt_injected;
}

Step run_one(Cpu& c) {
  // The shadow covers this instruction; one that makes a new shadow sets it again.
  const u8 shadow = c.s.events.shadow;
  const u64 start = c.s.rip;
  c.s.events.shadow = 0;
  const Block* block = find_block(c);
  Step step = c.stop;
  if (block != nullptr) {
    step = execute(c, block->insns[0], c.s.rip);
    c.insn = nullptr;
    ++c.instructions;
  }
  // An instruction that is not over keeps its shadow; HLT is over when it exits.
  const bool waiting = step == Step::kExit && c.s.rip == start;
  if (step == Step::kAgain || waiting) c.s.events.shadow = shadow;
  return step;
}

void run_guest(Cpu& c) {
  c.update_view();
  c.update_attention();
  c.attention |= kAttendExit;
  trace_entry(c);
  if (ring_is_full(c)) return trace_exit(c);
  const LetGo nothing_held(c);
  Block* last = nullptr;
  for (;;) {
    // Where accesses are restartable, the look at the block's bytes is the look at the request.
    if (!arch::kRestartable && c.line.pending()) [[unlikely]] {
      last = nullptr;
      answer_request(c);
    }
    if (c.attention != 0) [[unlikely]] {
      last = nullptr;
      if (!attend(c)) break;
      if (c.attention != 0) continue;
    }
    if (--c.poll_countdown == 0) [[unlikely]] {
      if (!poll_client(c)) break;
    }
    Block* block = last != nullptr ? follow_block(c, last) : find_block(c);
    Step step = c.stop;
    if (block != nullptr) [[likely]] {
      c.instructions += block->count;
      step = run_block(c, *block);
    }
    last = block;
    if (step != Step::kJump) [[unlikely]] {
      last = nullptr;
      if (!conclude(c, step)) break;
    }
  }
  trace_exit(c);
}

}  // namespace stagetwo::vcpu
