// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the turn keeps of a limit, and what it chooses pages from. Part of reclaim; not for other
// rooms. Analogue: struct lruvec and struct scan_control (kernel file: mm/vmscan.c).
// Locking: none; the turn's.

#include <stddef.h>

#include "addr/addr.h"
#include "base/types.h"
#include "reclaim/reclaim.h"
#include "reclaim/span.h"

namespace stagetwo::reclaim {

// What is chosen from: everything, or one guest's.
struct Scope {
  bool all = true;
  const HvaRange* ranges = nullptr;
  size_t count = 0;
  [[nodiscard]] bool has(HvaRange range) const;
};

// A limit, and how it is kept: of the process or of one guest.
struct Limited {
  u64 limit = kNoLimit;             // the process's: see limit_
  u64 fixed = 0;                    // bytes that cannot leave, as of the last look
  u64 histogram[kOldest + 1] = {};  // resident pages by age, those below zero not counted
  unsigned fruitless = 0;
  u64 unkept_until = 0;
  // Of a guest only. Its account (host/budget_accounts.h) has its place in limited_ as a number.
  size_t first_range = 0, ranges = 0;  // in limited_ranges_
  u64 bytes = 0;                       // of these
  u64 private_holes = 0;               // pages, as of the last look
  u64 counted_in = ~u64{0};            // the pass that the histogram is of
  s64 beyond = 0;                      // pages that it may have while the limit is not kept
  bool watched = false;                // its first touches
};

}  // namespace stagetwo::reclaim
