// SPDX-License-Identifier: Apache-2.0
// The smallest use of the library: an address kind, and a sum a guest could have chosen.
#include <cstdint>
#include <cstdio>

#include "addr/addr.h"

int main() {
  const stagetwo::Gpa top{~std::uint64_t{0}};
  if (top.checked_add(1).has_value()) return 1;
  std::puts("consumer: a sum past the end of the space is refused");
  return 0;
}
