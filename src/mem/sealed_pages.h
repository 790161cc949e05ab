// SPDX-License-Identifier: Apache-2.0
#pragma once

// The pages of one guest_memfd that are away: which, and what opens them. Part of mem; not for
// other rooms (mem/private_swap.h is the door).
//
//   state    the page's bytes                 successors
//   kHere    the file                         kOfZeros, kSealed
//   kOfZeros none                             kHere
//   kSealed  the store, under this key        kHere, kLost
//   kLost    gone; every fault is refused     kHere (punched)
//
// What a page became by compression is sealed, so that the store sees ciphertext alone, of any size
// up to a page. A key lives and dies with the object; version and tag stay in the engine's memory,
// where nobody else writes: they are no secrets, and there are too many of them for locked memory.
// Locking: that of private pages, held by every caller.

#include "mem/guest_memfd.h"
#include "mem/private_swap.h"
#include "mem/sealed_store.h"

namespace stagetwo::mem {

class SealedPages {
 public:
  // Failure: ENOMEM, what SealedStore::begin() says.
  [[nodiscard]] static Result<SealedPages*> create(int fd, u64 pages, PrivateSwap& swap);
  // What is still away is dropped. Null is allowed.
  static void destroy(SealedPages* pages);
  SealedPages(u64 pages, PrivateSwap& swap, u64 number)
      : count_(pages), number_(number), swap_(swap) {}
  ~SealedPages();

  [[nodiscard]] PrivateSwap& swap() { return swap_; }
  [[nodiscard]] u64 away() const { return away_; }
  [[nodiscard]] bool is_away(u64 page) const { return records_[page].state != State::kHere; }
  // The engine's own address of a page of the file, whoever is bound to it.
  [[nodiscard]] u8* at(u64 page) const { return whole_ + (page << kPageShift); }

  // The page leaves the file. Pre: it is here, and nobody uses it. Failure: the store's; EBUSY (it
  // cannot be dropped); nothing changed.
  [[nodiscard]] Result<void> take(u64 page, PrivateSwap::Bench* bench);
  // What the file has in its place all the same.
  [[nodiscard]] Result<void> drop_from_file(u64 page);
  // The bytes of a page, to `to`, the file's own page somewhere. Failure: EBADMSG, EIO: the page is
  // lost, and said to be; ENOMEM: nothing changed.
  [[nodiscard]] Result<void> give(u64 page, u8* to);
  // What is away of them dies; answers how many.
  u64 forget(PageRange pages);
  // Everything that can be given; who is lost stays lost.
  void give_all();

 private:
  enum class State : u8 { kHere, kOfZeros, kSealed, kLost };
  struct Record {
    SealedRecord seal;
    StoredPage stored{};
    u16 bytes = 0;
    State state = State::kHere;
  };
  static_assert(sizeof(Record) == 32);

  [[nodiscard]] SealedIdentity identity(u64 page, u64 bytes) const;
  [[nodiscard]] Result<void> seal(u64 page, const u8* bytes, PrivateSwap::Bench* bench);
  [[nodiscard]] Result<void> open(u64 page, u8* to);
  void drop(u64 page);
  void count_away(int pages);

  const u64 count_;
  const u64 number_;  // of the object, among all there were
  PrivateSwap& swap_;
  SealedStore store_;
  Record* records_ = nullptr;
  u8* whole_ = nullptr;  // the file, mapped; touched only to take and to give
  u64 away_ = 0;
};

}  // namespace stagetwo::mem
