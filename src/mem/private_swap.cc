// SPDX-License-Identifier: Apache-2.0
#include "mem/private_swap.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "base/alloc.h"
#include "mem/cipher_library.h"
#include "mem/guest_memfd.h"
#include "mem/private_table.h"
#include "mem/sealed_pages.h"

// A page that is taken, and a vCPU that wants it:
//
//   turn                                   | vCPU, fault
//   private lock, object lock              | snapshot
//   leaving(): count up, zap, flush, wait  | fetch(): waits for the private lock
//   sealed, stored, dropped from the file  |
//   left(): sequence up, count down        |
//   unlock                                 | away: opened, in the file again
//                                          | touched; the sequence moved -> retry
//
//   vCPU, fault                            | turn
//   snapshot; fetch(): it is here          | leaving() ... left()
//   touches it: a fresh page of zeros      |
//   the sequence moved -> retry            | (the page of zeros is nobody's)
//   fetch(): away: opened over the zeros   |
//
// A page that is away counts as away whatever the file has there: bytes in it were made by a touch
// that came too late, or by the client's fallocate. A punch takes the private lock before the
// object's, so that it meets no page half way.

namespace stagetwo::mem {

constinit PrivateTable private_table;

// What this file may see of the objects.
struct PrivateAccess {
  static GuestMemfd* next(const GuestMemfd& object) { return object.next_sealed_; }
  static SealedPages& sealed(const GuestMemfd& object) { return *object.sealed_; }
  static GuestMemfd* object_of(const Binding& binding) { return binding.object_; }
};

namespace private_pages {

namespace detail {
constinit sync::Atomic<u64> away{0};
constinit sync::Atomic<bool> opened{false};
}  // namespace detail

namespace {

// Pages that are taken under one closing: the vCPUs that want any of them wait so long.
constexpr u64 kAtOnce = 16;

}  // namespace

Result<void> open(PrivateSwap* swap) {
  const sync::MutexGuard guard(private_table.lock);
  if (private_table.swap != nullptr) return refuse(EBUSY);
  private_table.bound = ST_TRY(make<PrivateTable::Bound>("mem.private_bound"));
  private_table.swap = swap;
  detail::opened.store(true, sync::kRelease);
  return {};
}

void prepare() {
  if (is_open()) static_cast<void>(cipher_library());
}

namespace {

void give_everything() TA_REQ(private_table.lock) {
  for (GuestMemfd* object = private_table.objects; object != nullptr;
       object = PrivateAccess::next(*object)) {
    PrivateAccess::sealed(*object).give_all();
  }
}

}  // namespace

void close() {
  const sync::MutexGuard guard(private_table.lock);
  give_everything();
  if (private_table.swap == nullptr) return;
  destroy(std::exchange(private_table.bound, nullptr));
  while (private_table.objects != nullptr) private_table.leave(*private_table.objects);
  private_table.swap = nullptr;
  detail::opened.store(false, sync::kRelease);
}

bool are_bound(HvaRange range) {
  const sync::MutexGuard guard(private_table.lock);
  if (private_table.swap == nullptr) return false;
  const auto entry = private_table.bound->find(range.start().raw());
  return entry && range.end().raw() <= entry.end;
}

Taken take(HvaRange range, PrivateSwap::Bench* bench) {
  Taken all;
  for (Hva at = range.start(); at < range.end() && all.refusal == 0;) {
    const u64 bytes = std::min(kAtOnce << kPageShift, range.end() - at);
    const sync::MutexGuard guard(private_table.lock);
    if (private_table.swap == nullptr || private_table.forks != 0) break;
    const auto entry = private_table.bound->find(at.raw());
    if (!entry) break;
    const u64 end = std::min(at.raw() + bytes, entry.end);
    const HvaRange part(at, end - at.raw());
    const Binding& binding = **entry.value;
    const u64 first = binding.pages().first + ((part.start() - binding.at()) >> kPageShift);
    const Taken some = PrivateAccess::object_of(binding)->take(
        {first, first + (part.size() >> kPageShift)}, bench);
    all.pages += some.pages;
    all.refusal = some.refusal;
    at = part.end();
  }
  return all;
}

Result<void> detail::fetch_slow(Hva page) {
  const sync::MutexGuard guard(private_table.lock);
  if (private_table.swap == nullptr) return {};
  const auto entry = private_table.bound->find(page.raw());
  if (!entry) return {};
  const Binding& binding = **entry.value;
  SealedPages& sealed = PrivateAccess::sealed(*PrivateAccess::object_of(binding));
  const u64 number = binding.pages().first + ((page - binding.at()) >> kPageShift);
  if (!sealed.is_away(number)) return {};
  ST_TRY(sealed.give(number, reinterpret_cast<u8*>(page.raw())));
  PrivateSwap& swap = sealed.swap();
  const u64 wanted = std::min(
      {swap.private_came_back(page), PrivateSwap::kMostAlong, binding.pages().end - number - 1});
  // One that cannot come now is somebody's to find out who wants it.
  u64 along = 0;
  while (along < wanted && sealed.is_away(number + along + 1)) {
    const Hva next = page + (along + 1) * kPageSize;
    if (!sealed.give(number + along + 1, reinterpret_cast<u8*>(next.raw()))) break;
    ++along;
  }
  if (along != 0) swap.private_came_along(HvaRange(page + kPageSize, along * kPageSize));
  return {};
}

void before_fork() {
  const sync::MutexGuard guard(private_table.lock);
  ++private_table.forks;
  give_everything();
}

void after_fork_parent() {
  const sync::MutexGuard guard(private_table.lock);
  --private_table.forks;
}

// The parent's arena is not ours to give back to.
void after_fork_child() {
  std::construct_at(&private_table);
  detail::away.store(0, sync::kRelaxed);
  detail::opened.store(false, sync::kRelaxed);
}

}  // namespace private_pages

// ---- the table ------------------------------------------------------------------------------

void PrivateTable::enter(GuestMemfd& object, int fd, Binding& binding) {
  if (swap == nullptr) return;
  if (object.sealed_ == nullptr) {
    const auto made = SealedPages::create(fd, object.size() >> kPageShift, *swap);
    if (!made) return;
    object.sealed_ = *made;
    object.next_sealed_ = objects;
    objects = &object;
  }
  const u64 start = binding.at_.raw();
  static_cast<void>(bound->insert(start, start + (binding.pages_.count() << kPageShift), &binding));
}

void PrivateTable::leave(GuestMemfd& object) {
  if (object.sealed_ == nullptr) return;
  GuestMemfd** link = &objects;
  while (*link != nullptr && *link != &object) link = &(*link)->next_sealed_;
  // A child of fork has its parent's objects in no list.
  if (*link == &object) {
    *link = object.next_sealed_;
    SealedPages::destroy(object.sealed_);
  }
  object.sealed_ = nullptr;
}

// In a child of fork nothing is away, and what its parent has of it is the parent's.
void PrivateTable::forget(GuestMemfd& object, PageRange pages) {
  if (object.sealed_ == nullptr || swap == nullptr) return;
  const u64 dropped = object.sealed_->forget(pages);
  if (dropped != 0) swap->private_discarded(dropped);
}

void PrivateTable::leave(const Binding& binding) {
  if (bound == nullptr) return;
  const auto entry = bound->find(binding.at_.raw());
  if (!entry || *entry.value != &binding) return;
  // Exactly one range: nothing is cut, so nothing is needed.
  bound->erase_reserved(entry.start, entry.end);
}

}  // namespace stagetwo::mem
