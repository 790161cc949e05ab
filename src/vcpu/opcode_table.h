// SPDX-License-Identifier: Apache-2.0
#pragma once

// The opcode table: one constexpr row per instruction form, in opcode_table_*.inc. The decoder
// matches against it; tests take their list of instructions, and the generator of random
// instructions its encodings, from the same rows. Analogue: the kernel's opcode_table[] and
// twobyte_table[] of struct opcode; differs in that operands are written in the notation of the
// SDM and that rows, not nested groups, express /reg, mod, prefix and mode.
//
// I1  Rows of one opcode are tried in order; the first that matches counts.
// I2  All rows of one (map, opcode) agree on whether a ModRM byte follows.
// I3  No row is unreachable (asserted by the decoder test).
//
// Read-only data, no lock. Specification: Intel SDM volume 2, appendix A; AMD APM volume 3, A.

#include <cstdint>
#include <span>

#include "vcpu/insn.h"

namespace stagetwo::vcpu {

enum class OpcodeMap : std::uint8_t { kOneByte, k0F, k0F38, k0F3A };
inline constexpr std::size_t kOpcodeMapCount = 4;

// Where an operand comes from.
enum class Source : std::uint8_t {
  kNone, kRm, kReg, kOpcodeLow, kFixed, kImmZero, kImmSign, kImmLevel, kOne, kRel, kFar, kMoffs
};

// Operand sizes: a byte count, or one of these.
inline constexpr std::uint8_t kSizeV = 0x80;  // operand size
inline constexpr std::uint8_t kSizeZ = 0x81;  // operand size, at most 4
inline constexpr std::uint8_t kSizeY = 0x82;  // 8 with REX.W, else 4
inline constexpr std::uint8_t kSizeN = 0x83;  // 8 in 64-bit mode, else 4
inline constexpr std::uint8_t kSizeP = 0x84;  // far pointer: 2 + operand size
inline constexpr std::uint8_t kSizeS = 0x85;  // descriptor-table register: 10 in 64-bit mode, else 6
inline constexpr std::uint8_t kSizeA = 0x86;  // BOUND pair: 2 * operand size

// Operand encodings: ST_ENC(name, source, kind of register, register size or fixed register,
// memory or immediate size). Capitals as in the SDM: E gpr or memory by ModRM.rm, G gpr by
// ModRM.reg, R gpr only, M memory only, Z gpr by the low opcode bits, V W U xmm, P Q N mmx,
// S C D segment, control, debug, I immediate, J relative, O moffs, A far pointer.
#define ST_ENC_LIST(ST_ENC)                                                                  \
  ST_ENC(None, kNone, kNone, 0, 0)                                                           \
  ST_ENC(Eb, kRm, kGpr, 1, 1) ST_ENC(Ew, kRm, kGpr, 2, 2) ST_ENC(Ed, kRm, kGpr, 4, 4)        \
  ST_ENC(Ev, kRm, kGpr, kSizeV, kSizeV) ST_ENC(Ey, kRm, kGpr, kSizeY, kSizeY)                \
  ST_ENC(En, kRm, kGpr, kSizeN, kSizeN) ST_ENC(Ez, kRm, kGpr, kSizeZ, kSizeZ)                \
  ST_ENC(RvMw, kRm, kGpr, kSizeV, 2) ST_ENC(RdMw, kRm, kGpr, 4, 2)                           \
  ST_ENC(Gb, kReg, kGpr, 1, 0) ST_ENC(Gw, kReg, kGpr, 2, 0) ST_ENC(Gd, kReg, kGpr, 4, 0)     \
  ST_ENC(Gv, kReg, kGpr, kSizeV, 0) ST_ENC(Gy, kReg, kGpr, kSizeY, 0)                        \
  ST_ENC(Gn, kReg, kGpr, kSizeN, 0)                                                          \
  ST_ENC(Rv, kRm, kGpr, kSizeV, 0) ST_ENC(Ry, kRm, kGpr, kSizeY, 0)                          \
  ST_ENC(Rn, kRm, kGpr, kSizeN, 0)                                                           \
  ST_ENC(M, kRm, kMem, 0, 0) ST_ENC(Mb, kRm, kMem, 0, 1) ST_ENC(Mw, kRm, kMem, 0, 2)         \
  ST_ENC(Md, kRm, kMem, 0, 4) ST_ENC(Mq, kRm, kMem, 0, 8) ST_ENC(Mt, kRm, kMem, 0, 10)       \
  ST_ENC(Mx, kRm, kMem, 0, 16) ST_ENC(Mv, kRm, kMem, 0, kSizeV)                              \
  ST_ENC(My, kRm, kMem, 0, kSizeY) ST_ENC(Mp, kRm, kMem, 0, kSizeP)                          \
  ST_ENC(Ms, kRm, kMem, 0, kSizeS) ST_ENC(Ma, kRm, kMem, 0, kSizeA)                          \
  ST_ENC(Zb, kOpcodeLow, kGpr, 1, 0) ST_ENC(Zv, kOpcodeLow, kGpr, kSizeV, 0)                 \
  ST_ENC(AL, kFixed, kGpr, 1, 0) ST_ENC(AX, kFixed, kGpr, 2, 0)                              \
  ST_ENC(rAX, kFixed, kGpr, kSizeV, 0) ST_ENC(eAX, kFixed, kGpr, kSizeZ, 0)                  \
  ST_ENC(CL, kFixed, kGpr, 1, 1) ST_ENC(DX, kFixed, kGpr, 2, 2)                              \
  ST_ENC(ES, kFixed, kSegment, 2, 0) ST_ENC(CS, kFixed, kSegment, 2, 1)                      \
  ST_ENC(SS, kFixed, kSegment, 2, 2) ST_ENC(DS, kFixed, kSegment, 2, 3)                      \
  ST_ENC(FS, kFixed, kSegment, 2, 4) ST_ENC(GS, kFixed, kSegment, 2, 5)                      \
  ST_ENC(Sw, kReg, kSegment, 2, 0) ST_ENC(Cn, kReg, kControl, kSizeN, 0)                     \
  ST_ENC(Dn, kReg, kDebug, kSizeN, 0)                                                        \
  ST_ENC(Ib, kImmZero, kImm, 0, 1) ST_ENC(Ibs, kImmSign, kImm, 0, 1)                         \
  ST_ENC(Iw, kImmZero, kImm, 0, 2) ST_ENC(Iz, kImmSign, kImm, 0, kSizeZ)                     \
  ST_ENC(Iv, kImmSign, kImm, 0, kSizeV) ST_ENC(IbLevel, kImmLevel, kNone, 0, 1)              \
  ST_ENC(One, kOne, kImm, 0, 1) ST_ENC(Jb, kRel, kRel, 0, 1) ST_ENC(Jz, kRel, kRel, 0, kSizeZ) \
  ST_ENC(Ap, kFar, kFarPointer, 0, kSizeP)                                                   \
  ST_ENC(Ob, kMoffs, kMem, 0, 1) ST_ENC(Ov, kMoffs, kMem, 0, kSizeV)                         \
  ST_ENC(Vd, kReg, kXmm, 4, 0) ST_ENC(Vq, kReg, kXmm, 8, 0) ST_ENC(Vx, kReg, kXmm, 16, 0)    \
  ST_ENC(Wd, kRm, kXmm, 4, 4) ST_ENC(Wq, kRm, kXmm, 8, 8)        \
  ST_ENC(Wx, kRm, kXmm, 16, 16)                                                              \
  ST_ENC(Uq, kRm, kXmm, 8, 0) ST_ENC(Ux, kRm, kXmm, 16, 0)                                   \
  ST_ENC(Pd, kReg, kMmx, 4, 0) ST_ENC(Pq, kReg, kMmx, 8, 0)                                  \
  ST_ENC(Qd, kRm, kMmx, 4, 4) ST_ENC(Qq, kRm, kMmx, 8, 8) ST_ENC(Nq, kRm, kMmx, 8, 0)

enum class Enc : std::uint8_t {
#define ST_ENC_NAME(name, source, kind, reg_size, mem_size) name,
  ST_ENC_LIST(ST_ENC_NAME)
#undef ST_ENC_NAME
};

// One line of ST_ENC_LIST. For Source::kFixed `other` is the register, else the size of the
// memory operand (0 with a register size: register only), immediate or displacement.
struct EncSpec {
  Source source;
  OperandKind kind;
  std::uint8_t reg_size;
  std::uint8_t other;
};
[[nodiscard]] EncSpec enc_spec(Enc enc);

// The mandatory-prefix class of an instruction: the last of F2/F3 counts before 66. Also bits of
// Row::prefixes.
enum class PrefixClass : std::uint8_t { kNp, k66, kF3, kF2 };

// What a row compares: rm | reg << 3 | (mod == 3) << 6 | rex.w << 7; without a ModRM byte bit 6 is
// rex.b, which tells NOP from XCHG.
inline constexpr std::uint8_t kKeyRm = 0x07;
inline constexpr std::uint8_t kKeyReg = 0x38;
inline constexpr std::uint8_t kKeyMod3 = 0x40;
inline constexpr std::uint8_t kKeyB = kKeyMod3;
inline constexpr std::uint8_t kKeyW = 0x80;

inline constexpr std::uint16_t kRowLock = 0x01;       // LOCK allowed with a memory destination
inline constexpr std::uint16_t kRowDefault64 = 0x02;  // operand size 8 in 64-bit mode, 2 with 66
inline constexpr std::uint16_t kRowForce64 = 0x04;    // operand size 8 in 64-bit mode
inline constexpr std::uint16_t kRowByte = 0x08;       // operand size 1
inline constexpr std::uint16_t kRowString = 0x10;     // F3 and F2 repeat
inline constexpr std::uint16_t kRowCond = 0x20;       // low opcode nibble is a condition
inline constexpr std::uint16_t kRowModRm = 0x40;      // a ModRM byte follows
inline constexpr std::uint16_t kRowModIgnored = 0x80;  // ModRM.mod is taken as 3
inline constexpr std::uint16_t kRowPort = 0x100;       // operand size at most 4

struct Row {
  Op op = Op::kUd2;
  OpcodeMap map = OpcodeMap::kOneByte;
  std::uint8_t opcode = 0;
  std::uint8_t opcode_count = 1;  // consecutive opcodes
  std::uint8_t prefixes = 0x0f;   // bit set of PrefixClass
  std::uint8_t modes = 0x07;      // bit set of Mode
  std::uint8_t key_mask = 0;
  std::uint8_t key_value = 0;
  std::uint16_t flags = 0;
  Enc enc[4] = {Enc::None, Enc::None, Enc::None, Enc::None};

  [[nodiscard]] constexpr bool matches(PrefixClass prefix, Mode mode, std::uint8_t key) const {
    return ((prefixes >> static_cast<unsigned>(prefix)) & (modes >> static_cast<unsigned>(mode)) & 1) != 0 &&
           ((key ^ key_value) & key_mask) == 0;
  }
};

// All rows of all maps, in table order; Insn::row is an index into it.
[[nodiscard]] std::span<const Row> opcode_rows();

// Rows that start at this opcode, as indices into opcode_rows(), in matching order.
[[nodiscard]] std::span<const std::uint16_t> rows_of(OpcodeMap map, std::uint8_t opcode);

// Whether a ModRM byte follows this opcode.
[[nodiscard]] bool has_modrm(OpcodeMap map, std::uint8_t opcode);

}  // namespace stagetwo::vcpu
