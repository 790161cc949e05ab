// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which subscriptions overlap a range: an augmented treap of ranges, each node with the highest
// address below it. "Does any?" is asked without a lock beside a writer, O(log n). Analogue: the
// kernel's interval tree (interval_tree.h) under the spinlock of mmu_notifier_subscriptions.
//
//   reader                              | writer (one at a time)
//   v = version (seq_cst), even?        | version + 1, odd
//   walks: every link by acquire        | changes links, each a release
//   version (acquire) is still v: holds | version + 2, even (seq_cst)
//   else: kChanging, ask under the lock |
//
// Invariants: I1  ordered by (first, address of the node), heap-ordered by priority.
//             I2  highest = the largest `last` of the node and of what is below it.
//             I3  a reader touches no node that was erased before it began; who erases one keeps it
//                 alive until every reader that was inside has left.
// Locking: writers exclude each other by the owner's lock; for_each() wants the tree at rest.
// Failure: none, nothing is allocated.

#include "base/types.h"
#include "sync/atomic.h"

namespace stagetwo::host {

class SubscriptionTree {
 public:
  struct Node {
    // Both ends included. Immutable while in the tree.
    u64 first = 0;
    u64 last = 0;

   private:
    friend class SubscriptionTree;
    u64 priority_ = 0;
    // Written by writers (release), read by readers (acquire): the table above.
    sync::Atomic<Node*> left_{nullptr};
    sync::Atomic<Node*> right_{nullptr};
    sync::Atomic<u64> highest_{0};
  };
  enum class Answer : u8 { kNo, kYes, kChanging };

  constexpr SubscriptionTree() = default;
  SubscriptionTree(const SubscriptionTree&) = delete;
  SubscriptionTree& operator=(const SubscriptionTree&) = delete;

  // Without a lock. Neither answer is stale where the asker is ordered after the change of the tree
  // by a sequentially consistent access on both sides. kChanging: a writer is at work.
  [[nodiscard]] Answer overlaps(u64 first, u64 last) const;

  // The owner's lock is held for the rest, or nobody changes the tree meanwhile.
  [[nodiscard]] bool empty() const { return root_.load(sync::kAcquire) == nullptr; }
  [[nodiscard]] bool any(u64 first, u64 last) const;
  void insert(Node& node);
  // Pre: it is in the tree.
  void erase(Node& node);
  // fn(node) -> "go on" for each that overlaps, by rising address. O(log n + those found).
  template <typename F>
  void for_each(u64 first, u64 last, F&& fn) const {
    visit(root_.load(sync::kAcquire), first, last, fn);
  }
  // Forgets every node, touching none.
  void reset();

 private:
  struct Parts {
    Node* left;
    Node* right;
  };
  static Node* left_of(const Node* node) { return node->left_.load(sync::kAcquire); }
  static Node* right_of(const Node* node) { return node->right_.load(sync::kAcquire); }
  static u64 highest_of(const Node* node) { return node->highest_.load(sync::kAcquire); }
  static bool before(const Node& a, const Node& b) {
    return a.first != b.first ? a.first < b.first : &a < &b;
  }
  static void link(Node* node, Node* left, Node* right);
  static Parts split(Node* tree, const Node& at);
  static Node* merge(Node* left, Node* right);
  static Node* inserted(Node* tree, Node& node);
  static Node* without(Node* tree, Node& node);

  template <typename F>
  static bool visit(Node* node, u64 first, u64 last, F& fn) {
    if (node == nullptr || highest_of(node) < first) return true;
    if (!visit(left_of(node), first, last, fn)) return false;
    if (node->first > last) return true;
    if (node->last >= first && !fn(*node)) return false;
    return visit(right_of(node), first, last, fn);
  }

  sync::Atomic<u64> version_{0};
  sync::Atomic<Node*> root_{nullptr};
  u64 created_ = 0;
};

}  // namespace stagetwo::host
