// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the pages of a trapped part get whose client asks for `prot`: not the right to store; who
// may store may load.

#include <sys/mman.h>

namespace stagetwo::vfio {

constexpr int rights_of_trapped(int prot) {
  return (prot & PROT_WRITE) != 0 ? (prot & ~PROT_WRITE) | PROT_READ : prot;
}

}  // namespace stagetwo::vfio
