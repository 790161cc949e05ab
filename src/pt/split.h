// SPDX-License-Identifier: Apache-2.0
#pragma once

// One leaf as many and many as one, over words: what a split puts into the new table, and which
// leaf may take the place of a table. Used by Mapper (pt/map.h) and by whoever has a policy of his
// own. Linux analogue: tdp_mmu_split_huge_page and make_small_spte, make_huge_spte (kernel files:
// tdp_mmu.c, spte.c).
//
// I1  Every frame translates to the same address before and after, with the same rights.
// I2  A split loses no history: every child is as accessed and as dirty as the leaf was. A collapse
//     loses none either: the leaf is what any child was.
// Locking: none: fill_split writes a table nobody can reach yet, break_up exchanges, collapsed_leaf
// only reads.

#include <optional>

#include "pt/leaf.h"

namespace stagetwo::pt {

// Fills `table`, of level - 1, with what `leaf` of `level` maps. Pre: nobody can reach `table`; the
// leaf is one entry; the level below can hold leaves. To publish: compare-and-exchange of `leaf` by
// make_table; who loses fills again, since history may have been added.
template <Format F, Memory<typename F::Word> M>
void fill_split(Entry<F>* table, typename F::Word leaf, unsigned level, M& memory) {
  for (unsigned i = 0; i < entry_count<F>(level - 1); ++i) {
    memory.store(table + i, split_child<F>(leaf, level, i));
  }
}

// Makes the 2^k equal entries that are one leaf say each for itself what they said together.
// `entry` is the one of `level` that covers `frame`, and holds `word`. Pre: nobody but setters of
// history writes them.
template <VariableLeaf F, Memory<typename F::Word> M>
void break_up(Entry<F>* entry, typename F::Word word, unsigned level, u64 frame, M& memory) {
  const unsigned count = 1U << F::contig_lg2(word, level);
  entry -= index_of<F>(frame, level) & (count - 1);
  for (unsigned i = 0; i < count; ++i) {
    const u64 address = F::output(word, level) + (u64{i} << bytes_lg2<F>(level));
    auto was = memory.load(entry + i);
    while (!memory.compare_exchange(entry + i, was,
                                    F::make_leaf(address, level, F::attributes(was, level)))) {
    }
  }
}

// The leaf of `level` that says what `table`, of level - 1, says: none unless every entry is a
// leaf, they follow each other from an aligned address, and their rights are equal. A setter of
// history that is still under way in `table` is the caller's to hold off or to make up for.
template <Format F, Memory<typename F::Word> M>
std::optional<typename F::Word> collapsed_leaf(Entry<F>* table, unsigned level, M& memory) {
  if (!F::can_be_leaf(level)) return std::nullopt;
  const unsigned below = level - 1;
  const auto first = memory.load(table);
  if (!F::is_leaf(first, below)) return std::nullopt;
  const u64 address = F::output(first, below);
  if (!is_aligned(address, u64{1} << bytes_lg2<F>(level))) return std::nullopt;
  auto attributes = F::attributes(first, below);
  for (unsigned i = 1; i < entry_count<F>(below); ++i) {
    const auto word = memory.load(table + i);
    if (!F::is_leaf(word, below)) return std::nullopt;
    const u64 frame = u64{i} << span_lg2<F>(below);
    if (leaf_output<F>(word, below, frame) != address + (frame << F::kGranuleLg2) ||
        !same_rights(attributes, F::attributes(word, below))) {
      return std::nullopt;
    }
    add_history(attributes, F::attributes(word, below));
  }
  return F::make_leaf(address, level, attributes);
}

}  // namespace stagetwo::pt
