// SPDX-License-Identifier: Apache-2.0
#pragma once

// The rows of abi/vfio/mappings.h and what becomes of them as the client changes its addresses.
// Not for other rooms.
//
//   munmap, mmap over it   the bell's end: what the process's map shows no more is cut out
//   mprotect               divide(), the calls, allow(): a row for what has rights of its own
//   mremap                 copy_of() before, put_back() at the new place after
//   fork                   in the child: cut as above, and a subscription of its own
//
// I1  A row is there from before its mapping may be stored to until its pages are unmapped.
// I2  A part of a region that is trapped never has the right to write, whatever the client asks
//     for; what it has asked for is in the row.
// Locking: changing_ keeps showing and hiding apart; lock_, a leaf around the rows, is taken in
// signal handlers, by nobody who stores to client memory. In a child of fork: after_fork_child().

#include <ucontext.h>

#include <span>

#include "abi/vfio/files.h"
#include "base/vec.h"
#include "host/file_change.h"
#include "host/mmu_notifier.h"
#include "host/worker.h"

namespace stagetwo::abi_vfio {

struct Mapping {
  HvaRange range;
  sync::Ref<OpenDevice> device;
  unsigned region = 0;
  u64 offset = 0;  // of the range's start in the region
  int prot = 0;    // as the client asked
  // Changes of its pages that are under way: they may be another's by now. And: one is over.
  unsigned going = 0;
  bool unsure = false;
  // Is the region's memory off, and do the pages say so? What stands there then.
  bool off = false, hidden = false;
  host::FileId nothing{};

  [[nodiscard]] Mapping copy() const {
    return {range, device.clone(), region, offset, prot, going, unsure, off, hidden, nothing};
  }
  // That part of it. Pre: it is in the range.
  [[nodiscard]] Mapping part(HvaRange piece) const {
    Mapping made = copy();
    made.range = piece;
    made.offset += piece.start() - range.start();
    return made;
  }
  // The same memory at the same address?
  [[nodiscard]] bool is_of(const Mapping& other) const {
    return device.get() == other.device.get() && region == other.region &&
           range.start().raw() - offset == other.range.start().raw() - other.offset;
  }
};

class Mappings final : public host::MmuNotifier, host::WorkItem {
 public:
  Result<void> add(Mapping mapping);
  void follow(vfio::Device& device);
  // Another process that has the device open may put its memory off.
  void turn() override;
  u64 period_ns() override { return used() ? kPeriodNs : sync::kNoTimeout; }
  bool store(Hva at, ucontext_t* context);
  size_t put(Hva at, std::span<const u8> bytes);
  [[nodiscard]] u64 trapped_at(Hva at);
  [[nodiscard]] bool used() const { return used_.load(sync::kAcquire) != 0; }
  [[nodiscard]] size_t count();

  // ---- rights and places (abi/vfio/region_changes.h)
  // No row crosses an end of the range. Failure: ENOMEM.
  Result<void> divide(HvaRange range);
  void allow(HvaRange range, int prot);
  // The first part of the range that is trapped and there; empty: none.
  [[nodiscard]] HvaRange first_trapped(HvaRange range);
  [[nodiscard]] bool has(Hva at);
  // Copies of the rows in the range, and room for as many more. Failure: ENOMEM.
  Result<void> copy_of(HvaRange range, Vec<Mapping>* rows);
  // Pre: copy_of() has made room for it.
  void put_back(Mapping row);

  bool invalidate_range_start(const host::InvalidateEvent& event) override;
  host::TryStart try_invalidate_range_start(const host::InvalidateEvent& event) override {
    return event.kind != host::EventKind::kUnmap ? host::TryStart::kNotMine
           : invalidate_range_start(event)       ? host::TryStart::kEngaged
                                                 : host::TryStart::kNotMine;
  }
  void invalidate_range_end(const host::InvalidateEvent& event) override;
  void after_fork_child();

 private:
  static constexpr u64 kPeriodNs = 20'000'000;
  class Edit;
  Result<void> subscribe() TA_REQ(changing_);
  void look_again();
  bool take_unsure(Mapping* row);
  void drop(const Mapping& row, HvaRange gone);
  sync::Ref<OpenDevice> cut(size_t at, HvaRange gone) TA_REQ(lock_);
  void watch() TA_REQ(changing_);
  sync::Ref<OpenDevice> function_after(const vfio::Device* last);
  bool is_put_off(Hva at, vfio::Device& device);
  void follow_locked(vfio::Device& device) TA_REQ(changing_);
  void settle(Mapping& row) TA_REQ(lock_);
  // What is trapped around an address. False: nothing is.
  struct Trap {
    Mapping mapping;
    HvaRange range;
  };
  [[nodiscard]] static HvaRange trap_of(const Mapping& row, Hva at);
  bool find_trap(Hva at, Trap* trap);
  const Mapping* last_at(Hva at) TA_REQ(lock_);
  bool find_trap_locked(Hva at, Trap* trap) TA_REQ(lock_);
  // Of what put() had, and nobody else has any more.
  class Leaver final : public host::WorkItem {
   public:
    void call();
    void turn() override;
    u64 period_ns() override { return called_.load() != 0 ? 1 : sync::kNoTimeout; }

   private:
    sync::Atomic<u32> called_{0}, added_{0};  // the process that added it
  };
  void let_go(sync::Ref<OpenDevice> device);
  void drop_left();
  Result<void> divide_at(Hva at) TA_REQ(lock_);

  sync::Mutex changing_{sync::Rank::kVm};
  // The process that did, and that looks what others do with a function.
  u32 subscribed_ TA_GUARDED(changing_) = 0, watched_ TA_GUARDED(changing_) = 0;
  sync::Mutex lock_{sync::Rank::kLeaf};
  Vec<Mapping> rows_ TA_GUARDED(lock_){"abi_vfio.mappings"};
  unsigned putting_ TA_GUARDED(lock_) = 0;  // calls of put() that have a device
  Vec<sync::Ref<OpenDevice>> left_ TA_GUARDED(lock_){"abi_vfio.mappings"};  // for the worker to end
  Leaver leaver_;
  sync::Atomic<u32> used_{0};     // rows; changes of a process without any look no further
  sync::Atomic<u32> editing_{0};  // somebody changes the table: a child's copy is half of it
};

// Never destroyed: handlers ask it until the process is gone.
Mappings& mappings();
// Null: nobody has asked for it yet.
Mappings* known_mappings();

}  // namespace stagetwo::abi_vfio
