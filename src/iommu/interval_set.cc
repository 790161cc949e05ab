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

// What stands before `at`, and the rest.
void split(IntervalNode* tree, const IntervalNode* at, IntervalNode** before,
           IntervalNode** behind) {
  if (tree == nullptr) {
    *before = *behind = nullptr;
    return;
  }
  IntervalNode* between = nullptr;
  if (is_before(tree, at)) {
    split(tree->right, at, &between, behind);
    tree->right = between;
    *before = tree;
  } else {
    split(tree->left, at, before, &between);
    tree->left = between;
    *behind = tree;
  }
  pull(tree);
}

// Pre: every node of `a` stands before every node of `b`.
IntervalNode* merge(IntervalNode* a, IntervalNode* b) {
  if (a == nullptr) return b;
  if (b == nullptr) return a;
  if (a->priority > b->priority) {
    a->right = merge(a->right, b);
    pull(a);
    return a;
  }
  b->left = merge(a, b->left);
  pull(b);
  return b;
}

IntervalNode* insert_below(IntervalNode* tree, IntervalNode* node) {
  if (tree == nullptr) return node;
  if (node->priority > tree->priority) {
    IntervalNode *before = nullptr, *behind = nullptr;
    split(tree, node, &before, &behind);
    node->left = before;
    node->right = behind;
    pull(node);
    return node;
  }
  if (is_before(node, tree)) {
    tree->left = insert_below(tree->left, node);
  } else {
    tree->right = insert_below(tree->right, node);
  }
  pull(tree);
  return tree;
}

IntervalNode* erase_below(IntervalNode* tree, IntervalNode* node) {
  if (tree == node) return merge(node->left, node->right);
  if (is_before(node, tree)) {
    tree->left = erase_below(tree->left, node);
  } else {
    tree->right = erase_below(tree->right, node);
  }
  pull(tree);
  return tree;
}

}  // namespace

void IntervalTree::insert(IntervalNode* node) {
  node->priority = hash_u64(++random_);
  node->left = nullptr;
  node->right = nullptr;
  node->max_last = node->last;
  root_ = insert_below(root_, node);
}

void IntervalTree::erase(IntervalNode* node) {
  root_ = erase_below(root_, node);
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

IntervalNode* IntervalTree::next(const IntervalNode* node) const {
  IntervalNode* found = nullptr;
  for (IntervalNode* at = root_; at != nullptr;) {
    if (is_before(node, at)) {
      found = at;
      at = at->left;
    } else {
      at = at->right;
    }
  }
  return found;
}

}  // namespace stagetwo::iommu
