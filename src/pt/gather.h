// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a removal returns: the tables it took out of the tree and the frames whose cached
// translations are to be forgotten. A bag, filled under the lock and emptied after it:
//
//   change → unlock → flush (gather.flushed()) → release (gather.release(...))
//
// Linux analogue: struct iommu_iotlb_gather; struct mmu_gather.
//
// I1  A table in the bag is reachable from no root; whoever removed it, and only he, put it there.
// I2  release() finds no flush owed: a reader that saw a table through its old parent has
//     acknowledged since. The bag does not know how; the caller says so with flushed().
// I3  Nothing is allocated, so a removal cannot fail for want of memory.
//
// Locking: none, the bag belongs to one thread. Lifetime: a bag is empty of tables when it ends.

#include "base/check.h"
#include "base/types.h"

namespace stagetwo::pt {

// The link by which a table hangs in a bag; a member of whatever describes a table.
struct GatherNode {
  GatherNode* next_in_gather = nullptr;
};

class Gather {
 public:
  Gather() = default;
  Gather(const Gather&) = delete;
  Gather& operator=(const Gather&) = delete;
  ~Gather() { ST_DCHECK(first_table_ == nullptr); }

  // A table that was just unlinked, and what it covered.
  void add_table(GatherNode* table, u64 frame, u64 frames) {
    table->next_in_gather = first_table_;
    first_table_ = table;
    ++table_count_;
    add_range(frame, frames);
  }
  // Frames whose translation was taken away or changed.
  void add_range(u64 frame, u64 frames) {
    if (!flush_owed_ || frame < start_) start_ = frame;
    if (!flush_owed_ || frame + frames > end_) end_ = frame + frames;
    flush_owed_ = true;
  }
  // Moves everything of `other` here.
  void take(Gather& other) {
    if (other.flush_owed_) add_range(other.start_, other.end_ - other.start_);
    while (GatherNode* table = other.pop()) {
      table->next_in_gather = first_table_;
      first_table_ = table;
      ++table_count_;
    }
    other.flushed();
  }

  [[nodiscard]] bool flush_owed() const { return flush_owed_; }
  // The hull of what is to be flushed, [start, end). Pre: flush_owed().
  [[nodiscard]] u64 flush_start() const { return start_; }
  [[nodiscard]] u64 flush_end() const { return end_; }
  // Every reader of the hull, and of the tables, has acknowledged.
  void flushed() { flush_owed_ = false; }

  [[nodiscard]] bool empty() const { return first_table_ == nullptr && !flush_owed_; }
  [[nodiscard]] bool has_tables() const { return first_table_ != nullptr; }
  [[nodiscard]] u64 table_count() const { return table_count_; }

  // fn(T*) for each table, which is out of the bag then. Pre: !flush_owed().
  template <typename T, GatherNode T::* Member, typename Fn>
  void release(Fn&& fn) {
    ST_CHECK(!flush_owed_);
    while (GatherNode* table = pop()) fn(owner<T, Member>(table));
  }

 private:
  GatherNode* pop() {
    GatherNode* table = first_table_;
    if (table == nullptr) return nullptr;
    first_table_ = table->next_in_gather;
    table->next_in_gather = nullptr;
    --table_count_;
    return table;
  }

  // As List::owner (base/list.h).
  template <typename T, GatherNode T::* Member>
  static T* owner(GatherNode* node) {
    auto* nowhere = reinterpret_cast<T*>(u64{1} << 20);
    const u64 offset = reinterpret_cast<u64>(&(nowhere->*Member)) - reinterpret_cast<u64>(nowhere);
    return reinterpret_cast<T*>(reinterpret_cast<u64>(node) - offset);
  }

  GatherNode* first_table_ = nullptr;
  u64 table_count_ = 0;
  u64 start_ = 0;
  u64 end_ = 0;
  bool flush_owed_ = false;
};

}  // namespace stagetwo::pt
