// SPDX-License-Identifier: Apache-2.0
#include "sync/asymmetric.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace stagetwo::sync {
namespace {

TEST(AsymmetricBarrier, WordsArriveWithAndWithoutIt) {
  for (const bool membarrier : {true, false}) {
    if (membarrier) {
      static_cast<void>(asymmetric_init());
    } else {
      debug_forbid_membarrier();
    }
    Atomic<u32> word{0};
    store_light(word, u32{7});
    asymmetric_barrier();
    EXPECT_EQ(load_heavy(word), 7u);
  }
}

TEST(AsymmetricBarrier, IsRegisteredAgainInAChild) {
  static_cast<void>(asymmetric_init());
  const pid_t child = fork();
  if (child == 0) {
    asymmetric_barrier();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace stagetwo::sync
