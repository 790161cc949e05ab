// SPDX-License-Identifier: Apache-2.0
#pragma once

// For who has a way that asks no failpoint: it is not gone while one is armed.

#include "base/failpoint.h"

namespace stagetwo::failpoint {

inline bool is_armed() {
  return __atomic_load_n(&detail::active, __ATOMIC_RELAXED);
}

}  // namespace stagetwo::failpoint
