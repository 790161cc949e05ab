// SPDX-License-Identifier: Apache-2.0
#pragma once

// Pages that are not there, and who brings them back. A page is absent when an owner took it: its
// bytes are with the owner, the process's page table has no entry for it, and no secondary MMU has
// a translation. Whoever touches it (the process in user mode or in a system call, a vCPU, a
// device, a fork) causes exactly one bring-back and gets the same bytes.
// Analogue: a device-private or swap entry and dev_pagemap_ops::migrate_to_ram (kernel file:
// mm/migrate_device.c). Differs: the entry is missing, or hidden behind PROT_NONE, and the touch is
// reported to this process by userfaultfd or by the backstop's signal handler.
//
// Absence is keyed by (object, page index). Private memory of the process is one object whose index
// is the page's number; a shared object has an id of its own and may be seen at several addresses:
// all of them lose the page, and whichever is touched brings it back for all. Of a shared object
// that somebody else may map (host/shared_objects.h) nothing is taken, which is counted.
//
// Invariants: I1  a page has at most one record, and one owner; the record exists from before the
//                 page is made unreachable until after it is reachable again.
//             I2  take() and bring_back() of one page never overlap, with each other or themselves.
//             I3  a lost page stays lost until the client discards or unmaps it.
//             I4  the touch of a page in transit waits; it never sees zeros or old bytes.
//             I5  what the client discards or unmaps dies with the change that says so, when that
//                 succeeded: no bytes come back from before it.
//             I6  a child of fork has everything or nothing: all pages are back before the fork.
// Locking: the table lock (rank: owners) protects the records; owners are called without it and may
// take locks of lower rank. An owner never touches client memory in a callback but through the
// PageExit or PageEntry it is given, and holds no lock there that a touch of client memory by
// another thread may be made under.
// Lifetime: an owner is borrowed while it has pages.

#include <string_view>

#include "addr/addr.h"
#include "base/bits.h"
#include "base/result.h"
#include "base/types.h"
#include "host/mmu_notifier.h"

namespace stagetwo::host {

inline constexpr u64 kPrivateMemory = 0;

struct PageKey {
  u64 object = kPrivateMemory;
  u64 index = 0;
  friend constexpr bool operator==(PageKey, PageKey) = default;
  [[nodiscard]] u64 hash() const;
};

// Pages as a change or a hold names them: addresses of the process, or bytes of a shared object as
// though it were mapped at 0.
struct Reach {
  u64 object = kPrivateMemory;
  HvaRange range;
};

struct AbsentPage {
  PageKey key;
  Hva at;                // an address that leads to it
  bool writable;         // a store would have gone through
  bool unasked = false;  // it is in the way of a change beside it, or of a fork: nobody wants it
};

// How the bytes of an isolated page reach its new owner.
class PageExit {
 public:
  // Puts them at `place`, an empty page of prepare_places(): the page itself where it can be moved,
  // else a copy. A page of zeros may leave `place` empty. False: it stays where it is.
  // Context: no lock of the owner that a touch could need.
  [[nodiscard]] virtual bool to(Hva place) = 0;
  // Of a run: its pages to the places from `place` on; answers how many went, the first ones.
  [[nodiscard]] virtual unsigned run_to(Hva place) = 0;

 protected:
  ~PageExit() = default;
};

// How they come back. Exactly one of these succeeds for a page that is brought back.
class PageEntry {
 public:
  // `place` may be empty afterwards. False: no memory; nothing has changed. Of a run: as run_to().
  [[nodiscard]] virtual bool from(Hva place) = 0;
  [[nodiscard]] virtual bool from_bytes(const void* page) = 0;
  [[nodiscard]] virtual unsigned run_from(Hva place) = 0;
  // The first `pages` of a run at most, from bytes that stand one page after another.
  [[nodiscard]] virtual unsigned run_from_bytes(const void* bytes, unsigned pages) = 0;

 protected:
  ~PageEntry() = default;
};

enum class BringBack : u8 {
  kNotAbsent,  // the page is nobody's: ask the kernel
  kBack,       // it was brought back, by this call or by one it waited for
  kRetry,      // it could not be now (no memory): ask again
  kLost,       // its bytes are gone for good
  kStuck,      // they are in place, but the kernel gives the page no rights: no owner's answer
};

class PageOwner {
 public:
  [[nodiscard]] virtual bool takes_locked() const { return true; }  // memory under mlock, too
  // The page is isolated. True: exit.to() succeeded. False: it stays. Allocates nothing it needs.
  virtual bool take(const AbsentPage& page, PageExit& exit) = 0;
  // Somebody wants it. kBack only after an entry function succeeded; never kNotAbsent. The owner
  // has forgotten the page when it answers kBack or kLost. Allocates nothing.
  virtual BringBack bring_back(const AbsentPage& page, PageEntry& entry) = 0;
  // The client gave it up.
  virtual void discard(const AbsentPage& page) = 0;
  // Is it like one on a swap device, which MADV_FREE gives up at once? A device's page is not.
  [[nodiscard]] virtual bool is_swap() const { return false; }

  // Both for `pages` neighbours of private memory in one go, with the run form of exit and entry,
  // where the kernel moves pages. Answers for how many, from the first one on, it is done; the
  // others are asked for one by one, and all of them by an owner that keeps these answers.
  virtual unsigned take_run(const AbsentPage& /*first*/, unsigned /*pages*/, PageExit& /*exit*/) {
    return 0;
  }
  virtual unsigned bring_back_run(const AbsentPage& /*first*/, unsigned /*pages*/,
                                  PageEntry& /*entry*/) {
    return 0;
  }

 protected:
  ~PageOwner() = default;
};

// Pages that owners keep bytes in. Post: they can be moved from and to, where the kernel moves
// pages, and a child of fork does not have them. Pre: private anonymous memory of the engine.
void prepare_places(HvaRange range);

enum class Which : u8 {
  kAnonymous,  // private pages, those never touched included; of a private file mapping its copies
  kPresent,    // of those, only the ones the process has
  kMissing,    // of those, only the ones without memory: nothing moves, and no owner is asked
  kAll,        // whatever takes memory: pages present, private or of shared memory
  kReclaim,    // of those, only where the kernel reports touches: it has their memory back then
};

// Takes the pages of `range` away for `owner`; answers how many. A page that cannot be taken (held
// by a call, under a change, shared with others, already absent, refused) stays and is no failure:
// owner_counts() tells them apart.
// Rings the bell around it at every address the pages have: a migration, of kPresent pages an
// exclusive access; `cookie` is the event's owner. *span, around the range: all that is taken of.
// Failure: EINVAL (a part is not mapped, not readable, of huge pages, or the engine's own), ENOMEM;
// what was taken before stays. Context: no lock, no section; no thread that a bring-back needs.
[[nodiscard]] Result<u64> take_away(HvaRange range, PageOwner* owner, const void* cookie,
                                    Which which, const HvaRange* span = nullptr);

// Brings the page at `at` back. Context: no lock above rank owners' but those no owner needs; not
// in an ack line's RUNNING section.
BringBack bring_back(Hva at);
// A first touch where touches are reported: it is there at once. False: ask the kernel.
bool fill_first_touch(Hva at, Access access);
u64 bring_back_range(HvaRange range);  // every page of it; answers how many came back
// `owner`, who is not told, gives up its private page at `at`: zeros, no memory before a touch.
// False: not its, in transit, or hidden by its rights; nothing has changed. Context: as above.
[[nodiscard]] bool leave_hole(Hva at, const PageOwner* owner);
// Pages from range.start() on, up to the first not absent or in a hand; also inside bring_back().
u64 bring_back_ahead(HvaRange range);

// What became of pages since the process began; each one is read by itself.
struct OwnerCounts {
  u64 now = 0, taken = 0, back = 0;  // now: pages that owners have
  u64 lost = 0, retries = 0;         // an owner could not bring one back, or not at once
  u64 discarded = 0, lost_now = 0;   // given up while absent; of `now`, those lost
  u64 refused_owner = 0;   // the owner did not want it, or it could not be moved or copied
  u64 refused_held = 0;    // a call was using it
  u64 refused_change = 0;  // its address was being changed
  u64 refused_shared = 0;  // somebody else may map it, or it has too many addresses
  u64 refused_watch = 0;   // for kReclaim: the client watches it by a userfaultfd of its own
};
[[nodiscard]] OwnerCounts owner_counts();
// A file was mapped there, or a mapping grew: what is absent of it comes back. Pre: not known yet.
void owners_see_mapping(HvaRange made);

[[nodiscard]] bool owners_active();    // has any page ever been taken here? A relaxed load
[[nodiscard]] bool is_absent(Hva at);  // waits for a page on its way: who touched it finds it there
// Of a page hidden behind PROT_NONE: what the client may do with it; *range becomes this page.
bool hidden_rights(Hva at, HvaRange* range, Prot* prot);

// Who tells the user, once, that a touch fails because the kernel gives a page no rights (kStuck).
using SayWarning = void (*)(std::string_view what, std::string_view name);
void set_owner_warning(SayWarning say);

// Would a touch by the kernel itself, in a system call, meet a page that nobody brings back for it?
[[nodiscard]] bool kernel_meets_hidden_pages();
// Raised when a page comes back or is given up: two looks with one number belong together.
[[nodiscard]] u64 owners_turn();

// A fault of the process at `at`. True: the page was absent, or has just come back; the instruction
// runs again. Context: the signal handler, on the thread that faulted.
[[nodiscard]] bool resolve_signal(Hva at, Access access);

// fork: everything is brought back, and nothing is taken until after it.
void owners_before_fork();
void owners_after_fork_parent();
void owners_after_fork_child();

}  // namespace stagetwo::host
