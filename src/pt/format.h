// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a page table format must answer, the words it is asked in, and the memory its tables are
// in. A format (pt/fmt) is a struct of constexpr functions over one entry; everything that walks or
// writes is written once, over this concept. Linux analogue: include/linux/generic_pt/common.h and
// drivers/iommu/generic_pt/pt_defs.h; levels are counted as KVM counts them.
//
// The words:
//   frame    number of a page of the format's granule: address >> kGranuleLg2
//   word     the value of one entry: nonpresent, frozen, a format's own not-present kind, table,
//   leaf table    2^index_bits(level) entries; a word that points to one leaf     a word that maps;
//   its output is the address of what it maps level    1 is the bottom, whose entries map one frame
//   each and are never tables; an entry of
//            level n spans 2^((n-1) * kIndexBits) frames
//   frozen   a word nobody follows, nobody replaces but who wrote it: the place of an entry whose
//            removal is under way
//
// I1  Every word is at most one of: nonpresent, frozen, table, leaf (at a given level).
// I2  make_leaf and make_table are undone by is_leaf, is_table, output and attributes.
// I3  Every level but the topmost has kIndexBits; a top level may have fewer or more.
// I4  A format reads no memory and holds no policy: it is a function of (word, level).
// Locking, lifetime: none; those are matters of who holds the table.

#include <concepts>

#include "base/bits.h"
#include "base/types.h"
#include "sync/atomic.h"

namespace stagetwo::pt {

template <typename F>
concept Format =
    std::unsigned_integral<typename F::Word> && std::equality_comparable<typename F::Attributes> &&
    requires(typename F::Word word, unsigned level, u64 address,
             typename F::Attributes attributes) {
      { F::kGranuleLg2 } -> std::convertible_to<unsigned>;
      { F::kIndexBits } -> std::convertible_to<unsigned>;
      { F::kMaxLevel } -> std::convertible_to<unsigned>;
      { F::kNonpresent } -> std::convertible_to<typename F::Word>;
      { F::kFrozen } -> std::convertible_to<typename F::Word>;
      { F::index_bits(level) } -> std::same_as<unsigned>;
      { F::can_be_leaf(level) } -> std::same_as<bool>;
      { F::is_present(word) } -> std::same_as<bool>;  // table or leaf
      { F::is_table(word, level) } -> std::same_as<bool>;
      { F::is_leaf(word, level) } -> std::same_as<bool>;
      // Of a leaf the address it maps, of a table the address of its entries.
      { F::output(word, level) } -> std::same_as<u64>;
      { F::attributes(word, level) } -> std::same_as<typename F::Attributes>;
      // Pre: can_be_leaf(level), `address` aligned to what an entry of the level spans.
      { F::make_leaf(address, level, attributes) } -> std::same_as<typename F::Word>;
      // Pre: level > 1: the level of the entry, not of the table it points to.
      { F::make_table(address, level) } -> std::same_as<typename F::Word>;
    } &&
    (F::kNonpresent != F::kFrozen) && !F::is_present(F::kNonpresent) &&
    !F::is_present(F::kFrozen) && F::can_be_leaf(1);

// A format in which 2^n equal entries of one level may be one larger leaf.
template <typename F>
concept VariableLeaf =
    Format<F> && requires(typename F::Word word, unsigned level, u64 address,
                          typename F::Attributes attributes, unsigned contig_lg2) {
      { F::max_contig_lg2(level) } -> std::same_as<unsigned>;
      // log2 of how many entries the leaf is.
      { F::contig_lg2(word, level) } -> std::same_as<unsigned>;
      { F::make_leaf(address, level, attributes, contig_lg2) } -> std::same_as<typename F::Word>;
    };

template <Format F>
using Entry = sync::Atomic<typename F::Word>;

// log2 of the frames an entry of `level` spans.
template <Format F>
constexpr unsigned span_lg2(unsigned level) {
  return (level - 1) * F::kIndexBits;
}
// The frames an entry of `level` spans.
template <Format F>
constexpr u64 span_of(unsigned level) {
  return u64{1} << span_lg2<F>(level);
}
// The first frame of the entry of `level` that `frame` falls into.
template <Format F>
constexpr u64 span_floor(u64 frame, unsigned level) {
  return frame & ~(span_of<F>(level) - 1);
}
// log2 of the bytes an entry of `level` spans.
template <Format F>
constexpr unsigned bytes_lg2(unsigned level) {
  return F::kGranuleLg2 + span_lg2<F>(level);
}
template <Format F>
constexpr unsigned index_of(u64 frame, unsigned level) {
  return static_cast<unsigned>(frame >> span_lg2<F>(level)) & ((1U << F::index_bits(level)) - 1);
}
// How many entries a table of `level` has.
template <Format F>
constexpr unsigned entry_count(unsigned level) {
  return 1U << F::index_bits(level);
}
// The number of frames a table of `level` covers.
template <Format F>
constexpr u64 frame_limit(unsigned level) {
  return u64{1} << (span_lg2<F>(level) + F::index_bits(level));
}
// The leaf of `level - 1` that a split of `leaf` has at `index`. Pre: a leaf of level > 1, and the
// level below can hold leaves.
template <Format F>
constexpr typename F::Word split_child(typename F::Word leaf, unsigned level, unsigned index) {
  const u64 address = F::output(leaf, level) + (u64{index} << bytes_lg2<F>(level - 1));
  return F::make_leaf(address, level - 1, F::attributes(leaf, level));
}

// How table memory is reached. Never a plain access: a load is an acquire and a write a release, so
// that whoever follows a table entry finds the table as its maker left it (a child is complete
// before it is linked). A policy may record, or keep tables somewhere else than at their address.
template <typename M, typename Word>
concept Memory = requires(M m, sync::Atomic<Word>* entry, const sync::Atomic<Word>* const_entry,
                          Word& expected, Word word, u64 address) {
  { m.entries(address) } -> std::same_as<sync::Atomic<Word>*>;
  { m.load(const_entry) } -> std::same_as<Word>;
  { m.store(entry, word) };
  { m.exchange(entry, word) } -> std::same_as<Word>;
  // On failure `expected` is what was found.
  { m.compare_exchange(entry, expected, word) } -> std::same_as<bool>;
  { m.fetch_and(entry, word) } -> std::same_as<Word>;
  { m.fetch_or(entry, word) } -> std::same_as<Word>;
};

// Tables at the addresses their parents hold, in this process.
template <typename Word>
struct DirectMemory {
  static sync::Atomic<Word>* entries(u64 address) {
    return reinterpret_cast<sync::Atomic<Word>*>(address);
  }
  static Word load(const sync::Atomic<Word>* entry) { return entry->load(sync::kAcquire); }
  static void store(sync::Atomic<Word>* entry, Word word) { entry->store(word, sync::kRelease); }
  static Word exchange(sync::Atomic<Word>* entry, Word word) {
    return entry->exchange(word, sync::kAcqRel);
  }
  static bool compare_exchange(sync::Atomic<Word>* entry, Word& expected, Word word) {
    return entry->compare_exchange(expected, word, sync::kAcqRel);
  }
  static Word fetch_and(sync::Atomic<Word>* entry, Word mask) {
    return entry->fetch_and(mask, sync::kAcqRel);
  }
  static Word fetch_or(sync::Atomic<Word>* entry, Word bits) {
    return entry->fetch_or(bits, sync::kAcqRel);
  }
};

static_assert(Memory<DirectMemory<u64>, u64>);

}  // namespace stagetwo::pt
