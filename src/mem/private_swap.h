// SPDX-License-Identifier: Apache-2.0
#pragma once

// Private pages of guests under a limit: the bound pages of guest_memfds leave memory compressed
// and sealed (mem/sealed_store.h), and come back when a guest faults on them. Nobody else can touch
// such a page, so no touch has to be watched: whoever takes one has it out of every table first
// (ObjectObserver::leaving), and whoever is about to fault on one asks fetch() first.
// Analogue: none in the kernel, which never swaps these pages
// (docs/decisions/0036-private-pages-under-a-limit.md).
//
// Invariants: I1  a page is in the file, or sealed, or lost and said so once; never other bytes.
//             I2  what is punched or released is sealed no longer.
//             I3  nothing is away between before_fork() and after_fork_parent().
// Locking: one lock for the process (rank: slots_arch), held while pages are sealed or opened;
// above the locks of objects. Context: no signal handler; a fault outside every section.
// Lifetime: the swap from open() to close().

#include "addr/addr.h"
#include "base/result.h"
#include "base/types.h"
#include "mem/page_store.h"
#include "sync/atomic.h"
#include "sync/kept_number.h"

namespace stagetwo::mem {

// Where private pages go, and who is told of it: reclaim's. Told under the lock of private pages.
class PrivateSwap {
 public:
  // What pages are compressed and sealed with. Pre: one thread at a time.
  struct Bench {
    PageStore::Bench* store;
    alignas(64) u8 clear[kPageSize];
    alignas(64) u8 sealed[kPageSize];
  };

  static constexpr u64 kMostAlong = 16;  // whoever wants another page waits for these

  explicit PrivateSwap(PageStore& store) : private_store_(store) {}
  PrivateSwap(const PrivateSwap&) = delete;
  PrivateSwap& operator=(const PrivateSwap&) = delete;

  // Of the store's disk, for one call on it; none: there is no disk.
  [[nodiscard]] virtual sync::KeptNumber::Use file() const = 0;
  // Answers how many pages behind it are worth to come along, at most kMostAlong.
  virtual u64 private_came_back(Hva at) = 0;
  virtual void private_came_along(HvaRange pages) = 0;
  virtual void private_lost(Hva at, int error) = 0;
  virtual void private_discarded(u64 pages) = 0;
  [[nodiscard]] PageStore& private_store() { return private_store_; }

 protected:
  ~PrivateSwap() = default;

 private:
  PageStore& private_store_;
};

namespace private_pages {

namespace detail {
extern sync::Atomic<u64> away;  // relaxed: ordered by what ends a closing (ObjectObserver::left)
extern sync::Atomic<bool> opened;
[[nodiscard]] Result<void> fetch_slow(Hva page);
}  // namespace detail

// What is bound from now on can be taken. Failure: EBUSY.
[[nodiscard]] Result<void> open(PrivateSwap* swap);
// A file of private pages is about to be made: loads the cipher if pages can leave. Context: no
// lock at all; what is bound without it loads it later. Where there is none pages stay.
void prepare();
// Everything comes back. Post: nobody uses the swap any more.
void close();
[[nodiscard]] inline bool is_open() {
  return detail::opened.load(sync::kAcquire);
}

// Are these the engine's addresses of pages that can be taken?
[[nodiscard]] bool are_bound(HvaRange range);

struct Taken {
  u64 pages = 0;
  int refusal = 0;  // of the store: ENOSPC, ENOMEM, the disk's
};
// Pages of one binding, by the engine's addresses of them; what is bound no longer is left alone.
// Pre: no other process has the file. Context: no lock; `bench` is the caller's.
[[nodiscard]] Taken take(HvaRange range, PrivateSwap::Bench* bench);

// Pages that are away now.
[[nodiscard]] inline u64 away() {
  return detail::away.load(sync::kRelaxed);
}
// A guest is about to touch the page: it is in the file then, unless it is taken again, which who
// asked before leaving() finds out by his snapshot. Failure: ENOMEM; EBADMSG, EIO: it is lost.
// Context: outside of every section; no lock of rank slots_arch or below.
[[nodiscard]] inline Result<void> fetch(Hva page) {
  if (away() == 0) [[likely]]
    return {};
  return detail::fetch_slow(page);
}

void before_fork();
void after_fork_parent();
void after_fork_child();

}  // namespace private_pages
}  // namespace stagetwo::mem
