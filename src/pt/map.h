// SPDX-License-Identifier: Apache-2.0
#pragma once

// Mapper: a page table for users without a policy of their own (an I/O domain): map, unmap,
// translate, split, collapse. Tables come from a source the user hands in; what is taken out of the
// tree comes back in a Gather. Linux analogue: drivers/iommu/generic_pt/iommu_pt.h.
//
// I1  Old or new: whoever walks while an operation writes finds for each frame the translation from
//     before it or from after it, and never a third one. So a table is complete when it is linked,
//     and a table is taken out by one write to its parent.
// I2  A refusal leaves every translation as it was; a table made on the way may stay, empty. For
// want
//     of memory it comes late: what was mapped by then was seen for a while and is taken back.
// I3  unmap, collapse and translate cannot fail for want of memory.
//
// Locking: operations on ranges that do not touch may run at once (a table is linked by
// compare-and-exchange, and is only taken out by an operation whose range covers all of it); the
// caller keeps those that touch apart, a split or collapse being one on all its leaf covers.
// Lifetime: borrows root, tables and memory; the root is never taken out.

#include "base/result.h"
#include "pt/cursor.h"
#include "pt/gather.h"
#include "pt/split.h"

namespace stagetwo::pt {

// Where tables come from.
template <typename T, typename F>
concept TableSource = Format<F> && requires(T source, Entry<F>* table, unsigned level) {
  // A table of `level` whose every entry is kNonpresent; nullptr when there is none to be had.
  { source.allocate(level) } -> std::same_as<Entry<F>*>;
  // Takes back a table that was never linked.
  { source.free(table, level) };
  // What a table entry says to mean it: Memory::entries() undoes it.
  { source.address_of(table) } -> std::same_as<u64>;
  // The link by which it hangs in a gather.
  { source.node_of(table) } -> std::same_as<GatherNode*>;
};

// What a frame translates to.
template <Format F>
struct Mapping {
  u64 address;  // of the frame
  typename F::Attributes attributes;
  unsigned level;
  unsigned frames_lg2;  // of the leaf
};

template <Format F, TableSource<F> Source,
          Memory<typename F::Word> M = DirectMemory<typename F::Word>>
class Mapper {
 public:
  using Word = typename F::Word;
  using Attributes = typename F::Attributes;

  Mapper(Entry<F>* root, unsigned root_level, Source& source, M memory = {})
      : root_(root), root_level_(root_level), source_(source), memory_(memory) {}

  // Maps the frames [first, first + frames) to the bytes from `address` on, in leaves as large as
  // alignment, the format and `max_level` permit. A table without leaves that is in the way of a
  // larger leaf goes into `gather`, and so do tables of a refused attempt.
  // Pre: the range is within the root's; `address` is aligned to the granule.
  // Failure: EADDRINUSE (something is mapped there), ENOMEM; nothing is mapped (I2).
  [[nodiscard]] Result<void> map(u64 first, u64 frames, u64 address, Attributes attributes,
                                 Gather& gather, unsigned max_level = F::kMaxLevel);

  // Takes away every leaf that lies within [first, first + frames) and every table that covers
  // nothing else. Returns how many frames were mapped. A leaf that reaches over an end stays: it is
  // to be split first.
  u64 unmap(u64 first, u64 frames, Gather& gather);

  [[nodiscard]] std::optional<Mapping<F>> translate(u64 frame) const {
    const auto found = find<F>(root_, root_level_, frame, 1, memory_);
    if (!F::is_leaf(found.word, found.level)) return std::nullopt;
    return Mapping<F>{leaf_output<F>(found.word, found.level, frame),
                      F::attributes(found.word, found.level), found.level,
                      leaf_span_lg2<F>(found.word, found.level)};
  }

  // Makes the leaf that maps `frame` one of at most an entry of `level`. No flush is owed: every
  // frame translates as before. Nothing to do where nothing is mapped. Failure: ENOMEM.
  [[nodiscard]] Result<void> split(u64 frame, unsigned level);

  // Makes the table below the entry of `level` that covers `frame` one leaf, if what it says can be
  // said so (collapsed_leaf). False: it cannot. Pre: no setter of history is under way below.
  bool collapse(u64 frame, unsigned level, Gather& gather);

 private:
  Result<Entry<F>*> entry_for(u64 frame, unsigned level);
  void put_leaf(Entry<F>* entry, LeafSize size, Word word, u64 frame, Gather& gather);
  void link(Entry<F>* entry, Word& word, unsigned level, Entry<F>* child);
  bool is_free(u64 first, u64 frames) const;
  u64 retire(Entry<F>* table, unsigned level, u64 frame, Gather& gather);

  Entry<F>* root_;
  unsigned root_level_;
  Source& source_;
  [[no_unique_address]] M memory_;
};

}  // namespace stagetwo::pt

#include "pt/map_operations.h"
