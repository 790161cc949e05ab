// SPDX-License-Identifier: Apache-2.0
#pragma once

// VT-d second-stage tables: three to five levels, 4 KiB, 2 MiB and 1 GiB pages.
// Source: Intel VT-d specification 4.1, 3.7 and 9.8. Linux analogue:
// drivers/iommu/generic_pt/fmt/vtdss.h.
//
//   bit 0 R  1 W  7 PS  8 A  9 D  11 SNP  51:12 address
//
// I1  Present is R or W: an entry without rights is none. Rights are the conjunction of all
// levels',
//     so a table permits both and its leaves decide.

#include "pt/format.h"

namespace stagetwo::pt {

struct VtdSecondLevel {
  using Word = u64;

  static constexpr unsigned kGranuleLg2 = 12;
  static constexpr unsigned kIndexBits = 9;
  static constexpr unsigned kMaxLevel = 5;
  static constexpr unsigned kLargestLeaf = 3;

  static constexpr Word kRead = bit(0), kWrite = bit(1), kLarge = bit(7), kAccessed = bit(8),
                        kDirty = bit(9), kSnoop = bit(11);
  static constexpr Word kAddressMask = bit_mask(51, 12);
  static constexpr Word kNonpresent = 0, kFrozen = bit(52);  // an ignored bit

  struct Attributes {  // read or write, or both
    bool read = true;
    bool write = false;
    bool snoop = false;
    bool accessed = false;
    bool dirty = false;
    friend constexpr bool operator==(const Attributes&, const Attributes&) = default;
  };

  static constexpr unsigned index_bits(unsigned) { return kIndexBits; }
  static constexpr bool can_be_leaf(unsigned level) { return level <= kLargestLeaf; }

  static constexpr bool is_present(Word word) { return (word & (kRead | kWrite)) != 0; }
  static constexpr bool is_leaf(Word word, unsigned level) {
    return is_present(word) && (level == 1 || ((word & kLarge) != 0 && level <= kLargestLeaf));
  }
  static constexpr bool is_table(Word word, unsigned level) {
    return is_present(word) && !is_leaf(word, level);
  }
  static constexpr u64 output(Word word, unsigned) { return word & kAddressMask; }
  static constexpr Attributes attributes(Word word, unsigned) {
    return {.read = (word & kRead) != 0,
            .write = (word & kWrite) != 0,
            .snoop = (word & kSnoop) != 0,
            .accessed = (word & kAccessed) != 0,
            .dirty = (word & kDirty) != 0};
  }

  static constexpr Word make_leaf(u64 address, unsigned level, Attributes a) {
    return address | (level > 1 ? kLarge : 0) | (a.read ? kRead : 0) | (a.write ? kWrite : 0) |
           (a.snoop ? kSnoop : 0) | (a.accessed ? kAccessed : 0) | (a.dirty ? kDirty : 0);
  }
  static constexpr Word make_table(u64 entries, unsigned) { return entries | kRead | kWrite; }
};

static_assert(Format<VtdSecondLevel>);
static_assert(frame_limit<VtdSecondLevel>(3) == bit(27), "39 bits: the smallest width");
static_assert(VtdSecondLevel::is_leaf(VtdSecondLevel::make_leaf(0, 3, {}), 3) &&
              VtdSecondLevel::is_table(VtdSecondLevel::make_table(0x1000, 3), 3));

}  // namespace stagetwo::pt
