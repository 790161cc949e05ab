// SPDX-License-Identifier: Apache-2.0
#pragma once

// The operations of Mapper (pt/map.h); included by it alone.
//
// What each write of an operation changes for a reader, who reads one entry a level:
//
//   map        link an empty table        nothing: no leaf before, none after
//              put a leaf                 its frames, from nothing to new
//              leaf over an empty table   as above; the table is gathered
//   unmap      clear a leaf               its frames, from old to nothing
//              clear a table's parent     all frames below, from old to nothing; what is below is
//                                         left as it is, for readers who are in it already
//   split      leaf → table               nothing: the table was filled before
//              one of 2^k equal entries   nothing: says itself what the 2^k said together
//   collapse   table → leaf               nothing

#include "pt/map.h"

namespace stagetwo::pt {

// Links `child` where `word` was, or gives it back if another was faster; `word` is what is there.
template <Format F, TableSource<F> Source, Memory<typename F::Word> M>
void Mapper<F, Source, M>::link(Entry<F>* entry, Word& word, unsigned level, Entry<F>* child) {
  const Word table = F::make_table(source_.address_of(child), level);
  if (memory_.compare_exchange(entry, word, table)) {
    word = table;
  } else {
    source_.free(child, level - 1);
  }
}

// The entry of `level` on the way to `frame`, tables being made as needed.
template <Format F, TableSource<F> Source, Memory<typename F::Word> M>
auto Mapper<F, Source, M>::entry_for(u64 frame, unsigned level) -> Result<Entry<F>*> {
  Entry<F>* table = root_;
  for (unsigned at = root_level_; at > level; --at) {
    Entry<F>* entry = table + index_of<F>(frame, at);
    Word word = memory_.load(entry);
    if (word == F::kNonpresent) {
      Entry<F>* child = source_.allocate(at - 1);
      if (child == nullptr) return refuse(ENOMEM);
      link(entry, word, at, child);
    }
    ST_CHECK(F::is_table(word, at));  // map() has looked, and nobody else may map here
    table = memory_.entries(F::output(word, at));
  }
  return table + index_of<F>(frame, level);
}

template <Format F, TableSource<F> Source, Memory<typename F::Word> M>
bool Mapper<F, Source, M>::is_free(u64 first, u64 frames) const {
  if (frames == 1) return find<F>(root_, root_level_, first, 1, memory_).word == F::kNonpresent;
  for (Cursor<F, M> at(root_, root_level_, 1, first, first + frames, memory_); at.valid();
       at.next()) {
    if (at.old() != F::kNonpresent && !at.is_table()) return false;
  }
  return true;
}

// Puts a table that was just taken out, and those below it, into the gather. Returns how many
// frames they mapped. Nothing is written: a reader may be inside until the flush.
template <Format F, TableSource<F> Source, Memory<typename F::Word> M>
u64 Mapper<F, Source, M>::retire(Entry<F>* table, unsigned level, u64 frame, Gather& gather) {
  u64 mapped = 0;
  for (unsigned i = 0; i < entry_count<F>(level); ++i) {
    const Word word = memory_.load(table + i);
    if (F::is_leaf(word, level)) mapped += span_of<F>(level);
    if (!F::is_table(word, level)) continue;
    mapped += retire(memory_.entries(F::output(word, level)), level - 1,
                     frame + i * span_of<F>(level), gather);
  }
  gather.add_table(source_.node_of(table), frame, frame_limit<F>(level));
  return mapped;
}

// Writes all entries of a leaf. What is there maps nothing: a table is in the range as a whole.
template <Format F, TableSource<F> Source, Memory<typename F::Word> M>
void Mapper<F, Source, M>::put_leaf(Entry<F>* entry, LeafSize size, Word word, u64 frame,
                                    Gather& gather) {
  for (unsigned i = 0; i < 1U << size.contig_lg2; ++i) {
    const Word was = memory_.exchange(entry + i, word);
    if (!F::is_table(was, size.level)) continue;
    retire(memory_.entries(F::output(was, size.level)), size.level - 1,
           frame + i * span_of<F>(size.level), gather);
  }
}

template <Format F, TableSource<F> Source, Memory<typename F::Word> M>
Result<void> Mapper<F, Source, M>::map(u64 first, u64 frames, u64 address, Attributes attributes,
                                       Gather& gather, unsigned max_level) {
  ST_DCHECK(first + frames <= frame_limit<F>(root_level_) && first + frames >= first);
  ST_DCHECK(is_aligned(address, u64{1} << F::kGranuleLg2));
  if (!is_free(first, frames)) return refuse(EADDRINUSE);
  if (max_level > root_level_) max_level = root_level_;
  Entry<F>* next = nullptr;  // the entry after the last leaf
  unsigned next_level = 0;
  for (u64 done = 0; done < frames;) {
    const u64 frame = first + done;
    const u64 to = address + (done << F::kGranuleLg2);
    const LeafSize size = largest_leaf<F>(frame, frames - done, to, max_level);
    const bool same_table = next_level == size.level && index_of<F>(frame, size.level) != 0;
    const Result<Entry<F>*> entry = same_table ? next : entry_for(frame, size.level);
    if (!entry) {
      unmap(first, done, gather);
      return refuse(entry.error());
    }
    put_leaf(*entry, size, leaf_word<F>(size, to, attributes), frame, gather);
    next = *entry + (1U << size.contig_lg2);
    next_level = size.level;
    done += leaf_frames<F>(size);
  }
  return {};
}

template <Format F, TableSource<F> Source, Memory<typename F::Word> M>
u64 Mapper<F, Source, M>::unmap(u64 first, u64 frames, Gather& gather) {
  const u64 end = first + frames;
  u64 mapped = 0;
  if (frames == 1) {  // by far the most frequent number: a leaf of its own, or none
    const auto [entry, word, level] = find<F>(root_, root_level_, first, 1, memory_);
    if (!F::is_leaf(word, level) || leaf_span_lg2<F>(word, level) != 0) return 0;
    memory_.exchange(entry, F::kNonpresent);
    gather.add_range(first, 1);
    return 1;
  }
  for (Cursor<F, M> at(root_, root_level_, 1, first, end, memory_); at.valid(); at.next()) {
    if (at.is_table()) {
      if (at.frame() < first || at.frame() + at.frames() > end) continue;
      const Word table = at.exchange(F::kNonpresent);
      mapped +=
          retire(memory_.entries(F::output(table, at.level())), at.level() - 1, at.frame(), gather);
    } else if (at.is_leaf()) {
      const u64 leaf_frames = u64{1} << leaf_span_lg2<F>(at.old(), at.level());
      const u64 leaf_start = align_down(at.frame(), leaf_frames);
      if (leaf_start < first || leaf_start + leaf_frames > end) continue;
      at.exchange(F::kNonpresent);
      gather.add_range(at.frame(), at.frames());
      mapped += at.frames();
    }
  }
  return mapped;
}

template <Format F, TableSource<F> Source, Memory<typename F::Word> M>
Result<void> Mapper<F, Source, M>::split(u64 frame, unsigned level) {
  for (;;) {
    auto [entry, word, at] = find<F>(root_, root_level_, frame, level, memory_);
    if (!F::is_leaf(word, at)) return {};
    if constexpr (VariableLeaf<F>) {
      if (F::contig_lg2(word, at) != 0) {
        break_up<F>(entry, word, at, frame, memory_);
        continue;
      }
    }
    if (at == level) return {};
    Entry<F>* table = source_.allocate(at - 1);
    if (table == nullptr) return refuse(ENOMEM);
    fill_split<F>(table, word, at, memory_);
    link(entry, word, at, table);  // lost to a setter of history: found again as it is now
  }
}

template <Format F, TableSource<F> Source, Memory<typename F::Word> M>
bool Mapper<F, Source, M>::collapse(u64 frame, unsigned level, Gather& gather) {
  auto [entry, word, at] = find<F>(root_, root_level_, frame, level, memory_);
  if (at != level || !F::is_table(word, level)) return false;
  Entry<F>* table = memory_.entries(F::output(word, level));
  const auto leaf = collapsed_leaf<F>(table, level, memory_);
  if (!leaf || !memory_.compare_exchange(entry, word, *leaf)) return false;
  gather.add_table(source_.node_of(table), span_floor<F>(frame, level), span_of<F>(level));
  return true;
}

}  // namespace stagetwo::pt
