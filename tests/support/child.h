// SPDX-License-Identifier: Apache-2.0
#pragma once

// A child of fork, waited for.

#include <gtest/gtest.h>
#include <sys/wait.h>

namespace stagetwo::test {

// Its exit status, or 1000 and the signal that killed it.
inline int exit_of(pid_t child) {
  int status = 0;
  EXPECT_EQ(child, ::waitpid(child, &status, 0));
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

}  // namespace stagetwo::test
