// SPDX-License-Identifier: Apache-2.0
//
// What the client owes after an exit: data of a port or of memory, the result of a hypercall, of an
// MSR access. Finished at the next KVM_RUN, also when that one runs nothing (immediate_exit).
// Linux analogue: vcpu->arch.complete_userspace_io (kernel file: x86.c).
#include <cstring>

#include "vcpu/operand.h"
#include "vcpu/run.h"

namespace stagetwo::vcpu {
namespace {

void skip(Cpu& c) {
  c.s.rip += c.io.length;
  if (c.mode == Mode::k32) c.s.rip = static_cast<u32>(c.s.rip);
  c.s.events.shadow = 0;
}

bool moved(const Cpu& c) {
  return c.linear_rip() != c.io.linear_rip;
}

void finish_in(Cpu& c) {
  if (moved(c)) return;
  u32 value = 0;
  std::memcpy(&value, c.pio_page, c.io.size);
  switch (c.io.size) {
    case 1:
      set_gpr<u8>(c, kRax, static_cast<u8>(value));
      break;
    case 2:
      set_gpr<u16>(c, kRax, static_cast<u16>(value));
      break;
    default:
      set_gpr<u32>(c, kRax, value);
      break;
  }
  skip(c);
}

// Starts the instruction again with what the client supplied.
Step restart(Cpu& c) {
  const Step step = run_one(c);
  switch (step) {
    case Step::kFault:
      return deliver_fault(c, c.fault) == Step::kExit ? Step::kExit : Step::kNext;
    case Step::kExit:
      return Step::kExit;
    default:
      return Step::kNext;
  }
}

Step finish_mmio_read(Cpu& c, const u8* data) {
  c.io.kind = Pending::kNone;
  u64 value = 0;
  if (data != nullptr) std::memcpy(&value, data, c.mmio.waiting_len);
  c.mmio.reads[c.mmio.answered++] = value;
  return restart(c);
}

Step finish_mmio_write(Cpu& c) {
  c.io.kind = Pending::kNone;
  ++c.mmio.reported;
  if (c.mmio.write_waits()) {
    c.attention |= kAttendMmio;
  } else {
    c.mmio.queued = c.mmio.reported = 0;
  }
  return Step::kNext;
}

}  // namespace

Step complete_pending(Cpu& c, const Completion& completion) {
  const Pending kind = c.io.kind;
  Step step = Step::kNext;
  switch (kind) {
    case Pending::kNone:
      return Step::kNext;
    case Pending::kIn:
      finish_in(c);
      break;
    case Pending::kOut:
      if (!moved(c)) skip(c);
      break;
    case Pending::kStringIn:
      if (!moved(c)) return restart(c);
      break;
    case Pending::kMmioRead:
      step = finish_mmio_read(c, completion.mmio_data);
      break;
    case Pending::kMmioWrite:
      step = finish_mmio_write(c);
      break;
    case Pending::kHypercall:
      c.s.gpr[kRax] =
          c.long64() ? completion.hypercall_ret : static_cast<u32>(completion.hypercall_ret);
      skip(c);
      break;
    case Pending::kRdMsr:
    case Pending::kWrMsr:
      if (completion.msr_error) {
        c.gp0();
        step = deliver_fault(c, c.fault);
        break;
      }
      if (kind == Pending::kRdMsr) {
        c.s.gpr[kRax] = static_cast<u32>(completion.msr_data);
        c.s.gpr[kRdx] = completion.msr_data >> 32;
      }
      skip(c);
      break;
  }
  // A restarted instruction may be waiting again.
  if (step != Step::kExit) c.io.kind = Pending::kNone;
  return step;
}

}  // namespace stagetwo::vcpu
