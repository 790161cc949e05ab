// SPDX-License-Identifier: Apache-2.0
#pragma once

// Is something broken without a guard? Asked in a child, since a failing schedule leaves locks held
// and a broken table ends the process.

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <initializer_list>

#include "base/guard.h"

namespace stagetwo::test {

// `is_broken` is asked without the guards. A broken world may also end by one of its own checks.
template <typename F>
bool broken_without(std::initializer_list<const char*> guards, F&& is_broken) {
  constexpr int kBroken = 1;
  constexpr int kWhole = 2;
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    // What the child says about its failures is the point of the test, and not a failure of it.
    static_cast<void>(std::freopen("/dev/null", "w", stdout));
    static_cast<void>(std::freopen("/dev/null", "w", stderr));
    for (const char* guard : guards) mutation::remove(guard);
    _exit(is_broken() ? kBroken : kWhole);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status) || WEXITSTATUS(status) == kBroken;
}

}  // namespace stagetwo::test
