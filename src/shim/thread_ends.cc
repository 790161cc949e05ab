// SPDX-License-Identifier: Apache-2.0
#include "shim/thread_ends.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>

#include "base/sys.h"
#include "host/access.h"
#include "host/change.h"
#include "host/held_pages.h"
#include "host/run_section.h"
#include "shim/engine.h"

namespace stagetwo::shim {
namespace {

// Null: there is none, or nobody may ask.
u64 list_of_this_thread() {
  u64 head = 0;
  size_t size = 0;
  const long done = sys::call(SYS_get_robust_list, 0, sys::arg(&head), sys::arg(&size));
  return done == 0 && size == sizeof(robust_list_head) ? head : 0;
}

// What the kernel touches, in its order. The list is the client's: each step may lead anywhere, or
// on for ever.
template <typename F>
void walk_locks(F&& touched) {
  constexpr u64 kPriorityInheriting = 1;  // in a link
  const u64 head = list_of_this_thread();
  robust_list_head list{};
  if (head == 0) return;
  touched(head, sizeof(list));
  if (!host::read_struct(Hva(head), &list)) return;
  const auto lock_of = [&](u64 entry) { return entry + static_cast<u64>(list.futex_offset); };
  const u64 pending = reinterpret_cast<u64>(list.list_op_pending) & ~kPriorityInheriting;
  if (pending != 0) touched(lock_of(pending), sizeof(u32));
  u64 entry = reinterpret_cast<u64>(list.list.next);
  for (unsigned i = 0; i < ROBUST_LIST_LIMIT && (entry & ~kPriorityInheriting) != head; ++i) {
    entry &= ~kPriorityInheriting;
    touched(entry, sizeof(u64));
    touched(lock_of(entry), sizeof(u32));
    if (!host::read_struct(Hva(entry), &entry)) return;
  }
}

template <typename F>
void walk(F&& touched) {
  walk_locks(touched);
  u64 word = 0;  // a kernel without checkpoints does not say
  if (sys::call(SYS_prctl, PR_GET_TID_ADDRESS, sys::arg(&word)) == 0 && word != 0) {
    touched(word, sizeof(u32));
  }
}

// In two walks: everything is held before any of it is brought back.
void hold_what_is_touched() {
  host::EngineSection section(host::Touches::kClientMemory);
  // Further ones share the last place: the hull of theirs, for as long as the thread takes to end.
  constexpr unsigned kPlaces = 8;
  HvaRange places[kPlaces];
  unsigned used = 0;
  walk([&](u64 at, u64 size) {
    const auto pages = host::pages_of(at, size);
    if (!pages) return;
    const auto covers = [&](const HvaRange& place) {
      return place.start() <= pages->start() && pages->end() <= place.end();
    };
    if (std::any_of(places, places + used, covers)) return;
    if (used < kPlaces) {
      places[used++] = *pages;
      return;
    }
    HvaRange& last = places[kPlaces - 1];
    const Hva start = std::min(last.start(), pages->start());
    last = HvaRange(start, std::max(last.end(), pages->end()) - start);
  });
  // Who borrows memory is a process, and its end says nothing of a thread here.
  if (!in_borrowed_memory()) host::hold_until_thread_ends(places, used);
  walk([](u64 at, u64 size) {
    if (const auto pages = host::pages_of(at, size)) host::bring_back_range(*pages);
  });
  section.leave();
}

}  // namespace

void before_thread_ends() {
  if (!host::owners_active()) [[likely]]
    return;
  if (!awake() || host::in_engine()) return;
  const int error = errno;
  hold_what_is_touched();
  errno = error;
}

bool gives_own_stack_back(u64 at, u64 size, int advice) {
  constexpr u64 kLeft = u64{64} << 10;  // libc leaves PTHREAD_STACK_MIN of it
  const u64 frame = reinterpret_cast<u64>(__builtin_frame_address(0));
  const u64 end = at + size;
  return advice == MADV_DONTNEED && end > at && end <= frame && frame - end < kLeft;
}

}  // namespace stagetwo::shim
