// SPDX-License-Identifier: Apache-2.0
#pragma once

// 32-bit paging: two levels of 1024 four-byte entries, 4 KiB and, with CR4.PSE, 4 MiB pages.
// Source: Intel SDM vol. 3, 4.3. Linux analogue: arch/x86/include/asm/pgtable-2level_types.h.
//
//   bit 0 P  1 R/W  2 U/S  5 A  6 D  7 PS (level 1: PAT)  31:12 address
//   a 4 MiB page: 31:22 address bits 31:22, 20:13 address bits 39:32 (PSE-36), 21 reserved, 12 PAT
//
// I1  The predicates are those of a processor with CR4.PSE; without it the caller asks at level 2
//     only for tables.

#include "pt/format.h"

namespace stagetwo::pt {

struct X86Legacy {
  using Word = u32;

  static constexpr unsigned kGranuleLg2 = 12;
  static constexpr unsigned kIndexBits = 10;
  static constexpr unsigned kMaxLevel = 2;

  static constexpr Word kPresent = 1, kWritable = 2, kUser = 4, kAccessed = 0x20, kDirty = 0x40,
                        kLarge = 0x80;
  static constexpr Word kNoExecute = 0;  // these entries have no such bit
  static constexpr Word kAddressMask = 0xffff'f000;
  static constexpr Word kNonpresent = 0, kFrozen = 0x200;

  struct Attributes {
    bool write = false;
    bool user = false;
    bool accessed = false;
    bool dirty = false;
    friend constexpr bool operator==(const Attributes&, const Attributes&) = default;
  };

  static constexpr unsigned index_bits(unsigned) { return kIndexBits; }
  static constexpr bool can_be_leaf(unsigned level) { return level <= 2; }

  static constexpr bool is_present(Word word) { return (word & kPresent) != 0; }
  static constexpr bool is_leaf(Word word, unsigned level) {
    return is_present(word) && (level == 1 || (word & kLarge) != 0);
  }
  static constexpr bool is_table(Word word, unsigned level) {
    return is_present(word) && !is_leaf(word, level);
  }
  static constexpr u64 leaf_address(Word word, unsigned level) {
    if (level == 1) return word & kAddressMask;
    return (word & 0xffc0'0000) | get_field(word, 20, 13) << 32;
  }
  static constexpr u64 table_address(Word word) { return word & kAddressMask; }
  static constexpr bool has_rights(unsigned) { return true; }
  static constexpr u64 output(Word word, unsigned level) {
    return is_leaf(word, level) ? leaf_address(word, level) : table_address(word);
  }
  static constexpr Attributes attributes(Word word, unsigned) {
    return {.write = (word & kWritable) != 0,
            .user = (word & kUser) != 0,
            .accessed = (word & kAccessed) != 0,
            .dirty = (word & kDirty) != 0};
  }
  static constexpr Word always_reserved(bool leaf, unsigned level) {
    return leaf && level == 2 ? Word{1} << 21 : 0;
  }

  // Pre: `address` has 32 bits, at level 2 it has 40.
  static constexpr Word make_leaf(u64 address, unsigned level, Attributes a) {
    const u64 high = level == 2 ? kLarge | get_field(address, 39, 32) << 13 : 0;
    return static_cast<Word>(address | high) | kPresent | (a.write ? kWritable : 0) |
           (a.user ? kUser : 0) | (a.accessed ? kAccessed : 0) | (a.dirty ? kDirty : 0);
  }
  static constexpr Word make_table(u64 entries, unsigned) {
    return static_cast<Word>(entries) | kPresent | kWritable | kUser;
  }
};

static_assert(Format<X86Legacy>);
static_assert(frame_limit<X86Legacy>(2) == bit(20));
static_assert(X86Legacy::output(X86Legacy::make_leaf(0xff'ffc0'0000, 2, {}), 2) == 0xff'ffc0'0000);

}  // namespace stagetwo::pt
