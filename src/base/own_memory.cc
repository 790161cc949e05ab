// SPDX-License-Identifier: Apache-2.0
#include "base/own_memory.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>

#include "base/bits.h"
#include "base/leaf_lock.h"
#include "base/process_page.h"
#include "base/sys.h"

// Of the linker's: where this object begins and ends in memory.
extern "C" {
extern const char __ehdr_start[] __attribute__((visibility("hidden")));
extern const char _end[] __attribute__((visibility("hidden")));
}

namespace stagetwo {
namespace {

constexpr size_t kPage = 4096;

// In no order; neighbours are one. In the process page, which a child of fork finds empty.
struct List {
  u32 lock;
  u32 forgotten;
  u64 count;
  u64 room;
  OwnMemory* ranges;  // a mapping of its own, and in the list
};
static_assert(sizeof(List) <= kOwnMemoryWords * sizeof(u64));

List* list() {
  u64* page = process_page();
  return page == nullptr ? nullptr : reinterpret_cast<List*>(page + kOwnMemoryWord);
}

OwnMemory cut(const OwnMemory& range, u64 start, u64 end) {
  const OwnMemory part{std::max(range.start, start), std::min(range.end, end)};
  return part.start < part.end ? part : OwnMemory{};
}

bool grow(List& all);

// All under the lock. False: there was no room to keep both ends of a range that was cut in two;
// the second one is nobody's then.
bool take_out(List& all, u64 start, u64 end) {
  for (u64 i = 0; i < all.count;) {
    const OwnMemory whole = all.ranges[i];
    if (cut(whole, start, end).end == 0) {
      ++i;
      continue;
    }
    all.ranges[i] = all.ranges[--all.count];
    if (whole.start < start) all.ranges[all.count++] = {whole.start, start};
    if (end >= whole.end) continue;
    if (all.count == all.room && !grow(all)) return false;
    all.ranges[all.count++] = {end, whole.end};
  }
  return true;
}

// Twice the room, in another mapping.
bool grow(List& all) {
  const u64 room = std::max<u64>(2 * all.room, kPage / sizeof(OwnMemory));
  const auto mapped =
      map_apart(room * sizeof(OwnMemory), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  if (!mapped) return false;
  const OwnMemory old{reinterpret_cast<u64>(all.ranges),
                      reinterpret_cast<u64>(all.ranges + all.room)};
  auto* const fresh = static_cast<OwnMemory*>(*mapped);
  std::copy_n(all.ranges, all.count, fresh);
  all.ranges = fresh;
  all.room = room;
  const u64 start = reinterpret_cast<u64>(fresh);
  all.ranges[all.count++] = {start, start + room * sizeof(OwnMemory)};
  if (old.start == 0) return true;
  static_cast<void>(take_out(all, old.start, old.end));
  static_cast<void>(sys::munmap(reinterpret_cast<void*>(old.start), old.end - old.start));
  return true;
}

// ---- apart from the client --------------------------------------------------------------------
//
// The kernel gives the highest gap that is large enough (or the lowest, in the old layout). So the
// middle of a gap that is far larger than whatever a client maps is out of its way for long. It is
// not reserved: should the client come there after all, ours go where there is room.

constexpr u64 kApart = u64{1} << 40;
constexpr u64 kNowhere = 1;
constexpr u64 kHugePage = u64{1} << 21, kGiantPage = u64{1} << 30;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kMayChoose = false;  // their run times know where memory may be
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool kMayChoose = false;
#else
constexpr bool kMayChoose = true;
#endif
#else
constexpr bool kMayChoose = true;
#endif

// 0: not looked for yet. A child of fork goes on with its parent's.
u64 apart_start = 0;
u64 apart_next = 0;  // bytes behind it, without end

u64 place_apart() {
  u64 start = __atomic_load_n(&apart_start, __ATOMIC_RELAXED);
  if (start != 0) return start;
  const auto gap =
      sys::mmap(nullptr, 2 * kApart, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  start = kNowhere;
  if (gap) {
    start = align_up(reinterpret_cast<u64>(*gap) + kApart / 4, kHugePage);
    static_cast<void>(sys::munmap(*gap, 2 * kApart));
  }
  u64 none = 0;
  const bool first = __atomic_compare_exchange_n(&apart_start, &none, start, false,
                                                 __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return first ? start : none;
}

// Without rights first: memory of which the client has said that all there will be is locked
// (mlockall) is filled as soon as it may be touched.
Result<void*> unlocked(void* at, size_t bytes, int prot) {
  static_cast<void>(sys::call(SYS_munlock, sys::arg(at), static_cast<long>(bytes)));
  if (prot == PROT_NONE) return at;
  const auto allowed = sys::mprotect(at, bytes, prot);
  if (allowed) return at;
  static_cast<void>(sys::munmap(at, bytes));
  return refuse(allowed.error());
}

}  // namespace

Result<void*> map_apart(size_t bytes, int prot, int flags, int fd, long offset) {
  constexpr unsigned kTries = 8;
  constexpr u64 kFurther = u64{1} << 30;
  const u64 size = align_up(bytes, kPage);
  const u64 start = kMayChoose && size < kApart / 4 ? place_apart() : kNowhere;
  u64 alignment = kPage;
  for (unsigned i = 0; i < kTries && start != kNowhere; ++i) {
    const u64 behind = __atomic_fetch_add(&apart_next, size + alignment - kPage, __ATOMIC_RELAXED);
    const u64 at = align_up(start + behind % kApart, alignment);
    const auto mapped = sys::mmap(reinterpret_cast<void*>(at), bytes, PROT_NONE,
                                  flags | MAP_FIXED_NOREPLACE, fd, offset);
    if (mapped) return unlocked(*mapped, bytes, prot);
    const int why = to_int(mapped.error());
    if (why == EEXIST) {
      __atomic_fetch_add(&apart_next, kFurther, __ATOMIC_RELAXED);
    } else if (why == EINVAL && fd >= 0 && alignment < kGiantPage) {
      alignment = alignment == kPage ? kHugePage : kGiantPage;  // the file may be of huge pages
    } else {
      break;
    }
  }
  return unlocked(ST_TRY(sys::mmap(nullptr, bytes, PROT_NONE, flags, fd, offset)), bytes, prot);
}

bool is_apart(const void* at) {
  const u64 start = __atomic_load_n(&apart_start, __ATOMIC_RELAXED);
  const u64 place = reinterpret_cast<u64>(at);
  return start > kNowhere && start <= place && place - start < kApart + kApart / 4;
}

Result<void*> map_again_apart(const void* page, size_t bytes) {
  void* const place =
      ST_TRY(map_apart(bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE));
  if (!note_own_memory(place, bytes)) {
    static_cast<void>(sys::munmap(place, bytes));
    return refuse(ENOMEM);
  }
  // Of nothing: a second mapping of the same pages, with the same file behind it.
  const auto made =
      sys::mremap(const_cast<void*>(page), 0, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, place);
  if (!made) {
    static_cast<void>(sys::munmap(place, bytes));
    forget_own_memory(place, bytes);
  }
  return made;
}

// While it is noted no other mapping may come there: where somebody else could, it is nothing
// first.
void unmap_again(void* at, size_t bytes) {
  const bool emptied =
      !is_apart(at) && sys::mmap(at, bytes, PROT_NONE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (emptied) forget_own_memory(at, bytes);
  const bool gone = sys::munmap(at, bytes).has_value();
  if (gone && !emptied) forget_own_memory(at, bytes);
}

bool note_own_memory(const void* at, size_t bytes) {
  List* const all = list();
  if (all == nullptr) return false;
  const u64 start = reinterpret_cast<u64>(at);
  const u64 end = start + align_up(bytes, kPage);
  const LeafGuard guard(&all->lock);
  for (u64 i = 0; i < all->count; ++i) {
    OwnMemory& near = all->ranges[i];
    if (near.end != start && near.start != end) continue;
    near = {std::min(near.start, start), std::max(near.end, end)};
    return true;
  }
  if (all->count == all->room && !grow(*all)) return false;
  all->ranges[all->count++] = {start, end};
  return true;
}

void forget_own_memory(const void* at, size_t bytes) {
  List* const all = list();
  if (all == nullptr) return;
  const u64 start = reinterpret_cast<u64>(at);
  const u64 end = start + align_up(bytes, kPage);
  const LeafGuard guard(&all->lock);
  static_cast<void>(take_out(*all, start, end));
  ++all->forgotten;
}

u32 own_memory_forgotten() {
  List* const all = list();
  if (all == nullptr) return 0;
  const LeafGuard guard(&all->lock);
  return all->forgotten;
}

OwnMemory own_memory_in(u64 start, u64 end) {
  const OwnMemory object{reinterpret_cast<u64>(__ehdr_start),
                         align_up(reinterpret_cast<u64>(_end), kPage)};
  OwnMemory first = cut(object, start, end);
  List* const all = list();
  if (all == nullptr) return first;
  const LeafGuard guard(&all->lock);
  for (u64 i = 0; i < all->count; ++i) {
    const OwnMemory part = cut(all->ranges[i], start, end);
    if (part.end != 0 && (first.end == 0 || part.start < first.start)) first = part;
  }
  const u64 page = reinterpret_cast<u64>(all) & ~u64{kPage - 1};
  const OwnMemory part = cut({page, page + kPage}, start, end);
  return part.end != 0 && (first.end == 0 || part.start < first.start) ? part : first;
}

}  // namespace stagetwo
