// SPDX-License-Identifier: Apache-2.0
#pragma once

// The memory slots of one VM: which guest frames are which host addresses. Analogue: struct
// kvm_memslots (kernel file: kvm_main.c). Differs: instead of two sets that are edited in turn
// there is one immutable set; an update builds the next one by copying a path of a balanced tree,
// and a single store publishes it.
//
// Invariants: I1  a reader sees a set as it was after some update, never half of one.
//             I2  no two slots of an address space overlap in guest frames; in host addresses they
//                 may.
//             I3  a fault never finds "no slot" while a translation of the slot that was there
//                 lives: DELETE and MOVE first publish the slot as INVALID, flush, and only then
//                 remove it.
//             I4  a refused call changes nothing, and the first check that fails names the errno.
//             I5  every slot in the gfn tree is in the hva tree, and it was there first; both lead
//                 to the same Slot.
// Locking: updates and the dirty log under slots_lock (rank: slots). Readers take none: they hold a
// read section (`Memslots::Reader`) and must not block in it. No caller may wait for an update
// inside a change (host/change.h): the update waits for changes to end. Lifetime: a Slot lives
// until every reader and every acknowledged vCPU has left it.

#include "addr/addr.h"
#include "base/alloc.h"
#include "base/result.h"
#include "base/types.h"
#include "stage2/dirty_ring.h"
#include "stage2/slot_tree.h"
#include "stage2/slot_update.h"
#include "sync/atomic.h"
#include "sync/mutex.h"
#include "sync/passage.h"

namespace stagetwo::stage2 {

class Memslots {
 public:
  // Pre: `host` outlives this.
  Memslots(SlotUpdateHost* host, const SlotPolicy& policy);
  ~Memslots();
  Memslots(const Memslots&) = delete;
  Memslots& operator=(const Memslots&) = delete;
  [[nodiscard]] Result<void> init();

  [[nodiscard]] Result<void> set_region(const Region& region) TA_EXCL(slots_lock_);

  // Frames that use a range of host addresses, and how far a search for them has come.
  struct Users {
    u32 address_space;
    GfnRange frames;
  };
  struct UserCursor {
    u64 start = 0;
    u64 next_id = 0;  // of those that start there
  };

  // A read section. Everything found through it is valid until it ends; it must be short and must
  // not block. Several may nest.
  class Reader {
   public:
    explicit Reader(const Memslots& slots) : slots_(slots), ticket_(slots.readers_.enter()) {}
    ~Reader() { slots_.readers_.leave(ticket_); }
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;

    // The slot of a frame, INVALID ones included, or null.
    [[nodiscard]] const Slot* find(u32 address_space, Gfn gfn) const;
    // The first slot that ends after a frame, or null.
    [[nodiscard]] const Slot* find_from(u32 address_space, Gfn gfn) const;
    // Does any slot of any address space use a host address of the range?
    [[nodiscard]] bool overlaps(HvaRange range) const;
    // Calls visit(slot, frames) for every slot that uses host addresses of the range, aliases and
    // INVALID ones included; `frames` are those of the range.
    template <typename F>
    void for_each_user(HvaRange range, F&& visit) const {
      for_each_overlap(by_hva(), range.start().raw(), range.end().raw(),
                       [&](const Slot& slot) { visit(slot, slot.gfns_of(range)); });
    }
    // The same in pieces, for those who must leave the section in between: up to `most` that come
    // after the cursor, neighbours joined; as many as were written, `most` if there may be more.
    [[nodiscard]] size_t find_users(HvaRange range, UserCursor* cursor, Users* users,
                                    size_t most) const;

   private:
    [[nodiscard]] const SlotNode* by_hva() const;

    const Memslots& slots_;
    sync::Passage::Ticket ticket_;
  };

  // Waits until every read section that began before the call has ended.
  void wait_for_readers() const { readers_.wait_for_acquirers(); }
  // The same for what sections ask by sequentially consistent loads: the set, and the gate. A look
  // at each cell where nobody reads.
  void wait_for_accesses() const { readers_.wait(); }

  // The dirty log. `bitmap` is the client's. Failures in the kernel's order: EINVAL, ENOENT,
  // EINVAL, EFAULT (kernel file: kvm_main.c, kvm_get_dirty_log_protect and its CLEAR twin).
  [[nodiscard]] Result<void> get_dirty_log(u32 slot, Hva bitmap) TA_EXCL(slots_lock_);
  [[nodiscard]] Result<void> clear_dirty_log(u32 slot, u64 first_page, u32 page_count, Hva bitmap)
      TA_EXCL(slots_lock_);
  void set_dirty_protect(DirtyProtect protect) TA_EXCL(slots_lock_);

  // A frame was, or is about to be, written: inside the section or the RUNNING mode that makes the
  // store. With a ring the page goes there, once until it is taken out again, else into the bitmap.
  // Pre: the slot is valid here; gfn is in it; `ring` is the calling thread's vCPU's.
  static void mark_dirty(const Slot& slot, Gfn gfn, DirtyRing* ring = nullptr);
  // The same of what no vCPU stored: behind the change. With rings nobody is told.
  void mark_changed(u32 address_space, GfnRange frames) const;

  // From here on GET and CLEAR are ENXIO. Context: before the VM has a vCPU.
  void use_dirty_rings() TA_EXCL(slots_lock_);
  void add_ring(DirtyRing& ring) TA_EXCL(slots_lock_);
  // Pre: nobody pushes into it any more.
  void remove_ring(DirtyRing& ring) TA_EXCL(slots_lock_);
  // KVM_RESET_DIRTY_RINGS: the number of entries taken. Post: stores after the return push again.
  [[nodiscard]] u32 reset_dirty_rings() TA_EXCL(slots_lock_);

  // Stores to the frame are somebody's to know, until as many untrack_writes(). Post: no
  // translation that permits one is in use. Failure: EINVAL (no slot), EOVERFLOW, ENOMEM.
  [[nodiscard]] Result<void> track_writes(u32 address_space, Gfn gfn) TA_EXCL(slots_lock_);
  // Failure: EINVAL: not tracked.
  [[nodiscard]] Result<void> untrack_writes(u32 address_space, Gfn gfn) TA_EXCL(slots_lock_);
  // Is any frame tracked? A load of a line nobody writes while the answer is no.
  [[nodiscard]] bool tracks_writes() const { return tracked_.load(sync::kRelaxed) != 0; }

  // fn() with no update under way, and none beginning.
  template <typename F>
  void between_updates(F&& fn) TA_EXCL(slots_lock_) {
    const sync::MutexGuard guard(slots_lock_);
    fn();
  }

  // fn(that slot, null if there is none), as between_updates().
  template <typename F>
  void with_slot(u32 slot, F&& fn) TA_EXCL(slots_lock_) {
    const sync::MutexGuard guard(slots_lock_);
    fn(slot_of(slot));
  }
  void set_max_gfn(u64 max_gfn);
  void set_write_tracked(bool tracked);

  // Counts updates; never the same for two sets. Has kUpdateInProgress from before an update's
  // first set is published until its last is: what was found under a number without it, and is
  // looked at under the same number, has not changed.
  [[nodiscard]] u64 generation() const { return generation_.load(sync::kSeqCst); }
  [[nodiscard]] u32 count() const;

  // I2, I5 and the counts. Ends the process where they do not hold.
  void check_world() const TA_EXCL(slots_lock_);
  // Which line refuses, without doing anything. For tests.
  [[nodiscard]] Verdict debug_verdict(const Region& region) TA_EXCL(slots_lock_);
  // Lines 13 and 14 need a count no caller can bring about.
  void debug_set_total_pages(u64 pages) TA_EXCL(slots_lock_);
  // The wrap of kMmioGenerationBits is 2^18 updates away.
  void debug_set_generation(u64 generation) TA_EXCL(slots_lock_);

 private:
  struct Plan;

  [[nodiscard]] Verdict check_shape(const Region& region) const TA_REQ(slots_lock_);
  [[nodiscard]] Verdict check_change(const Region& region, Plan* plan) const TA_REQ(slots_lock_);
  [[nodiscard]] Verdict check_delete(Plan* plan) const TA_REQ(slots_lock_);
  [[nodiscard]] Verdict check_place(const Region& region, const Plan& plan) const
      TA_REQ(slots_lock_);
  [[nodiscard]] Verdict check_machine(const Region& region, const Plan& plan) const
      TA_REQ(slots_lock_);
  [[nodiscard]] Result<void> prepare(const Region& region, Plan* plan) TA_REQ(slots_lock_);
  [[nodiscard]] Result<void> prepare_bitmap(Plan* plan) TA_REQ(slots_lock_);
  [[nodiscard]] Result<void> build_sets(Plan* plan) TA_REQ(slots_lock_);
  void commit(Plan* plan) TA_REQ(slots_lock_);
  void record(const Plan& plan) TA_REQ(slots_lock_);
  void abandon(Plan* plan) TA_REQ(slots_lock_);
  void publish(const SlotSet* set) TA_REQ(slots_lock_);
  void commit_sets(Plan* plan) TA_REQ(slots_lock_);
  [[nodiscard]] Slot*& slot_of(u32 slot) const TA_REQ(slots_lock_);
  void forget_tracks(const Slot& slot) TA_REQ(slots_lock_);
  [[nodiscard]] const Slot* slot_at(u32 address_space, Gfn gfn) const TA_REQ(slots_lock_);
  [[nodiscard]] Result<Slot*> logged_slot(u32 slot) const TA_REQ(slots_lock_);
  [[nodiscard]] bool begins_marked() const TA_REQ(slots_lock_);
  void protect_ring_pages(u32 slot, u64 offset, u64 mask) TA_REQ(slots_lock_);

  SlotUpdateHost* const host_;
  mutable sync::Mutex slots_lock_;
  SlotPolicy policy_ TA_GUARDED(slots_lock_);
  DirtyProtect protect_ TA_GUARDED(slots_lock_);
  sync::Atomic<bool> rings_only_{false};  // written under slots_lock, before the first vCPU
  DirtyRing* rings_ TA_GUARDED(slots_lock_) = nullptr;
  u64 total_pages_ TA_GUARDED(slots_lock_) = 0;
  Slot** by_id_ TA_GUARDED(slots_lock_) = nullptr;  // address space * kSlotsPerSpace + id

  mutable sync::Passage readers_;
  // Written under slots_lock_ with release, read in a read section with acquire.
  sync::Atomic<const SlotSet*> set_{nullptr};
  sync::Atomic<u64> generation_{0};
  sync::Atomic<u32> count_{0};
  sync::Atomic<u64> tracked_{0};  // frames with a track
};

}  // namespace stagetwo::stage2
