// SPDX-License-Identifier: Apache-2.0
#include "base/check.h"

#include <gtest/gtest.h>
#include <signal.h>

#include "base/result.h"
#include "base/types.h"

namespace stagetwo {
namespace {

TEST(Check, PrintsTheConditionAndEndsTheProcess) {
  EXPECT_DEATH(ST_CHECK(1 + 1 == 3), "check failed at .*check_test.cc:.*1 \\+ 1 == 3");
}

TEST(Check, PrintsBothOperands) {
  const u64 five = 5;
  EXPECT_DEATH(ST_CHECK_OP(five, >, u64{16}), "five > u64\\{16\\} \\(0x5 and 0x10\\)");
}

TEST(Check, EndsTheProcessEvenIfTheClientHandlesTheSignal) {
  EXPECT_DEATH(
      {
        signal(SIGABRT, SIG_IGN);
        ST_CHECK(false);
      },
      "check failed");
}

TEST(Check, LetsTruthPass) {
  ST_CHECK(true);
  ST_CHECK_OP(1, <, 2);
  ST_DCHECK(true);
}

Result<int> half(int n) {
  if (n % 2 != 0) return refuse(EINVAL);
  return n / 2;
}
Result<int> quarter(int n) {
  return ST_TRY(half(ST_TRY(half(n))));
}

TEST(Result, ARefusalTravelsUnchanged) {
  EXPECT_EQ(*quarter(8), 2);
  EXPECT_EQ(quarter(6).error(), Errno{EINVAL});
  EXPECT_EQ(to_int(quarter(3).error()), EINVAL);
}

}  // namespace
}  // namespace stagetwo
