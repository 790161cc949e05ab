// SPDX-License-Identifier: Apache-2.0
#pragma once

// The tree inside IntervalMap (base/interval_map.h), and nothing else's: a treap of disjoint ranges
// with a reserve of spare nodes, so that what was reserved cannot fail. Depth is O(log n) expected;
// recursion follows it.
//
// I1: ordered by address, heap-ordered by priority. I2: size() counts the nodes in the tree.

#include <utility>

#include "base/alloc.h"
#include "base/check.h"
#include "base/hash_map.h"

namespace stagetwo::detail {

template <typename A, typename V>
class IntervalTree {
 public:
  struct Node {
    A start{};
    A end{};
    V value{};
    u64 priority = 0;
    Node* left = nullptr;  // of a spare: the next spare
    Node* right = nullptr;
  };
  struct Parts {
    Node* left;
    Node* right;
  };

  explicit constexpr IntervalTree(const char* site) : site_(site) {}
  IntervalTree(const IntervalTree&) = delete;
  IntervalTree& operator=(const IntervalTree&) = delete;
  ~IntervalTree() {
    clear();
    while (spare_ != nullptr) free_node(std::exchange(spare_, spare_->left));
  }

  [[nodiscard]] size_t size() const { return size_; }
  void clear() { drop(std::exchange(root_, nullptr)); }

  // The first node that ends after `at`, or nullptr.
  [[nodiscard]] Node* find_from(A at) const {
    Node* best = nullptr;
    for (Node* node = root_; node != nullptr;) {
      if (at < node->end) {
        best = node;
        node = node->left;
      } else {
        node = node->right;
      }
    }
    return best;
  }
  // Keeps `count` nodes ready. Failure: ENOMEM.
  [[nodiscard]] Result<void> reserve(unsigned count) {
    while (spares_ < count) {
      auto* node = static_cast<Node*>(alloc(sizeof(Node), alignof(Node), site_));
      if (node == nullptr) return refuse(ENOMEM);
      push_spare(::new (node) Node());
    }
    wanted_spares_ = count;
    return {};
  }
  // Everything in [start, end) leaves the tree, which is empty until put_back(). Uses up to two
  // spares.
  Parts take_out(A start, A end) {
    cut(start);
    cut(end);
    const Parts low = split(root_, start);
    const Parts high = split(low.right, end);
    root_ = nullptr;
    drop(high.left);
    return {low.left, high.right};
  }
  void put_back(Parts parts) { root_ = merge(parts.left, parts.right); }
  // The same with a new range between, joined to neighbours of equal value. Uses one spare.
  void put_back(Parts parts, A start, A end, V value) {
    Node* fresh = take_spare(start, end, std::move(value));
    join_left(parts.left, *fresh);
    join_right(parts.right, *fresh);
    root_ = merge(merge(parts.left, fresh), parts.right);
  }

 private:
  void push_spare(Node* node) {
    node->left = spare_;
    node->right = nullptr;
    spare_ = node;
    ++spares_;
  }
  Node* take_spare(A start, A end, V value) {
    ST_CHECK(spare_ != nullptr);
    Node* node = std::exchange(spare_, spare_->left);
    --spares_;
    node->start = start;
    node->end = end;
    node->value = std::move(value);
    node->priority = hash_u64(++created_);
    node->left = node->right = nullptr;
    ++size_;
    return node;
  }
  void free_node(Node* node) {
    node->~Node();
    dealloc(node, sizeof(Node), alignof(Node));
  }
  // A node that left the tree: kept if the reserve is short.
  void retire(Node* node) {
    --size_;
    if (spares_ < wanted_spares_) {
      node->value = V{};
      push_spare(node);
    } else {
      free_node(node);
    }
  }
  void drop(Node* tree) {
    if (tree == nullptr) return;
    drop(tree->left);
    drop(tree->right);
    retire(tree);
  }

  // No range straddles `at` any more; one that did is two, with the same value.
  void cut(A at) {
    Node* node = root_;
    while (node != nullptr && !(node->start < at && at < node->end)) {
      node = at < node->end ? node->left : node->right;
    }
    if (node == nullptr) return;
    Node* tail = take_spare(at, node->end, node->value);
    node->end = at;
    const Parts parts = split(root_, at);
    root_ = merge(merge(parts.left, tail), parts.right);
  }
  // The nodes that start before `at`, and the others.
  static Parts split(Node* tree, A at) {
    if (tree == nullptr) return {nullptr, nullptr};
    if (tree->start < at) {
      const Parts parts = split(tree->right, at);
      tree->right = parts.left;
      return {tree, parts.right};
    }
    const Parts parts = split(tree->left, at);
    tree->left = parts.right;
    return {parts.left, tree};
  }
  // Pre: every node of `left` lies before every node of `right`.
  static Node* merge(Node* left, Node* right) {
    if (left == nullptr) return right;
    if (right == nullptr) return left;
    if (left->priority > right->priority) {
      left->right = merge(left->right, right);
      return left;
    }
    right->left = merge(left, right->left);
    return right;
  }
  // The last node of `tree` becomes part of `fresh` if it touches it with an equal value.
  void join_left(Node*& tree, Node& fresh) {
    Node** link = &tree;
    while (*link != nullptr && (*link)->right != nullptr) link = &(*link)->right;
    Node* last = *link;
    if (last == nullptr || !(last->end == fresh.start) || !(last->value == fresh.value)) return;
    fresh.start = last->start;
    *link = last->left;
    retire(last);
  }
  void join_right(Node*& tree, Node& fresh) {
    Node** link = &tree;
    while (*link != nullptr && (*link)->left != nullptr) link = &(*link)->left;
    Node* first = *link;
    if (first == nullptr || !(first->start == fresh.end) || !(first->value == fresh.value)) return;
    fresh.end = first->end;
    *link = first->right;
    retire(first);
  }

  Node* root_ = nullptr;
  Node* spare_ = nullptr;
  unsigned spares_ = 0;
  unsigned wanted_spares_ = 0;
  size_t size_ = 0;
  u64 created_ = 0;
  const char* site_;
};

}  // namespace stagetwo::detail
