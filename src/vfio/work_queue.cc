// SPDX-License-Identifier: Apache-2.0
#include "vfio/work_queue.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "base/process_page.h"

namespace stagetwo::vfio {

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
  head_ = word(&RingHead::head).load(sync::kAcquire);
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
  if (serves()) word(&RingHead::asleep).store(asleep);
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
  const u32 waiting = word(&RingHead::tail).load(sync::kAcquire) - head_;
  if (waiting == 0 || !serves()) return 0;
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
