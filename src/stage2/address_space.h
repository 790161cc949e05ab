// SPDX-License-Identifier: Apache-2.0
#pragma once

// The façade of the room: one VM's guest-physical memory, a secondary MMU over the client's address
// space. Analogue: struct kvm with its mmu_notifier half (kernel files: kvm_main.c, mmu.c).
//
//   vcpu, on a TLB miss                               a thread that changes the address space
//     line.leave()                                      start:  gate.begin(range)
//     handle_fault(f)   snapshot, slot, faultin                 lines.bump_all, wait_all
//     line.enter()                                              wait for read sections
//     install(f)        gate unchanged? mark dirty      the system call
//     use f.page until the next poll that flushes       end:    gate.end(range)
//
// Invariants: I1  after invalidate_range_start no thread dereferences the old meaning of the range.
//             I2  install() accepts only what no overlapping change has begun or ended on since the
//                 snapshot (docs/locking.md, fault against invalidation).
//             I3  a store through an installed translation of a logging slot is in the bitmap of
//             the
//                 harvest in progress or of the next one.
// Locking: no lock on the fault path; slots_lock inside slots(). Lifetime: registered with the bell
// from create() until destruction; vCPUs borrow it and remove their lines before it goes.

#include "addr/addr.h"
#include "base/alloc.h"
#include "base/result.h"
#include "host/access.h"
#include "host/mmu_notifier.h"
#include "stage2/fault.h"
#include "stage2/memslots.h"
#include "stage2/resident_cache.h"
#include "sync/ack_line.h"
#include "sync/invalidation_gate.h"

namespace stagetwo::stage2 {

class GuestMemory final : public host::MmuNotifier, private SlotUpdateHost {
 public:
  // Failure: ENOMEM.
  [[nodiscard]] static Result<Box<GuestMemory>> create(const SlotPolicy& policy);
  explicit GuestMemory(const SlotPolicy& policy);
  // Pre: no line is left in lines(), no call runs. Waits for changes under way.
  ~GuestMemory();

  [[nodiscard]] Memslots& slots() { return slots_; }
  // Where a vCPU puts its line for as long as it may run.
  [[nodiscard]] sync::AckSet& lines() { return lines_; }

  // Resolves one guest access.
  // Pre:     the "asked" part of `fault` is filled in, nothing else is.
  // Post:    on kFixed the translation existed at some moment during the call; it may already be
  // gone
  //          again, which install() finds out.
  // Context: the thread's line is not RUNNING, no read section; may block in `host`.
  [[nodiscard]] FaultOutcome handle_fault(Fault& fault);

  // May the answer be used? False: ask again. True: fault.page is good until the thread's next poll
  // that asks for a flush, and for a write access the page is marked dirty.
  // Context: the thread's line is RUNNING, entered after handle_fault() returned.
  [[nodiscard]] bool install(const Fault& fault);
  [[nodiscard]] bool still_valid(const Fault& fault) { return install(fault); }

  // KVM's own accesses; may cross pages and slots. Stops at the first page that refuses; *done (if
  // not null) says how far it got. Context: as handle_fault. Never answers kRetry.
  [[nodiscard]] FaultOutcome read(Gpa from, void* to, size_t bytes, size_t* done = nullptr,
                                  u32 address_space = 0);
  [[nodiscard]] FaultOutcome write(Gpa to, const void* from, size_t bytes, size_t* done = nullptr,
                                   u32 address_space = 0);
  // A store that handle_fault() answered with kEmulate: write(), and the tracker is told.
  [[nodiscard]] FaultOutcome emulated_write(Gpa to, const void* from, size_t bytes,
                                            u32 address_space = 0);
  // Atomic on guest memory, for accessed and dirty bits. T: 4 or 8 bytes, not crossing a page.
  template <typename T>
  [[nodiscard]] FaultOutcome cmpxchg(Gpa at, T* expected, T desired, bool* swapped,
                                     DirtyRing* ring = nullptr, u32 address_space = 0);

  // The same for a thread whose line is RUNNING: never blocks; kRetry where the page is not known
  // to be resident or is being changed: leave, use the slow form, enter again. Within one page.
  [[nodiscard]] FaultOutcome try_read(Gpa from, void* to, size_t bytes, u32 address_space = 0);
  template <typename T>
  [[nodiscard]] FaultOutcome try_cmpxchg(Gpa at, T* expected, T desired, bool* swapped,
                                         DirtyRing* ring = nullptr, u32 address_space = 0);

  // host::MmuNotifier
  bool invalidate_range_start(const host::InvalidateEvent& event) override;
  void invalidate_range_end(const host::InvalidateEvent& event) override;

  // Who is told of stores to frames under slots().track_writes(). While there is one, slots do not
  // move. Failure: EBUSY. Post of detach: it is not called any more.
  [[nodiscard]] Result<void> attach_tracker(WriteTracker& tracker);
  void detach_tracker();

  // Every invariant of the room's state; ends the process where one does not hold.
  void check_world();

  struct Counts {
    u64 faults = 0;         // handle_fault calls that reached a slot
    u64 populated = 0;      // of these, how many had to ask the kernel
    u64 retries = 0;        // stale or closed when looked at again
    u64 invalidations = 0;  // starts that overlapped a slot
  };
  [[nodiscard]] Counts counts() const;

 private:
  friend struct GuestMemoryTestAccess;
  enum class Mode : u8 { kMayBlock, kMustNotBlock };

  [[nodiscard]] FaultOutcome look_up(Fault& fault);
  [[nodiscard]] FaultOutcome make_resident(Fault& fault, Mode mode, bool trust_cache);
  [[nodiscard]] FaultOutcome answer(Fault& fault, bool host_writable);
  // Runs access(hva of fault.gpa) -> bool inside a read section in which the answer holds.
  template <typename F>
  [[nodiscard]] FaultOutcome with_page(Fault& fault, Mode mode, F&& access);
  [[nodiscard]] bool is_stale(const Fault& fault);
  [[nodiscard]] bool is_write_tracked(const Fault& fault) const;
  template <typename F>
  [[nodiscard]] FaultOutcome transfer(Gpa gpa, size_t bytes, size_t* done, Access kind,
                                      u32 address_space, F&& copy);

  // SlotUpdateHost: the same two halves a change has.
  void close_range(HvaRange range) override;
  void zap_slot(const Slot& slot) override;
  void zap_frames(u32 address_space, GfnRange frames) override;
  void logging_changed(const Slot& old, const Slot& fresh) override;
  void generation_wraps() override;
  void flush_and_wait() override;
  void open_range(HvaRange range) override;

  sync::InvalidationGate gate_;
  sync::AckSet lines_;
  Memslots slots_;
  ResidentCache resident_;
  // Read in a read section; detaching waits for those.
  sync::Atomic<WriteTracker*> tracker_{nullptr};
  bool registered_ = false;  // immutable after create()
  sync::Atomic<u64> faults_{0};
  sync::Atomic<u64> populated_{0};
  sync::Atomic<u64> retries_{0};
  sync::Atomic<u64> invalidations_{0};
};

}  // namespace stagetwo::stage2

#include "stage2/address_space_access.h"
