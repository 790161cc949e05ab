// SPDX-License-Identifier: Apache-2.0
#pragma once

// Bytes of pages that are to take less room than a page: those of one repeated word take none,
// others are compressed (lz4) and stand in memory, and what does not get smaller, or is oldest when
// memory is short, goes to a swap file. Analogue: zswap (kernel file: mm/zswap.c).
//
// Invariants: I1  get() answers the bytes of put(), or says that they are lost: never other bytes.
//             I2  a refused put() has kept nothing; memory_bytes() is above its limit for no longer
//                 than one put() takes.
//             I3  drop() gives back what put() took, of memory and of disk. The account of pages
//                 stays as long as it was until none is stored, and is said apart.
// Locking: lock_ (rank: mem store), not held while the disk is read or written or a page is
// compressed. A stored page is one caller's: put, get and drop of it never overlap; those of others
// do, and so does the store's own moving of it to the disk.
// The disk is a file of SwapFile::create(); the caller names it by number in each call, -1 where
// there is none, and the number stays its until the call returns.
// Context: get() and drop() allocate nothing; put() and get() may sleep. No signal handler.
// Lifetime: a stored page until its drop(); the store outlives them.

#include "addr/addr.h"
#include "base/result.h"
#include "base/types.h"
#include "mem/compressed_pool.h"
#include "mem/swap_file.h"
#include "sync/atomic.h"
#include "sync/mutex.h"

namespace stagetwo::mem {

// What put() answers: the number of an entry, or that there were only zeros.
enum class StoredPage : u32 {};
inline constexpr StoredPage kZeros{~u32{0}};

struct StoreUse {
  u64 same_filled = 0;  // pages
  u64 in_memory = 0;
  u64 on_disk = 0;
  u64 memory_bytes = 0;   // of compressed pages and of what keeps account of all of them
  u64 account_bytes = 0;  // of these, the account: as large as it was when most pages were stored
  u64 disk_bytes = 0;
  u64 incompressible = 0;  // put() calls so far that found a page so
  u64 moved_to_disk = 0;   // pages so far that memory was too short for
  u64 write_errors = 0;    // so far
  int last_error = 0;      // of them
  u64 lost = 0;            // get() calls so far that found bytes lost
};

class PageStore {
 public:
  // What a thread compresses with. Pre: one thread at a time.
  struct Bench {
    alignas(64) u8 state[16 * 1024 + 512];
    alignas(64) u8 bytes[kPageSize];
  };

  PageStore() = default;
  PageStore(const PageStore&) = delete;
  PageStore& operator=(const PageStore&) = delete;
  ~PageStore();

  // What compressed pages may have of memory. Less than they have: the next put() moves them.
  void set_memory_limit(u64 bytes) TA_EXCL(lock_);
  void set_file_limit(u64 bytes) TA_EXCL(lock_);

  // Keeps the bytes of `page`. Failure: ENOSPC (it fits nowhere: the limits are reached, or the
  // disk is full, or it does not get smaller and there is no disk), ENOMEM, and the disk's EDQUOT,
  // EFBIG, EIO.
  [[nodiscard]] Result<StoredPage> put(const void* page, Bench* bench, int fd) TA_EXCL(lock_);
  // Puts them at `page`; they stay stored. Failure: the bytes are lost: EBADMSG (they are not those
  // that were written), EIO and whatever the disk says.
  [[nodiscard]] Result<void> get(StoredPage stored, void* page, int fd) TA_EXCL(lock_);
  void drop(StoredPage stored) TA_EXCL(lock_);
  // A hint that get() of it is next.
  void expect(StoredPage stored) const {
    const Entry* const first = hinted_.load(sync::kRelaxed);
    if (stored != kZeros && first != nullptr) __builtin_prefetch(first + static_cast<u32>(stored));
  }
  // Blocks of the disk that nobody needs go back to it, some at a time; until then they are used
  // again before others are. Context: may sleep for as long as a disk takes.
  void give_back(int fd) TA_EXCL(lock_);

  // The same for bytes that somebody else has made of a page: kept as they are. Pre: size is at
  // most CompressedPool::kMaxObject, or a page's.
  [[nodiscard]] Result<StoredPage> put_bytes(const void* bytes, u16 size, Bench* bench, int fd)
      TA_EXCL(lock_);
  // As many go to `to`. Failure: as get().
  [[nodiscard]] Result<void> get_bytes(StoredPage stored, void* to, int fd) TA_EXCL(lock_);
  // A page of zeros, of which its owner only remembers that it was one: kZeros.
  void put_zeros() { same_filled_.fetch_add(1, sync::kRelaxed); }

  [[nodiscard]] StoreUse use() TA_EXCL(lock_);
  // Memory it takes now. Racy by as much as a put() that is under way.
  [[nodiscard]] u64 memory_bytes() const { return memory_bytes_.load(sync::kRelaxed); }
  // Where a page stands on the disk, for tests that damage it; -1: elsewhere.
  [[nodiscard]] s64 debug_offset(StoredPage stored) TA_EXCL(lock_);

 private:
  // kMoving: on its way to the disk, its bytes still in memory. Dropped meanwhile it is kLeft, and
  // whoever moves it frees the entry.
  enum class Kind : u8 { kFree, kWord, kMemory, kMoving, kLeft, kDisk };
  struct Entry {
    union {
      SwapExtent extent{};            // kDisk
      u64 word;                       // kWord: it is repeated
      CompressedPool::Object object;  // kMemory, kMoving
    };
    u32 next = kNone;  // of the free ones, or of those in memory, oldest first
    u32 previous = kNone;
    u16 bytes = 0;  // kPageSize: not compressed
    Kind kind = Kind::kFree;
  };
  static constexpr u32 kNone = ~u32{0};

  [[nodiscard]] Result<u32> new_entry() TA_REQ(lock_);
  void free_entry(u32 entry) TA_REQ(lock_);
  void forget_entries() TA_REQ(lock_);
  void append_newest(u32 entry) TA_REQ(lock_);
  void unlink(u32 entry) TA_REQ(lock_);
  void count_memory() TA_REQ(lock_);
  [[nodiscard]] Result<StoredPage> put_word(u64 word) TA_EXCL(lock_);
  [[nodiscard]] Result<StoredPage> put_somewhere(const void* bytes, u16 size, int fd)
      TA_EXCL(lock_);
  [[nodiscard]] Result<StoredPage> put_in_memory(const void* bytes, u16 size) TA_EXCL(lock_);
  [[nodiscard]] Result<StoredPage> put_on_disk(const void* bytes, u16 size, int fd) TA_EXCL(lock_);
  enum class Form : u8 { kPage, kBytes };
  [[nodiscard]] Result<void> get_entry(StoredPage stored, void* to, Form form, int fd)
      TA_EXCL(lock_);
  [[nodiscard]] Result<SwapExtent> write_out(const void* bytes, u16 size, int fd) TA_EXCL(lock_);
  [[nodiscard]] u32 begin_move(Bench* bench, u16* size) TA_EXCL(lock_);
  [[nodiscard]] bool move_oldest(Bench* bench, int fd) TA_EXCL(lock_);

  sync::Mutex lock_{sync::Rank::kMemStore};
  CompressedPool pool_ TA_GUARDED(lock_);
  SwapFile file_ TA_GUARDED(lock_);
  u64 memory_limit_ TA_GUARDED(lock_) = ~u64{0};
  // Address space for kMostEntries, made at the first put; committed in steps.
  Entry* entries_ TA_GUARDED(lock_) = nullptr;
  u32 entry_count_ TA_GUARDED(lock_) = 0;   // ever used since there were none
  u32 used_entries_ TA_GUARDED(lock_) = 0;  // of them
  u32 committed_ TA_GUARDED(lock_) = 0;
  u32 free_ TA_GUARDED(lock_) = kNone;
  u32 oldest_ TA_GUARDED(lock_) = kNone;
  u32 newest_ TA_GUARDED(lock_) = kNone;
  StoreUse use_ TA_GUARDED(lock_);
  sync::Atomic<u64> same_filled_{0};  // relaxed: a statistic
  sync::Atomic<u64> memory_bytes_{0};
  sync::Atomic<const Entry*> hinted_{nullptr};  // entries_, relaxed: nobody reads what is there
};

}  // namespace stagetwo::mem
