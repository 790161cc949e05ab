// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the engine cannot see of a program, and what becomes of it: one list for `stagetwo doctor`
// and for docs/what-is-not-seen.md, which a test compares.

#include <span>

namespace stagetwo::cli {

enum class Where {
  kEverywhere,
  kWithUserfaultfd,
  kWithoutUserfaultfd,  // denied, or for user mode only
  kDenied,              // no userfaultfd at all
};

struct Unseen {
  Where where;
  const char* what;
  const char* becomes;
};

std::span<const Unseen> all_unseen();

}  // namespace stagetwo::cli
