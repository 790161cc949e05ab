// SPDX-License-Identifier: Apache-2.0
// Guards of the locks, with threads that really run.
#include <gtest/gtest.h>

#include "base/guard.h"
#include "tests/support/big_reader_yields.h"
#include "tests/support/widened_access.h"

namespace stagetwo::test {
namespace {

TEST(BigWriterGivesWay, WithoutTheWaitAYieldLetsNobodyIn) {
  mutation::remove("big_writer_gives_way");
  EXPECT_LT(readers_let_in(200), 150);
  mutation::restore_all();
}

TEST(RestartBarrier, WithoutItAnAccessReadsWhatThePageBecame) {
  if (sync::restartable_section() == nullptr) {
    GTEST_SKIP() << "libc or the kernel has no restartable sections";
  }
  if (!TwoProcessors().there()) GTEST_SKIP() << "one processor: who changes preempts who reads";
  mutation::remove("restart_barrier");
  const WidenedRounds done = run_widened(5000);
  mutation::restore_all();
  EXPECT_GT(done.late, 0U);
}

}  // namespace
}  // namespace stagetwo::test
