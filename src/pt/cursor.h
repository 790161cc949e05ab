// SPDX-License-Identifier: Apache-2.0
#pragma once

// The one walker. find() goes down to one frame; Cursor visits every entry that covers a range, a
// table entry before the entries of its table. Linux analogue: arch/x86/kvm/mmu/tdp_iter.{h,cc}.
//
//   for (Cursor<Stage2> at(root, 4, 1, first, last); at.valid(); at.next()) {
//     if (should_yield() && at.progressed()) { …drop, take…; at.mark_yielded(); continue; }
//     if (!at.compare_exchange(Stage2::kNonpresent)) …at.old() is what another thread wrote…
//   }
//
// I1  old() is what entry() held when it was last read, or written by this cursor.
// I2  next() reads the entry again before it descends. A table that vanished is not entered; one
//     that appeared (the cursor's own work, or another's) is. So a walk may end above the level its
//     caller wants: whoever acts on a level looks at level().
// I3  Frames never go backwards; after a yield the walk goes on at the root with the frame it had.
//
// Locking: none. Context: a read section or a lock of the owner of the tables, so that none that
// can be reached is freed; it may be left where mark_yielded() says so. Lifetime: borrows the root.

#include "base/check.h"
#include "pt/format.h"

namespace stagetwo::pt {

template <Format F>
struct Found {
  Entry<F>* entry;
  typename F::Word word;
  unsigned level;
};

// The entry in which the way to `frame` ends: a leaf, an entry that is not present, or one of
// `min_level`. Pre: frame < frame_limit<F>(root_level).
template <Format F, typename M = DirectMemory<typename F::Word>>
  requires Memory<M, typename F::Word>
[[nodiscard]] inline Found<F> find(Entry<F>* root, unsigned root_level, u64 frame,
                                   unsigned min_level = 1, M memory = {}) {
  Entry<F>* table = root;
  for (unsigned level = root_level;; --level) {
    Entry<F>* entry = table + index_of<F>(frame, level);
    const auto word = memory.load(entry);
    if (level == min_level || !F::is_table(word, level)) return {entry, word, level};
    table = memory.entries(F::output(word, level));
  }
}

template <Format F, typename M = DirectMemory<typename F::Word>>
  requires Memory<M, typename F::Word>
class Cursor {
 public:
  using Word = typename F::Word;

  // Visits what covers the frames [first, last), from `root`, a table of `root_level`, down to
  // `min_level`. Frames the root does not cover are not visited.
  Cursor(Entry<F>* root, unsigned root_level, unsigned min_level, u64 first, u64 last,
         M memory = {})
      : memory_(memory),
        goal_(first),
        yielded_goal_(first),
        root_level_(root_level),
        min_level_(min_level) {
    ST_DCHECK(root_level >= 1 && root_level <= F::kMaxLevel);
    ST_DCHECK(min_level >= 1 && min_level <= root_level);
    const u64 limit = frame_limit<F>(root_level);
    last_ = last < limit ? last : limit;
    path_[root_level - 1] = root;
    restart();
  }

  // False: every entry was visited.
  [[nodiscard]] bool valid() const { return valid_; }
  [[nodiscard]] unsigned level() const { return level_; }
  // The first frame the entry covers; may be below `first`.
  [[nodiscard]] u64 frame() const { return frame_; }
  // How many frames the entry covers.
  [[nodiscard]] u64 frames() const { return span_of<F>(level_); }
  [[nodiscard]] Word old() const { return old_; }
  [[nodiscard]] Entry<F>* entry() const { return entry_; }
  // The table the entry is in.
  [[nodiscard]] Entry<F>* table() const { return path_[level_ - 1]; }
  [[nodiscard]] bool is_leaf() const { return F::is_leaf(old_, level_); }
  [[nodiscard]] bool is_table() const { return F::is_table(old_, level_); }

  // To the next entry: down if this is a table, else aside, else up and aside.
  void next() {
    ST_DCHECK(valid_);
    if (yielded_) return restart();
    if (step_down()) return;
    while (!step_aside()) {
      if (level_ == root_level_) {
        valid_ = false;
        return;
      }
      ++level_;
    }
    valid_ = frame_ < last_;
    if (valid_) reread();
  }

  // To the next entry, without what is below this one.
  void skip() {
    const unsigned min_level = min_level_;
    min_level_ = level_;
    next();
    min_level_ = min_level;
  }

  void reread() { old_ = memory_.load(entry_); }

  // Writes `desired` if the entry still is old(). True: it was, and old() is `desired`. False:
  // nothing was written, and old() is what the entry is.
  [[nodiscard]] bool compare_exchange(Word desired) {
    if (!memory_.compare_exchange(entry_, old_, desired)) return false;
    old_ = desired;
    return true;
  }
  // Pre: nobody else writes this entry (a lock is held exclusively, or the caller froze it).
  void store(Word desired) {
    memory_.store(entry_, desired);
    old_ = desired;
  }
  // Writes `desired` whatever the entry is and returns what it was.
  Word exchange(Word desired) {
    const Word was = memory_.exchange(entry_, desired);
    old_ = desired;
    return was;
  }
  // Keeps the bits of `mask` and returns what the entry was.
  Word fetch_and(Word mask) {
    const Word was = memory_.fetch_and(entry_, mask);
    old_ = was & mask;
    return was;
  }

  // To the root again, on the way to the frame the walk has reached.
  void restart() {
    yielded_ = false;
    yielded_goal_ = goal_;
    level_ = root_level_;
    valid_ = goal_ < last_;
    if (valid_) look();
  }
  // What protects the tables was let go: next() restarts; until then entry() and old() are void.
  void mark_yielded() { yielded_ = true; }
  void jump(u64 frame) {  // to a later frame
    goal_ = frame;
    yielded_ = true;
  }
  // The frame at which the walk last restarted.
  [[nodiscard]] u64 yielded_frame() const { return yielded_goal_; }
  // Has the walk moved since it last restarted? A caller that yields only then does come to its
  // end.
  [[nodiscard]] bool progressed() const { return goal_ != yielded_goal_; }

 private:
  // Reads the entry of path_[level_ - 1] on the way to goal_.
  void look() {
    frame_ = span_floor<F>(goal_, level_);
    entry_ = path_[level_ - 1] + index_of<F>(goal_, level_);
    reread();
  }

  bool step_down() {
    if (level_ <= min_level_ || level_ < 2) return false;
    reread();
    if (!F::is_table(old_, level_)) return false;
    Entry<F>* child = memory_.entries(F::output(old_, level_));
    --level_;
    path_[level_ - 1] = child;
    look();
    return true;
  }

  // False: this was the last entry of its table. Does not read.
  bool step_aside() {
    const unsigned index = index_of<F>(goal_, level_);
    if (index + 1 == entry_count<F>(level_)) return false;
    frame_ = span_floor<F>(goal_, level_) + frames();
    goal_ = frame_;
    entry_ = path_[level_ - 1] + index + 1;
    return true;
  }

  [[no_unique_address]] M memory_;
  Entry<F>* path_[F::kMaxLevel];  // [n - 1]: the table of level n on the way to goal_
  Entry<F>* entry_ = nullptr;
  u64 frame_ = 0;
  u64 goal_;  // the frame the walk has reached: `first`, then frame_ of each step aside
  u64 last_;
  u64 yielded_goal_;
  Word old_{};
  unsigned level_ = 0;
  unsigned root_level_;
  unsigned min_level_;
  bool valid_ = false;
  bool yielded_ = false;
};

}  // namespace stagetwo::pt
