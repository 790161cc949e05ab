// SPDX-License-Identifier: Apache-2.0
// Guards of the locks, with threads that really run.
#include <gtest/gtest.h>

#include "base/guard.h"
#include "tests/support/big_reader_yields.h"

namespace stagetwo::test {
namespace {

TEST(BigWriterGivesWay, WithoutTheWaitAYieldLetsNobodyIn) {
  mutation::remove("big_writer_gives_way");
  EXPECT_LT(readers_let_in(200), 150);
  mutation::restore_all();
}

}  // namespace
}  // namespace stagetwo::test
