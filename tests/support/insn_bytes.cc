// SPDX-License-Identifier: Apache-2.0
#include "tests/support/insn_bytes.h"

#include <cstddef>

namespace stagetwo::test {
namespace {

using vcpu::Mode;
using vcpu::OpcodeMap;
using vcpu::PrefixClass;
using vcpu::Row;

class Writer {
 public:
  explicit Writer(RandomSource& random) {
    for (std::uint8_t& b : bytes_) b = random.byte();
  }
  void put(unsigned byte) {
    if (size_ < bytes_.size()) bytes_[size_++] = static_cast<std::uint8_t>(byte);
  }
  [[nodiscard]] const InsnBytes& bytes() const { return bytes_; }

 private:
  InsnBytes bytes_{};
  std::size_t size_ = 0;
};

PrefixClass pick_prefix_class(const Row& row, RandomSource& random) {
  // Rows that accept everything are mostly met without a prefix.
  if (row.prefixes == 0x0f && !random.one_in(6)) return PrefixClass::kNp;
  while (true) {
    const unsigned c = random.small(4);
    if (((row.prefixes >> c) & 1) != 0) return static_cast<PrefixClass>(c);
  }
}

void put_prefixes(Writer& out, const Row& row, RandomSource& random) {
  constexpr unsigned kSegments[] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65};
  if (random.one_in(8)) out.put(kSegments[random.small(6)]);
  if (random.one_in(24)) out.put(kSegments[random.small(6)]);
  if (random.one_in(8)) out.put(0x67);
  if ((row.flags & vcpu::kRowLock) != 0 && random.one_in(4)) out.put(0xf0);
  const PrefixClass prefix = pick_prefix_class(row, random);
  const bool np_only = ((row.prefixes >> static_cast<unsigned>(PrefixClass::k66)) & 1) == 0;
  const bool also_66 = prefix != PrefixClass::kNp && random.one_in(4);
  if (prefix == PrefixClass::k66 || also_66) out.put(0x66);
  if (prefix == PrefixClass::kNp && !np_only && row.prefixes == 0x0f && random.one_in(4)) {
    out.put(0x66);
  }
  if (prefix == PrefixClass::kF3) out.put(0xf3);
  if (prefix == PrefixClass::kF2) out.put(0xf2);
}

void put_rex(Writer& out, const Row& row, RandomSource& random) {
  unsigned rex = random.one_in(2) ? 0x40U | random.small(16) : 0;
  if ((row.key_mask & vcpu::kKeyW) != 0) {
    const bool w = (row.key_value & vcpu::kKeyW) != 0;
    rex = w ? rex | 0x48U : rex & ~8U;
  }
  const bool constrains_b = (row.flags & vcpu::kRowModRm) == 0 && (row.key_mask & vcpu::kKeyB) != 0;
  if (constrains_b) rex &= ~1U;
  if (rex != 0) out.put(rex);
}

}  // namespace

InsnBytes random_encoding(const Row& row, Mode mode, RandomSource& random) {
  Writer out(random);
  put_prefixes(out, row, random);
  if (mode == Mode::k64) put_rex(out, row, random);
  if (row.map != OpcodeMap::kOneByte) out.put(0x0f);
  if (row.map == OpcodeMap::k0F38) out.put(0x38);
  if (row.map == OpcodeMap::k0F3A) out.put(0x3a);
  out.put(row.opcode + random.small(row.opcode_count));
  if ((row.flags & vcpu::kRowModRm) == 0) return out.bytes();
  unsigned modrm = random.byte();
  if ((row.key_mask & vcpu::kKeyMod3) != 0) {
    const bool mod3 = (row.key_value & vcpu::kKeyMod3) != 0;
    modrm = (modrm & 0x3fU) | (mod3 ? 0xc0U : random.small(3) << 6);
  }
  const unsigned fixed = row.key_mask & (vcpu::kKeyReg | vcpu::kKeyRm);
  modrm = (modrm & ~fixed) | (row.key_value & fixed);
  out.put(modrm);
  return out.bytes();
}

}  // namespace stagetwo::test
