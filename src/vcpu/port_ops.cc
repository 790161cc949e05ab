// SPDX-License-Identifier: Apache-2.0
//
// Port I/O. Exits have the shape KVM's have: IN and OUT leave RIP at the instruction and are
// finished by the next run unless the client moved RIP; OUTS is reported element by element with
// the registers already advanced; INS asks for as many elements as fit a page and 1024 bytes and is
// started again with the client's data. Linux analogue: kvm_fast_pio, emulator_pio_in_out,
// pio_in_emulated (kernel files: x86.c, emulate.c).
#include <algorithm>
#include <cstring>

#include "base/trace.h"
#include "vcpu/operand.h"

namespace stagetwo::vcpu::ops {
namespace {

constexpr u32 kInsBytes = 1024;

// IOPL and, above it, the permission bitmap of a 32- or 64-bit TSS.
bool port_allowed(Cpu& c, u16 port, unsigned size) {
  const u64 iopl = c.s.rflags >> 12 & 3;
  if (c.real_mode() || (!c.v86() && c.cpl() <= iopl)) return true;
  const Segment& tr = c.s.sys.tr;
  u16 base = 0;
  u16 bits = 0;
  const bool wide_tss = (tr.type & 8) != 0;
  if (tr.unusable != 0 || !wide_tss || tr.limit < 103) {
    c.gp0();
    return false;
  }
  if (!load_bytes(c, tr.base + 102, &base, 2, Who::kSystem)) return false;
  if (base + port / 8U + 1U > tr.limit) {
    c.gp0();
    return false;
  }
  if (!load_bytes(c, tr.base + base + port / 8U, &bits, 2, Who::kSystem)) return false;
  if ((bits >> (port & 7) & ((1U << size) - 1)) != 0) {
    c.gp0();
    return false;
  }
  return true;
}

Step io_exit(Cpu& c, Pending kind, bool out, u16 port, unsigned size, u32 count, u8 length) {
  c.exit.kind = ExitKind::kIo;
  c.exit.error = 0;
  c.exit.io = IoExit{.out = out, .size = static_cast<u8>(size), .port = port, .count = count};
  c.io = PendingIo{.kind = kind,
                   .size = static_cast<u8>(size),
                   .length = length,
                   .count = count,
                   .used = 0,
                   .linear_rip = c.linear_rip()};
  trace::emit(trace::Event::kvm_pio, trace::Room::vcpu, out ? 1 : 0, port, size, count);
  return Step::kExit;
}

u16 port_of(const Cpu& c, const Insn& insn, const Operand& op) {
  return op.kind == OperandKind::kImm ? static_cast<u16>(insn.imm) : get_gpr<u16>(c, kRdx);
}

bool swallowed(Cpu& c, u16 port, const void* data, unsigned size) {
  return c.policy->coalesce_pio != nullptr &&
         c.policy->coalesce_pio(c.policy->context, c.id, port, data, size);
}

u64 string_register(const Cpu& c, const Insn& insn, unsigned reg) {
  const u64 v = c.s.gpr[reg];
  return insn.address_size == 8   ? v
         : insn.address_size == 4 ? static_cast<u32>(v)
                                  : static_cast<u16>(v);
}
void set_string_register(Cpu& c, const Insn& insn, unsigned reg, u64 value) {
  switch (insn.address_size) {
    case 2:
      set_gpr<u16>(c, reg, static_cast<u16>(value));
      break;
    case 4:
      set_gpr<u32>(c, reg, static_cast<u32>(value));
      break;
    default:
      c.s.gpr[reg] = value;
      break;
  }
}
void step_register(Cpu& c, const Insn& insn, unsigned reg, u64 bytes) {
  const bool down = (c.s.rflags & rflags::kDf) != 0;
  const u64 at = string_register(c, insn, reg);
  set_string_register(c, insn, reg, down ? at - bytes : at + bytes);
}

}  // namespace

Step in(Cpu& c, const Insn& insn) {
  const u16 port = port_of(c, insn, insn.operand[1]);
  const unsigned size = insn.operand[0].size;
  if (!port_allowed(c, port, size)) return c.stop;
  return io_exit(c, Pending::kIn, false, port, size, 1, insn.length);
}

Step out(Cpu& c, const Insn& insn) {
  const u16 port = port_of(c, insn, insn.operand[0]);
  const unsigned size = insn.operand[1].size;
  if (!port_allowed(c, port, size)) return c.stop;
  const u64 value = c.s.gpr[kRax];
  if (swallowed(c, port, &value, size)) return Step::kNext;
  std::memcpy(c.pio_page, &value, size);
  // A very old quirk: RIP is already behind an OUT to port 0x7e.
  constexpr u16 kQuirkPort = 0x7e;
  constexpr u64 kQuirkOut7e = 1 << 3;
  if (port == kQuirkPort && (c.policy->disabled_quirks & kQuirkOut7e) == 0) {
    const Step step = io_exit(c, Pending::kNone, true, port, size, 1, insn.length);
    c.s.rip = c.next_rip;
    return step;
  }
  return io_exit(c, Pending::kOut, true, port, size, 1, insn.length);
}

Step outs(Cpu& c, const Insn& insn) {
  const unsigned size = std::min<unsigned>(insn.operand_size, 4);
  const u16 port = get_gpr<u16>(c, kRdx);
  const bool rep = insn.rep || insn.repne;
  if (!port_allowed(c, port, size)) return c.stop;
  if (rep && string_register(c, insn, kRcx) == 0) return Step::kNext;
  u64 linear = 0;
  u64 value = 0;
  if (!linearize(c, static_cast<unsigned>(insn.segment), string_register(c, insn, kRsi), size,
                 false, &linear) ||
      !load_bytes(c, linear, &value, size, Who::kExplicit)) {
    return c.stop;
  }
  step_register(c, insn, kRsi, size);
  bool last = true;
  if (rep) {
    const u64 left = string_register(c, insn, kRcx) - 1;
    set_string_register(c, insn, kRcx, left);
    last = left == 0;
  }
  if (swallowed(c, port, &value, size)) return last ? Step::kNext : Step::kAgain;
  std::memcpy(c.pio_page, &value, size);
  const Step step = io_exit(c, Pending::kNone, true, port, size, 1, insn.length);
  if (last) c.s.rip = c.next_rip;
  return step;
}

namespace {

// Elements one exit asks for.
u32 ins_batch(const Cpu& c, const Insn& insn, unsigned size) {
  const u64 at = string_register(c, insn, kRdi);
  const bool down = (c.s.rflags & rflags::kDf) != 0;
  const u64 in_page = down ? at & ~kPageMask : kPageSize - (at & ~kPageMask);
  const u64 fits = std::max<u64>(std::min<u64>(in_page, kInsBytes) / size, 1);
  const u64 wanted = insn.rep || insn.repne ? string_register(c, insn, kRcx) : 1;
  return static_cast<u32>(std::min(fits, wanted));
}

}  // namespace

Step ins(Cpu& c, const Insn& insn) {
  const unsigned size = std::min<unsigned>(insn.operand_size, 4);
  const u16 port = get_gpr<u16>(c, kRdx);
  const bool rep = insn.rep || insn.repne;
  if (!port_allowed(c, port, size)) return c.stop;
  if (rep && string_register(c, insn, kRcx) == 0) {
    c.io.kind = Pending::kNone;
    return Step::kNext;
  }
  if (c.io.kind != Pending::kStringIn || c.io.size != size) {
    u64 linear = 0;
    if (!linearize(c, kSegEs, string_register(c, insn, kRdi), size, true, &linear) ||
        !probe_write(c, linear, size)) {
      return c.stop;
    }
    return io_exit(c, Pending::kStringIn, false, port, size, ins_batch(c, insn, size), insn.length);
  }
  while (c.io.used < c.io.count) {
    u64 linear = 0;
    if (!linearize(c, kSegEs, string_register(c, insn, kRdi), size, true, &linear) ||
        !store_bytes(c, linear, c.pio_page + u64{c.io.used} * size, size, Who::kExplicit)) {
      return c.stop;
    }
    ++c.io.used;
    step_register(c, insn, kRdi, size);
    if (!rep) break;
    const u64 left = string_register(c, insn, kRcx) - 1;
    set_string_register(c, insn, kRcx, left);
    if (left == 0) break;
  }
  const bool done = !rep || string_register(c, insn, kRcx) == 0;
  c.io.kind = Pending::kNone;
  return done ? Step::kNext : Step::kAgain;
}

}  // namespace stagetwo::vcpu::ops
