// SPDX-License-Identifier: Apache-2.0
// Runs another program where userfaultfd is denied.
#define _GNU_SOURCE
#include "deny.h"
#include "machine.h"

int main(int argc, char** argv) {
  REQUIRE(argc > 1);
  REQUIRE(deny_userfaultfd() == 0);
  execvp(argv[1], argv + 1);
  return 127;
}
