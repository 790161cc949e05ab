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
  kNone,
  kRm,         // ModRM.rm: register or memory
  kReg,        // ModRM.reg
  kOpcodeLow,  // low three bits of the opcode
  kFixed,      // implied by the opcode
  kImmZero,    // immediate, zero-extended
  kImmSign,    // immediate, sign-extended
  kImmLevel,   // second immediate of ENTER
  kOne,        // the constant 1 of a shift
  kRel,        // relative to the end of the instruction
  kFar,        // pointer in the instruction
  kMoffs       // address in the instruction
};

// Operand sizes: a byte count, or one of these.
inline constexpr std::uint8_t kSizeV = 0x80;  // operand size
inline constexpr std::uint8_t kSizeZ = 0x81;  // operand size, at most 4
inline constexpr std::uint8_t kSizeY = 0x82;  // 8 with REX.W, else 4
inline constexpr std::uint8_t kSizeN = 0x83;  // 8 in 64-bit mode, else 4
inline constexpr std::uint8_t kSizeP = 0x84;  // far pointer: 2 + operand size
inline constexpr std::uint8_t kSizeS = 0x85;  // descriptor table: 10 in 64-bit mode, else 6
inline constexpr std::uint8_t kSizeA = 0x86;  // BOUND pair: 2 * operand size

// Operand encodings in the notation of the SDM; enc_list.inc says what each means.
enum class Enc : std::uint8_t {
#define ST_ENC(name, source, kind, reg_size, other) name,
#include "vcpu/enc_list.inc"
#undef ST_ENC
};

// One line of enc_list.inc. For Source::kFixed `other` is the register, else the size of the
// memory operand (0 with a register size: register only), immediate or displacement.
struct EncSpec {
  Source source;
  OperandKind kind;
  std::uint8_t reg_size;
  std::uint8_t other;
};

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

inline constexpr std::uint16_t kRowLock = 0x01;        // LOCK allowed with a memory destination
inline constexpr std::uint16_t kRowDefault64 = 0x02;   // operand size 8 in 64-bit mode, 2 with 66
inline constexpr std::uint16_t kRowForce64 = 0x04;     // operand size 8 in 64-bit mode
inline constexpr std::uint16_t kRowByte = 0x08;        // operand size 1
inline constexpr std::uint16_t kRowString = 0x10;      // F3 and F2 repeat
inline constexpr std::uint16_t kRowCond = 0x20;        // low opcode nibble is a condition
inline constexpr std::uint16_t kRowModRm = 0x40;       // a ModRM byte follows
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
    return ((prefixes >> static_cast<unsigned>(prefix)) & (modes >> static_cast<unsigned>(mode)) &
            1) != 0 &&
           ((key ^ key_value) & key_mask) == 0;
  }
};

// The index: slot s = map * 256 + opcode owns entry[first[s], first[s + 1]).
inline constexpr std::size_t kSlotCount = kOpcodeMapCount * 256;

namespace table {
extern const std::span<const Row> rows;
extern const std::span<const std::uint16_t> first;  // kSlotCount + 1
extern const std::span<const std::uint16_t> entry;  // indices into rows, in matching order
extern const std::span<const bool> modrm;           // kSlotCount: a ModRM byte follows
extern const std::span<const EncSpec> enc;
}  // namespace table

constexpr std::size_t slot_of(OpcodeMap map, std::size_t opcode) {
  return static_cast<std::size_t>(map) * 256 + opcode;
}

[[nodiscard]] inline EncSpec enc_spec(Enc enc) {
  return table::enc[static_cast<std::size_t>(enc)];
}

// All rows of all maps, in table order; Insn::row is an index into it.
[[nodiscard]] inline std::span<const Row> opcode_rows() {
  return table::rows;
}

// Rows that start at this opcode, as indices into opcode_rows(), in matching order.
[[nodiscard]] inline std::span<const std::uint16_t> rows_of(OpcodeMap map, std::uint8_t opcode) {
  const std::size_t slot = slot_of(map, opcode);
  const std::size_t start = table::first[slot];
  return table::entry.subspan(start, table::first[slot + 1] - start);
}

// Whether a ModRM byte follows this opcode.
[[nodiscard]] inline bool has_modrm(OpcodeMap map, std::uint8_t opcode) {
  return table::modrm[slot_of(map, opcode)];
}

}  // namespace stagetwo::vcpu
