// SPDX-License-Identifier: Apache-2.0
#include "mem/page_store.h"

#include <lz4.h>
#include <sys/mman.h>

#include <cstring>

#include "base/alloc.h"
#include "base/check.h"
#include "base/sys.h"

// Where the bytes of an entry are, and who may change that:
//
//   kind       bytes        its owner may          the store may        successors
//   kWord      the entry    get, drop              nothing              kFree
//   kMemory    the pool     get, drop              move it              kMoving, kFree
//   kMoving    both soon    get (memory), drop     (one thread does)    kDisk, kMemory, kLeft
//   kLeft      nobody's     nothing                finish, free it      kFree
//   kDisk      the file     get, drop              nothing              kFree
//
//   thread that moves              | owner
//   lock; kMoving, copies; unlock  |
//   writes the copy                | lock; drop: frees the object, kLeft; unlock
//   lock; kLeft: releases the      |
//   extent and the entry; unlock   |
//
// A page is read from the disk without the lock: its owner alone could drop it, and it is reading.

namespace stagetwo::mem {
namespace {

constexpr u32 kMostEntries = 1U << 26;  // 256 GiB of pages
constexpr u32 kEntryStep = 1U << 14;
constexpr u32 kEntriesAPage = kPageSize / 32;

// The word a page repeats; false: it does not.
bool repeats(const void* page, u64* word) {
  const auto* words = static_cast<const u64*>(page);
  for (size_t i = 1; i < kPageSize / sizeof(u64); ++i) {
    if (words[i] != words[0]) return false;
  }
  *word = words[0];
  return true;
}

void fill(void* page, u64 word) {
  auto* words = static_cast<u64*>(page);
  for (size_t i = 0; i < kPageSize / sizeof(u64); ++i) words[i] = word;
}

constexpr u16 kWholePage = kPageSize;

// The size of the page compressed in bench->bytes; kWholePage: it does not get small enough.
u16 compress(const void* page, PageStore::Bench* bench) {
  const int size = LZ4_compress_fast_extState(bench->state, static_cast<const char*>(page),
                                              reinterpret_cast<char*>(bench->bytes), kWholePage,
                                              static_cast<int>(CompressedPool::kMaxObject), 1);
  return size > 0 ? static_cast<u16>(size) : kWholePage;
}

bool expand(const void* bytes, u16 size, void* page) {
  if (size == kWholePage) {
    std::memcpy(page, bytes, kWholePage);
    return true;
  }
  return LZ4_decompress_safe(static_cast<const char*>(bytes), static_cast<char*>(page), size,
                             kWholePage) == kWholePage;
}

}  // namespace

static_assert(sizeof(LZ4_stream_t) <= sizeof(PageStore::Bench::state));

PageStore::~PageStore() {
  const sync::MutexGuard guard(lock_);
  if (entries_ != nullptr) unmap_pages(entries_, u64{kMostEntries} * sizeof(Entry));
}

void PageStore::set_memory_limit(u64 bytes) {
  const sync::MutexGuard guard(lock_);
  memory_limit_ = bytes;
}

void PageStore::set_file_limit(u64 bytes) {
  const sync::MutexGuard guard(lock_);
  file_.set_limit(bytes);
}

// ---- entries --------------------------------------------------------------------------------

Result<u32> PageStore::new_entry() {
  if (free_ == kNone && entry_count_ == committed_) {
    if (entries_ == nullptr) {
      entries_ = static_cast<Entry*>(
          ST_TRY(reserve_pages(u64{kMostEntries} * sizeof(Entry), "mem.store_space")));
      hinted_.store(entries_, sync::kRelaxed);
    }
    if (committed_ == kMostEntries) return refuse(ENOMEM);
    ST_TRY(commit_pages(entries_ + committed_, kEntryStep * sizeof(Entry), "mem.store_entries"));
    committed_ += kEntryStep;
  }
  u32 entry = free_;
  if (entry == kNone) {
    entry = entry_count_++;
    ::new (static_cast<void*>(entries_ + entry)) Entry();
  } else {
    free_ = entries_[entry].next;
    entries_[entry] = Entry();
  }
  ++used_entries_;
  return entry;
}

void PageStore::free_entry(u32 entry) {
  entries_[entry].kind = Kind::kFree;
  entries_[entry].next = free_;
  free_ = entry;
  if (--used_entries_ == 0 && entry_count_ > kEntriesAPage) forget_entries();
}

// None is in use: the kernel has their memory back. Refused, it is written over as it is needed.
void PageStore::forget_entries() {
  const u64 bytes = entry_count_ * sizeof(Entry);
  static_cast<void>(sys::madvise(entries_, (bytes + kPageSize - 1) & kPageMask, MADV_DONTNEED));
  entry_count_ = 0;
  free_ = kNone;
}

void PageStore::append_newest(u32 entry) {
  entries_[entry].next = kNone;
  entries_[entry].previous = newest_;
  (newest_ == kNone ? oldest_ : entries_[newest_].next) = entry;
  newest_ = entry;
}

void PageStore::unlink(u32 entry) {
  const Entry& e = entries_[entry];
  (e.previous == kNone ? oldest_ : entries_[e.previous].next) = e.next;
  (e.next == kNone ? newest_ : entries_[e.next].previous) = e.previous;
}

void PageStore::count_memory() {
  use_.account_bytes = entry_count_ * sizeof(Entry) + file_.map_bytes();
  use_.memory_bytes = pool_.bytes() + use_.account_bytes;
  memory_bytes_.store(use_.memory_bytes, sync::kRelaxed);
}

// ---- putting --------------------------------------------------------------------------------

Result<StoredPage> PageStore::put_word(u64 word) {
  const sync::MutexGuard guard(lock_);
  const auto entry = new_entry();
  if (!entry) {
    same_filled_.fetch_sub(1, sync::kRelaxed);
    return refuse(entry.error());
  }
  entries_[*entry].kind = Kind::kWord;
  entries_[*entry].word = word;
  count_memory();
  return StoredPage{*entry};
}

Result<StoredPage> PageStore::put_in_memory(const void* bytes, u16 size) {
  const sync::MutexGuard guard(lock_);
  const u32 entry = ST_TRY(new_entry());
  const auto object = pool_.put(bytes, size);
  if (!object) {
    free_entry(entry);
    return refuse(object.error());
  }
  Entry& e = entries_[entry];
  e.kind = Kind::kMemory;
  e.object = *object;
  e.bytes = size;
  append_newest(entry);
  ++use_.in_memory;
  count_memory();
  return StoredPage{entry};
}

// Bytes on the disk, in an extent of their own.
Result<SwapExtent> PageStore::write_out(const void* bytes, u16 size, int fd) {
  if (fd < 0) return refuse(ENOSPC);
  SwapExtent extent;
  {
    const sync::MutexGuard guard(lock_);
    extent = ST_TRY(file_.allocate(size));
  }
  const auto written = SwapFile::write(fd, &extent, bytes);
  if (written) return extent;
  const sync::MutexGuard guard(lock_);
  ++use_.write_errors;
  use_.last_error = to_int(written.error());
  file_.release(extent);
  return refuse(written.error());
}

Result<StoredPage> PageStore::put_on_disk(const void* bytes, u16 size, int fd) {
  const SwapExtent extent = ST_TRY(write_out(bytes, size, fd));
  const sync::MutexGuard guard(lock_);
  const auto entry = new_entry();
  if (!entry) {
    file_.release(extent);
    return refuse(entry.error());
  }
  Entry& e = entries_[*entry];
  e.kind = Kind::kDisk;
  e.extent = extent;
  e.bytes = size;
  ++use_.on_disk;
  count_memory();
  return StoredPage{*entry};
}

// Takes the oldest page in memory out of its list and copies its bytes to the bench.
u32 PageStore::begin_move(Bench* bench, u16* size) {
  const sync::MutexGuard guard(lock_);
  if (pool_.bytes() <= memory_limit_ || oldest_ == kNone) return kNone;
  const u32 entry = oldest_;
  unlink(entry);
  Entry& e = entries_[entry];
  e.kind = Kind::kMoving;
  *size = e.bytes;
  std::memcpy(bench->bytes, pool_.at(e.object), e.bytes);
  return entry;
}

// False: nothing more is to be moved, or it cannot be.
bool PageStore::move_oldest(Bench* bench, int fd) {
  u16 size = 0;
  const u32 entry = begin_move(bench, &size);
  if (entry == kNone) return false;
  const auto extent = write_out(bench->bytes, size, fd);
  const sync::MutexGuard guard(lock_);
  Entry& e = entries_[entry];
  if (e.kind == Kind::kLeft) {
    if (extent) file_.release(*extent);
    free_entry(entry);
  } else if (extent) {
    pool_.free(e.object);
    e.kind = Kind::kDisk;
    e.extent = *extent;
    --use_.in_memory;
    ++use_.on_disk;
    ++use_.moved_to_disk;
  } else {
    e.kind = Kind::kMemory;
    append_newest(entry);
  }
  count_memory();
  return extent.has_value();
}

Result<StoredPage> PageStore::put(const void* page, Bench* bench, int fd) {
  u64 word = 0;
  if (repeats(page, &word)) {
    same_filled_.fetch_add(1, sync::kRelaxed);
    return word == 0 ? Result<StoredPage>(kZeros) : put_word(word);
  }
  // Room first, by the bench's buffer: afterwards it holds this page.
  while (move_oldest(bench, fd)) {
  }
  const u16 size = compress(page, bench);
  return put_somewhere(size == kWholePage ? page : bench->bytes, size, fd);
}

Result<StoredPage> PageStore::put_bytes(const void* bytes, u16 size, Bench* bench, int fd) {
  while (move_oldest(bench, fd)) {
  }
  return put_somewhere(bytes, size, fd);
}

Result<StoredPage> PageStore::put_somewhere(const void* bytes, u16 size, int fd) {
  bool in_memory = size != kWholePage;
  {
    const sync::MutexGuard guard(lock_);
    use_.incompressible += in_memory ? 0 : 1;
    const bool has_room = memory_limit_ == 0 ? fd < 0 : pool_.bytes() <= memory_limit_;
    in_memory = in_memory && has_room;
  }
  return in_memory ? put_in_memory(bytes, size) : put_on_disk(bytes, size, fd);
}

// ---- getting --------------------------------------------------------------------------------

// What an entry has, as a page or as the bytes that were put.
Result<void> PageStore::get_entry(StoredPage stored, void* to, Form form, int fd) {
  const auto put = [&](const void* bytes, u16 size) {
    if (form == Form::kPage) return expand(bytes, size, to);
    std::memcpy(to, bytes, size);
    return true;
  };
  SwapExtent extent;
  u16 size = 0;
  {
    const sync::MutexGuard guard(lock_);
    const Entry& e = entries_[static_cast<u32>(stored)];
    if (e.kind == Kind::kWord) {
      fill(to, e.word);
      return {};
    }
    if (e.kind != Kind::kDisk) {
      // drop() is next, and writes to its neighbours in the list: they come while it is expanded.
      if (e.previous != kNone) __builtin_prefetch(entries_ + e.previous, 1);
      if (e.next != kNone) __builtin_prefetch(entries_ + e.next, 1);
      if (put(pool_.at(e.object), e.bytes)) return {};
      ++use_.lost;
      return refuse(EBADMSG);
    }
    extent = e.extent;
    size = e.bytes;
  }
  const bool as_it_is = size == kWholePage || form == Form::kBytes;
  u8 bytes[CompressedPool::kMaxObject];
  auto done = SwapFile::read(fd, extent, as_it_is ? to : bytes);
  if (done && !as_it_is && !expand(bytes, size, to)) done = refuse(EBADMSG);
  if (!done) {
    const sync::MutexGuard guard(lock_);
    ++use_.lost;
  }
  return done;
}

Result<void> PageStore::get(StoredPage stored, void* page, int fd) {
  if (stored != kZeros) return get_entry(stored, page, Form::kPage, fd);
  fill(page, 0);
  return {};
}

Result<void> PageStore::get_bytes(StoredPage stored, void* to, int fd) {
  return get_entry(stored, to, Form::kBytes, fd);
}

void PageStore::drop(StoredPage stored) {
  if (stored == kZeros) {
    same_filled_.fetch_sub(1, sync::kRelaxed);
    return;
  }
  const sync::MutexGuard guard(lock_);
  const u32 entry = static_cast<u32>(stored);
  Entry& e = entries_[entry];
  switch (e.kind) {
    case Kind::kWord:
      same_filled_.fetch_sub(1, sync::kRelaxed);
      free_entry(entry);
      break;
    case Kind::kMemory:
      unlink(entry);
      pool_.free(e.object);
      --use_.in_memory;
      free_entry(entry);
      break;
    case Kind::kMoving:
      pool_.free(e.object);
      --use_.in_memory;
      e.kind = Kind::kLeft;
      break;
    case Kind::kDisk:
      file_.release(e.extent);
      --use_.on_disk;
      free_entry(entry);
      break;
    case Kind::kFree:
    case Kind::kLeft:
      ST_CHECK(false);
  }
  count_memory();
}

// Nothing is written to it meanwhile, and nobody waits for the lock while the disk is busy.
void PageStore::give_back(int fd) {
  SwapFile::Hole hole;
  {
    const sync::MutexGuard guard(lock_);
    hole = file_.begin_hole();
  }
  if (hole.blocks == 0) return;
  SwapFile::punch(fd, hole);
  const sync::MutexGuard guard(lock_);
  file_.end_hole(hole);
  count_memory();
}

StoreUse PageStore::use() {
  const sync::MutexGuard guard(lock_);
  StoreUse now = use_;
  now.same_filled = same_filled_.load(sync::kRelaxed);
  now.disk_bytes = file_.bytes();
  return now;
}

s64 PageStore::debug_offset(StoredPage stored) {
  const sync::MutexGuard guard(lock_);
  if (stored == kZeros) return -1;
  const Entry& e = entries_[static_cast<u32>(stored)];
  return e.kind == Kind::kDisk ? static_cast<s64>(e.extent.unit * kSwapUnit) : -1;
}

}  // namespace stagetwo::mem
