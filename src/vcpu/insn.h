// SPDX-License-Identifier: Apache-2.0
#pragma once

// A decoded x86 instruction: what the decoder says and the executor reads.
//
// Room vcpu, floor 7. Analogue: the kernel's x86_emulate_ctxt after x86_decode_insn(); differs in
// that nothing of the CPU's state is in it, so it can be cached by (mode, bytes).
//
// I1  Operands stand in Intel order: destination first. What the mnemonic implies (rdx:rax of MUL,
//     rsi/rdi of string operations, flags, the stack) is not listed.
// I2  At most one operand is memory, and then `mem` describes it; at most one immediate: `imm`.
// I3  Operand::size is the number of bytes accessed; 0 where no data is accessed (LEA, INVLPG) or
//     the size is not a constant (XSAVE).
// I4  Immediates are already extended to 64 bits as the instruction defines (sign for Iz and for
//     Ib of 83/6A/6B, zero elsewhere); the executor truncates to the operand size.
// I5  lock is set only where LOCK is legal (a lockable operation with a memory destination).
//
// Lifetime: a value; no pointers. Specification: Intel SDM volume 2, chapters 2 to 6, appendix A.

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace stagetwo::vcpu {

// The code segment's D and L bits: default operand and address sizes. k16 is the state after reset.
enum class Mode : std::uint8_t { k16, k32, k64 };

// One enumerator per semantic operation (op_list.inc): `k` and Intel's mnemonic. Where one mnemonic
// means several operations or several mnemonics mean one, the name tells:
//   kJcc kSetcc kCmovcc           Insn::cond is the condition
//   kCbw kCwd                     CBW/CWDE/CDQE and CWD/CDQ/CQO by operand_size
//   kJcxz                         JCXZ/JECXZ/JRCXZ by address_size (as LOOPcc: count register)
//   kImul, kImulWide              two or three operands (truncating); one operand (rdx:rax)
//   kCall kJmp / kCallFar kJmpFar near (kRel, kGpr or kMem) / far (kFarPointer or kMem)
//   kMovs kCmps …                 string operations; kMovsd and kCmpsd are the SSE2 ones
//   kMovd                         MOVD and its 64-bit form: between xmm and Ed/Eq
//   kMovq                         xmm <- xmm/m64 and xmm/m64 <- xmm
//   kTzcnt kLzcnt                 F3-prefixed BSF/BSR: which one it is depends on CPUID
//   kNop                          90, 0F 1F and the reserved hints 0F 18..1E
enum class Op : std::uint16_t {
#define ST_OP(name) k##name,
#include "vcpu/op_list.inc"
#undef ST_OP
};

inline constexpr std::size_t kOpCount = static_cast<std::size_t>(Op::kEvex) + 1;

// "Add", "Jcc": the enumerator without its k. Static storage.
[[nodiscard]] const char* op_name(Op op);

// Condition codes as encoded in the low opcode nibble; the odd one negates the even one.
enum class Cond : std::uint8_t {
  kO,    // overflow
  kNo,   //
  kB,    // below: carry
  kNb,   //
  kZ,    // zero, equal
  kNz,   //
  kBe,   // below or equal: carry or zero
  kNbe,  //
  kS,    // sign
  kNs,   //
  kP,    // parity even
  kNp,   //
  kL,    // less: sign differs from overflow
  kNl,   //
  kLe,   // less or equal: kL or zero
  kNle
};

// Segment registers in encoding order.
enum class Seg : std::uint8_t { kEs, kCs, kSs, kDs, kFs, kGs };

enum class OperandKind : std::uint8_t {
  kNone,
  kGpr,         // reg 0..15; size 1, 2, 4, 8; size 1 means the low byte
  kGprHigh,     // reg 0..3: ah ch dh bh; size 1
  kMem,         // Insn::mem, Insn::segment, Insn::address_size
  kImm,         // Insn::imm
  kRel,         // Insn::imm, signed, from the end of the instruction
  kFarPointer,  // Insn::imm is the offset, Insn::selector the selector (16/32-bit modes)
  kXmm,         // reg 0..15
  kMmx,         // reg 0..7
  kSegment,     // reg is a Seg
  kControl,     // reg 0, 2, 3, 4, 8
  kDebug,       // reg 0..7
};

struct Operand {
  OperandKind kind = OperandKind::kNone;
  std::uint8_t reg = 0;
  std::uint8_t size = 0;
};

inline constexpr std::uint8_t kNoReg = 0xff;
inline constexpr std::uint8_t kRipBase = 16;  // relative to the end of the instruction

// base + index * scale + disp, truncated to address_size. moffs operands are a bare disp.
struct MemOperand {
  std::uint8_t base = kNoReg;   // 0..15, kRipBase or kNoReg
  std::uint8_t index = kNoReg;  // 0..15 (never 4) or kNoReg
  std::uint8_t scale = 1;       // 1, 2, 4, 8
  std::int64_t disp = 0;        // sign-extended
};

struct Insn {
  Op op = Op::kUd2;
  std::uint8_t length = 0;        // 1..15
  std::uint8_t operand_size = 0;  // 1 for byte operations, else 2, 4, 8
  std::uint8_t address_size = 0;  // 2, 4, 8
  Seg segment = Seg::kDs;         // of the memory operand, or of rsi/rbx/rdi where implied:
                                  // the override if it counts in this mode, else the default
  Cond cond = Cond::kO;           // of kJcc, kSetcc, kCmovcc
  bool lock : 1 = false;
  bool rep : 1 = false;    // F3, on string and port string operations only: REP or REPE
  bool repne : 1 = false;  // F2, likewise
  bool rex : 1 = false;    // a REX prefix counted
  bool rex_w : 1 = false;
  bool has_mem : 1 = false;
  bool has_modrm : 1 = false;

  std::uint8_t operand_count = 0;
  Operand operand[4];

  std::uint8_t opcode = 0;  // last opcode byte
  std::uint8_t modrm = 0;   // valid if has_modrm
  std::uint8_t map = 0;     // OpcodeMap of opcode_table.h
  std::uint8_t imm2 = 0;    // nesting level of ENTER

  std::uint16_t selector = 0;  // of kFarPointer
  std::uint16_t row = 0;       // index of the row of opcode_rows() that matched
  MemOperand mem;
  std::uint64_t imm = 0;

  [[nodiscard]] constexpr std::int64_t simm() const { return static_cast<std::int64_t>(imm); }
};

// True for everything that touches an MMX register: the executor refuses or raises in one place.
[[nodiscard]] constexpr bool is_mmx(Op op) {
  return op >= Op::kCvtpd2pi && op <= Op::kMmxPxor;
}
// True for what is recognised for its length only.
[[nodiscard]] constexpr bool is_length_only(Op op) {
  return op >= Op::kSseLater;
}

static_assert(std::is_trivially_copyable_v<Insn>, "cached blocks copy instructions");
static_assert(sizeof(Insn) <= 56, "a decoded instruction stays within one cache line");

}  // namespace stagetwo::vcpu
