// SPDX-License-Identifier: Apache-2.0
#pragma once

// The bell: who must forget a range of the client's addresses before its meaning changes.
// Analogue: struct mmu_notifier and its registry (kernel file: mmu_notifier.c). Differs: it is rung
// by the wrapper of a system call, outside any kernel lock, so that a start may usually block. Who
// has a few ranges and a lock of his own subscribes to them alone: host/interval_notifier.h.
//
// Invariants: I1  start returns only when no access through the old meaning is in flight or can
// start.
//             I2  every subscriber whose start said "engaged" gets exactly one end, with the same
//                 event, and nobody else does.
//             I3  after unregister returns, no callback of that subscriber runs or will run.
//             I4  a change no subscriber overlaps costs two locked adds: no lock, no allocation.
//             I5  a child of fork has no subscribers: the roster carries the process's stamp.
//             I6  release() is called once for each registration, by unregister or when the process
//                 ends, and no callback comes after it.
// Locking: callbacks run with no lock of this room held; registration takes the roster lock
// (rank: registry). A callback must not change the client's address space and must not register.
// Lifetime: a subscriber is borrowed from register until unregister returns.

#include "addr/addr.h"
#include "base/result.h"
#include "base/types.h"

namespace stagetwo::host {

// Why a range changes. The kernel's events; kClear also stands for punch and discard.
enum class EventKind : u8 {
  kUnmap,        // munmap, mmap over it, mremap away from it
  kClear,        // the contents go: MADV_DONTNEED, MADV_REMOVE, hole punch, truncation
  kProtection,   // a mapping loses rights: mprotect                          PROTECTION_VMA
  kProtectPage,  // single pages lose rights, their mapping none: fork        PROTECTION_PAGE
  kSoftDirty,    // the next store to each page is to be seen; contents stay
  kMigrate,      // pages go to an owner's memory (host/page_owner.h); the event's owner says whose
  kExclusive,    // the same, and the owner alone may use them
  kRelease,      // the address space ends
};

struct InvalidateEvent {
  HvaRange range;  // whole pages
  EventKind kind;
  const void* owner = nullptr;  // who changes it, so that a subscriber can recognise itself
  bool blockable = true;        // may a subscriber wait for somebody who may sleep?
};

inline constexpr HvaRange kWholeAddressSpace{Hva(0), kPageMask};

// What a start that may not wait answers.
enum class TryStart : u8 { kNotMine, kEngaged, kWouldWait };

class MmuNotifier {
 public:
  // The range is about to change: forget every translation of it, make new ones impossible until
  // the end, and wait until nobody uses an old one. False: none of it was mine, no end is wanted.
  // Context: the client's thread; may block for vCPUs to acknowledge, never for a lock that a
  // system call of the client can hold; allocates nothing.
  virtual bool invalidate_range_start(const InvalidateEvent& event) = 0;
  // The same for an event that is not blockable: waits for no lock that a sleeper can hold and for
  // nobody who may sleep. kWouldWait: declined, nothing was done, no end is wanted.
  virtual TryStart try_invalidate_range_start(const InvalidateEvent& /*event*/) {
    return TryStart::kWouldWait;
  }
  // The change is over, whatever became of it.
  virtual void invalidate_range_end(const InvalidateEvent& event) = 0;
  // The address space ends, or the subscription: forget everything, nobody will say so again.
  virtual void release() {}

  // Ageing: was any page of the range used since it was last made old? The clearing forms make it
  // old; only the flushing one promises that the next use is seen. Nothing changes its meaning, so
  // no start or end surrounds them. A subscriber without accessed bits keeps these answers.
  // Context: as invalidate_range_start, but must not wait for anybody who may sleep.
  virtual bool clear_flush_young(HvaRange /*range*/) { return false; }
  virtual bool clear_young(HvaRange /*range*/) { return false; }
  virtual bool test_young(HvaRange /*range*/) { return false; }
  // clear_young() page by page, for who looks at many: sets bit n of `bits` where page n of the
  // range was used, and leaves the others alone. Page by page asked where it is not overridden.
  virtual void collect_young(HvaRange range, u64* bits);
  // Is any of the range memory the subscriber may borrow? Changes nothing.
  virtual bool borrows(HvaRange /*range*/) { return false; }

 protected:
  ~MmuNotifier() = default;
};

inline constexpr unsigned kMaxNotifiers = 4096;

// Post: changes that begin later ring it; one that is under way rings it for both ends or for
// neither, and is over when this returns. Failure: ENOMEM, also when kMaxNotifiers are registered;
// ESRCH, the process ends.
[[nodiscard]] Result<void> register_notifier(MmuNotifier* notifier);
// Pre: registered. Waits for running callbacks, then releases. Never fails. Context: not from a
// callback, not inside a change.
void unregister_notifier(MmuNotifier* notifier);

// The process ends: everybody is released, nobody is rung any more. A change that the kernel does
// not let end within a second keeps them from it. Context: no engine lock; other threads may run.
void release_address_space();

// A fork takes the right to store from single pages of private memory, which the next store gets
// again; shared memory it leaves alone. Memory that a child is not to have, or finds wiped, rings,
// too. Rings both ends before it: what runs between the two ends of a fork may never come back.
void announce_fork();

// Waits until every change that began before the call is over. What a subscriber published before
// the call is seen by every change that begins after it. Context: not inside a change.
void wait_for_changes();

// Asks every subscriber, whatever the first one says: each has to make its own copy old.
bool clear_flush_young(HvaRange range);
bool clear_young(HvaRange range);
// Asks until somebody says yes.
[[nodiscard]] bool test_young(HvaRange range);
// As MmuNotifier::collect_young of all. What is young is no longer idle (host/page_idle.h).
void collect_young(HvaRange range, u64* bits);
[[nodiscard]] bool borrows(HvaRange range);

// One change. Use host/change.h; this is the part of it that needs the registry.
class InvalidateSection {
 public:
  // Rings. Post: the caller may change the range, if begun().
  explicit InvalidateSection(const InvalidateEvent& event);
  // Rings the end for those that were engaged.
  ~InvalidateSection();
  // False, of an event that is not blockable: somebody would have had to wait (EAGAIN). Whoever was
  // engaged by then has got its end.
  [[nodiscard]] bool begun() const { return begun_; }
  InvalidateSection(const InvalidateSection&) = delete;
  InvalidateSection& operator=(const InvalidateSection&) = delete;

 private:
  void ring();
  void ring_roster();
  void ring_end();

  InvalidateEvent event_;
  void* roster_ = nullptr;  // borrowed until the ticket is given back
  u32 ticket_ = 0;
  bool begun_ = true;
  bool intervals_ = false;           // some subscription of an interval was engaged
  u32 words_ = 0;                    // of engaged_, once somebody is engaged
  u64 engaged_[kMaxNotifiers / 64];  // only the words the roster needs are written
};

// Subscribers now registered. Racy: diagnostics and tests.
[[nodiscard]] unsigned debug_notifier_count();
// In a child of fork: forget what other threads of the parent were in the middle of.
void notifiers_after_fork_child();

}  // namespace stagetwo::host
