// SPDX-License-Identifier: Apache-2.0
#pragma once

// The records behind host/page_owner.h. Not for other rooms.
//
//   state      who may act                    a touch                successors
//   kTaking    the taker                      waits                  kAbsent, none (refused)
//   kReading   the taker, copying it          missing: zeros         kTaking
//   kAbsent    the first toucher              brings it back         kFilling, kClosing
//   kFilling   that toucher                   waits                  none, kAbsent (retry), kLost
//   kClosing   the change that discards it    waits                  none, kAbsent (it failed)
//   kLost      nobody                         bus error              none (discarded)
//
// Whoever ends a state that others wait in raises `turn_` under the lock and wakes it, and wakes
// the page's touchers in the kernel after unlocking.

#include "base/hash_map.h"
#include "base/vec.h"
#include "host/page_owner.h"
#include "host/page_transit.h"
#include "host/userfault.h"
#include "sync/atomic.h"
#include "sync/mutex.h"

namespace stagetwo::host {

enum class PageStage : u8 { kTaking, kReading, kAbsent, kFilling, kClosing, kLost };

struct PageRecord {
  PageOwner* owner = nullptr;
  Hva at;
  PageStage stage = PageStage::kTaking;
  Hiding hiding = Hiding::kUserfault;
  Prot prot;
  bool writable = false;
};

// A call that is using the range (host/held_pages.h).
struct Hold {
  HvaRange range;
  u64 object;  // where on the thread's stack it stands
  u64 id;
  int thread;
};

class OwnerTable final : public TransitWatcher {
 public:
  OwnerTable() = default;

  // A taker between these keeps fork out.
  void begin_take();
  void end_take();
  // Pre: between begin_take and end_take; watch_pages() said `hiding`. False: the page stays.
  bool take(PageKey key, const PageRecord& fresh);
  // A span whose touches are reported; forgotten when nothing is absent.
  [[nodiscard]] Result<void> note_watched(HvaRange span);
  // Nothing of the range is ours to watch any more. True: something was. Pre: an OwnedChange that
  // brings everything back is open over it.
  bool stop_watching(HvaRange range);

  BringBack bring_back(PageKey key);
  // A touch reported by userfaultfd. Never waits for another thread of the table's.
  void resolve(const userfault::Touch& touch);

  void open_change(OwnedChange* change);
  void close_change(OwnedChange* change);
  void before_fork();
  void after_fork_parent();

  // 0: no memory for the record. The caller then brings back what is absent.
  // `object` is where it stands, `frame` the lowest frame of the thread that is in use.
  [[nodiscard]] u64 hold(HvaRange range, u64 object, u64 frame);
  void release_hold(u64 id);

  // The records of `range`, at most `room`; answers how many. `wanted(record)` under the lock.
  template <typename F>
  unsigned collect(HvaRange range, PageKey* out, unsigned room, F&& wanted);
  bool find(PageKey key, PageRecord* out);
  // Waits for a page in transit.
  bool is_absent(PageKey key);
  [[nodiscard]] u32 turn() const { return turn_.load(sync::kAcquire); }
  [[nodiscard]] bool ever_protected() const { return ever_protected_.load(sync::kRelaxed); }

  void reading(PageKey key, bool on) override;

 private:
  bool drop_if_stale(PageKey key, const PageRecord& record);
  bool enter(PageKey key, const PageRecord& fresh);
  BringBack fill(PageKey key, const PageRecord& record);
  void finish(PageKey key, BringBack outcome);
  bool refuses(PageKey key) TA_REQ(lock_);
  bool is_held(Hva at) TA_REQ(lock_);
  void drop_left_holds(int thread, u64 object, u64 frame) TA_REQ(lock_);
  void turn_over() TA_REQ(lock_);
  void wait_turn(u32 seen);
  void forget_spans() TA_REQ(lock_);
  void discard_closing(HvaRange range, Announced what);
  PageTransit transit_of(PageKey key, const PageRecord& record);
  void reopen_closing(HvaRange range);
  bool settle_for(OwnedChange& change, u32* seen);

  sync::Mutex lock_{sync::Rank::kOwners};
  HashMap<PageKey, PageRecord> pages_ TA_GUARDED(lock_){"host.absent_pages"};
  Vec<HvaRange> spans_ TA_GUARDED(lock_){"host.watched_spans"};
  OwnedChange* changes_ TA_GUARDED(lock_) = nullptr;
  Vec<Hold> holds_ TA_GUARDED(lock_){"host.held_pages"};
  u64 last_hold_ TA_GUARDED(lock_) = 0;
  u32 takers_ TA_GUARDED(lock_) = 0;
  u32 forks_ TA_GUARDED(lock_) = 0;
  // Raised under the lock; sleepers read it there and sleep on it (futex).
  sync::Atomic<u32> turn_{0};
  // Sticky: hidden pages may meet the signal handler.
  sync::Atomic<bool> ever_protected_{false};
};

// The one of this process, or null.
[[nodiscard]] OwnerTable* owner_table();
// Starts the thread that answers touches. Idempotent. Failure: EAGAIN, ENOMEM.
[[nodiscard]] Result<void> start_resolver();

constexpr PageKey private_key(Hva at) {
  return {kPrivateMemory, at.raw() >> kPageShift};
}
constexpr HvaRange page_at(Hva at) {
  return HvaRange(page_floor(at), kPageSize);
}

template <typename F>
unsigned OwnerTable::collect(HvaRange range, PageKey* out, unsigned room, F&& wanted) {
  const sync::MutexGuard guard(lock_);
  unsigned count = 0;
  if (range.size() / kPageSize <= pages_.size()) {
    for (Hva at = range.start(); at < range.end() && count < room; at += kPageSize) {
      PageRecord* record = pages_.find(private_key(at));
      if (record != nullptr && wanted(*record)) out[count++] = private_key(at);
    }
    return count;
  }
  pages_.for_each([&](const PageKey& key, PageRecord& record) {
    if (count < room && range.contains(record.at) && wanted(record)) out[count++] = key;
  });
  return count;
}

}  // namespace stagetwo::host
