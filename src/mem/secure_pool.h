// SPDX-License-Identifier: Apache-2.0
#pragma once

// The pool of secure pages: finite, of one page size, in memory for secrets.
// Analogue: kvmppc_uvmem_pgmap and its bitmap (kernel file: book3s_hv_uvmem.c). Differs: each page
// says whose it is, so that somebody can be asked to give one up; and it is wiped when it is free.
//
// I1: a free page is zeros. I2: taken + free = count. I3: a page has one holder at a time. I4: one
// whose holder never asked where it is has no memory yet, and gets none.
// Locking: lock_ (rank: mem store), innermost, over a search of a bitmap.
// Lifetime: whoever takes pages gives them back before the pool ends.

#include "base/result.h"
#include "base/types.h"
#include "mem/secure_memory.h"
#include "sync/mutex.h"

namespace stagetwo::mem {

class SecurePool {
 public:
  // Who holds a page: a guest and its page there.
  struct Holder {
    u32 guest = 0;
    u64 page = 0;
  };
  static constexpr u32 kNone = ~u32{0};
  static constexpr u32 kMostGuests = 64;  // that hold pages at once

  SecurePool() = default;
  SecurePool(const SecurePool&) = delete;
  SecurePool& operator=(const SecurePool&) = delete;
  ~SecurePool();

  // Pre: not opened before; page_bytes is a power of two, 4 KiB or more. Failure: EINVAL (no page
  // at all, too many), ENOMEM, and what SecureMemory::map() says.
  [[nodiscard]] Result<void> open(u32 pages, u64 page_bytes, SecureMemory::Want want);

  // A page of zeros. kNone: the pool is empty. Pre: kMostGuests.
  [[nodiscard]] u32 take(Holder holder) TA_EXCL(lock_);
  // Wipes it first, if it may have been written. Pre: nobody uses it any more.
  void give_back(u32 page) TA_EXCL(lock_);
  // The next page in the order of a clock, whose hand is the caller's (0 at first, moved under this
  // lock, so that who shares it gets another page), that `guest` holds, with `of_others` of any
  // guest but it that holds more than `quota`; pages used since a hand last came by are passed
  // once. False: there is none. The answer is a hint: the page may be given back at any time.
  [[nodiscard]] bool next_victim(u32 guest, bool of_others, u32 quota, u32* hand, Holder* victim)
      TA_EXCL(lock_);
  [[nodiscard]] u32 held(u32 guest) TA_EXCL(lock_);
  // The page was used. Pre: the caller holds it.
  void used(u32 page) TA_EXCL(lock_);

  // For its holder, who may write there from now on.
  [[nodiscard]] u8* at(u32 page) const {
    asked_for_[page].store(1, sync::kRelaxed);
    return memory_.data() + page * page_bytes_;
  }
  [[nodiscard]] u64 page_bytes() const { return page_bytes_; }
  [[nodiscard]] u32 count() const { return count_; }
  [[nodiscard]] u32 free_count() TA_EXCL(lock_);
  [[nodiscard]] SecureMemory::Kind kind() const { return memory_.kind(); }
  // Does any byte of [address, address + bytes) lie in the pool?
  [[nodiscard]] bool contains(u64 address, u64 bytes) const {
    return memory_.contains(address, bytes);
  }

 private:
  struct Entry {
    u64 page = 0;
    u8 account = 0;  // of its holder
    bool taken = false;
    bool used = false;  // since the hand passed
  };
  struct Account {
    u32 guest = 0;
    u32 pages = 0;  // 0: nobody's
  };

  [[nodiscard]] u32 account_of(u32 guest) const TA_REQ(lock_);

  SecureMemory memory_;
  u64 page_bytes_ = 0;  // immutable after open()
  u32 count_ = 0;       // immutable after open()
  // By page: its holder has asked where it is. Written by the holder alone, who may be several
  // threads.
  sync::Atomic<u8>* asked_for_ = nullptr;
  sync::Mutex lock_{sync::Rank::kMemStore};
  Entry* entries_ TA_GUARDED(lock_) = nullptr;
  Account accounts_[kMostGuests] TA_GUARDED(lock_);
  u32 free_ TA_GUARDED(lock_) = 0;
  u32 search_ TA_GUARDED(lock_) = 0;  // where the last free page was found
};

}  // namespace stagetwo::mem
