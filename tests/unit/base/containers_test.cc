// SPDX-License-Identifier: Apache-2.0
// Vec, HashMap and List: what they promise, and what they do when memory is refused.

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/failpoint.h"
#include "base/hash_map.h"
#include "base/list.h"
#include "base/vec.h"
#include "tests/support/seeds.h"

namespace stagetwo {
namespace {

// Counts what is alive, so that every path destroys what it made.
struct Token {
  static inline int alive = 0;
  int value = 0;
  Token() { ++alive; }
  explicit Token(int v) : value(v) { ++alive; }
  Token(Token&& other) noexcept : value(other.value) {
    ++alive;
    other.value = -1;
  }
  Token& operator=(Token&& other) noexcept {
    value = other.value;
    other.value = -1;
    return *this;
  }
  ~Token() { --alive; }
};

std::vector<int> values(const Vec<Token>& vec) {
  std::vector<int> out;
  for (const Token& token : vec) out.push_back(token.value);
  return out;
}

TEST(Vec, InsertsAndErasesInOrder) {
  {
    Vec<Token> vec;
    for (int i = 0; i < 5; ++i) ASSERT_TRUE(vec.push_back(Token(i)));
    ASSERT_TRUE(vec.insert(2, Token(9)));
    EXPECT_EQ(values(vec), (std::vector<int>{0, 1, 9, 2, 3, 4}));
    vec.erase(1, 3);
    EXPECT_EQ(values(vec), (std::vector<int>{0, 2, 3, 4}));
    vec.swap_erase(0);
    EXPECT_EQ(values(vec), (std::vector<int>{4, 2, 3}));
    vec.swap_erase(2);
    EXPECT_EQ(values(vec), (std::vector<int>{4, 2}));
    ASSERT_TRUE(vec.resize(4));
    EXPECT_EQ(values(vec), (std::vector<int>{4, 2, 0, 0}));
    const Vec<Token> moved = std::move(vec);
    EXPECT_EQ(moved.size(), 4u);
  }
  EXPECT_EQ(Token::alive, 0);
}

TEST(Vec, ARefusedGrowthChangesNothing) {
  Vec<Token> vec;
  while (vec.size() < vec.capacity() || vec.size() == 0) ASSERT_TRUE(vec.push_back(Token(7)));
  const auto before = values(vec);
  failpoint::arm(nullptr, 1);
  EXPECT_EQ(vec.push_back(Token(8)).error(), Errno{ENOMEM});
  failpoint::disarm();
  EXPECT_EQ(values(vec), before);
}

TEST(Vec, ReservedRoomIsNotRefused) {
  Vec<int> vec;
  ASSERT_TRUE(vec.reserve(10));
  failpoint::arm(nullptr, 1, failpoint::kForever);
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(vec.push_back(i));
  failpoint::disarm();
}

TEST(HashMap, AgreesWithTheStandardOne) {
  SCOPED_TRACE("STAGETWO_SEED=" + std::to_string(test::seed()));
  std::mt19937_64 random(test::seed());
  HashMap<u64, int> map;
  std::unordered_map<u64, int> model;
  for (int step = 0; step < 200'000; ++step) {
    const u64 key = random() % 500;
    const int value = static_cast<int>(random() % 1000);
    switch (random() % 4) {
      case 0:
        ASSERT_EQ(map.insert(key, value).has_value(), model.emplace(key, value).second);
        break;
      case 1:
        ASSERT_TRUE(map.put(key, value));
        model[key] = value;
        break;
      case 2:
        ASSERT_EQ(map.erase(key), model.erase(key) == 1);
        break;
      default: {
        const int* found = map.find(key);
        ASSERT_EQ(found != nullptr, model.contains(key));
        ASSERT_TRUE(found == nullptr || *found == model[key]);
      }
    }
    ASSERT_EQ(map.size(), model.size());
  }
  size_t seen = 0;
  map.for_each([&](u64 key, int value) {
    ++seen;
    EXPECT_EQ(model.at(key), value);
  });
  EXPECT_EQ(seen, model.size());
}

TEST(HashMap, ARefusedInsertionChangesNothing) {
  {
    HashMap<int, Token> map;
    for (int i = 0; i < 6; ++i) ASSERT_TRUE(map.insert(i, Token(i)));
    failpoint::arm(nullptr, 1);
    EXPECT_EQ(map.insert(100, Token(100)).error(), Errno{ENOMEM});
    failpoint::disarm();
    EXPECT_EQ(map.size(), 6u);
    for (int i = 0; i < 6; ++i) EXPECT_EQ(map.find(i)->value, i);
    EXPECT_EQ(map.insert(3, Token(1)).error(), Errno{EEXIST});
  }
  EXPECT_EQ(Token::alive, 0);
}

struct Member {
  explicit Member(int n) : number(n) {}
  int number;
  ListNode node;
};
using Members = List<Member, &Member::node>;

TEST(List, KeepsItsOrder) {
  Member a(1), b(2), c(3);
  Members list;
  EXPECT_TRUE(list.empty());
  list.push_back(&b);
  list.push_front(&a);
  list.push_back(&c);
  EXPECT_EQ(list.count(), 3u);
  EXPECT_EQ(list.next(&a), &b);
  EXPECT_EQ(list.next(&c), nullptr);
  list.remove(&b);
  EXPECT_FALSE(b.node.linked());
  list.insert_before(&a, &b);
  EXPECT_EQ(list.pop_front(), &b);
  list.for_each([&](Member& m) { list.remove(&m); });
  EXPECT_TRUE(list.empty());
  EXPECT_EQ(list.pop_front(), nullptr);
}

}  // namespace
}  // namespace stagetwo
