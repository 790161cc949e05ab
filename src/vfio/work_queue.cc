// SPDX-License-Identifier: Apache-2.0
#include "vfio/work_queue.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "base/process_page.h"
#include "base/sys.h"
#include "sync/futex.h"
#include "sync/process_mutex.h"

namespace stagetwo::vfio {

// Held for some stores, or a copy of kTaken descriptors.
class WorkQueue::Taking {
 public:
  explicit Taking(QueueShare& share) : taking_(share.taking) {
    const auto own = static_cast<u32>(sys::current_tid());
    for (u32 seen = 0; !taking_.compare_exchange(seen, own); seen = 0) {
      if (sync::is_thread_gone(seen)) taking_.compare_exchange(seen, 0);
      sync::yield_thread();
    }
  }
  ~Taking() { taking_.store(0, sync::kRelease); }
  Taking(const Taking&) = delete;
  Taking& operator=(const Taking&) = delete;

 private:
  sync::Atomic<u32>& taking_;
};

const void* WorkQueue::write_portal(u64 offset, std::span<const u8> from) {
  Descriptor* const slot = &portal_[offset / sizeof(Descriptor)];
  const u64 at = offset % sizeof(Descriptor);
  std::memcpy(slot->bytes + at, from.data(), from.size());
  return at + from.size() == sizeof(Descriptor) ? slot : nullptr;
}

bool WorkQueue::put(const void* descriptor) {
  const sync::MutexGuard guard(lock_);
  if (is_discarded()) forget();  // by another process, and the thread has not looked yet
  const u32 queued = queued_.load(sync::kRelaxed);
  if (queued == kPlaces) return false;
  std::memcpy(&queue_[(first_ + queued) % kPlaces], descriptor, sizeof(Descriptor));
  queued_.store(queued + 1, sync::kRelease);
  return true;
}

// The thread looks at these words at the same time: a client's access by read() or write() is one
// access, as it is by its mapping.
void WorkQueue::read_ring(u64 offset, std::span<u8> to) const {
  const auto load = [&]<typename T>(T value) {
    value = reinterpret_cast<const sync::Atomic<T>*>(ring_ + offset)->load(sync::kAcquire);
    std::memcpy(to.data(), &value, sizeof(value));
  };
  if (to.size() == 4) return load(u32{});
  return to.size() == 2 ? load(u16{}) : load(u8{});
}

void WorkQueue::write_ring(u64 offset, std::span<const u8> from) {
  const auto store = [&]<typename T>(T value) {
    std::memcpy(&value, from.data(), sizeof(value));
    reinterpret_cast<sync::Atomic<T>*>(ring_ + offset)->store(value, sync::kRelease);
  };
  if (from.size() == 4) return store(u32{});
  return from.size() == 2 ? store(u16{}) : store(u8{});
}

void WorkQueue::reset() {
  std::memset(ring_, 0, kRingBytes);
  word(&RingHead::asleep).store(1, sync::kRelease);  // nobody serves it before a doorbell
  share_.server.store(process_stamp(), sync::kRelease);
  discard();
  const Taking taking(share_);
  note_user();
  if (!is_alone()) share_.several.store(1);
}

// ---- whose it is

void WorkQueue::note_user() {
  const u32 own = process_stamp();
  sync::Atomic<u32>* free = nullptr;
  for (u32 i = 0; i < QueueShare::kUsers; ++i) {
    const u32 user = share_.users[i].load();
    if (user == own) return;
    if (free == nullptr && (user == 0 || sync::is_thread_gone(user))) free = &share_.users[i];
  }
  (free != nullptr ? *free : share_.users[QueueShare::kUsers]).store(own);
}

bool WorkQueue::is_alone() const {
  for (u32 i = 0; i < QueueShare::kUsers; ++i) {
    const u32 user = share_.users[i].load();
    if (user != 0 && user != process_stamp() && !sync::is_thread_gone(user)) return false;
  }
  return share_.users[QueueShare::kUsers].load() == 0;
}

bool WorkQueue::becomes_alone() {
  if (!is_alone()) return false;
  const Taking taking(share_);
  if (!is_alone()) return false;
  share_.server.store(process_stamp());
  head_ = word(&RingHead::head).load(sync::kAcquire);
  share_.several.store(0);
  return true;
}

void WorkQueue::first_user() {
  const Taking taking(share_);
  for (auto& user : share_.users) user.store(0);
  note_user();
  share_.several.store(0);
}

// Who has moved the tail and seen its server awake did so before the first store to `asleep`; a
// server that has not seen `several` says that it is awake before the second one.
void WorkQueue::after_fork() {
  rung_.store(0);
  of_several_ = true;
  const Taking taking(share_);
  note_user();
  word(&RingHead::asleep).store(1);
  if (share_.several.load() == 0) share_.limit.store(word(&RingHead::tail).load());
  share_.several.store(1);
  word(&RingHead::asleep).store(1);
  limit_ = word(&RingHead::head).load();
}

void WorkQueue::rung() {
  const u64 discards = share_.discards.load(sync::kAcquire);
  rung_.store((discards + 1) << 32 | word(&RingHead::tail).load(sync::kAcquire));
}

void WorkQueue::discard() {
  const sync::MutexGuard guard(lock_);
  word(&RingHead::head).store(word(&RingHead::tail).load(sync::kAcquire), sync::kRelease);
  share_.discards.fetch_add(1);
  forget();
}

void WorkQueue::forget() {
  const u32 now = share_.discards.load(sync::kAcquire);
  queued_.store(0, sync::kRelease);
  limit_ = head_ = word(&RingHead::head).load(sync::kAcquire);
  seen_.store(now, sync::kRelease);
}

void WorkQueue::in_child() {
  std::construct_at(&lock_, sync::Rank::kLeaf);
  const sync::MutexGuard guard(lock_);
  forget();
}

bool WorkQueue::serves() const {
  return share_.server.load(sync::kRelaxed) == process_stamp();
}

void WorkQueue::say_asleep(bool asleep) {
  if (share_.several.load() != 0 && !(asleep && becomes_alone())) return;
  if (!serves()) return;
  word(&RingHead::asleep).store(asleep);
  // Somebody has come who rings.
  if (!asleep && share_.several.load() != 0) word(&RingHead::asleep).store(1);
}

u32 WorkQueue::take(void* to, bool* overrun) {
  if (is_discarded()) [[unlikely]] {
    const sync::MutexGuard guard(lock_);
    if (is_discarded()) forget();
  }
  if (queued_.load(sync::kAcquire) == 0) return take_from_ring(to, overrun);
  const sync::MutexGuard guard(lock_);
  const u32 queued = queued_.load(sync::kRelaxed);
  const u32 some = std::min(queued, kTaken);
  auto* const list = static_cast<Descriptor*>(to);
  for (u32 i = 0; i < some; ++i) list[i] = queue_[(first_ + i) % kPlaces];
  first_ = (first_ + some) % kPlaces;
  queued_.store(queued - some, sync::kRelease);
  return some;
}

u32 WorkQueue::take_from_ring(void* to, bool* overrun) {
  if (share_.several.load(sync::kAcquire) != 0) [[unlikely]]
    return take_rung(to, overrun);
  of_several_ = false;
  const u32 tail = word(&RingHead::tail).load(sync::kAcquire);
  return tail == head_ || !serves() ? 0 : copy_from_ring(tail, to, overrun);
}

u32 WorkQueue::take_rung(void* to, bool* overrun) {
  if (!of_several_) limit_ = serves() ? share_.limit.load() : head_;
  of_several_ = true;
  const u64 rung = rung_.load(sync::kRelaxed) == 0 ? 0 : rung_.exchange(0);
  const u32 now = share_.discards.load(sync::kAcquire) + 1;
  const auto is_ahead = [](u32 one, u32 other) { return static_cast<s32>(one - other) > 0; };
  if (rung != 0 && rung >> 32 == now && is_ahead(static_cast<u32>(rung), limit_)) {
    limit_ = static_cast<u32>(rung);
  }
  if (!is_ahead(limit_, word(&RingHead::head).load(sync::kAcquire))) return 0;
  const Taking taking(share_);
  head_ = word(&RingHead::head).load(sync::kAcquire);
  if (!is_ahead(limit_, head_)) return 0;
  const u32 some = copy_from_ring(limit_, to, overrun);
  if (some == 0) limit_ = head_;
  return some;
}

u32 WorkQueue::copy_from_ring(u32 tail, void* to, bool* overrun) {
  const u32 waiting = tail - head_;
  if (waiting > kRingSlots) {
    word(&RingHead::tail).store(head_, sync::kRelease);
    *overrun = true;
    return 0;
  }
  const u32 place = head_ % kRingSlots;
  const u32 some = std::min({waiting, kTaken, u32{kRingSlots} - place});
  const u8* const from = ring_ + kRingAt + place * sizeof(Descriptor);
  std::memcpy(to, from, some * sizeof(Descriptor));
  // The next ones are in the client's cache: they come while these are worked on.
  for (u32 i = some; i < std::min({waiting, 2 * kTaken, u32{kRingSlots} - place}); ++i) {
    __builtin_prefetch(from + i * sizeof(Descriptor));
  }
  head_ += some;
  word(&RingHead::head).store(head_, sync::kRelease);
  return some;
}

}  // namespace stagetwo::vfio
