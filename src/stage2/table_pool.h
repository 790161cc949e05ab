// SPDX-License-Identifier: Apache-2.0
#pragma once

// The memory of one VM's stage-2 tables. A table is a page of 512 entries and a header beside it;
// an entry holds the address of the entries, and the header is found from it by arithmetic.
// Analogue: struct kvm_mmu_page with page_private(), and the MMU's memory caches (kernel files:
// mmu_internal.h, mmu.c). Differs: headers lie in the chunk of their pages, so one allocation
// serves both, and nothing is looked up.
//
//   chunk (256 KiB, aligned):  | 64 headers of 128 bytes | 62 tables of 4096 bytes |
//
// Invariants: I1  a table handed out is nonpresent throughout.
//             I2  a table given back is in no list and reachable from no root; who gives it back
//                 has waited for every reader (stage2/tdp_mmu.h).
//             I3  use(page) names its owner: the pool, a cache, a tree, or a bag of removed ones.
// Locking: the free list under its own leaf lock. A TableCache is its thread's alone.
// Lifetime: chunks live as long as the pool; the pool ends with every table given back.
// Failure: only allocate() and top_up() can fail; what a fault needs is there before it locks.

#include "addr/addr.h"
#include "base/list.h"
#include "base/result.h"
#include "base/types.h"
#include "pt/fmt/stage2.h"
#include "pt/gather.h"
#include "sync/mutex.h"

namespace stagetwo::stage2 {

using Format = pt::Stage2;
using Word = Format::Word;
using Entry = pt::Entry<Format>;
inline constexpr unsigned kTableEntries = 1U << Format::kIndexBits;

enum class TableUse : u8 { kFree, kCached, kLinked, kRemoved };

struct TablePage {
  static constexpr unsigned kLine = 64 / sizeof(Word);
  static constexpr u64 kAllLines = ~u64{0} >> (64 - kTableEntries / kLine);

  Entry* entries = nullptr;  // immutable
  // Written before the table is linked, immutable while it is.
  Gfn gfn{};                // the first frame it covers
  Entry* parent = nullptr;  // the entry that points to it; null for a root
  u8 level = 0;
  u8 address_space = 0;
  TableUse use = TableUse::kFree;  // its owner's; read by the audit, at rest
  bool fresh = false;              // never written since it was mapped: all zero; its owner's
  bool marked = false;             // the audit's
  // It is here because a huge page may not be executable. Set before it is linked; cleared by who
  // removes it, under the pages lock. Read there, and by faults as a hint: relaxed.
  sync::Atomic<bool> nx_huge_page_disallowed{false};
  // Lines of 8 entries in which something may be present, a bit each: who holds the lock alone
  // looks no further. Raised before the entry is written, under the shared lock; lowered alone.
  sync::Atomic<u64> used{0};
  ListNode possible_nx;  // in the MMU's list, under the pages lock
  pt::GatherNode gather;
  TablePage* next_free = nullptr;

  // The host gives the page its memory now. The first look at it would otherwise map the host's
  // page of zeros, and the first store, under a lock, take that back from every processor.
  void make_present();
  [[nodiscard]] static TablePage* of(const Entry* entries);
  [[nodiscard]] u64 frames() const { return pt::span_of<Format>(level) << Format::kIndexBits; }
  template <typename Cursor>
  [[nodiscard]] static unsigned index_of(const Cursor& at) {
    return static_cast<unsigned>(at.entry() - at.table());
  }
  [[nodiscard]] static constexpr u64 line_of(unsigned index) { return u64{1} << index / kLine; }
  void note_used(unsigned index) {
    const u64 line = line_of(index);
    if ((used.load(sync::kRelaxed) & line) == 0) used.fetch_or(line, sync::kRelaxed);
  }
  // Pre: not linked yet.
  void note_all_used() { used.store(kAllLines, sync::kRelaxed); }
  // The first entry from `index` on that may be present, or kTableEntries. Lowers what it finds to
  // be empty. Pre: the lock is held alone.
  [[nodiscard]] unsigned next_used(unsigned index);
};

class TablePool {
 public:
  TablePool() = default;
  TablePool(const TablePool&) = delete;
  TablePool& operator=(const TablePool&) = delete;
  // Pre: every table was given back.
  ~TablePool();

  // A table in the state I1, or null. Context: may sleep in mmap; no lock held. take(): it is not
  // present yet, and whoever uses it says so to make_present().
  [[nodiscard]] TablePage* allocate() TA_EXCL(lock_);
  [[nodiscard]] TablePage* take() TA_EXCL(lock_);
  void give_back(TablePage* page) TA_EXCL(lock_);

  // Tables that are not in the pool. Racy while others work.
  [[nodiscard]] u64 live() const { return live_.load(sync::kRelaxed); }
  // fn(TablePage&) for every page there is, at rest.
  template <typename F>
  void for_each(F&& fn) TA_EXCL(lock_) {
    const sync::MutexGuard guard(lock_);
    for (Chunk* chunk = chunks_; chunk != nullptr; chunk = chunk->next) {
      for (unsigned i = kHeaderPages; i < kChunkPages; ++i) fn(*header(chunk->base, i));
    }
  }

 private:
  friend struct TablePage;
  static constexpr size_t kHeaderPitch = 128;
  static constexpr unsigned kChunkPages = 64;
  static constexpr unsigned kHeaderPages = kChunkPages * kHeaderPitch / kPageSize;
  static constexpr size_t kChunkBytes = kChunkPages * kPageSize;

  struct Chunk {
    u64 base = 0;
    Chunk* next = nullptr;
  };

  static TablePage* header(u64 base, unsigned index) {
    return reinterpret_cast<TablePage*>(base + index * kHeaderPitch);
  }
  bool grow() TA_REQ(lock_);

  sync::Mutex lock_{sync::Rank::kLeaf};
  TablePage* free_ TA_GUARDED(lock_) = nullptr;
  Chunk* chunks_ TA_GUARDED(lock_) = nullptr;
  sync::Atomic<u64> live_{0};  // relaxed: statistics and tests
};

// What one fault may need, taken before any lock is. Analogue: struct kvm_mmu_memory_cache.
class TableCache {
 public:
  static constexpr unsigned kCapacity = 40;
  static constexpr unsigned kEnoughForAFault = Format::kMaxLevel;

  explicit TableCache(TablePool& pool) : pool_(pool) {}
  TableCache(const TableCache&) = delete;
  TableCache& operator=(const TableCache&) = delete;
  ~TableCache() { drain(); }

  // Post: at least `enough` are here, and present. Failure: ENOMEM; what was there stays.
  [[nodiscard]] Result<void> top_up(unsigned enough = kEnoughForAFault);
  // Pre: count() > 0.
  [[nodiscard]] TablePage* take();
  // A table that was taken and not linked: the loser of a race gives its own back.
  void put_back(TablePage* page) { pool_.give_back(page); }
  void drain();
  [[nodiscard]] unsigned count() const { return count_; }

 private:
  [[nodiscard]] Result<void> fill_up(unsigned enough);

  TablePool& pool_;
  unsigned count_ = 0;
  unsigned present_ = 0;  // of them, from the last one on
  TablePage* pages_[kCapacity] = {};
};

inline TablePage* TablePage::of(const Entry* entries) {
  const u64 at = reinterpret_cast<u64>(entries);
  const u64 base = at & ~(TablePool::kChunkBytes - 1);
  return TablePool::header(base, static_cast<unsigned>((at - base) >> kPageShift));
}

static_assert(TablePage::kAllLines != 0 && kTableEntries / TablePage::kLine <= 64,
              "a bit for each line of entries");
static_assert(sizeof(TablePage) <= 128, "a header fits its place in the chunk");

}  // namespace stagetwo::stage2
