// SPDX-License-Identifier: Apache-2.0
#pragma once

// Arithmetic on leaves: what one maps, how large one can be, what it remembers. Functions of words,
// for formats with one page size a level and for those (VariableLeaf) with more.
// Linux analogue: pt_entry_oa, pt_compute_best_pgsize (drivers/iommu/generic_pt/pt_common.h).

#include "pt/format.h"

namespace stagetwo::pt {

// log2 of the frames the leaf `word` of `level` maps.
template <Format F>
constexpr unsigned leaf_span_lg2(typename F::Word word, unsigned level) {
  if constexpr (VariableLeaf<F>) return span_lg2<F>(level) + F::contig_lg2(word, level);
  return span_lg2<F>(level);
}

// The address of `frame`, which the leaf `word` of `level` maps.
template <Format F>
constexpr u64 leaf_output(typename F::Word word, unsigned level, u64 frame) {
  const u64 within = frame & ((u64{1} << leaf_span_lg2<F>(word, level)) - 1);
  return F::output(word, level) + (within << F::kGranuleLg2);
}

// Accessed and dirty, where a format has them, are history; the rest are rights.
template <typename Attributes>
constexpr void forget_history(Attributes& a) {
  if constexpr (requires { a.accessed; }) a.accessed = false;
  if constexpr (requires { a.dirty; }) a.dirty = false;
}
template <typename Attributes>
constexpr void add_history(Attributes& to, const Attributes& from) {
  if constexpr (requires { to.accessed; }) to.accessed = to.accessed || from.accessed;
  if constexpr (requires { to.dirty; }) to.dirty = to.dirty || from.dirty;
}
template <typename Attributes>
constexpr bool same_rights(Attributes a, Attributes b) {
  forget_history(a);
  forget_history(b);
  return a == b;
}

// The size of a leaf: 2^contig_lg2 entries of `level`.
struct LeafSize {
  unsigned level = 1;
  unsigned contig_lg2 = 0;
};

template <Format F>
constexpr u64 leaf_frames(LeafSize size) {
  return u64{1} << (span_lg2<F>(size.level) + size.contig_lg2);
}

// The largest leaf that may map `frame` to `address`, of at most `frames` frames and `max_level`.
template <Format F>
constexpr LeafSize largest_leaf(u64 frame, u64 frames, u64 address, unsigned max_level) {
  const u64 alignment = frame | address >> F::kGranuleLg2;
  const auto fits = [&](LeafSize size) {
    return leaf_frames<F>(size) <= frames && is_aligned(alignment, leaf_frames<F>(size));
  };
  LeafSize best{.level = max_level};
  while (best.level > 1 && !(F::can_be_leaf(best.level) && fits(best))) --best.level;
  if constexpr (VariableLeaf<F>) {
    while (best.contig_lg2 < F::max_contig_lg2(best.level) &&
           fits({best.level, best.contig_lg2 + 1})) {
      ++best.contig_lg2;
    }
  }
  return best;
}

// The word of each of the leaf's entries.
template <Format F>
constexpr typename F::Word leaf_word(LeafSize size, u64 address,
                                     typename F::Attributes attributes) {
  if constexpr (VariableLeaf<F>) {
    return F::make_leaf(address, size.level, attributes, size.contig_lg2);
  } else {
    return F::make_leaf(address, size.level, attributes);
  }
}

}  // namespace stagetwo::pt
