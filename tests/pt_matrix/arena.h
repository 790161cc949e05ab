// SPDX-License-Identifier: Apache-2.0
#pragma once

// Table memory of a test: tables at made-up addresses, so that every format can hold them; it can
// run out, knows which tables are out, and writes down every write when asked to.

#include <deque>
#include <unordered_map>
#include <vector>

#include "pt/map.h"

namespace stagetwo::pt::test {

template <Format F>
class Arena {
 public:
  using Word = typename F::Word;
  struct Table {
    explicit Table(size_t count) : entries(count) {}
    std::vector<Entry<F>> entries;
    GatherNode node;
    u64 address = 0;
    unsigned level = 0;
    bool live = false;
  };
  struct Write {
    const Entry<F>* entry;
    Word word;
  };

  // As TableSource.
  Entry<F>* allocate(unsigned level) {
    if (allocations_left == 0) return nullptr;
    --allocations_left;
    Table& table = tables_.emplace_back(entry_count<F>(level));
    table.address = u64{tables_.size()} << 12;
    table.level = level;
    table.live = true;
    by_entries_[table.entries.data()] = &table;
    ++live_tables;
    for (Entry<F>& entry : table.entries) write(&entry, F::kNonpresent);
    return table.entries.data();
  }
  void free(Entry<F>* entries, unsigned) { end(by_entries_.at(entries)); }
  u64 address_of(Entry<F>* entries) { return by_entries_.at(entries)->address; }
  GatherNode* node_of(Entry<F>* entries) { return &by_entries_.at(entries)->node; }

  Entry<F>* at(u64 address) { return tables_.at((address >> 12) - 1).entries.data(); }
  void write(Entry<F>* entry, Word word) {
    entry->store(word, sync::kRelease);
    if (log != nullptr) log->push_back({entry, word});
  }
  // Flush and release, as the owner of a table does after unlocking.
  void settle(Gather& gather) {
    gather.flushed();
    gather.release<Table, &Table::node>([&](Table* table) { end(table); });
  }
  template <typename Fn>
  void for_each_entry(Fn&& fn) {
    for (Table& table : tables_) {
      if (!table.live) continue;
      for (Entry<F>& entry : table.entries) fn(&entry);
    }
  }

  u64 allocations_left = ~u64{0};
  u64 live_tables = 0;
  std::vector<Write>* log = nullptr;

 private:
  void end(Table* table) {
    EXPECT_TRUE(table->live) << "given back twice";
    table->live = false;
    --live_tables;
  }

  std::deque<Table> tables_;
  std::unordered_map<const Entry<F>*, Table*> by_entries_;
};

// The memory policy over it.
template <Format F>
struct ArenaMemory {
  using Word = typename F::Word;
  Arena<F>* arena;

  Entry<F>* entries(u64 address) const { return arena->at(address); }
  Word load(const Entry<F>* entry) const { return entry->load(sync::kAcquire); }
  void store(Entry<F>* entry, Word word) const { arena->write(entry, word); }
  Word exchange(Entry<F>* entry, Word word) const {
    const Word was = load(entry);
    arena->write(entry, word);
    return was;
  }
  bool compare_exchange(Entry<F>* entry, Word& expected, Word word) const {
    const Word was = load(entry);
    const bool same = was == expected;
    expected = was;
    if (same) arena->write(entry, word);
    return same;
  }
  Word fetch_and(Entry<F>* entry, Word mask) const { return exchange(entry, load(entry) & mask); }
  Word fetch_or(Entry<F>* entry, Word bits) const { return exchange(entry, load(entry) | bits); }
};

// A page table with everything around it.
template <Format F, unsigned RootLevel>
struct World {
  using Attributes = typename F::Attributes;
  static constexpr u64 kLimit = frame_limit<F>(RootLevel);

  World() = default;
  ~World() {
    unmap(0, kLimit);
    EXPECT_EQ(arena.live_tables, 1U) << "every table but the root comes back";
  }

  [[nodiscard]] Errno map(u64 first, u64 frames, u64 address, Attributes attributes,
                          unsigned max_level = F::kMaxLevel) {
    const auto done = mapper.map(first, frames, address, attributes, gather, max_level);
    arena.settle(gather);
    return done ? Errno{0} : done.error();
  }
  u64 unmap(u64 first, u64 frames) {
    const u64 mapped = mapper.unmap(first, frames, gather);
    arena.settle(gather);
    return mapped;
  }
  bool collapse(u64 frame, unsigned level) {
    const bool done = mapper.collapse(frame, level, gather);
    arena.settle(gather);
    return done;
  }

  // How many tables can be reached, and how many frames are mapped, by a walk.
  struct Count {
    u64 tables = 1;
    u64 frames = 0;
  };
  Count count() {
    Count all;
    for (Cursor<F, ArenaMemory<F>> at(root, RootLevel, 1, 0, kLimit, {&arena}); at.valid();
         at.next()) {
      if (at.is_table()) ++all.tables;
      if (at.is_leaf()) all.frames += at.frames();
    }
    return all;
  }

  Arena<F> arena;
  Entry<F>* root = arena.allocate(RootLevel);
  Mapper<F, Arena<F>, ArenaMemory<F>> mapper{root, RootLevel, arena, ArenaMemory<F>{&arena}};
  Gather gather;
};

}  // namespace stagetwo::pt::test
