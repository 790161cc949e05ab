// SPDX-License-Identifier: Apache-2.0
#include "iommu/interval_set.h"

#include "base/bits.h"
#include "base/hash_map.h"

namespace stagetwo::iommu {
namespace {

bool is_before(const IntervalNode* a, const IntervalNode* b) {
  return a->start != b->start ? a->start < b->start : a < b;
}

void pull(IntervalNode* node) {
  node->max_last = node->last;
  for (const IntervalNode* child : {node->left.get(), node->right.get()}) {
    if (child != nullptr && child->max_last > node->max_last) node->max_last = child->max_last;
  }
}

void set_left(IntervalNode* node, IntervalNode* child) {
  node->left = child;
  if (child != nullptr) child->parent = node;
}
void set_right(IntervalNode* node, IntervalNode* child) {
  node->right = child;
  if (child != nullptr) child->parent = node;
}

// Pre: every node of `a` stands before every node of `b`.
template <Intervals kKind>
IntervalNode* merge(IntervalNode* a, IntervalNode* b) {
  if (a == nullptr) return b;
  if (b == nullptr) return a;
  IntervalNode* const above = a->priority > b->priority ? a : b;
  if (above == a) {
    set_right(a, merge<kKind>(a->right, b));
  } else {
    set_left(b, merge<kKind>(a, b->left));
  }
  if constexpr (kKind == Intervals::kMayOverlap) pull(above);
  return above;
}

}  // namespace

// Pre: the parent, or the tree where there is none, and who comes in its place are noted.
template <Intervals kKind>
void IntervalTree<kKind>::replace(IntervalNode* parent, const IntervalNode* child,
                                  IntervalNode* by) {
  if (by != nullptr) by->parent.set_unnoted(parent);
  if (parent == nullptr) {
    root_.set_unnoted(by);
  } else if (parent->left.get() == child) {
    parent->left.set_unnoted(by);
  } else {
    parent->right.set_unnoted(by);
  }
}

// In the place of its parent, which comes to stand below it.
template <Intervals kKind>
void IntervalTree<kKind>::rotate_up(IntervalNode* node) {
  IntervalNode* const parent = node->parent;
  undo::note_all(this, node, parent->parent.get());
  replace(parent->parent, parent, node);
  if (parent->left.get() == node) {
    set_left(parent, node->right);
    node->right = parent;
  } else {
    set_right(parent, node->left);
    node->left = parent;
  }
  parent->parent = node;
  if constexpr (kKind == Intervals::kMayOverlap) {
    pull(parent);
    pull(node);
  }
}

// Between which two the node is to stand.
template <Intervals kKind>
void IntervalTree<kKind>::find_place(const IntervalNode* node, IntervalNode** previous,
                                     IntervalNode** next) const {
  if (IntervalNode* const near = near_; near != nullptr) {
    const bool behind = is_before(near, node);
    *previous = behind ? near : near->previous.get();
    *next = behind ? near->next.get() : near;
    const bool fits = (*previous == nullptr || is_before(*previous, node)) &&
                      (*next == nullptr || is_before(node, *next));
    if (fits) return;
  }
  *previous = *next = nullptr;
  for (IntervalNode* below = root_; below != nullptr;) {
    const bool left = is_before(node, below);
    *(left ? next : previous) = below;
    below = left ? below->left : below->right;
  }
}

// Behind all: whoever stands on the right edge with less priority comes below it. Pre: the node is
// noted.
template <Intervals kKind>
void IntervalTree<kKind>::append(IntervalNode* node, IntervalNode* previous) {
  IntervalNode *above = previous, *below = nullptr;
  while (above != nullptr && above->priority < node->priority) {
    below = above;
    above = above->parent;
  }
  if (below != nullptr) {
    node->left.set_unnoted(below);
    below->parent = node;
  }
  node->parent.set_unnoted(above);
  if (above == nullptr) {
    root_ = node;
  } else {
    above->right = node;
  }
}

// Of two that stand beside each other one is above the other, and has nothing on that side, or the
// lower one has nothing on the other: there the node hangs first.
template <Intervals kKind>
void IntervalTree<kKind>::insert(IntervalNode* node) {
  IntervalNode *previous = near_, *next = nullptr;
  // Who enters one behind the other has the last one at hand.
  const bool is_last = previous != nullptr && previous->next.get() == nullptr;
  if (!is_last || !is_before(previous, node)) find_place(node, &previous, &next);
  undo::note_all(this, node, previous, next);
  random_.set_unnoted(random_ + 1);
  node->priority.set_unnoted(hash_u64(random_));
  node->left.set_unnoted(nullptr);
  node->right.set_unnoted(nullptr);
  node->previous.set_unnoted(previous);
  node->next.set_unnoted(next);
  if (previous != nullptr) previous->next.set_unnoted(node);
  if (next != nullptr) next->previous.set_unnoted(node);
  near_.set_unnoted(node);
  if (kKind == Intervals::kDisjoint && next == nullptr) return append(node, previous);
  const bool is_right = previous != nullptr && previous->right.get() == nullptr;
  IntervalNode* const parent = is_right ? previous : next;
  node->parent.set_unnoted(parent);
  if (parent == nullptr) {
    root_ = node;
  } else if (is_right) {
    parent->right = node;
  } else {
    parent->left = node;
  }
  if constexpr (kKind == Intervals::kMayOverlap) {
    node->max_last.set_unnoted(node->last);
    for (IntervalNode* at = parent; at != nullptr && at->max_last < node->last; at = at->parent) {
      at->max_last = node->last;
    }
  }
  for (const IntervalNode* at = parent; at != nullptr && at->priority < node->priority;
       at = node->parent) {
    rotate_up(node);
  }
}

// Who reaches further than the node stays as it is, and so does everybody above.
template <Intervals kKind>
void IntervalTree<kKind>::erase(IntervalNode* node) {
  IntervalNode *const previous = node->previous, *const next = node->next;
  undo::note_all(this, previous, next);
  if (previous != nullptr) previous->next.set_unnoted(next);
  if (next != nullptr) next->previous.set_unnoted(previous);
  near_.set_unnoted(next != nullptr ? next : previous);
  IntervalNode* const parent = node->parent;
  IntervalNode *const left = node->left, *const right = node->right;
  IntervalNode* const by = left == nullptr    ? right
                           : right == nullptr ? left
                                              : merge<kKind>(left, right);
  undo::note_all(parent, by);
  replace(parent, node, by);
  if constexpr (kKind == Intervals::kMayOverlap) {
    for (IntervalNode* at = parent; at != nullptr && at->max_last == node->last; at = at->parent) {
      pull(at);
    }
  }
}

template <>
IntervalNode* IntervalTree<Intervals::kMayOverlap>::first(u64 start, u64 last) const {
  IntervalNode* node = root_;
  while (node != nullptr && node->max_last >= start) {
    IntervalNode* const left = node->left;
    if (left != nullptr && left->max_last >= start) {
      node = left;  // the first of all is there, or there is none
      continue;
    }
    if (node->start > last) return nullptr;
    if (node->last >= start) return node;
    node = node->right;
  }
  return nullptr;
}

// The first that does not end before `start`, if it begins by `last`.
template <>
IntervalNode* IntervalTree<Intervals::kDisjoint>::first(u64 start, u64 last) const {
  IntervalNode* found = near_;
  if (found != nullptr && found->last < start) {
    found = found->next;
    if (found == nullptr) return nullptr;
  }
  const IntervalNode* const before = found == nullptr ? nullptr : found->previous.get();
  const bool is_it =
      found != nullptr && found->last >= start && (before == nullptr || before->last < start);
  if (!is_it) {
    found = nullptr;
    for (IntervalNode* node = root_; node != nullptr;) {
      const bool reaches = node->last >= start;
      if (reaches) found = node;
      node = reaches ? node->left : node->right;
    }
  }
  return found != nullptr && found->start <= last ? found : nullptr;
}

template class IntervalTree<Intervals::kMayOverlap>;
template class IntervalTree<Intervals::kDisjoint>;

}  // namespace stagetwo::iommu
