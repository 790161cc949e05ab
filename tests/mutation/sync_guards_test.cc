// SPDX-License-Identifier: Apache-2.0
// Guards of what is restarted, with threads that really run.
#include <gtest/gtest.h>

#include "base/guard.h"
#include "tests/support/widened_access.h"

namespace stagetwo::test {
namespace {

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
