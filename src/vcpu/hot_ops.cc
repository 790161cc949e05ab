// SPDX-License-Identifier: Apache-2.0
#include "vcpu/hot_ops.h"

#include <bit>

#include "vcpu/ops.h"

namespace stagetwo::vcpu {
namespace {

// Off the fast path: the loop executes the instruction by its operation.
const Uop* run_slow(Cpu&, const Uop* uop) {
  return uop;
}

const Uop* run_end(Cpu& c, const Uop* uop) {
  return hot::done(c, uop->imm);
}

bool plain_register(const Operand& op) {
  return op.kind == OperandKind::kGpr;
}

// Address form of a memory operand; false: an unusual one.
bool usual_address(const Insn& insn, hot::Form* form) {
  if (insn.address_size != 8 || insn.segment == Seg::kFs || insn.segment == Seg::kGs) return false;
  const MemOperand& m = insn.mem;
  if (m.index != kNoReg) {
    *form = hot::Form::kBaseIndex;
    return m.base < 16;
  }
  *form = m.base < 16 ? hot::Form::kBase : hot::Form::kAbsolute;
  return true;
}

// Post: dst, src, base and index are below 16, scale_lg2 below 4 (I4 of hot_ops.h).
void fill_fields(const Insn& insn, u64 next_rip, Uop* uop) {
  const auto reg = [&](unsigned i) {
    return insn.operand_count > i && insn.operand[i].kind == OperandKind::kGpr ? insn.operand[i].reg
                                                                               : u8{0};
  };
  uop->dst = reg(0) & 15;
  uop->src = reg(1) & 15;
  uop->imm = insn.imm;
  uop->base = insn.mem.base & 15;
  uop->index = insn.mem.index & 15;
  uop->scale_lg2 = static_cast<u8>(std::countr_zero(insn.mem.scale)) & 3;
  uop->disp = insn.mem.disp;
  if (insn.mem.base == kRipBase) uop->disp += static_cast<i64>(next_rip);
}

}  // namespace

hot::Shape hot::shape_of(const Insn& insn) {
  Shape s;
  if (insn.lock || insn.operand_count > 2) return s;
  for (unsigned i = 0; i < insn.operand_count; ++i) {
    switch (insn.operand[i].kind) {
      case OperandKind::kGpr:
        break;
      case OperandKind::kImm:
        s.src_imm = true;
        break;
      case OperandKind::kMem:
        (i == 0 ? s.dst_memory : s.src_memory) = true;
        break;
      default:
        return s;
    }
  }
  s.usual = !insn.has_mem || usual_address(insn, &s.form);
  return s;
}

Uop ending_uop(u64 rip) {
  Uop uop{};
  uop.run = run_end;
  uop.imm = rip;
  return uop;
}

void prepare_uop(const Insn& insn, Mode mode, u64, u64 next_rip, Uop* uop) {
  *uop = Uop{};
  uop->run = run_slow;
  if (mode != Mode::k64) return;
  fill_fields(insn, next_rip, uop);
  Handler handler = hot::choose_alu(insn, uop);
  if (handler == nullptr) handler = hot::choose_move(insn, uop);
  if (handler == nullptr) handler = hot::choose_flow(insn, next_rip, uop);
  if (handler != nullptr) uop->run = handler;
}

void fuse_uops(const Insn* insns, Uop* uops, unsigned count) {
  if (count < 2 || insns[count - 1].op != Op::kJcc) return;
  Uop& compare = uops[count - 2];
  const Uop& jump = uops[count - 1];
  if (compare.run == run_slow || jump.run == run_slow ||
      !plain_register(insns[count - 2].operand[0])) {
    return;
  }
  const Handler handler = hot::choose_fused(insns[count - 2], insns[count - 1]);
  if (handler != nullptr) compare.run = handler;
}

}  // namespace stagetwo::vcpu
