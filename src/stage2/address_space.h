// SPDX-License-Identifier: Apache-2.0
#pragma once

// The façade of the room: one VM's guest-physical memory, a secondary MMU over the client's address
// space. Analogue: struct kvm with its mmu_notifier half and the front of the fault path (kernel
// files: kvm_main.c, mmu.c).
//
//   vcpu, on a TLB miss                               a thread that changes the address space
//     translate(f)    the VM's table, line RUNNING      start:  gate.begin(range); zap the table;
//     missed: line.leave(); handle_fault(f)                     flush; wait for read sections
//     line.enter(); translate again                     the system call
//     use f.page until the next poll that flushes       end:    gate.end(range)
//
// Invariants: I1  after invalidate_range_start no thread dereferences the old meaning of the range.
//             I2  an entry is installed only if no overlapping change has begun or ended since the
//                 snapshot of its fault; KVM's own accesses keep the same rule.
//             I3  a store through a translation of a logging slot is in the bitmap of the harvest
//                 in progress or of the next one.
//             I4  the fault path takes no lock but mmu_lock and that of the attributes, both
//                 shared, and writes no word that two vCPUs share but in the table.
// Locking: slots_lock inside slots(), mmu_lock inside the tables. Lifetime: registered with the
// bell from create() until destruction; vCPUs borrow it and remove their lines before it goes.

#include "addr/addr.h"
#include "base/alloc.h"
#include "base/result.h"
#include "host/access.h"
#include "host/mmu_notifier.h"
#include "stage2/age_flush.h"
#include "stage2/fault.h"
#include "stage2/memslots.h"
#include "stage2/nx_recovery.h"
#include "stage2/private_memory.h"
#include "stage2/resident_cache.h"
#include "sync/ack_line.h"
#include "sync/invalidation_gate.h"

namespace stagetwo::stage2 {

class GuestMemory final : public host::MmuNotifier, private SlotUpdateHost, private TdpHost {
 public:
  // Failure: ENOMEM.
  [[nodiscard]] static Result<Box<GuestMemory>> create(const SlotPolicy& policy,
                                                       const NxPolicy& nx = {});
  GuestMemory(const SlotPolicy& policy, const NxPolicy& nx);
  // Pre: no line is left in lines(), no call runs. Waits for changes under way.
  ~GuestMemory();

  [[nodiscard]] Memslots& slots() { return slots_; }
  [[nodiscard]] PrivateMemory& private_memory() { return private_; }
  // Where a vCPU puts its line for as long as it may run.
  [[nodiscard]] sync::AckSet& lines() { return lines_; }

  // A vCPU's view of the table. Ends before this does. Failure: ENOMEM.
  [[nodiscard]] Result<Box<MmuContext>> new_context();
  // The context forgets what the flush just acknowledged made obsolete. Context: after every
  // enter() or poll() of its line that asked for a flush, before anything else.
  void flushed(MmuContext& context) { tdp_.drop_obsolete_roots(context); }

  // Looks a guest access up in the VM's table. kHit: fault.page is good until the thread's next
  // poll that asks for a flush, and for a write the page is in the dirty log. kMiss:
  // handle_fault(). Pre: `fault`'s "asked" part. Context: the thread's line is RUNNING.
  [[nodiscard]] Walk::Kind translate(MmuContext& context, Fault& fault, unsigned step = 4);
  // Makes the entry that translate() missed. Post: on kFixed and kSpurious it existed at some
  // moment during the call; it may be gone again, which translate() finds out. Context: the
  // thread's line is not RUNNING, no read section; may block in `host`.
  [[nodiscard]] FaultOutcome handle_fault(MmuContext& context, Fault& fault);

  // KVM's own accesses; may cross pages and slots. Stops at the first page that refuses; *done (if
  // not null) says how far it got. Context: as handle_fault. Never answers kRetry.
  [[nodiscard]] FaultOutcome read(Gpa from, void* to, size_t bytes, size_t* done = nullptr,
                                  u32 address_space = 0);
  [[nodiscard]] FaultOutcome write(Gpa to, const void* from, size_t bytes, size_t* done = nullptr,
                                   u32 address_space = 0, DirtyRing* ring = nullptr);
  // A store that handle_fault() answered with kEmulate: write(), and the tracker is told.
  [[nodiscard]] FaultOutcome emulated_write(Gpa to, const void* from, size_t bytes,
                                            DirtyRing* ring = nullptr, u32 address_space = 0);
  // Atomic on guest memory, for accessed and dirty bits. T: 4 or 8 bytes, not crossing a page.
  template <typename T>
  [[nodiscard]] FaultOutcome cmpxchg(Gpa at, T* expected, T desired, bool* swapped,
                                     DirtyRing* ring = nullptr, u32 address_space = 0);
  // The guest's own read of its page tables: as read(), of the half that the attribute names.
  [[nodiscard]] FaultOutcome read_as_guest(Gpa from, void* to, size_t bytes);
  // The same for a thread whose line is RUNNING: never blocks; kRetry where the page is not known
  // to be resident or is being changed: leave, use the slow form, enter again. Within one page.
  template <typename T>
  [[nodiscard]] FaultOutcome try_cmpxchg(Gpa at, T* expected, T desired, bool* swapped,
                                         DirtyRing* ring = nullptr, u32 address_space = 0);
  // host::MmuNotifier
  bool invalidate_range_start(const host::InvalidateEvent& event) override;
  host::TryStart try_invalidate_range_start(const host::InvalidateEvent& event) override;
  void invalidate_range_end(const host::InvalidateEvent& event) override;
  void release() override;
  bool clear_flush_young(HvaRange range) override;
  bool clear_young(HvaRange range) override;
  bool test_young(HvaRange range) override;
  void collect_young(HvaRange range, u64* bits) override;
  bool borrows(HvaRange range) override;
  // Who is told of stores to frames under slots().track_writes(). While there is one, slots do not
  // move. Failure: EBUSY. Post of detach: it is not called any more.
  [[nodiscard]] Result<void> attach_tracker(WriteTracker& tracker);
  void detach_tracker();
  // KVM_X86_QUIRK_SLOT_ZAP_ALL: does a slot that goes take every translation with it?
  void set_slot_zap_all(bool all) { slot_zap_all_.store(all, sync::kRelaxed); }
  // Are large entries split when logging begins, or by stores?
  void set_eager_split(bool eager) { eager_split_.store(eager, sync::kRelaxed); }
  // NX huge pages are not for this VM, whatever the policy says. Pre: no vCPU yet.
  void disable_nx_huge_pages() { nx_allowed_ = false; }
  // At the start of each run: what changed since, or is owed. Context: no lock, no line runs.
  void before_run();
  // Entries by size, by a walk. Any thread.
  [[nodiscard]] PageCounts count_pages() { return tdp_.count_pages(); }
  [[nodiscard]] TdpMmu& tdp() { return tdp_; }
  // Every invariant of the room; ends the process where one does not hold. Context: no lock.
  void check_world();
  struct Counts {
    u64 retries = 0;        // stale or closed when looked at again
    u64 invalidations = 0;  // starts that overlapped a slot
    u64 flushes_saved = 0;  // of these, how many found nothing mapped and waited for no vCPU
  };
  [[nodiscard]] Counts counts() const;

 private:
  friend class PrivateMemory;
  friend struct GuestMemoryTestAccess;
  enum class Mode : u8 { kMayBlock, kMustNotBlock };

  // The first part of every fault and own access; then the slot's, in a read section.
  void begin(Fault& fault);
  [[nodiscard]] FaultOutcome look_up(Fault& fault, const Memslots::Reader& section);
  [[nodiscard]] FaultOutcome make_resident(Fault& fault, ResidentCache& known, Mode mode,
                                           bool trust_cache, OwnedCount* populated = nullptr);
  [[nodiscard]] FaultOutcome find_resident(Fault& fault, Mode mode, bool trust_cache);
  [[nodiscard]] bool decide_early(MmuContext& context, Fault& fault, FaultOutcome* outcome);
  [[nodiscard]] FaultOutcome resolve(MmuContext& context, Fault& fault);
  // Runs access(hva of fault.gpa) -> bool inside a read section in which the answer holds.
  template <typename F>
  [[nodiscard]] FaultOutcome with_page(Fault& fault, Mode mode, F&& access);
  [[nodiscard]] bool is_stale(const Fault& fault);
  template <typename F>
  [[nodiscard]] FaultOutcome transfer(const Fault& like, size_t bytes, size_t* done, F&& copy);
  [[nodiscard]] bool write_to_device(Fault fault, const u8* from, size_t size, FaultOutcome* out);

  // SlotUpdateHost: the same two halves a change has.
  void close_range(HvaRange range) override;
  void zap_slot(const Slot& slot, bool goes) override;
  void zap_frames(u32 address_space, GfnRange frames) override;
  void protect_pages(const Slot& slot, u64 first_page, const u64* masks, u64 count,
                     bool split) override;
  void logging_changed(const Slot& old, const Slot& fresh, bool all_marked) override;
  void recover_huge(const Slot& slot, GfnRange range);
  void generation_wraps() override;
  void flush_and_wait() override;
  void open_range(HvaRange range) override;
  void slots_changed() override;
  [[nodiscard]] bool overlaps_slots(HvaRange range), vcpus_answer();
  [[nodiscard]] bool zap_users(HvaRange range, pt::Gather* removed, bool may_yield);
  [[nodiscard]] bool wants_nx() const { return nx_allowed_ && nx_recovery_.enabled(); }
  void give_back(pt::Gather* removed);
  bool mark_old(HvaRange range);
  // TdpHost
  void flush_tlbs() override;
  void ask_for_flush() override { static_cast<void>(lines_.bump_all()); }
  sync::EpochDomain& epochs() override { return epochs_; }
  void synchronize() override;
  void wait_for_sections() override;
  [[nodiscard]] bool must_retry(const Fault& fault, HvaRange range) override;
  [[nodiscard]] bool attributes_mixed(const Fault& fault, unsigned level) override;
  void mark_dirty(MmuContext& context, const Slot& slot, Gfn gfn) override;
  [[nodiscard]] bool is_logged(u32 address_space, Gfn gfn) override;
  [[nodiscard]] u64 slots_generation() override { return slots_.generation(); }
  [[nodiscard]] const Slot* audit_slot(u32 address_space, Gfn gfn) override;
  void audit_right(const Slot& slot, u64 page) override;

  sync::InvalidationGate gate_;
  sync::AckSet lines_;
  PrivateMemory private_;
  Memslots slots_;
  ResidentCache resident_;  // of KVM's own accesses; a vCPU's faults write theirs
  TdpMmu tdp_;
  sync::EpochDomain epochs_{lines_};  // old roots, until every vCPU has left them
  NxRecovery nx_recovery_;
  AgeFlush age_flush_;
  bool nx_allowed_ = true;       // immutable once there is a vCPU
  pt::Gather removed_by_slots_;  // under slots_lock: what a change took out, until it flushed
  bool roots_invalidated_ = false;
  bool nothing_to_flush_ = false;   // the slot that goes is in nobody's TLB
  sync::Atomic<u64> residency_{0};  // invalidations ended: each makes what was present unknown
  sync::Atomic<bool> slot_zap_all_{true}, eager_split_{true};
  sync::Atomic<WriteTracker*> tracker_{nullptr};  // read in a section, for which detaching waits
  bool registered_ = false;                       // immutable after create()
  sync::Atomic<bool> released_{false};            // who begins later waits for ever
  sync::Atomic<u64> retries_{0};
  sync::Atomic<u64> invalidations_{0};
  sync::Atomic<u64> flushes_saved_{0};
};

}  // namespace stagetwo::stage2

#include "stage2/address_space_access.h"
