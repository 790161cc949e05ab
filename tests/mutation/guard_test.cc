// SPDX-License-Identifier: Apache-2.0
// A guard can be removed by its name, and by that name only. Runs in the preset `mutation`.
#include "base/guard.h"

#include <gtest/gtest.h>

namespace stagetwo {
namespace {

bool stale_is_refused(bool stale) {
  return ST_GUARD(stale_answer, stale);
}

class Guard : public ::testing::Test {
 protected:
  void TearDown() override { mutation::restore_all(); }
};

TEST_F(Guard, IsItsConditionUntilRemoved) {
  EXPECT_TRUE(stale_is_refused(true));
  EXPECT_FALSE(stale_is_refused(false));
}

TEST_F(Guard, LetsEverythingPassOnceRemoved) {
  mutation::remove("stale_answer");
  EXPECT_FALSE(stale_is_refused(true));
}

TEST_F(Guard, StaysWhenAnotherIsRemoved) {
  mutation::remove("stale");
  EXPECT_TRUE(stale_is_refused(true));
}

TEST_F(Guard, ComesBack) {
  mutation::remove("stale_answer");
  mutation::restore_all();
  EXPECT_TRUE(stale_is_refused(true));
}

}  // namespace
}  // namespace stagetwo
