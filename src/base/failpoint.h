// SPDX-License-Identifier: Apache-2.0
#pragma once

// Every engine allocation, mapping and pin asks should_fail() first; a test makes the nth one fail,
// at one site or at any, and so walks every unhappy path. A site is a string constant such as
// "stage2.memslots"; sites with the same text are one site.
//
// When nothing is armed the question costs one relaxed load.
// Context: any. The test functions are not for concurrent use with each other.

#include <string_view>

#include "base/types.h"

namespace stagetwo::failpoint {

namespace detail {
extern bool active;
bool should_fail_slow(const char* site);
}  // namespace detail

// Must the caller behave as if memory (or whatever it asks for) had run out?
inline bool should_fail(const char* site) {
  if (!__atomic_load_n(&detail::active, __ATOMIC_RELAXED)) [[likely]]
    return false;
  return detail::should_fail_slow(site);
}

// Fails the nth question (from 1) and the `times - 1` after it, at `site`, or anywhere if nullptr.
// Counting starts now. Replaces what was armed before.
void arm(const char* site, u64 nth, u64 times = 1);
inline constexpr u64 kForever = ~u64{0};
// Counts questions per site without failing any.
void count_only();
// Nothing fails and nothing is counted any more; the counts stay readable.
void disarm();

// Questions asked since arm() or count_only().
u64 asked();
u64 asked(std::string_view site);
// How many of them failed.
u64 failed();
// Calls fn(context, site, asked, failed) for each site seen. At most kMaxSites are told apart.
inline constexpr size_t kMaxSites = 256;
void for_each_site(void (*fn)(void*, const char*, u64, u64), void* context);

// Runs `body` once with every question n = 1, 2, … failing, until a run asks fewer than n
// questions. `body` must leave the world as it found it; returns the number of runs in which
// something failed.
template <typename F>
u64 sweep(F&& body, const char* site = nullptr, u64 limit = 100'000) {
  for (u64 n = 1; n <= limit; ++n) {
    arm(site, n);
    body();
    const bool fired = failed() != 0;
    disarm();
    if (!fired) return n - 1;
  }
  return limit;
}

}  // namespace stagetwo::failpoint
