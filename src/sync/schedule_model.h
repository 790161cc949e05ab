// SPDX-License-Identifier: Apache-2.0
#pragma once

// The memory model behind the schedule seam: which values may a load return?
//
// Every word keeps its last few writes in modification order. Every thread keeps a view: for each
// word the oldest write it may still read. A relaxed read of an older write is what a store buffer
// or a late cache does; it is how a missing store-to-load ordering shows. The rules:
//
//   read               any write not older than the view; the view moves up to it
//   acquire read       also joins the view that came with the write
//   write              becomes the newest
//   release write      carries the writer's view; a read-modify-write carries on what it read
//   seq_cst read       not older than the last seq_cst access of the same word
//   barrier everywhere joins all views of all threads
//
// A word that nobody has written in a run has one value, which stood in it before: it is not kept,
// so that a walk over a page table costs nothing here.
//
// Weaker than every machine we know in that it takes a locked instruction for no more than its C++
// order; stronger than C++ in that writes of one word are ordered as executed. Accesses of one
// thread happen in program order, so a load never sees the future.
//
// No lock: one thread runs at a time.

#include <atomic>

#include "base/hash_map.h"
#include "base/types.h"

#if defined(ST_SCHED)

namespace stagetwo::sync::sched {

class Random {
 public:
  // The seed is mixed: neighbouring seeds must not be one sequence shifted by a step.
  explicit Random(u64 seed) : state_(hash_u64(seed + 0x9e3779b97f4a7c15u)) {}
  u64 next();
  // Uniform in [0, n). Pre: n > 0.
  u64 below(u64 n) { return next() % n; }

 private:
  u64 state_;
};

class Model {
 public:
  static constexpr unsigned kThreads = 8;
  static constexpr unsigned kWords = 256;
  static constexpr unsigned kHistory = 8;

  void reset(unsigned threads, bool weak);
  void forget(const void* memory, u64 bytes);
  u64 load(unsigned thread, const void* word, u64 newest, std::memory_order order, Random& random);
  // Before the first write of a word: what stands in it.
  void learn(const void* word, u64 newest) { static_cast<void>(find(word, newest)); }
  void read_newest(unsigned thread, const void* word, std::memory_order order);
  void write(unsigned thread, const void* word, u64 value, std::memory_order order, bool modify);
  void barrier_everywhere();
  // Is the last write of the word in the thread's past?
  bool ordered(unsigned thread, const void* word);

 private:
  struct View {
    u32 at[kWords];
  };
  struct Write {
    u64 value;
    View carried;
  };
  // Writes are numbered from 0; number n stands in history[n % kHistory].
  struct Word {
    const void* address;
    u32 newest;
    u32 seq_cst;  // no seq_cst read may return an older one
    Write history[kHistory];
  };

  unsigned look_up(const void* word) const;  // kWords: nobody has written it
  unsigned find(const void* word, u64 newest);
  void join(View& into, const View& from);

  unsigned threads_;
  unsigned words_;
  bool weak_;
  View view_[kThreads];
  Word word_[kWords];
};

}  // namespace stagetwo::sync::sched

#endif
