// SPDX-License-Identifier: Apache-2.0
#include "base/failpoint.h"

#include <gtest/gtest.h>

#include <map>
#include <string>

#include "base/alloc.h"

namespace stagetwo {
namespace {

class Failpoint : public ::testing::Test {
 protected:
  void TearDown() override { failpoint::disarm(); }
};

TEST_F(Failpoint, NothingFailsUnlessArmed) {
  for (int i = 0; i < 100; ++i) EXPECT_FALSE(failpoint::should_fail("x"));
}

TEST_F(Failpoint, TheNthQuestionFails) {
  failpoint::arm(nullptr, 3);
  EXPECT_FALSE(failpoint::should_fail("a"));
  EXPECT_FALSE(failpoint::should_fail("b"));
  EXPECT_TRUE(failpoint::should_fail("c"));
  EXPECT_FALSE(failpoint::should_fail("d"));
  EXPECT_EQ(failpoint::asked(), 4u);
  EXPECT_EQ(failpoint::failed(), 1u);
}

TEST_F(Failpoint, ASiteIsCountedByItself) {
  failpoint::arm("mine", 2, 2);
  EXPECT_FALSE(failpoint::should_fail("mine"));
  EXPECT_FALSE(failpoint::should_fail("other"));
  EXPECT_TRUE(failpoint::should_fail("mine"));
  EXPECT_FALSE(failpoint::should_fail("other"));
  EXPECT_TRUE(failpoint::should_fail("mine"));
  EXPECT_FALSE(failpoint::should_fail("mine"));
  EXPECT_EQ(failpoint::asked("mine"), 4u);
  EXPECT_EQ(failpoint::asked("other"), 2u);
}

TEST_F(Failpoint, SitesWithTheSameTextAreOneSite) {
  const std::string copy("same");
  failpoint::count_only();
  EXPECT_FALSE(failpoint::should_fail("same"));
  EXPECT_FALSE(failpoint::should_fail(copy.c_str()));
  EXPECT_EQ(failpoint::asked("same"), 2u);
}

TEST_F(Failpoint, SitesCanBeListed) {
  failpoint::arm("b", 1);
  static_cast<void>(failpoint::should_fail("a"));
  static_cast<void>(failpoint::should_fail("b"));
  std::map<std::string, std::pair<u64, u64>> seen;
  failpoint::for_each_site(
      [](void* out, const char* name, u64 asked, u64 failed) {
        (*static_cast<decltype(seen)*>(out))[name] = {asked, failed};
      },
      &seen);
  EXPECT_EQ(seen["a"], (std::pair<u64, u64>{1, 0}));
  EXPECT_EQ(seen["b"], (std::pair<u64, u64>{1, 1}));
}

TEST_F(Failpoint, ASweepWalksEveryUnhappyPath) {
  int succeeded = 0;
  u64 refused = 0;
  const u64 runs = failpoint::sweep([&] {
    auto a = make_box<int>("a");
    auto b = make_box<int>("b");
    auto c = make_box<int>("c");
    if (a && b && c) {
      ++succeeded;
    } else {
      ++refused;
    }
  });
  EXPECT_EQ(runs, 3u);
  EXPECT_EQ(refused, 3u);
  EXPECT_EQ(succeeded, 1);
}

}  // namespace
}  // namespace stagetwo
