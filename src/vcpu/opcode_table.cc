// SPDX-License-Identifier: Apache-2.0
#include "vcpu/opcode_table.h"

#include <array>

// The rows are written with a small builder, so that a line reads like the SDM's appendix A:
//
//   op(0x83, kAdd, Ev, Ibs).reg(0).lock()        83 /0, ADD r/m, sign-extended imm8, LOCK allowed
//
// Everything below is evaluated by the compiler; what remains is read-only data.

namespace stagetwo::vcpu {
namespace {

constexpr EncSpec kEncSpecs[] = {
#define ST_ENC(name, source, kind, reg_size, other) \
  EncSpec{Source::source, OperandKind::kind, reg_size, other},
#include "vcpu/enc_list.inc"
#undef ST_ENC
};

struct Builder {
  Row row;

  constexpr Builder reg(unsigned value) const { return key(kKeyReg, value << 3); }
  constexpr Builder mod3() const { return key(kKeyMod3, kKeyMod3); }
  // A fixed ModRM.rm occurs only together with mod 3.
  constexpr Builder rm(unsigned value) const { return mod3().key(kKeyRm, value); }
  constexpr Builder w(unsigned value) const { return key(kKeyW, value << 7); }
  // Only where no ModRM byte follows.
  constexpr Builder b(unsigned value) const {
    Builder b = key(kKeyB, value << 6);
    b.row.flags = row.flags;
    return b;
  }

  constexpr Builder np() const { return prefix(1U << static_cast<unsigned>(PrefixClass::kNp)); }
  constexpr Builder p66() const { return prefix(1U << static_cast<unsigned>(PrefixClass::k66)); }
  constexpr Builder f3() const { return prefix(1U << static_cast<unsigned>(PrefixClass::kF3)); }
  constexpr Builder f2() const { return prefix(1U << static_cast<unsigned>(PrefixClass::kF2)); }
  constexpr Builder np66() const { return prefix(3); }

  constexpr Builder no64() const { return modes(3); }
  constexpr Builder only64() const { return modes(4); }

  constexpr Builder lock() const { return flag(kRowLock); }
  constexpr Builder default64() const { return flag(kRowDefault64); }
  constexpr Builder force64() const { return flag(kRowForce64); }
  constexpr Builder byte() const { return flag(kRowByte); }
  constexpr Builder string() const { return flag(kRowString); }
  constexpr Builder port() const { return flag(kRowPort); }
  constexpr Builder cond() const { return flag(kRowCond).count(16); }
  constexpr Builder low() const { return count(8); }
  // Also removes the constraint to mod 3 that a register-only operand brought.
  constexpr Builder mod_ignored() const {
    Builder b = flag(kRowModIgnored);
    b.row.key_mask &= static_cast<std::uint8_t>(~kKeyMod3);
    b.row.key_value &= static_cast<std::uint8_t>(~kKeyMod3);
    return b;
  }
  constexpr Builder count(unsigned opcodes) const {
    Builder b = *this;
    b.row.opcode_count = static_cast<std::uint8_t>(opcodes);
    return b;
  }

 private:
  constexpr Builder key(unsigned mask, unsigned value) const {
    Builder b = *this;
    b.row.key_mask |= static_cast<std::uint8_t>(mask);
    b.row.key_value |= static_cast<std::uint8_t>(value);
    if (mask != kKeyW) b.row.flags |= kRowModRm;
    return b;
  }
  constexpr Builder prefix(unsigned set) const {
    Builder b = *this;
    b.row.prefixes = static_cast<std::uint8_t>(set);
    return b;
  }
  constexpr Builder modes(unsigned set) const {
    Builder b = *this;
    b.row.modes = static_cast<std::uint8_t>(set);
    return b;
  }
  constexpr Builder flag(unsigned bit) const {
    Builder b = *this;
    b.row.flags |= static_cast<std::uint16_t>(bit);
    return b;
  }
};

// What an operand encoding alone says about its row: ModRM present, memory only, register only.
constexpr Builder with_operand(Builder b, Enc enc, bool first) {
  const EncSpec spec = kEncSpecs[static_cast<std::size_t>(enc)];
  const bool modrm = spec.source == Source::kRm || spec.source == Source::kReg;
  if (modrm) b.row.flags |= kRowModRm;
  if (spec.source == Source::kRm && spec.kind == OperandKind::kMem) b.row.key_mask |= kKeyMod3;
  if (spec.source == Source::kRm && spec.other == 0 && spec.kind != OperandKind::kMem) b = b.mod3();
  const bool byte_data = spec.reg_size == 1 || (spec.source == Source::kMoffs && spec.other == 1);
  if (first && byte_data) b = b.byte();
  return b;
}

template <typename... E>
constexpr Builder make(OpcodeMap map, unsigned opcode, Op op, E... enc) {
  Builder b;
  b.row.map = map;
  b.row.opcode = static_cast<std::uint8_t>(opcode);
  b.row.op = op;
  const std::array<Enc, sizeof...(E)> list = {enc...};
  for (std::size_t i = 0; i < list.size(); ++i) {
    b.row.enc[i] = list[i];
    b = with_operand(b, list[i], i == 0);
  }
  return b;
}

// The rows of one map, with `op` bound to that map.
template <OpcodeMap kMap>
struct On {
  template <typename... E>
  constexpr Builder operator()(unsigned opcode, Op op, E... enc) const {
    return make(kMap, opcode, op, enc...);
  }
};

constexpr auto one_byte_rows() {
  using enum Op;
  using enum Enc;
  constexpr On<OpcodeMap::kOneByte> op;
  return std::to_array<Builder>({
#include "vcpu/opcode_table_one_byte.inc"
#include "vcpu/opcode_table_x87.inc"
  });
}

constexpr auto two_byte_rows() {
  using enum Op;
  using enum Enc;
  constexpr On<OpcodeMap::k0F> op;
  return std::to_array<Builder>({
#include "vcpu/opcode_table_0f.inc"
#include "vcpu/opcode_table_sse.inc"
  });
}

constexpr auto three_byte_rows() {
  using enum Op;
  using enum Enc;
  constexpr On<OpcodeMap::k0F38> op38;
  constexpr On<OpcodeMap::k0F3A> op3a;
  return std::to_array<Builder>({
#include "vcpu/opcode_table_0f38_0f3a.inc"
  });
}

constexpr std::size_t kRowCount =
    one_byte_rows().size() + two_byte_rows().size() + three_byte_rows().size();

constexpr std::array<Row, kRowCount> all_rows() {
  std::array<Row, kRowCount> rows{};
  std::size_t n = 0;
  for (const Builder& b : one_byte_rows()) rows[n++] = b.row;
  for (const Builder& b : two_byte_rows()) rows[n++] = b.row;
  for (const Builder& b : three_byte_rows()) rows[n++] = b.row;
  return rows;
}

constexpr std::array<Row, kRowCount> kRows = all_rows();

constexpr std::size_t entry_count() {
  std::size_t n = 0;
  for (const Row& row : kRows) n += row.opcode_count;
  return n;
}

// Counting sort by (map, opcode); stable, so rows of one opcode keep their order.
struct Index {
  std::array<std::uint16_t, kSlotCount + 1> first{};
  std::array<std::uint16_t, entry_count()> entry{};
  std::array<bool, kSlotCount> modrm{};
};

constexpr Index make_index() {
  Index index;
  for (const Row& row : kRows) {
    for (std::size_t i = 0; i < row.opcode_count; ++i) {
      const std::size_t slot = slot_of(row.map, row.opcode + i);
      ++index.first[slot + 1];
      index.modrm[slot] = index.modrm[slot] || (row.flags & kRowModRm) != 0;
    }
  }
  for (std::size_t slot = 0; slot < kSlotCount; ++slot) {
    index.first[slot + 1] = static_cast<std::uint16_t>(index.first[slot + 1] + index.first[slot]);
  }
  std::array<std::uint16_t, kSlotCount> fill{};
  for (std::size_t n = 0; n < kRowCount; ++n) {
    const Row& row = kRows[n];
    for (std::size_t i = 0; i < row.opcode_count; ++i) {
      const std::size_t slot = slot_of(row.map, row.opcode + i);
      index.entry[index.first[slot] + fill[slot]++] = static_cast<std::uint16_t>(n);
    }
  }
  return index;
}

constexpr Index kIndex = make_index();

}  // namespace

namespace table {
constinit const std::span<const Row> rows = kRows;
constinit const std::span<const std::uint16_t> first = kIndex.first;
constinit const std::span<const std::uint16_t> entry = kIndex.entry;
constinit const std::span<const bool> modrm = kIndex.modrm;
constinit const std::span<const EncSpec> enc = kEncSpecs;
}  // namespace table

}  // namespace stagetwo::vcpu
