// SPDX-License-Identifier: Apache-2.0
#include "host/held_pages.h"

#include <signal.h>
#include <sys/syscall.h>

#include <algorithm>

#include "base/guard.h"
#include "base/process_page.h"
#include "base/sys.h"
#include "host/change.h"
#include "host/owner_collect.h"
#include "host/shared_objects.h"

// A hold and a taker:
//
//   holder                               | taker
//   lock; hold recorded; unlock          | lock; a hold of the page: refused; unlock
//   fetch: waits for what is in transit, | lock; no hold: record (taking); unlock
//   brings back what is absent           | owner.take; absent; wake
//   the system call                      |
//
// Either the taker sees the hold, or the holder's fetch sees the taker's record and waits for it.

namespace stagetwo::host {
namespace {

bool on_alternate_stack() {
  stack_t now{};
  sys::call(SYS_sigaltstack, 0, sys::arg(&now));
  return (now.ss_flags & SS_ONSTACK) != 0;
}

}  // namespace

// The thread's own holds in frames that it has left: those below this one, and one that stood where
// the new one stands. A handler on the alternate stack says nothing of the frames below it.
void OwnerTable::drop_left_holds(int thread, u64 object, u64 frame) {
  const bool knows = !on_alternate_stack();
  for (size_t i = 0; i < holds_.size();) {
    const Hold& old = holds_[i];
    if (old.thread == thread && (old.object == object || (knows && old.object < frame))) {
      holds_.swap_erase(i);
    } else {
      ++i;
    }
  }
}

u64 OwnerTable::hold(const Reach& reach, u64 object, u64 frame) {
  const int thread = sys::current_tid();
  const sync::MutexGuard guard(lock_);
  drop_left_holds(thread, object, frame);
  const u64 id = ++last_hold_;
  return holds_.push_back({reach, object, id, thread}) ? id : 0;
}

// They stand above every frame, so that no hold in a frame says that they were left.
void OwnerTable::hold_to_the_end(const HvaRange* ranges, unsigned count) {
  constexpr u64 kAboveFrames = u64{1} << 63;
  const int thread = sys::gettid();  // a thread without data of its own has another's remembered
  const sync::MutexGuard guard(lock_);
  for (size_t i = 0; i < holds_.size();) {
    const Hold& old = holds_[i];
    const bool of_an_end = old.object >= kAboveFrames;
    if (of_an_end && (old.thread == thread || !sys::thread_alive(old.thread))) {
      holds_.swap_erase(i);
    } else {
      ++i;
    }
  }
  for (unsigned i = 0; i < count; ++i) {
    // Without memory the page may go again before the thread ends.
    static_cast<void>(
        holds_.push_back({{kPrivateMemory, ranges[i]}, kAboveFrames + i, ++last_hold_, thread}));
  }
}

void OwnerTable::release_hold(u64 id) {
  const sync::MutexGuard guard(lock_);
  for (size_t i = 0; i < holds_.size(); ++i) {
    if (holds_[i].id == id) return holds_.swap_erase(i);
  }
}

bool OwnerTable::is_held(PageKey key, const PageViews& views) {
  const auto covers = [&](const Reach& reach) {
    return std::any_of(views.begin(), views.end(), [&](const PageView& view) TA_REQ(lock_) {
      return within(key, view.at, reach);
    });
  };
  for (size_t i = 0; i < holds_.size();) {
    if (!covers(holds_[i].reach)) {
      ++i;
    } else if (sys::thread_alive(holds_[i].thread)) {
      return ST_GUARD(owners_hold, true);
    } else {
      holds_.swap_erase(i);
    }
  }
  return false;
}

void HeldPages::enter() {
  release();
  OwnerTable* table = owner_table();
  if (table == nullptr) return;
  id_ = table->hold(reach_, reinterpret_cast<u64>(this),
                    reinterpret_cast<u64>(__builtin_frame_address(0)));
}

void hold_until_thread_ends(const HvaRange* ranges, unsigned count) {
  OwnerTable* table = owner_table();
  if (table != nullptr && count != 0) table->hold_to_the_end(ranges, count);
}

u64 HeldPages::fetch(HvaRange part) {
  if (!owners_active()) [[likely]]
    return 0;
  if (id_ == 0) enter();  // the first page was taken meanwhile
  const u64 back = bring_back_range(part);
  OwnerTable* table = userfault::serves_kernel() ? nullptr : owner_table();
  return back + (table == nullptr ? 0 : table->fill_holes(part));
}

void HeldPages::hold_file(int fd, u64 offset, u64 size) {
  reach_ = {};
  if (!owners_active()) [[likely]]
    return;
  if (const u64 object = object_behind(fd)) hold_object(object, offset, size);
}

void HeldPages::hold_object(u64 object, u64 offset, u64 size) {
  reach_ = {};
  const auto bytes = pages_of(offset, size);
  if (!bytes) return;
  reach_ = {object, *bytes};
  enter();
}

bool HeldPages::fetch_file() {
  OwnerTable* table = reach_.object == kPrivateMemory ? nullptr : owner_table();
  if (table == nullptr) return true;
  table->bring_back_all(reach_);
  PageKey left;
  const auto any = [](const PageKey&, const PageRecord&) { return true; };
  return table->collect(reach_, &left, 1, any) == 0;
}

bool HeldPages::hold_for_view_of(u64 object, u64 offset, u64 size) {
  if (object == 0) return true;
  hold_object(object, offset, size);
  return reach_.range.empty() || (holds() && owner_table()->bring_back_for_view(reach_));
}

bool HeldPages::hold_for_view(int fd, u64 offset, u64 size) {
  return owner_table() == nullptr || hold_for_view_of(object_behind(fd), offset, size);
}

bool HeldPages::hold_for_view(const Mapping& like, u64 offset, u64 size) {
  return owner_table() == nullptr ||
         hold_for_view_of(object_behind(like.device, like.inode), offset, size);
}

// In a child of fork there is no table and no record.
void HeldPages::leave() {
  if (OwnerTable* table = owner_table()) table->release_hold(id_);
  id_ = 0;
}

}  // namespace stagetwo::host
