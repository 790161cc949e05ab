// SPDX-License-Identifier: Apache-2.0
#pragma once

// The bell: who must forget a range of the client's addresses before its meaning changes.
// Analogue: struct mmu_notifier and its registry (kernel file: mmu_notifier.c). Differs: it is rung
// by the wrapper of a system call, outside any kernel lock, so every start may block and none can
// fail.
//
// Invariants: I1  start returns only when no access through the old meaning is in flight or can
// start.
//             I2  every subscriber whose start said "engaged" gets exactly one end, with the same
//                 event, and nobody else does.
//             I3  after unregister returns, no callback of that subscriber runs or will run.
//             I4  a change no subscriber overlaps costs two locked adds: no lock, no allocation.
//             I5  a child of fork has no subscribers: the roster is on a page that fork wipes.
// Locking: callbacks run with no lock of this room held; registration takes the roster lock
// (rank: registry). A callback must not change the client's address space and must not register.
// Lifetime: a subscriber is borrowed from register until unregister returns.

#include "addr/addr.h"
#include "base/result.h"
#include "base/types.h"

namespace stagetwo::host {

// Why a range changes. Names of the kernel's events; kClear also stands for punch and discard.
enum class EventKind : u8 {
  kUnmap,       // munmap, mmap over it, mremap away from it
  kClear,       // the contents go: MADV_DONTNEED, MADV_REMOVE, hole punch, truncation
  kProtection,  // rights are lost: mprotect
  kMigrate,     // pages go to an owner's memory (host/page_owner.h); the event's owner says whose
  kExclusive,   // the same, and the owner alone may use them
};

struct InvalidateEvent {
  HvaRange range;  // whole pages
  EventKind kind;
  const void* owner = nullptr;  // who changes it, so that a subscriber can recognise itself
};

class MmuNotifier {
 public:
  // The range is about to change: forget every translation of it, make new ones impossible until
  // the end, and wait until nobody uses an old one. False: none of it was mine, no end is wanted.
  // Context: the client's thread; may block for vCPUs to acknowledge, never for a lock that a
  // system call of the client can hold; allocates nothing.
  virtual bool invalidate_range_start(const InvalidateEvent& event) = 0;
  // The change is over, whatever became of it.
  virtual void invalidate_range_end(const InvalidateEvent& event) = 0;

  // Ageing: was any page of the range used since it was last made old? The clearing forms make it
  // old; only the flushing one promises that the next use is seen. Nothing changes its meaning, so
  // no start or end surrounds them. A subscriber without accessed bits keeps these answers.
  // Context: as invalidate_range_start, but must not wait for anybody who may sleep.
  virtual bool clear_flush_young(HvaRange /*range*/) { return false; }
  virtual bool clear_young(HvaRange /*range*/) { return false; }
  virtual bool test_young(HvaRange /*range*/) { return false; }
  // Is any of the range memory the subscriber may borrow? Changes nothing.
  virtual bool borrows(HvaRange /*range*/) { return false; }

 protected:
  ~MmuNotifier() = default;
};

inline constexpr unsigned kMaxNotifiers = 4096;

// Post: changes that begin later ring it; one that is under way rings it for both ends or for
// neither, and is over when this returns. Failure: ENOMEM, also when kMaxNotifiers are registered.
[[nodiscard]] Result<void> register_notifier(MmuNotifier* notifier);
// Pre: registered. Waits for running callbacks. Never fails. Context: not from a callback.
void unregister_notifier(MmuNotifier* notifier);

// Waits until every change that began before the call is over. What a subscriber published before
// the call is seen by every change that begins after it. Context: not inside a change.
void wait_for_changes();

// Asks every subscriber, whatever the first one says: each has to make its own copy old.
bool clear_flush_young(HvaRange range);
bool clear_young(HvaRange range);
// Asks until somebody says yes.
[[nodiscard]] bool test_young(HvaRange range);
[[nodiscard]] bool borrows(HvaRange range);

// One change. Use host/change.h; this is the part of it that needs the registry.
class InvalidateSection {
 public:
  // Rings. Post: the caller may change the range.
  explicit InvalidateSection(const InvalidateEvent& event);
  // Rings the end for those that were engaged.
  ~InvalidateSection();
  InvalidateSection(const InvalidateSection&) = delete;
  InvalidateSection& operator=(const InvalidateSection&) = delete;

 private:
  void ring();
  void ring_end();

  InvalidateEvent event_;
  void* roster_ = nullptr;  // borrowed until the ticket is given back
  u32 ticket_ = 0;
  u32 words_ = 0;                    // of engaged_, once somebody is engaged
  u64 engaged_[kMaxNotifiers / 64];  // only the words the roster needs are written
};

// Subscribers now registered. Racy: diagnostics and tests.
[[nodiscard]] unsigned debug_notifier_count();
// In a child of fork: forget what other threads of the parent were in the middle of.
void notifiers_after_fork_child();

}  // namespace stagetwo::host
