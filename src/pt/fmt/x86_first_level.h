// SPDX-License-Identifier: Apache-2.0
#pragma once

// A processor's own page tables, as a guest writes them and the interpreter walks them: long mode
// with four or five levels, and PAE, whose root has four entries.
// Source: Intel SDM vol. 3, 4.4 and 4.5; AMD APM vol. 2, 5.2 and 5.3. Linux analogue:
// arch/x86/include/asm/pgtable_types.h, drivers/iommu/generic_pt/fmt/x86_64.h.
//
//   bit 0 P  1 R/W  2 U/S  3 PWT  4 PCD  5 A  6 D  7 PS (level 1: PAT)  8 G  51:12 address  63 XD
//
// I1  PS is a page size at levels 2 and 3 only (PAE: 2); at level 1 it is PAT, above it is
// reserved. I2  Rights are the conjunction of all levels' rights; so a table made here permits
// everything and
//     its leaves decide. Entries of PAE's root have neither rights nor A.

#include "pt/format.h"

namespace stagetwo::pt {

struct X86FirstLevel {
  using Word = u64;

  static constexpr unsigned kGranuleLg2 = 12;
  static constexpr unsigned kIndexBits = 9;
  static constexpr unsigned kMaxLevel = 5;
  static constexpr unsigned kLargestLeaf = 3;

  static constexpr Word kPresent = bit(0), kWritable = bit(1), kUser = bit(2), kAccessed = bit(5),
                        kDirty = bit(6), kLarge = bit(7), kNoExecute = bit(63);
  static constexpr Word kAddressMask = bit_mask(51, 12);
  static constexpr Word kNonpresent = 0, kFrozen = bit(9);  // without P every bit is software's

  struct Attributes {
    bool write = false;
    bool user = false;
    bool exec = false;
    bool accessed = false;
    bool dirty = false;
    friend constexpr bool operator==(const Attributes&, const Attributes&) = default;
  };

  static constexpr unsigned index_bits(unsigned) { return kIndexBits; }
  static constexpr bool can_be_leaf(unsigned level) { return level <= kLargestLeaf; }

  static constexpr bool is_present(Word word) { return (word & kPresent) != 0; }
  static constexpr bool is_leaf(Word word, unsigned level) {
    return is_present(word) && (level == 1 || ((word & kLarge) != 0 && level <= kLargestLeaf));
  }
  static constexpr bool is_table(Word word, unsigned level) {
    return is_present(word) && !is_leaf(word, level);
  }
  // The bits of an address below what a leaf of `level` spans are not the address: PAT, reserved.
  static constexpr u64 leaf_address(Word word, unsigned level) {
    return word & kAddressMask & (~u64{0} << (kGranuleLg2 + (level - 1) * kIndexBits));
  }
  static constexpr u64 table_address(Word word) { return word & kAddressMask; }
  // Does an entry of `level` permit, forbid and remember?
  static constexpr bool has_rights(unsigned) { return true; }
  static constexpr u64 output(Word word, unsigned level) {
    return is_leaf(word, level) ? leaf_address(word, level) : table_address(word);
  }
  static constexpr Attributes attributes(Word word, unsigned) {
    return {.write = (word & kWritable) != 0,
            .user = (word & kUser) != 0,
            .exec = (word & kNoExecute) == 0,
            .accessed = (word & kAccessed) != 0,
            .dirty = (word & kDirty) != 0};
  }
  // Bits that must be 0 whatever the processor: page size above the largest page, and the address
  // bits a large page has no use for (bit 12 is its PAT).
  static constexpr Word always_reserved(bool leaf, unsigned level) {
    if (leaf && level > 1) return bit_mask(11 + (level - 1) * kIndexBits, 13);
    return level > kLargestLeaf ? kLarge : 0;
  }

  static constexpr Word make_leaf(u64 address, unsigned level, Attributes a) {
    return address | kPresent | (level > 1 ? kLarge : 0) | (a.write ? kWritable : 0) |
           (a.user ? kUser : 0) | (a.exec ? 0 : kNoExecute) | (a.accessed ? kAccessed : 0) |
           (a.dirty ? kDirty : 0);
  }
  static constexpr Word make_table(u64 entries, unsigned) {
    return entries | kPresent | kWritable | kUser;
  }
};

// The same entries under a root of four.
struct X86Pae : X86FirstLevel {
  static constexpr unsigned kMaxLevel = 3;
  static constexpr unsigned kLargestLeaf = 2;

  static constexpr unsigned index_bits(unsigned level) { return level == 3 ? 2 : kIndexBits; }
  static constexpr bool can_be_leaf(unsigned level) { return level <= kLargestLeaf; }
  static constexpr bool has_rights(unsigned level) { return level != 3; }
  // The root is 32 bytes long and aligned to no more.
  static constexpr u64 root_address(u64 cr3) { return cr3 & bit_mask(31, 5); }
  static constexpr bool is_leaf(Word word, unsigned level) {
    return is_present(word) && (level == 1 || ((word & kLarge) != 0 && level <= kLargestLeaf));
  }
  static constexpr bool is_table(Word word, unsigned level) {
    return is_present(word) && !is_leaf(word, level);
  }
  static constexpr u64 output(Word word, unsigned level) {
    return is_leaf(word, level) ? leaf_address(word, level) : table_address(word);
  }
  // Bits 62:52 are reserved in every entry; the root has no rights, no A and no page size.
  static constexpr Word always_reserved(bool leaf, unsigned level) {
    if (level == 3) return bit_mask(63, 52) | bit_mask(8, 5) | bit_mask(2, 1);
    return bit_mask(62, 52) | (leaf && level == 2 ? bit_mask(20, 13) : 0);
  }
  static constexpr Word make_table(u64 entries, unsigned level) {
    return entries | kPresent | (level == 3 ? 0 : kWritable | kUser);
  }
};

static_assert(Format<X86FirstLevel> && Format<X86Pae>);
static_assert(frame_limit<X86FirstLevel>(4) == bit(36) &&
                  frame_limit<X86FirstLevel>(5) == bit(45) && frame_limit<X86Pae>(3) == bit(20),
              "48, 57 and 32 bits of linear address");
static_assert(X86FirstLevel::is_leaf(0x81, 3) && X86FirstLevel::is_leaf(0x01, 1) &&
              X86FirstLevel::is_table(0x01, 2) && !X86Pae::is_leaf(0x81, 3));
static_assert(X86FirstLevel::always_reserved(true, 2) == 0x1fe000 &&
                  X86FirstLevel::always_reserved(true, 3) == 0x3fffe000 &&
                  X86FirstLevel::always_reserved(false, 4) == 0x80,
              "figures 4-8 to 4-11");
static_assert(X86FirstLevel::output(0x20'1081, 2) == 0x20'0000, "PAT is not the address");

}  // namespace stagetwo::pt
