// SPDX-License-Identifier: Apache-2.0
#pragma once

// Intervals [start, last] by their start, in shared memory: an ordered tree whose nodes are members
// of what they describe and whose links are relative. Intervals may overlap; both ends belong to
// them, so that one may end at 2^64 - 1.
//
// Analogue: the interval tree of the kernel (include/linux/interval_tree_generic.h). Differs: a
// treap, so that no colour has to be right; O(log n) expected.
// I1  max_last is the greatest last below and at a node. I2  Order: start, then address.
// I3  Who goes through them in order, erasing or not, follows one link each.
// Locking: the arena's. Nothing is allocated.

#include "base/types.h"
#include "iommu/arena.h"

namespace stagetwo::iommu {

struct IntervalNode {
  u64 start = 0;
  u64 last = 0;
  u64 max_last = 0;
  u64 priority = 0;
  RelPtr<IntervalNode> left, right, parent;
  RelPtr<IntervalNode> previous, next;  // in the order
};

// An interval set without the types of its members.
class IntervalTree {
 public:
  void insert(IntervalNode* node);
  void erase(IntervalNode* node);
  // The first that has something in common with [start, last], or null.
  [[nodiscard]] IntervalNode* first(u64 start, u64 last) const;
  // The next one after `node` in the order, or null.
  [[nodiscard]] static IntervalNode* next(const IntervalNode* node) { return node->next; }
  [[nodiscard]] bool empty() const { return root_.get() == nullptr; }
  void swap(IntervalTree& other) {
    IntervalNode* const mine = root_;
    root_ = other.root_.get();
    other.root_ = mine;
  }

 private:
  void replace(IntervalNode* parent, const IntervalNode* child, IntervalNode* by);

  RelPtr<IntervalNode> root_;
  u64 random_ = 0;
};

// Of T, whose first member is the node.
template <typename T>
class IntervalSet {
 public:
  void insert(T* item) { tree_.insert(&item->node); }
  void erase(T* item) { tree_.erase(&item->node); }
  [[nodiscard]] T* first(u64 start = 0, u64 last = ~u64{0}) const {
    return of(tree_.first(start, last));
  }
  [[nodiscard]] T* next(const T* item) const { return of(tree_.next(&item->node)); }
  [[nodiscard]] bool empty() const { return tree_.empty(); }
  void swap(IntervalSet& other) { tree_.swap(other.tree_); }
  [[nodiscard]] const IntervalTree& tree() const { return tree_; }

 private:
  static T* of(IntervalNode* node) { return reinterpret_cast<T*>(node); }
  IntervalTree tree_;
};

}  // namespace stagetwo::iommu
