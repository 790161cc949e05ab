// SPDX-License-Identifier: Apache-2.0
#pragma once

// AMD's v1 I/O page table, with the base page as a parameter: 4 KiB as the device has it, or 2 KiB,
// which is what the kernel's iommufd selftests use so that a page of the processor is more than one
// of the table. Every power of two from the base page up is a page size.
// Source: AMD I/O Virtualization specification 3.07, 2.2.3. Linux analogue:
// drivers/iommu/generic_pt/fmt/amdv1.h (and its mock, with PT_GRANULE_LG2SZ 11).
//
//   bit 0 PR  5 A  6 D  11:9 next level  51:12 address  60 FC  61 IR  62 IW
//
//   next level  0: a leaf of exactly this entry's span   n: a table of level n
//               7: a leaf of 2^k entries, all equal; the frame field has k' ones below its lowest
//                  zero, and the page has 2^(k'+1) frames
//
// I1  A leaf's address field is a frame number of the base page; a table's is that of 4 KiB.
// I2  Levels are not skipped: an entry of level n points to a table of level n - 1.
// I3  All 2^k entries of a leaf are equal; a change of one is a change of all.
// I4  Only words that were made here are asked about. (The x86 formats, whose tables a guest
// writes,
//     answer for any word.)

#include "pt/format.h"

namespace stagetwo::pt {

template <unsigned GranuleLg2>
struct AmdV1Like {
  using Word = u64;

  static constexpr unsigned kGranuleLg2 = GranuleLg2;
  static constexpr unsigned kIndexBits = 9;
  static constexpr unsigned kMaxLevel = 6;
  static constexpr unsigned kVariable = 7;

  static constexpr Word kPresent = bit(0), kAccessed = bit(5), kDirty = bit(6),
                        kForceCoherent = bit(60), kRead = bit(61), kWrite = bit(62);
  static constexpr Word kNonpresent = 0, kFrozen = bit(1);  // without PR every bit is ignored

  struct Attributes {
    bool read = true;
    bool write = false;
    bool force_coherent = false;
    bool accessed = false;
    bool dirty = false;
    friend constexpr bool operator==(const Attributes&, const Attributes&) = default;
  };

  // The root of six levels has what is left of 64 bits.
  static constexpr unsigned index_bits(unsigned level) {
    return level == kMaxLevel ? 64 - GranuleLg2 - 5 * kIndexBits : kIndexBits;
  }
  static constexpr bool can_be_leaf(unsigned level) { return level < 5; }
  static constexpr unsigned max_contig_lg2(unsigned) { return kIndexBits - 1; }

  static constexpr unsigned next_level(Word word) {
    return static_cast<unsigned>(get_field(word, 11, 9));
  }
  static constexpr bool is_present(Word word) { return (word & kPresent) != 0; }
  static constexpr bool is_leaf(Word word, unsigned) {
    return is_present(word) && (next_level(word) == 0 || next_level(word) == kVariable);
  }
  static constexpr bool is_table(Word word, unsigned level) {
    return is_present(word) && !is_leaf(word, level);
  }
  static constexpr unsigned contig_lg2(Word word, unsigned level) {
    if (next_level(word) != kVariable) return 0;
    const auto ones = static_cast<unsigned>(std::countr_one(get_field(word, 51, 12)));
    return ones + 1 - (level - 1) * kIndexBits;
  }
  static constexpr u64 output(Word word, unsigned level) {
    const u64 field = get_field(word, 51, 12);
    if (!is_leaf(word, level)) return field << 12;
    if (next_level(word) != kVariable) return field << kGranuleLg2;
    return (field & (field + 1)) << kGranuleLg2;  // without the ones that tell the size
  }
  static constexpr Attributes attributes(Word word, unsigned) {
    return {.read = (word & kRead) != 0,
            .write = (word & kWrite) != 0,
            .force_coherent = (word & kForceCoherent) != 0,
            .accessed = (word & kAccessed) != 0,
            .dirty = (word & kDirty) != 0};
  }

  static constexpr Word make_leaf(u64 address, unsigned level, Attributes a,
                                  unsigned contig_lg2 = 0) {
    u64 field = address >> kGranuleLg2;
    if (contig_lg2 != 0) field |= bit((level - 1) * kIndexBits + contig_lg2 - 1) - 1;
    return field << 12 | kPresent | (contig_lg2 != 0 ? Word{kVariable} << 9 : 0) |
           (a.read ? kRead : 0) | (a.write ? kWrite : 0) | (a.force_coherent ? kForceCoherent : 0) |
           (a.accessed ? kAccessed : 0) | (a.dirty ? kDirty : 0);
  }
  static constexpr Word make_table(u64 entries, unsigned level) {
    return entries | kPresent | Word{level - 1} << 9 | kRead | kWrite;
  }
};

using AmdV1 = AmdV1Like<12>;
using AmdV1Half = AmdV1Like<11>;

static_assert(VariableLeaf<AmdV1> && VariableLeaf<AmdV1Half>);
static_assert(frame_limit<AmdV1>(6) == bit(52) && frame_limit<AmdV1Half>(6) == bit(53));
static_assert(AmdV1::make_leaf(0x10000, 1, {.read = false}, 1) >> 9 == (0x10000 >> 9 | 7),
              "8 KiB: address bit 12 is 0");
static_assert(get_field(AmdV1::make_leaf(0, 2, {}, 1), 51, 12) == 0x1ff,
              "4 MiB: nine ones below the lowest zero");
static_assert(AmdV1Half::contig_lg2(AmdV1Half::make_leaf(0x800000, 2, {}, 3), 2) == 3 &&
              AmdV1Half::output(AmdV1Half::make_leaf(0x800000, 2, {}, 3), 2) == 0x800000);

}  // namespace stagetwo::pt
