// SPDX-License-Identifier: Apache-2.0
#pragma once

// The addresses of this process as devices see them that it is bound to by a PASID: a processor's
// tables of those pages that a device has used since the process last changed them. Nothing is
// pinned. Analogue: iommu_sva_bind_device(), drivers/iommu/intel/svm.c. Differs: the kernel lends
// the device the processor's own tables; here a page is entered when a device asks for it, and a
// translation yields the address itself.
//
// I1  A page that stands in the tables was there, with that right, since the last change of it that
//     was announced; a change takes it out before it happens, and waits for an access under way.
// I2  Pages come by bring() alone, outside of every lock: the process's memory is faulted in as by
//     its own touch, owners of absent pages and the client's userfaultfd included.
//
//   bring                                    change (the bell)
//   takes a snapshot of the gate             lock: the gate begins; pages out; unlock
//   faults the page in                       (its system call)
//   lock: no change since, or again; enters  the gate ends
//
// Locking: one lock (rank kSecondary), shared by those who use pages, and held while they do; who
// changes the tables has it alone. Lifetime: the process's; in a child of fork nothing of it is
// used. State of the process, not of an iommufd (DESIGN.md, rule 11).

#include "addr/addr.h"
#include "base/alloc.h"
#include "host/mmu_notifier.h"
#include "iommu/memory_objects.h"
#include "sync/big_reader_mutex.h"
#include "sync/invalidation_gate.h"

namespace stagetwo::iommu {

class ProcessSpace final : public host::MmuNotifier {
 public:
  // Listens from now on. Failure: ENOMEM, ESRCH (the process ends).
  static Result<Box<ProcessSpace>> make();
  ProcessSpace() = default;
  ~ProcessSpace();
  ProcessSpace(const ProcessSpace&) = delete;
  ProcessSpace& operator=(const ProcessSpace&) = delete;

  // Reads (`to`) or writes (`from`) within one page. False: it is not there, or not with that
  // right. Context: as the bell's callbacks.
  bool access(Hva at, u64 bytes, void* to, const void* from);
  // The same by fn(context, at), which answers whether the page could be used.
  using UseFn = bool (*)(void* context, Hva at);
  bool use(Hva at, Rights wanted, UseFn fn, void* context);
  // While it lives no page is taken out: what is present may be used, by the forms of
  // host/access.h. Short: a change of the process's waits for it.
  class Section {
   public:
    explicit Section(ProcessSpace& space) : space_(space), guard_(space.lock_) {}
    // How many bytes from `at` on are there, with that right; at most `most`.
    [[nodiscard]] u64 present(Hva at, u64 most, Rights wanted) const;
    // As long as it is the same, everything that was present is.
    [[nodiscard]] u64 removals() const;
    // Does a change wait for the section? A hint, for one that is long.
    [[nodiscard]] bool is_asked() const { return space_.lock_.contended(); }

   private:
    const ProcessSpace& space_;
    const sync::BigReaderGuard guard_;
  };
  // A page request. Failure: EFAULT (the process itself could not), ENOMEM. Context: no lock of
  // this room; may sleep.
  Result<void> bring(Hva at, Rights wanted);

  // The two halves of bring(). False: a change came between, or is under way.
  using Look = sync::InvalidationGate::Snapshot;
  [[nodiscard]] Look look() const { return gate_.snapshot(); }
  Result<bool> enter(Look look, Hva at, Rights right);

  [[nodiscard]] u64 debug_pages();

  bool invalidate_range_start(const host::InvalidateEvent& event) override;
  host::TryStart try_invalidate_range_start(const host::InvalidateEvent& event) override
      TA_NO_ANALYSIS;
  void invalidate_range_end(const host::InvalidateEvent& event) override;
  void release() override;

 private:
  void begin(HvaRange range) TA_REQ(lock_);
  bool take_out(HvaRange range) TA_REQ(lock_);
  [[nodiscard]] bool has(Hva at, Rights wanted) const TA_REQ_SHARED(lock_);

  mutable sync::BigReaderMutex lock_{sync::Rank::kSecondary};
  void* root_ TA_GUARDED(lock_) = nullptr;  // made with the first page
  u64 pages_ TA_GUARDED(lock_) = 0;
  u64 removals_ TA_GUARDED(lock_) = 0;  // how often pages went
  sync::InvalidationGate gate_;         // begun and asked under the lock
  bool listens_ = false;
};

// The one of this process; null: nothing was bound yet.
[[nodiscard]] ProcessSpace* process_space();
// The same, made at the first use; it listens until the process ends. Failure: as make().
Result<ProcessSpace*> make_process_space();

}  // namespace stagetwo::iommu
