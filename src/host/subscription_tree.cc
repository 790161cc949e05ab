// SPDX-License-Identifier: Apache-2.0
#include "host/subscription_tree.h"

#include "base/check.h"
#include "base/hash_map.h"

namespace stagetwo::host {
namespace {

// Far above the depth of any tree there can be: a reader that gets here follows links that a writer
// is changing.
constexpr unsigned kMostSteps = 512;

}  // namespace

SubscriptionTree::Answer SubscriptionTree::overlaps(u64 first, u64 last) const {
  const u64 version = version_.load(sync::kSeqCst);
  if ((version & 1) != 0) return Answer::kChanging;
  Answer answer = Answer::kNo;
  const Node* node = root_.load(sync::kAcquire);
  for (unsigned step = 0; node != nullptr; ++step) {
    if (step == kMostSteps) return Answer::kChanging;
    const Node* left = left_of(node);
    if (left != nullptr && highest_of(left) >= first) {
      // Whatever overlaps at all, something to the left does, if anything.
      node = left;
    } else if (node->first > last) {
      break;
    } else if (node->last >= first) {
      answer = Answer::kYes;
      break;
    } else {
      node = right_of(node);
    }
  }
  return version_.load(sync::kAcquire) == version ? answer : Answer::kChanging;
}

bool SubscriptionTree::any(u64 first, u64 last) const {
  bool found = false;
  for_each(first, last, [&](const Node&) {
    found = true;
    return false;
  });
  return found;
}

void SubscriptionTree::insert(Node& node) {
  version_.fetch_add(1, sync::kAcqRel);
  node.priority_ = hash_u64(++created_);
  root_.store(inserted(root_.load(sync::kRelaxed), node), sync::kRelease);
  version_.fetch_add(1, sync::kSeqCst);
}

void SubscriptionTree::erase(Node& node) {
  version_.fetch_add(1, sync::kAcqRel);
  root_.store(without(root_.load(sync::kRelaxed), node), sync::kRelease);
  version_.fetch_add(1, sync::kSeqCst);
}

void SubscriptionTree::reset() {
  version_.store(0, sync::kRelaxed);
  root_.store(nullptr, sync::kRelease);
}

void SubscriptionTree::link(Node* node, Node* left, Node* right) {
  u64 highest = node->last;
  if (left != nullptr && highest_of(left) > highest) highest = highest_of(left);
  if (right != nullptr && highest_of(right) > highest) highest = highest_of(right);
  node->left_.store(left, sync::kRelease);
  node->right_.store(right, sync::kRelease);
  node->highest_.store(highest, sync::kRelease);
}

// The nodes before `at`, and the others.
SubscriptionTree::Parts SubscriptionTree::split(Node* tree, const Node& at) {
  if (tree == nullptr) return {nullptr, nullptr};
  if (before(*tree, at)) {
    const Parts parts = split(right_of(tree), at);
    link(tree, left_of(tree), parts.left);
    return {tree, parts.right};
  }
  const Parts parts = split(left_of(tree), at);
  link(tree, parts.right, right_of(tree));
  return {parts.left, tree};
}

// Pre: every node of `left` stands before every node of `right`.
SubscriptionTree::Node* SubscriptionTree::merge(Node* left, Node* right) {
  if (left == nullptr) return right;
  if (right == nullptr) return left;
  if (left->priority_ > right->priority_) {
    link(left, left_of(left), merge(right_of(left), right));
    return left;
  }
  link(right, merge(left, left_of(right)), right_of(right));
  return right;
}

SubscriptionTree::Node* SubscriptionTree::inserted(Node* tree, Node& node) {
  if (tree == nullptr || tree->priority_ < node.priority_) {
    const Parts parts = split(tree, node);
    link(&node, parts.left, parts.right);
    return &node;
  }
  if (before(node, *tree)) {
    link(tree, inserted(left_of(tree), node), right_of(tree));
  } else {
    link(tree, left_of(tree), inserted(right_of(tree), node));
  }
  return tree;
}

SubscriptionTree::Node* SubscriptionTree::without(Node* tree, Node& node) {
  ST_CHECK(tree != nullptr);
  if (tree == &node) return merge(left_of(tree), right_of(tree));
  if (before(node, *tree)) {
    link(tree, without(left_of(tree), node), right_of(tree));
  } else {
    link(tree, left_of(tree), without(right_of(tree), node));
  }
  return tree;
}

}  // namespace stagetwo::host
