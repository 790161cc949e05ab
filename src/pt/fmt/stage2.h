// SPDX-License-Identifier: Apache-2.0
#pragma once

// The entries of a guest's stage-2 table, read by no hardware: the soft TLB is filled from them.
// Linux analogue: arch/x86/kvm/mmu/spte.h, without its encodings of two processors.
//
//   bit 0  present      1  write           2  exec            3  leaf
//       4  accessed     5  dirty           6  host-writable   7  MMU-writable     8  private
//   bits 56:12          of a leaf the host address of the page, of a table that of its entries
//   not present:        0 nonpresent; bit 10 alone: frozen; bit 9: MMIO, generation in 30:12
//
// Writability is three bits (host, MMU, write), of which 111, 110, 100 and 000 are legal: the host
// address allows stores; no reason of ours forbids them; a store may go through. 110 is
// write-protected for the dirty log or not yet written, and may be made 111 without a lock. 100
// stays read-only until whoever tracks the page lets go; 000 is read-only in the host.
//
// I1  is_legal() holds of every word in a table (the world checker asks).
// I2  A present leaf is never replaced by a leaf of another page: leaf → frozen or nonpresent →
//     flush → leaf. may_follow() says so; the mapper checks it.
// I3  Write, accessed and dirty of a present leaf may change at any moment, without any lock, by
//     compare-and-exchange or fetch-and. So whoever else changes a present leaf exchanges it, and
//     what he finds is what he keeps account of.
// I4  An entry is readable if it is present; A is the reader's, set when the entry is used.

#include "pt/format.h"

namespace stagetwo::pt {

struct Stage2 {
  using Word = u64;

  static constexpr unsigned kGranuleLg2 = 12;
#if defined(ST_SCHED)
  // A race needs two entries of a table, and the memory model has room for a few hundred words.
  static constexpr unsigned kIndexBits = 3;
#else
  static constexpr unsigned kIndexBits = 9;
#endif
  static constexpr unsigned kMaxLevel = 5;
  static constexpr unsigned kLargestLeaf = 3;

  static constexpr Word kPresent = bit(0), kWrite = bit(1), kExec = bit(2), kLeaf = bit(3),
                        kAccessed = bit(4), kDirty = bit(5), kHostWritable = bit(6),
                        kMmuWritable = bit(7), kPrivate = bit(8), kMmio = bit(9);
  static constexpr Word kNonpresent = 0, kFrozen = bit(10);
  static constexpr Word kAddressMask = bit_mask(56, 12);
  static constexpr unsigned kMmioGenerationBits = 19;
  static constexpr u64 kMmioGenerationMask = bit(kMmioGenerationBits) - 1;

  struct Attributes {
    bool write = false;
    bool exec = false;
    bool accessed = false;
    bool dirty = false;
    bool host_writable = false;
    bool mmu_writable = false;
    bool is_private = false;
    friend constexpr bool operator==(const Attributes&, const Attributes&) = default;
  };

  static constexpr unsigned index_bits(unsigned) { return kIndexBits; }
  static constexpr bool can_be_leaf(unsigned level) { return level <= kLargestLeaf; }

  // What a word is.
  static constexpr bool is_present(Word word) { return (word & kPresent) != 0; }
  static constexpr bool is_leaf(Word word, unsigned = 1) {
    return (word & (kPresent | kLeaf)) == (kPresent | kLeaf);
  }
  static constexpr bool is_table(Word word, unsigned = 2) {
    return (word & (kPresent | kLeaf)) == kPresent;
  }
  static constexpr bool is_frozen(Word word) { return word == kFrozen; }
  static constexpr bool is_mmio(Word word) { return (word & (kPresent | kMmio)) == kMmio; }

  // What a leaf allows and remembers.
  static constexpr bool is_writable(Word word) { return (word & kWrite) != 0; }
  static constexpr bool is_executable(Word word) { return (word & kExec) != 0; }
  static constexpr bool is_accessed(Word word) { return (word & kAccessed) != 0; }
  static constexpr bool is_dirty(Word word) { return (word & kDirty) != 0; }
  static constexpr bool is_host_writable(Word word) { return (word & kHostWritable) != 0; }
  static constexpr bool is_mmu_writable(Word word) { return (word & kMmuWritable) != 0; }
  static constexpr bool is_private(Word word) { return (word & kPrivate) != 0; }
  // Write-protected, and a store may lift that without a lock.
  static constexpr bool is_restorable(Word word) {
    return (word & (kPresent | kMmuWritable | kWrite)) == (kPresent | kMmuWritable);
  }

  static constexpr u64 output(Word word, unsigned = 1) { return word & kAddressMask; }
  static constexpr Attributes attributes(Word word, unsigned = 1) {
    return {.write = is_writable(word),
            .exec = is_executable(word),
            .accessed = is_accessed(word),
            .dirty = is_dirty(word),
            .host_writable = is_host_writable(word),
            .mmu_writable = is_mmu_writable(word),
            .is_private = is_private(word)};
  }
  static constexpr u64 mmio_generation(Word word) { return word >> 12 & kMmioGenerationMask; }

  static constexpr Word make_leaf(u64 hva, unsigned, Attributes a) {
    return hva | kPresent | kLeaf | (a.write ? kWrite : 0) | (a.exec ? kExec : 0) |
           (a.accessed ? kAccessed : 0) | (a.dirty ? kDirty : 0) |
           (a.host_writable ? kHostWritable : 0) | (a.mmu_writable ? kMmuWritable : 0) |
           (a.is_private ? kPrivate : 0);
  }
  static constexpr Word make_table(u64 entries, unsigned = 2) { return entries | kPresent; }
  // The generation is taken modulo 2^19: the owner zaps all MMIO entries when it wraps.
  static constexpr Word make_mmio(u64 generation) {
    return kMmio | (generation & kMmioGenerationMask) << 12;
  }
  // A leaf as it is after a store that its MMU-writable bit permits.
  static constexpr Word written(Word word) { return word | kWrite | kDirty | kAccessed; }
  static constexpr Word write_protected(Word word) { return word & ~kWrite; }

  // I1. An address of a leaf is aligned to what the leaf spans.
  static constexpr bool is_legal(Word word, unsigned level) {
    if (!is_present(word)) {
      return word == kNonpresent || word == kFrozen || word == make_mmio(mmio_generation(word));
    }
    if (is_table(word)) return level > 1 && word == make_table(output(word));
    if (!can_be_leaf(level) || word != make_leaf(output(word), level, attributes(word)))
      return false;
    if (!is_aligned(output(word), u64{1} << (kGranuleLg2 + (level - 1) * kIndexBits))) return false;
    const Word rights = word & (kHostWritable | kMmuWritable | kWrite);
    return rights == 0 || rights == kHostWritable || rights == (kHostWritable | kMmuWritable) ||
           rights == (kHostWritable | kMmuWritable | kWrite);
  }
  // I2. May `next` take the place of `word` in one step?
  static constexpr bool may_follow(Word word, Word next) {
    if (!is_leaf(word) || !is_leaf(next)) return true;
    return output(word) == output(next) && is_private(word) == is_private(next);
  }
};

static_assert(Format<Stage2>);
static_assert(Stage2::kIndexBits != 9 ||
              (span_of<Stage2>(2) == 512 && frame_limit<Stage2>(5) == bit(45)));
static_assert(Stage2::is_legal(0, 1) && Stage2::is_legal(Stage2::kFrozen, 5) &&
                  Stage2::is_legal(Stage2::make_mmio(0), 1) &&
                  Stage2::is_legal(Stage2::make_mmio(Stage2::kMmioGenerationMask), 1),
              "the not-present kinds");
static_assert(!Stage2::is_mmio(Stage2::kFrozen) && !Stage2::is_frozen(Stage2::make_mmio(0)) &&
                  Stage2::make_mmio(0) != Stage2::kNonpresent,
              "the not-present kinds are distinct");
static_assert(Stage2::mmio_generation(Stage2::make_mmio(0x7fffe)) == 0x7fffe);
static_assert(Stage2::is_table(Stage2::make_table(0x1000)) &&
                  !Stage2::is_legal(Stage2::make_table(0x1000), 1),
              "the bottom level holds no table");
static_assert(Stage2::is_legal(Stage2::make_leaf(0x200000, 2, {.host_writable = true}), 2) &&
                  !Stage2::is_legal(Stage2::make_leaf(0x201000, 2, {.host_writable = true}), 2) &&
                  !Stage2::is_legal(Stage2::make_leaf(0, 4, {}), 4),
              "a leaf is aligned and not larger than 1 GiB");
static_assert(!Stage2::is_legal(Stage2::make_leaf(0, 1, {.mmu_writable = true}), 1) &&
                  !Stage2::is_legal(Stage2::make_leaf(0, 1, {.write = true}), 1) &&
                  !Stage2::is_legal(Stage2::make_leaf(0, 1, {.write = true, .host_writable = true}),
                                    1),
              "writability is 111, 110, 100 or 000");
static_assert(!Stage2::may_follow(Stage2::make_leaf(0x1000, 1, {}),
                                  Stage2::make_leaf(0x2000, 1, {})));

}  // namespace stagetwo::pt
