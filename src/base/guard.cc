// SPDX-License-Identifier: Apache-2.0
#include "base/guard.h"

// Empty outside the preset `mutation`: shipped objects contain no mutation symbol.
#if defined(ST_MUTATION)

#include <string_view>

#include "base/check.h"

namespace stagetwo::mutation {
namespace {

constexpr int kMaxRemoved = 16;
// Published by the counter: entries below it are written before it rises.
const char* removed_names[kMaxRemoved];
int removed_count = 0;

}  // namespace

void remove(const char* name) {
  const int n = __atomic_load_n(&removed_count, __ATOMIC_RELAXED);
  ST_CHECK_OP(n, <, kMaxRemoved);
  __atomic_store_n(&removed_names[n], name, __ATOMIC_RELAXED);
  __atomic_store_n(&removed_count, n + 1, __ATOMIC_RELEASE);
}

void restore_all() {
  __atomic_store_n(&removed_count, 0, __ATOMIC_RELEASE);
}

bool removed(const char* name) {
  const int n = __atomic_load_n(&removed_count, __ATOMIC_ACQUIRE);
  for (int i = 0; i < n; ++i) {
    if (std::string_view(__atomic_load_n(&removed_names[i], __ATOMIC_RELAXED)) == name) return true;
  }
  return false;
}

}  // namespace stagetwo::mutation

#endif
