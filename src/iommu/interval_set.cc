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

// What stands before `at`, and the rest. Whose they are is the caller's to say.
void split(IntervalNode* tree, const IntervalNode* at, IntervalNode** before,
           IntervalNode** behind) {
  if (tree == nullptr || tree->max_last < at->start) {
    *before = tree;
    *behind = nullptr;
    return;
  }
  IntervalNode* between = nullptr;
  if (is_before(tree, at)) {
    split(tree->right, at, &between, behind);
    set_right(tree, between);
    *before = tree;
  } else {
    split(tree->left, at, before, &between);
    set_left(tree, between);
    *behind = tree;
  }
  pull(tree);
}

// Pre: every node of `a` stands before every node of `b`.
IntervalNode* merge(IntervalNode* a, IntervalNode* b) {
  if (a == nullptr) return b;
  if (b == nullptr) return a;
  IntervalNode* const above = a->priority > b->priority ? a : b;
  if (above == a) {
    set_right(a, merge(a->right, b));
  } else {
    set_left(b, merge(a, b->left));
  }
  pull(above);
  return above;
}

}  // namespace

void IntervalTree::replace(IntervalNode* parent, const IntervalNode* child, IntervalNode* by) {
  if (by != nullptr) by->parent = parent;
  if (parent == nullptr) {
    root_ = by;
  } else if (parent->left.get() == child) {
    parent->left = by;
  } else {
    parent->right = by;
  }
}

// Who is on the way to the new node will be above it.
void IntervalTree::insert(IntervalNode* node) {
  node->priority = hash_u64(++random_);
  IntervalNode *parent = nullptr, *below = root_;
  IntervalNode *previous = nullptr, *next = nullptr;
  bool is_left = false;
  while (below != nullptr && below->priority >= node->priority) {
    if (below->max_last < node->last) below->max_last = node->last;
    parent = below;
    is_left = is_before(node, below);
    (is_left ? next : previous) = below;
    below = is_left ? below->left : below->right;
  }
  IntervalNode *before = nullptr, *behind = nullptr;
  split(below, node, &before, &behind);
  set_left(node, before);
  set_right(node, behind);
  pull(node);
  for (; before != nullptr; before = before->right) previous = before;
  for (; behind != nullptr; behind = behind->left) next = behind;
  node->previous = previous;
  node->next = next;
  if (previous != nullptr) previous->next = node;
  if (next != nullptr) next->previous = node;
  node->parent = parent;
  if (parent == nullptr) {
    root_ = node;
  } else if (is_left) {
    parent->left = node;
  } else {
    parent->right = node;
  }
}

// Who reaches further than the node stays as it is, and so does everybody above.
void IntervalTree::erase(IntervalNode* node) {
  IntervalNode *const previous = node->previous, *const next = node->next;
  if (previous != nullptr) previous->next = next;
  if (next != nullptr) next->previous = previous;
  IntervalNode* const parent = node->parent;
  replace(parent, node, merge(node->left, node->right));
  for (IntervalNode* at = parent; at != nullptr && at->max_last == node->last; at = at->parent) {
    pull(at);
  }
}

IntervalNode* IntervalTree::first(u64 start, u64 last) const {
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

}  // namespace stagetwo::iommu
