// SPDX-License-Identifier: Apache-2.0
#include "host/hugetlb_standin.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>

#include <algorithm>
#include <memory>

#include "base/alloc.h"
#include "base/bits.h"
#include "base/interval_map.h"
#include "base/kernel_numbers.h"
#include "base/sys.h"
#include "base/vec.h"
#include "host/session.h"
#include "sync/mutex.h"
#include "sync/passing_number.h"

namespace stagetwo::host::hugetlb {
namespace {

constexpr u64 kSet = u64{1} << 63;  // of a session word: it was written
constexpr unsigned kSizeShift = 26;
constexpr unsigned kSizeMask = 0x3f;

// What a recorded range is. Neighbours that are equal become one entry, so `base` stays the same
// for the two halves of a split.
struct Kind {
  u8 level = 0;
  bool reserved = true;  // false: MAP_NORESERVE, not counted
  u32 file = 0;          // id; 0: private memory
  u64 base = 0;          // of a file: its offset at address 0
  bool operator==(const Kind&) const = default;
};

struct File {
  u64 device;
  u64 inode;
  u32 id;
  u8 level;
};

struct Records {
  IntervalMap<u64, Kind> ranges{"host.hugetlb_ranges"};
  Vec<File> files{"host.hugetlb_files"};
  u32 last_file = 0;
};

constinit sync::Mutex lock{sync::Rank::kLeaf};
constinit Records* records = nullptr;  // made with the first mapping or file, kept for good
constinit sync::Atomic<bool> is_enabled{false};
constinit sync::Atomic<bool> is_any{false};

Result<Records*> open_records_locked() {
  if (records == nullptr) records = ST_TRY(make<Records>("host.hugetlb_records"));
  return records;
}

constexpr u64 kEndOfAddresses = u64{1} << 63;

u64 up(u64 value, u64 to) {
  return (value + to - 1) & ~(to - 1);
}
bool aligned(u64 value, unsigned level) {
  return (value & (page_bytes(level) - 1)) == 0;
}

unsigned pool_word(unsigned level) {
  return kHugetlbWords + level;
}

u64 pool_size(unsigned level) {
  const u64 word = session_word(pool_word(level)).load(sync::kRelaxed);
  if ((word & kSet) != 0) return word & ~kSet;
  return level == 2 ? kDefaultPool2M : kDefaultPool1G;
}

// Pages of private mappings, and of each file up to the last one that is mapped anywhere.
u64 used_pages_locked(unsigned level) {
  u64 bytes = 0;
  if (records == nullptr) return 0;
  records->ranges.for_each(0, kEndOfAddresses, [&](const auto& entry) {
    const Kind& kind = *entry.value;
    if (kind.level == level && kind.reserved && kind.file == 0) bytes += entry.end - entry.start;
  });
  for (const File& file : records->files) {
    if (file.level != level) continue;
    u64 end = 0;
    records->ranges.for_each(0, kEndOfAddresses, [&](const auto& entry) {
      const Kind& kind = *entry.value;
      if (kind.file == file.id && kind.reserved) end = std::max(end, kind.base + entry.end);
    });
    bytes += end;
  }
  return bytes / page_bytes(level);
}

const File* find_file_locked(const struct ::stat& behind) {
  if (records == nullptr) return nullptr;
  for (const File& file : records->files) {
    if (file.device == behind.st_dev && file.inode == behind.st_ino) return &file;
  }
  return nullptr;
}

IntervalMap<u64, Kind>::Entry find_range_locked(u64 at) {
  return records == nullptr ? IntervalMap<u64, Kind>::Entry{} : records->ranges.find(at);
}

// An address of `size` bytes aligned to the level's pages, taken without memory behind it.
Result<u64> find_place(const MapCall& call, u64 size, unsigned level) {
  const u64 page = page_bytes(level);
  const u64 asked = reinterpret_cast<u64>(call.at);
  constexpr int kFixed = MAP_FIXED | MAP_FIXED_NOREPLACE;
  if ((call.flags & kFixed) != 0) return asked;
  constexpr int kReserve = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  if (asked != 0 && up(asked, page) >= asked) {
    void* const hint = reinterpret_cast<void*>(up(asked, page));
    if (sys::mmap(hint, size, PROT_NONE, kReserve | MAP_FIXED_NOREPLACE, -1, 0)) {
      return up(asked, page);
    }
  }
  u64 room = 0;
  if (__builtin_add_overflow(size, page, &room)) return refuse(ENOMEM);
  void* const got = ST_TRY(sys::mmap(nullptr, room, PROT_NONE, kReserve, -1, 0));
  const u64 from = reinterpret_cast<u64>(got);
  const u64 place = up(from, page);
  if (place != from) static_cast<void>(sys::munmap(got, place - from));
  if (const u64 tail = from + room - (place + size); tail != 0) {
    static_cast<void>(sys::munmap(reinterpret_cast<void*>(place + size), tail));
  }
  return place;
}

// What hugetlbfs checks before it looks at the pool.
Result<u64> rounded_size(const MapCall& call, unsigned level) {
  const u64 page = page_bytes(level);
  if (call.size == 0) return refuse(EINVAL);
  if (call.size > ~u64{0} - page) return refuse(ENOMEM);
  if ((call.flags & MAP_ANONYMOUS) == 0 && !aligned(static_cast<u64>(call.offset), level)) {
    return refuse(EINVAL);
  }
  const bool fixed = (call.flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) != 0;
  if (fixed && !aligned(reinterpret_cast<u64>(call.at), level)) return refuse(EINVAL);
  return up(call.size, page);
}

Result<Kind> kind_of(const MapCall& call, unsigned level) {
  Kind kind;
  kind.level = static_cast<u8>(level);
  kind.reserved = (call.flags & MAP_NORESERVE) == 0;
  if ((call.flags & MAP_ANONYMOUS) != 0 || (call.flags & MAP_TYPE) == MAP_PRIVATE) return kind;
  struct ::stat behind{};
  ST_TRY(sys::fstat(call.fd, &behind));
  const sync::MutexGuard guard(lock);
  const File* const file = find_file_locked(behind);
  if (file == nullptr) return refuse(EINVAL);
  kind.file = file->id;
  return kind;
}

}  // namespace

void enable() {
  is_enabled.store(true, sync::kRelaxed);
}
bool enabled() {
  return is_enabled.load(sync::kRelaxed);
}
bool any() {
  return is_any.load(sync::kRelaxed);
}

Pool pool(unsigned level) {
  const sync::MutexGuard guard(lock);
  const u64 used = used_pages_locked(level);
  return {std::max(pool_size(level), used), used};
}

void set_pool(unsigned level, u64 pages) {
  session_word(pool_word(level)).store(std::min(pages, ~kSet) | kSet, sync::kRelaxed);
}

unsigned level_of_flags(unsigned flags) {
  const unsigned size = (flags >> kSizeShift) & kSizeMask;
  if (size == 0) return kDefaultLevel;
  for (const unsigned level : kLevels) {
    if (page_bytes(level) == u64{1} << size) return level;
  }
  return 0;
}

Result<int> make_file(const char* name, unsigned flags) {
  const unsigned level = level_of_flags(flags);
  if (level == 0) return refuse(EINVAL);
  const sync::PassingNumber passing;
  const int fd = ST_TRY(sys::memfd_create(name, flags & ~(MFD_HUGETLB | kSizeMask << kSizeShift)));
  struct ::stat behind{};
  Result<void> noted = sys::fstat(fd, &behind);
  if (noted) {
    const sync::MutexGuard guard(lock);
    const auto opened = open_records_locked();
    noted = opened ? (*opened)->files.push_back({behind.st_dev, behind.st_ino,
                                                 ++(*opened)->last_file, static_cast<u8>(level)})
                   : Result<void>(refuse(opened.error()));
  }
  if (!noted) {
    static_cast<void>(sys::close(fd));
    return refuse(noted.error());
  }
  is_any.store(true, sync::kRelaxed);
  return fd;
}

unsigned level_of_file(const struct ::stat& behind) {
  const sync::MutexGuard guard(lock);
  const File* const file = find_file_locked(behind);
  return file == nullptr ? 0 : file->level;
}

unsigned level_of_map(const MapCall& call) {
  const bool huge = (call.flags & MAP_HUGETLB) != 0;
  if ((call.flags & MAP_ANONYMOUS) != 0) {
    return huge && enabled() ? level_of_flags(static_cast<unsigned>(call.flags)) : 0;
  }
  struct ::stat behind{};
  if (!any() || call.fd < 0 || !sys::fstat(call.fd, &behind)) return 0;
  return level_of_file(behind);
}

Result<void*> map(const MapCall& call, unsigned level) {
  const u64 size = ST_TRY(rounded_size(call, level));
  Kind kind = ST_TRY(kind_of(call, level));
  const bool anonymous = (call.flags & MAP_ANONYMOUS) != 0;
  const Pool now = pool(level);
  const u64 wanted = size / page_bytes(level);
  const bool file_has_them = kind.file != 0;  // several mappings of one page count once
  if (kind.reserved && !file_has_them && wanted > now.total - now.used) return refuse(ENOMEM);

  const u64 place = ST_TRY(find_place(call, size, level));
  const bool keeps = (call.flags & MAP_FIXED_NOREPLACE) != 0;
  const bool client_chose = keeps || (call.flags & MAP_FIXED) != 0;
  int flags = call.flags & ~(MAP_HUGETLB | static_cast<int>(kSizeMask << kSizeShift));
  if (!keeps) flags |= MAP_FIXED;
  const auto mapped = sys::mmap(reinterpret_cast<void*>(place), size, call.prot, flags, call.fd,
                                anonymous ? 0 : call.offset);
  Result<void> noted;
  if (mapped) {
    if (kind.file != 0) kind.base = static_cast<u64>(call.offset) - place;
    const sync::MutexGuard guard(lock);
    const auto opened = open_records_locked();
    noted = opened ? (*opened)->ranges.assign(place, place + size, kind)
                   : Result<void>(refuse(opened.error()));
    const bool fits = !kind.reserved || used_pages_locked(level) <= now.total;
    if (noted && !fits) {
      static_cast<void>(records->ranges.erase(place, place + size));
      noted = refuse(ENOMEM);
    }
  }
  if (!mapped || !noted) {
    // The place is ours if it was found for the call, or if it has been mapped over.
    if (mapped || !client_chose) {
      static_cast<void>(sys::munmap(reinterpret_cast<void*>(place), size));
    }
    return refuse(mapped ? noted.error() : mapped.error());
  }
  is_any.store(true, sync::kRelaxed);
  static_cast<void>(sys::madvise(*mapped, size, MADV_HUGEPAGE));
  return *mapped;
}

bool cuts(u64 start, u64 size) {
  const u64 end = up(start + size, kPageSize);
  const sync::MutexGuard guard(lock);
  if (records == nullptr) return false;
  for (const u64 edge : {start, end}) {
    const auto entry = records->ranges.find(edge);
    if (entry && !aligned(edge, entry.value->level)) return true;
  }
  return false;
}

void forget(u64 start, u64 size) {
  if (size == 0) return;
  const sync::MutexGuard guard(lock);
  const u64 end = up(start + size, kPageSize);
  if (records == nullptr || !records->ranges.overlaps(start, end)) return;
  // Without memory the record stays too long: an address is then thought huge until it is mapped
  // as something else, which costs a populate and is wrong in a statistic.
  static_cast<void>(records->ranges.erase(start, end));
}

Result<void> check_remap(u64 old_at, size_t* old_size, size_t* new_size, int flags, u64 new_at) {
  const sync::MutexGuard guard(lock);
  const auto entry = find_range_locked(old_at);
  if (!entry) return {};
  const unsigned level = entry.value->level;
  *old_size = up(*old_size, page_bytes(level));
  *new_size = up(*new_size, page_bytes(level));
  if (!aligned(old_at, level)) return refuse(EINVAL);
  if ((flags & MREMAP_FIXED) != 0 && !aligned(new_at, level)) return refuse(EINVAL);
  if (*new_size > *old_size) return refuse(EINVAL);
  return {};
}

void moved(u64 old_at, size_t old_size, u64 new_at, size_t new_size) {
  const sync::MutexGuard guard(lock);
  const auto entry = find_range_locked(old_at);
  if (!entry) return;
  Kind kind = *entry.value;
  kind.base += kind.file != 0 ? old_at - new_at : 0;
  static_cast<void>(records->ranges.erase(old_at, old_at + old_size));
  static_cast<void>(records->ranges.assign(new_at, new_at + new_size, kind));
}

Result<void> check_advice(u64 start, size_t* size, int advice) {
  const sync::MutexGuard guard(lock);
  const auto entry = find_range_locked(start);
  if (!entry) return {};
  const unsigned level = entry.value->level;
  switch (advice) {
    case MADV_DONTNEED:
    case MADV_DONTNEED_LOCKED: {
      if (!aligned(start, level)) return refuse(EINVAL);
      const u64 end = start + *size;
      if (end <= entry.end) *size = end / page_bytes(level) * page_bytes(level) - start;
      return {};
    }
    case MADV_FREE:
    case MADV_COLD:
    case MADV_PAGEOUT:
      return refuse(EINVAL);
    default:
      return {};
  }
}

unsigned level_at(Hva page) {
  u64 start = 0;
  unsigned level = 0;
  {
    const sync::MutexGuard guard(lock);
    const auto entry = find_range_locked(page.raw());
    if (!entry) return 0;
    level = entry.value->level;
    start = page.raw() & ~(page_bytes(level) - 1);
  }
  // Nothing there: nothing is mapped, of no size.
  unsigned char resident = 0;
  void* const asked = reinterpret_cast<void*>(page.raw() & kPageMask);
  if (!sys::mincore(asked, kPageSize, &resident) || (resident & 1) == 0) return 1;
  // hugetlbfs has all of a page or nothing; so has who asks, from now on.
  void* const at = reinterpret_cast<void*>(start);
  if (sys::madvise(at, page_bytes(level), MADV_POPULATE_WRITE)) return level;
  if (sys::madvise(at, page_bytes(level), MADV_POPULATE_READ)) return level;
  return 1;
}

void after_fork_child() {
  // Another thread may have been changing them: what is left then is unknown, that is, small pages.
  const bool torn = lock.debug_locked();
  std::construct_at(&lock, sync::Rank::kLeaf);
  if (torn) records = nullptr;
}

void debug_reset() {
  const sync::MutexGuard guard(lock);
  destroy(records);
  records = nullptr;
  is_enabled.store(false, sync::kRelaxed);
  is_any.store(false, sync::kRelaxed);
}

}  // namespace stagetwo::host::hugetlb
