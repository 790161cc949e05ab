// SPDX-License-Identifier: Apache-2.0
#pragma once

// A slot as KVM_SET_USER_MEMORY_REGION names it.

#include "stage2/memslots.h"

namespace stagetwo::test {

inline stage2::Region region_of(u32 slot, u64 gpa, u64 size, u64 hva, u32 flags = 0) {
  stage2::Region region;
  region.slot = slot;
  region.flags = flags;
  region.gpa = gpa;
  region.size = size;
  region.hva = hva;
  return region;
}

}  // namespace stagetwo::test
