// SPDX-License-Identifier: Apache-2.0
#pragma once

// Limits of parts of the process's memory beside the limit of all of it (host/memory_budget.h): an
// account has ranges of the client's addresses, counts the pages of them that come and go, and has
// room for so many. A page may be of several accounts' ranges, or of none. Analogue: a memory
// cgroup below another one (kernel file: mm/memcontrol.c, try_charge()). Differs: what cannot be
// seen (first touches that nobody reports, memory that the client gives back) is corrected by who
// looks now and then.
//
// Locking: one leaf lock, under which nothing is allocated: who answers touches counts here, too.

#include "addr/addr.h"
#include "base/result.h"
#include "base/types.h"
#include "base/vec.h"
#include "sync/atomic.h"

namespace stagetwo::host::budget {

inline constexpr s64 kNoEnd = s64{1} << 50;  // pages

struct AccountRange {
  HvaRange range;
  u32 account;
};

// In place of those there were: `count` accounts, with nothing in them and room without end.
// Failure: ENOMEM; nothing changed.
[[nodiscard]] Result<void> set_accounts(Vec<AccountRange> ranges, u32 count);
void clear_accounts();

// Pages of the range have come; negative: so many of them went.
void count_in(HvaRange range, s64 pages);
// What was counted, in place of what was. Context: who has set the accounts.
void set_pages(u32 account, s64 pages);
[[nodiscard]] s64 pages_of(u32 account);
// For so many pages from now on; the last `reserve` are for those who pay first.
void set_room(u32 account, s64 pages, s64 reserve);

// The least that is left of what the page counts in; kNoEnd: it counts in none.
struct Left {
  s64 pages = kNoEnd;
  s64 spare = kNoEnd;  // beyond the reserve
};
[[nodiscard]] Left left_at(Hva at);

namespace detail {
extern constinit sync::Atomic<bool> accounted;  // relaxed: is there any account?
}
[[nodiscard]] inline bool has_accounts() {
  return detail::accounted.load(sync::kRelaxed);
}
void accounts_after_fork_child();

}  // namespace stagetwo::host::budget
