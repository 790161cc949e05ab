// SPDX-License-Identifier: Apache-2.0
#include "tests/support/twin/flag_effects.h"

namespace stagetwo::twin {
namespace {

using vcpu::Cond;
using vcpu::Insn;
using vcpu::Op;
using vcpu::OperandKind;
using vcpu::u64;

constexpr u64 kC = vcpu::rflags::kCf, kP = vcpu::rflags::kPf, kA = vcpu::rflags::kAf,
              kZ = vcpu::rflags::kZf, kS = vcpu::rflags::kSf, kO = vcpu::rflags::kOf;
constexpr u64 kAll = vcpu::rflags::kArithmetic;

u64 read_by(Cond cond) {
  constexpr u64 kReads[] = {kO, kC, kZ, kC | kZ, kS, kP, kS | kO, kS | kO | kZ};
  return kReads[static_cast<unsigned>(cond) / 2];
}

// The count of a shift or rotate: an immediate's value, or -1 if it is in CL.
int shift_count(const Insn& insn, unsigned operand) {
  if (insn.operand[operand].kind != OperandKind::kImm) return -1;
  return static_cast<int>(insn.imm & (insn.operand_size == 8 ? 63 : 31));
}

FlagEffect shift_effect(const Insn& insn, unsigned count_operand, bool rotate) {
  const int count = shift_count(insn, count_operand);
  const int bits = insn.operand_size * 8;
  FlagEffect effect;
  if (count == 0) return effect;
  effect.conditional = count < 0;
  effect.defined = rotate ? kC : kC | kZ | kS | kP;
  if (count == 1)
    effect.defined |= kO;
  else
    effect.undefined |= kO;
  if (!rotate) effect.undefined |= kA;
  // SHL and SHR beyond the operand's width (8 and 16 bits only; the count is masked to 31).
  if (!rotate && insn.op != Op::kSar && bits < 32 && (count < 0 || count >= bits)) {
    effect.defined &= ~kC;
    effect.undefined |= kC;
  }
  return effect;
}

FlagEffect string_effect(const Insn& insn) {
  return {.defined = kAll, .conditional = insn.rep || insn.repne};
}

}  // namespace

FlagEffect flag_effect(const Insn& insn) {
  switch (insn.op) {
    case Op::kAdd:
    case Op::kSub:
    case Op::kCmp:
    case Op::kNeg:
    case Op::kXadd:
    case Op::kCmpxchg:
    case Op::kPopcnt:
    case Op::kPopf:
    case Op::kComiss:
    case Op::kComisd:
    case Op::kUcomiss:
    case Op::kUcomisd:
      return {.defined = kAll};
    case Op::kAdc:
    case Op::kSbb:
      return {.defined = kAll, .read = kC};
    case Op::kInc:
    case Op::kDec:
      return {.defined = kAll & ~kC};
    case Op::kAnd:
    case Op::kOr:
    case Op::kXor:
    case Op::kTest:
      return {.defined = kAll & ~kA, .undefined = kA};
    case Op::kShl:
    case Op::kShr:
    case Op::kSar:
      return shift_effect(insn, 1, false);
    case Op::kRol:
    case Op::kRor:
      return shift_effect(insn, 1, true);
    case Op::kRcl:
    case Op::kRcr: {
      FlagEffect effect = shift_effect(insn, 1, true);
      effect.read = kC;
      return effect;
    }
    case Op::kShld:
    case Op::kShrd:
      return shift_effect(insn, 2, false);
    case Op::kMul:
    case Op::kImul:
    case Op::kImulWide:
      return {.defined = kC | kO, .undefined = kS | kZ | kA | kP};
    case Op::kDiv:
    case Op::kIdiv:
      return {.undefined = kAll};
    case Op::kBt:
    case Op::kBts:
    case Op::kBtr:
    case Op::kBtc:
      return {.defined = kC, .undefined = kO | kS | kA | kP};
    case Op::kBsf:
    case Op::kBsr:
      return {.defined = kZ, .undefined = kC | kO | kS | kA | kP};
    case Op::kTzcnt:
    case Op::kLzcnt:
      return {.defined = kC | kZ, .undefined = kO | kS | kA | kP};
    case Op::kCmpxchg8b:
    case Op::kCmpxchg16b:
    case Op::kVerr:
    case Op::kVerw:
    case Op::kLar:
    case Op::kLsl:
      return {.defined = kZ};
    case Op::kAdcx:
      return {.defined = kC, .read = kC};
    case Op::kAdox:
      return {.defined = kO, .read = kO};
    case Op::kSahf:
      return {.defined = kAll & ~kO};
    case Op::kLahf:
      return {.read = kAll & ~kO};
    case Op::kPushf:
      return {.read = kAll};
    case Op::kClc:
    case Op::kStc:
      return {.defined = kC};
    case Op::kCmc:
      return {.defined = kC, .read = kC};
    case Op::kJcc:
    case Op::kSetcc:
    case Op::kCmovcc:
      return {.read = read_by(insn.cond)};
    case Op::kLoope:
    case Op::kLoopne:
      return {.read = kZ};
    case Op::kCmps:
    case Op::kScas:
      return string_effect(insn);
    default:
      return {};
  }
}

}  // namespace stagetwo::twin
