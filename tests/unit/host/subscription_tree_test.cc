// SPDX-License-Identifier: Apache-2.0
// Goal: the tree of subscriptions answers as a list would, also beside a writer. Method: random
// operations against a naive list; readers that look while a writer changes the tree.
#include "host/subscription_tree.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "tests/support/random_source.h"
#include "tests/support/seeds.h"

namespace stagetwo::host {
namespace {

using Node = SubscriptionTree::Node;
using Answer = SubscriptionTree::Answer;

std::unique_ptr<Node> node_of(u64 first, u64 last) {
  auto node = std::make_unique<Node>();
  node->first = first;
  node->last = last;
  return node;
}

TEST(SubscriptionTree, AnEmptyOneOverlapsNothing) {
  const SubscriptionTree tree;
  EXPECT_EQ(Answer::kNo, tree.overlaps(0, ~u64{0}));
  EXPECT_TRUE(tree.empty());
}

TEST(SubscriptionTree, BothEndsBelongToARange) {
  SubscriptionTree tree;
  const auto node = node_of(10, 19);
  tree.insert(*node);
  EXPECT_EQ(Answer::kNo, tree.overlaps(0, 9));
  EXPECT_EQ(Answer::kYes, tree.overlaps(0, 10));
  EXPECT_EQ(Answer::kYes, tree.overlaps(19, ~u64{0}));
  EXPECT_EQ(Answer::kNo, tree.overlaps(20, ~u64{0}));
  tree.erase(*node);
  EXPECT_TRUE(tree.empty());
}

TEST(SubscriptionTree, AnswersAsAListWould) {
  test::RandomSource random(test::seed());
  SubscriptionTree tree;
  std::vector<std::unique_ptr<Node>> list;
  for (int step = 0; step < 20'000; ++step) {
    const u64 first = random.below(1000);
    const u64 last = first + random.below(40);
    if (list.size() < 200 && random.below(2) == 0) {
      list.push_back(node_of(first, last));
      tree.insert(*list.back());
    } else if (!list.empty() && random.below(3) == 0) {
      const size_t which = random.below(list.size());
      tree.erase(*list[which]);
      list.erase(list.begin() + static_cast<std::ptrdiff_t>(which));
    }
    std::vector<const Node*> wanted;
    for (const auto& one : list) {
      if (one->first <= last && first <= one->last) wanted.push_back(one.get());
    }
    std::vector<const Node*> found;
    u64 previous = 0;
    tree.for_each(first, last, [&](const Node& one) {
      EXPECT_LE(previous, one.first);
      previous = one.first;
      found.push_back(&one);
      return true;
    });
    std::sort(wanted.begin(), wanted.end());
    std::sort(found.begin(), found.end());
    ASSERT_EQ(wanted, found) << "STAGETWO_SEED=" << test::seed();
    ASSERT_EQ(wanted.empty() ? Answer::kNo : Answer::kYes, tree.overlaps(first, last));
  }
}

// A reader beside a writer says what was true, or that it does not know.
TEST(SubscriptionTree, AReaderBesideAWriterIsNotMisled) {
  SubscriptionTree tree;
  const auto fixed = node_of(500, 509);
  tree.insert(*fixed);
  std::vector<std::unique_ptr<Node>> movers;
  for (u64 i = 0; i < 64; ++i) movers.push_back(node_of(i * 7, i * 7 + 3));
  std::atomic<bool> stop{false};
  std::atomic<u64> answered{0};
  std::thread reader([&] {
    while (!stop) {
      EXPECT_NE(Answer::kNo, tree.overlaps(505, 506));
      EXPECT_NE(Answer::kYes, tree.overlaps(600, 700));
      if (tree.overlaps(505, 506) == Answer::kYes) ++answered;
    }
  });
  for (int round = 0; round < 300 || answered == 0; ++round) {
    for (auto& one : movers) tree.insert(*one);
    for (auto& one : movers) tree.erase(*one);
    std::this_thread::yield();
  }
  stop = true;
  reader.join();
}

}  // namespace
}  // namespace stagetwo::host
