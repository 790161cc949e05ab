// SPDX-License-Identifier: Apache-2.0
#include "mem/secure_pool.h"

#include <bit>

#include "addr/addr.h"
#include "base/alloc.h"
#include "base/check.h"
#include "base/failpoint.h"

namespace stagetwo::mem {

SecurePool::~SecurePool() {
  const sync::MutexGuard guard(lock_);
  dealloc(entries_, count_ * sizeof(Entry));
  dealloc(asked_for_, count_ * sizeof(*asked_for_));
}

Result<void> SecurePool::open(u32 pages, u64 page_bytes, SecureMemory::Want want) {
  ST_CHECK(count_ == 0);
  u64 bytes = 0;
  if (pages == 0 || pages == kNone || page_bytes < kPageSize || !std::has_single_bit(page_bytes) ||
      __builtin_mul_overflow(u64{pages}, page_bytes, &bytes)) {
    return refuse(EINVAL);
  }
  SecureMemory memory = ST_TRY(SecureMemory::map(bytes, want, "mem.secure_pool"));
  void* entries = alloc(pages * sizeof(Entry), kMinAlign, "mem.secure_pool_entries");
  if (entries == nullptr) return refuse(ENOMEM);
  void* asked_for = alloc(pages * sizeof(*asked_for_), kMinAlign, "mem.secure_pool_entries");
  if (asked_for == nullptr) {
    dealloc(entries, pages * sizeof(Entry));
    return refuse(ENOMEM);
  }
  const sync::MutexGuard guard(lock_);
  memory_ = std::move(memory);
  entries_ = static_cast<Entry*>(entries);
  for (u32 i = 0; i < pages; ++i) ::new (static_cast<void*>(entries_ + i)) Entry();
  asked_for_ = static_cast<sync::Atomic<u8>*>(asked_for);
  for (u32 i = 0; i < pages; ++i) ::new (static_cast<void*>(asked_for_ + i)) sync::Atomic<u8>(0);
  page_bytes_ = page_bytes;
  count_ = free_ = pages;
  return {};
}

// kMostGuests: it holds no page.
u32 SecurePool::account_of(u32 guest) const {
  u32 at = 0;
  while (at < kMostGuests && (accounts_[at].pages == 0 || accounts_[at].guest != guest)) ++at;
  return at;
}

u32 SecurePool::held(u32 guest) {
  const sync::MutexGuard guard(lock_);
  const u32 account = account_of(guest);
  return account < kMostGuests ? accounts_[account].pages : 0;
}

u32 SecurePool::take(Holder holder) {
  if (failpoint::should_fail("mem.secure_pool")) return kNone;
  const sync::MutexGuard guard(lock_);
  if (free_ == 0) return kNone;
  while (entries_[search_].taken) search_ = search_ + 1 == count_ ? 0 : search_ + 1;
  u32 account = account_of(holder.guest);
  if (account == kMostGuests) {
    for (account = 0; account < kMostGuests && accounts_[account].pages != 0;) ++account;
    ST_CHECK(account < kMostGuests);
    accounts_[account].guest = holder.guest;
  }
  ++accounts_[account].pages;
  entries_[search_] = {holder.page, static_cast<u8>(account), true, true};
  --free_;
  return search_;
}

void SecurePool::give_back(u32 page) {
  // Before anybody can be given it; it is ours alone until then.
  if (asked_for_[page].exchange(0, sync::kRelaxed) != 0) {
    wipe(memory_.data() + page * page_bytes_, page_bytes_);
  }
  const sync::MutexGuard guard(lock_);
  ST_CHECK(page < count_ && entries_[page].taken);
  entries_[page].taken = false;
  --accounts_[entries_[page].account].pages;
  ++free_;
}

bool SecurePool::next_victim(u32 guest, bool of_others, u32 quota, u32* hand, Holder* victim) {
  const sync::MutexGuard guard(lock_);
  // Twice round: the first time may find every page used.
  for (u64 steps = 0; steps < 2 * u64{count_}; ++steps) {
    Entry& entry = entries_[*hand];
    *hand = *hand + 1 == count_ ? 0 : *hand + 1;
    if (!entry.taken) continue;
    const Account& holder = accounts_[entry.account];
    if ((holder.guest == guest) == of_others || (of_others && holder.pages <= quota)) continue;
    if (entry.used) {
      entry.used = false;
      continue;
    }
    *victim = {holder.guest, entry.page};
    return true;
  }
  return false;
}

void SecurePool::used(u32 page) {
  const sync::MutexGuard guard(lock_);
  ST_DCHECK(page < count_ && entries_[page].taken);
  entries_[page].used = true;
}

u32 SecurePool::free_count() {
  const sync::MutexGuard guard(lock_);
  return free_;
}

}  // namespace stagetwo::mem
