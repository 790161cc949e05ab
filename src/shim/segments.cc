// SPDX-License-Identifier: Apache-2.0
#include "shim/segments.h"

#include <errno.h>
#include <sys/shm.h>
#include <sys/syscall.h>

#include "base/sys.h"
#include "host/process_map.h"
#include "shim/announce.h"
#include "shim/engine.h"
#include "shim/next.h"
#include "shim/shared_files.h"

namespace stagetwo::shim {
namespace {

u64 page_ceil(u64 at) {
  return (at + kPageSize - 1) & kPageMask;
}

u64 break_now() {
  return static_cast<u64>(sys::call(SYS_brk, 0));
}

// The break was at `from`: what it has come by.
void note_raised(u64 from) {
  if (!host::owners_active()) return;
  const u64 first = page_ceil(from);
  const u64 end = page_ceil(break_now());
  if (end > first) note_private(reinterpret_cast<void*>(first), end - first, true);
}

// The break goes from `from` down to `to`: the whole pages in between go. True: it went.
template <typename F>
auto lower(u64 from, u64 to, F&& call) {
  const u64 first = page_ceil(to);
  const u64 end = page_ceil(from);
  return announce(reinterpret_cast<void*>(first), end - first, host::EventKind::kUnmap,
                  static_cast<F&&>(call));
}

// The segment's size, which shmdt does not ask for. The number of its file is its id; whoever may
// not ask for that gets what is mapped of it in one piece. The kernel takes away every piece that
// lies where it lay when the segment was attached; other memory in between stays, which is why
// absent pages there are brought back and not given up.
u64 size_of_segment(const void* at) {
  const auto first = host::mapping_at(Hva(number_of(at)));
  if (!first || !first->shared) return 0;
  struct shmid_ds about{};
  if (shmctl(static_cast<int>(first->inode), IPC_STAT, &about) == 0) return about.shm_segsz;
  u64 end = first->range.end().raw();
  for (;;) {
    const auto next = host::mapping_at(Hva(end));
    if (!next || next->device != first->device || next->inode != first->inode) break;
    end = next->range.end().raw();
  }
  return end - number_of(at);
}

}  // namespace

long kernel_break(u64 at) {
  const u64 now = break_now();
  const auto call = [&]() -> Result<long> {
    const long is = sys::call(SYS_brk, static_cast<long>(at));
    if (static_cast<u64>(is) != at) return refuse(ENOMEM);
    return is;
  };
  const auto moved = at != 0 && page_ceil(at) < page_ceil(now) ? lower(now, at, call) : call();
  note_raised(now);
  return moved ? *moved : static_cast<long>(break_now());
}

// libc's brk ends in its own system call, which is seen where it could be changed; then this ring
// is the outer one and the inner one is not made.
int set_break(void* at) {
  const auto go_on = [&] { return next::brk(at); };
  if (!awake() || at == nullptr) [[likely]]
    return go_on();
  const u64 now = break_now();
  const int result = number_of(at) < now ? lower(now, number_of(at), go_on) : go_on();
  note_raised(now);
  return result;
}

void* move_break(ssize_t by) {
  const auto go_on = [&] { return next::sbrk(by); };
  if (!awake() || by == 0) [[likely]]
    return go_on();
  const u64 now = break_now();
  const u64 less = -static_cast<u64>(by);
  void* const result = by < 0 && less < now ? lower(now, now - less, go_on) : go_on();
  note_raised(now);
  return result;
}

void* attach(int id, const void* at, int flags) {
  const auto go_on = [&] { return next::shmat(id, at, flags); };
  if (!awake() || (flags & SHM_REMAP) == 0 || at == nullptr) [[likely]]
    return go_on();
  struct shmid_ds about{};
  if (shmctl(id, IPC_STAT, &about) != 0) return go_on();
  const u64 rounded = (flags & SHM_RND) != 0 ? number_of(at) & kPageMask : number_of(at);
  return announce(reinterpret_cast<void*>(rounded), about.shm_segsz, host::EventKind::kUnmap,
                  go_on);
}

int detach(const void* at) {
  const auto go_on = [&] { return next::shmdt(at); };
  if (!awake() || (number_of(at) & ~kPageMask) != 0) [[likely]]
    return go_on();
  return announce(at, size_of_segment(at), host::EventKind::kUnmap, host::Announced::kMoves, go_on);
}

}  // namespace stagetwo::shim
