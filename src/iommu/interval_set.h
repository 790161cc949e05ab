// SPDX-License-Identifier: Apache-2.0
#pragma once

// Intervals [start, last] by their start, in shared memory: an ordered tree whose nodes are members
// of what they describe and whose links are relative. Both ends belong to an interval, so that one
// may end at 2^64 - 1.
//
// Analogue: the interval tree of the kernel (include/linux/interval_tree_generic.h). Differs: a
// treap, so that no colour has to be right; O(log n) expected. What is looked for, entered or
// erased beside the one before is found without a walk, in O(1) expected.
// I1  Where intervals may overlap, max_last is the greatest last below and at a node; where they
//     may not, their lasts are in order as their starts are, and it is 0.
// I2  Order: start, then address.
// I3  Who goes through them in order, erasing or not, follows one link each.
// Locking: the arena's. Nothing is allocated.

#include "base/types.h"
#include "iommu/arena.h"

namespace stagetwo::iommu {

struct IntervalNode {
  Kept<u64> start;
  Kept<u64> last;
  Kept<u64> max_last;
  Kept<u64> priority;
  RelPtr<IntervalNode> left, right, parent;
  RelPtr<IntervalNode> previous, next;  // in the order
};

enum class Intervals { kMayOverlap, kDisjoint };

// An interval set without the types of its members.
template <Intervals kKind>
class IntervalTree {
 public:
  void insert(IntervalNode* node);
  void erase(IntervalNode* node);
  // The first that has something in common with [start, last], or null.
  [[nodiscard]] IntervalNode* first(u64 start, u64 last) const;
  // The next one after `node` in the order, or null.
  [[nodiscard]] static IntervalNode* next(const IntervalNode* node) { return node->next; }
  // For who erases one after the other: what the next one hangs on. Answers it.
  static const IntervalNode* prefetch_behind(const IntervalNode* node) {
    const IntervalNode* const next = node->next;
    if (next == nullptr) return nullptr;
    __builtin_prefetch(next->right.get(), 1);
    __builtin_prefetch(next->parent.get(), 1);
    prefetch_ahead(node, next);
    return next;
  }
  [[nodiscard]] bool empty() const { return root_.get() == nullptr; }
  void swap(IntervalTree& other) {
    swap_links(root_, other.root_);
    swap_links(near_, other.near_);
  }

 private:
  static void swap_links(RelPtr<IntervalNode>& a, RelPtr<IntervalNode>& b) {
    IntervalNode* const mine = a;
    a = b.get();
    b = mine;
  }
  void append(IntervalNode* node, IntervalNode* previous);
  void find_place(const IntervalNode* node, IntervalNode** previous, IntervalNode** next) const;
  void replace(IntervalNode* parent, const IntervalNode* child, IntervalNode* by);
  void rotate_up(IntervalNode* node);

  RelPtr<IntervalNode> root_;
  RelPtr<IntervalNode> near_;  // entered last, or beside the one erased last
  Kept<u64> random_;
};

// Of T, whose first member is the node.
template <typename T, Intervals kKind = Intervals::kMayOverlap>
class IntervalSet {
 public:
  // Pre: where they are disjoint, it has nothing in common with any member.
  void insert(T* item) { tree_.insert(&item->node); }
  void erase(T* item) { tree_.erase(&item->node); }
  [[nodiscard]] T* first(u64 start = 0, u64 last = ~u64{0}) const {
    return of(tree_.first(start, last));
  }
  [[nodiscard]] T* next(const T* item) const { return of(tree_.next(&item->node)); }
  static const T* prefetch_behind(const T* item) {
    return reinterpret_cast<const T*>(IntervalTree<kKind>::prefetch_behind(&item->node));
  }
  [[nodiscard]] bool empty() const { return tree_.empty(); }
  void swap(IntervalSet& other) { tree_.swap(other.tree_); }

 private:
  static T* of(IntervalNode* node) { return reinterpret_cast<T*>(node); }
  IntervalTree<kKind> tree_;
};

}  // namespace stagetwo::iommu
