// SPDX-License-Identifier: Apache-2.0
#include "host/budget_accounts.h"

#include <algorithm>
#include <memory>

#include "sync/mutex.h"

namespace stagetwo::host::budget {

namespace detail {
constinit sync::Atomic<bool> accounted{false};
}

namespace {

struct Account {
  s64 pages = 0;
  s64 room = kNoEnd;
  s64 reserve = 0;
};

// By where it starts; no range before it, and it, end behind `reaches`.
struct Entry {
  HvaRange range;
  u32 account;
  Hva reaches;
};

struct AccountTables {
  Vec<Entry> entries{"host.account_ranges"};
  Vec<Account> all{"host.accounts"};

  // fn(account, pages of `range` that count in it).
  template <typename F>
  void for_each_of(HvaRange range, F&& fn) {
    const Entry* at =
        std::lower_bound(entries.begin(), entries.end(), range.end(),
                         [](const Entry& entry, Hva end) { return entry.range.start() < end; });
    while (at != entries.begin() && (at - 1)->reaches > range.start()) {
      --at;
      if (!at->range.overlaps(range)) continue;
      const Hva first = std::max(at->range.start(), range.start());
      const Hva end = std::min(at->range.end(), range.end());
      fn(all[at->account], static_cast<s64>((end - first) >> kPageShift));
    }
  }
};

// Nothing of it is to be destroyed when the program ends: guests may run until then.
struct Accounts {
  sync::Mutex lock{sync::Rank::kLeaf};
  AccountTables* tables TA_GUARDED(lock) = nullptr;  // null: none

  Account* find(u32 account) TA_REQ(lock) {
    const bool there = tables != nullptr && account < tables->all.size();
    return there ? &tables->all[account] : nullptr;
  }
};
constinit Accounts accounts;

// By where they start.
Result<AccountTables*> fill_tables(const Vec<AccountRange>& ranges, u32 count) {
  auto made = ST_TRY(make_box<AccountTables>("host.accounts"));
  ST_TRY(made->entries.reserve(ranges.size()));
  ST_TRY(made->all.resize(count));
  Hva reaches{};
  for (const AccountRange& one : ranges) {
    reaches = std::max(reaches, one.range.end());
    ST_TRY(made->entries.push_back({one.range, one.account, reaches}));
  }
  return made.release();
}

}  // namespace

Result<void> set_accounts(Vec<AccountRange> ranges, u32 count) {
  std::sort(ranges.begin(), ranges.end(), [](const AccountRange& a, const AccountRange& b) {
    return a.range.start() < b.range.start();
  });
  AccountTables* made = nullptr;
  if (count != 0) made = ST_TRY(fill_tables(ranges, count));
  {
    const sync::MutexGuard guard(accounts.lock);
    std::swap(accounts.tables, made);
  }
  destroy(made);
  detail::accounted.store(count != 0, sync::kRelaxed);
  return {};
}

void clear_accounts() {
  static_cast<void>(set_accounts(Vec<AccountRange>{}, 0));
}

void count_in(HvaRange range, s64 pages) {
  if (!has_accounts()) return;
  const sync::MutexGuard guard(accounts.lock);
  if (accounts.tables == nullptr) return;
  accounts.tables->for_each_of(range, [&](Account& account, s64 most) {
    account.pages = std::max<s64>(account.pages + std::clamp(pages, -most, most), 0);
  });
}

void set_pages(u32 account, s64 pages) {
  const sync::MutexGuard guard(accounts.lock);
  if (Account* const one = accounts.find(account)) one->pages = pages;
}

s64 pages_of(u32 account) {
  const sync::MutexGuard guard(accounts.lock);
  const Account* const one = accounts.find(account);
  return one == nullptr ? 0 : one->pages;
}

void set_room(u32 account, s64 pages, s64 reserve) {
  const sync::MutexGuard guard(accounts.lock);
  Account* const one = accounts.find(account);
  if (one == nullptr) return;
  one->room = pages;
  one->reserve = reserve;
}

Left left_at(Hva at) {
  Left left;
  if (!has_accounts()) return left;
  const sync::MutexGuard guard(accounts.lock);
  if (accounts.tables == nullptr) return left;
  accounts.tables->for_each_of(HvaRange(page_floor(at), kPageSize),
                               [&](const Account& account, s64) {
                                 const s64 pages = account.room - account.pages;
                                 left.pages = std::min(left.pages, pages);
                                 left.spare = std::min(left.spare, pages - account.reserve);
                               });
  return left;
}

// Who had the lock is not in this process, and the parent's arena not ours to give back to.
void accounts_after_fork_child() {
  std::construct_at(&accounts);
  detail::accounted.store(false, sync::kRelaxed);
}

}  // namespace stagetwo::host::budget
