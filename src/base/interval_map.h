// SPDX-License-Identifier: Apache-2.0
#pragma once

// IntervalMap<A, V>: disjoint half-open ranges [start, end) of addresses, each with a value.
// Neighbours with equal values are one range. Lookup and change cost O(log n) plus the ranges
// touched. Analogue: the kernel's interval tree and maple tree, where ranges of one value coalesce.
//
// I1: ranges are disjoint, none is empty, and two that touch have different values.
// I2: a change is all or nothing: what it can need is reserved before anything moves.
//
// A change needs at most kNodesPerChange nodes. reserve() keeps that many ready, after which one
// assign_reserved() or erase_reserved() cannot fail: that is how teardown uses the map.
// The address just below the end of A's values cannot be covered: `end` has no representation
// there. Locking: the caller's. A: totally ordered, copyable. V: copyable, ==. References to values
// die with the next change.

#include <utility>

#include "base/check.h"
#include "base/interval_tree.h"
#include "base/result.h"

namespace stagetwo {

template <typename A, typename V>
class IntervalMap {
 public:
  static constexpr unsigned kNodesPerChange = 3;

  // A range of the map, as readers see it.
  struct Entry {
    A start;
    A end;
    V* value;
    explicit operator bool() const { return value != nullptr; }
  };

  explicit constexpr IntervalMap(const char* site = "base.interval_map") : tree_(site) {}

  // The range that contains `at`; empty if none.
  [[nodiscard]] Entry find(A at) const {
    const Entry entry = find_from(at);
    return entry && entry.start <= at ? entry : Entry{};
  }
  // The first range that ends after `at`; empty if none.
  [[nodiscard]] Entry find_from(A at) const {
    auto* node = tree_.find_from(at);
    return node == nullptr ? Entry{} : Entry{node->start, node->end, &node->value};
  }
  [[nodiscard]] bool overlaps(A start, A end) const {
    const Entry entry = find_from(start);
    return entry && entry.start < end;
  }
  // fn(Entry) for each range that overlaps [start, end), in order. `fn` changes values only, and
  // keeps I1.
  template <typename F>
  void for_each(A start, A end, F&& fn) const {
    for (Entry entry = find_from(start); entry && entry.start < end; entry = find_from(entry.end)) {
      fn(entry);
    }
  }

  // Maps [start, end). Failure: EEXIST if any of it is mapped, ENOMEM; nothing changed.
  // Pre, here and below: start < end.
  [[nodiscard]] Result<void> insert(A start, A end, V value) {
    if (overlaps(start, end)) return refuse(EEXIST);
    return assign(start, end, std::move(value));
  }
  // Maps [start, end) whatever was there. Failure: ENOMEM; nothing changed.
  [[nodiscard]] Result<void> assign(A start, A end, V value) {
    ST_TRY(reserve());
    assign_reserved(start, end, std::move(value));
    return {};
  }
  // Unmaps [start, end). Failure: ENOMEM; nothing changed.
  [[nodiscard]] Result<void> erase(A start, A end) {
    ST_TRY(reserve());
    erase_reserved(start, end);
    return {};
  }

  // Post: the next change cannot fail. Failure: ENOMEM.
  [[nodiscard]] Result<void> reserve() { return tree_.reserve(kNodesPerChange); }
  // Pre: reserve() since the last change.
  void assign_reserved(A start, A end, V value) {
    ST_DCHECK(start < end);
    tree_.put_back(tree_.take_out(start, end), start, end, std::move(value));
  }
  void erase_reserved(A start, A end) {
    ST_DCHECK(start < end);
    tree_.put_back(tree_.take_out(start, end));
  }

  void clear() { tree_.clear(); }
  [[nodiscard]] size_t size() const { return tree_.size(); }
  [[nodiscard]] bool empty() const { return size() == 0; }

 private:
  detail::IntervalTree<A, V> tree_;
};

}  // namespace stagetwo
