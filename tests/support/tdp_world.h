// SPDX-License-Identifier: Apache-2.0
#pragma once

// The world around stage-2 tables, as small as it can be: a gate, lines, slots that do not change
// while a fault is on its way, and no memory behind the host addresses.

#include <vector>

#include "stage2/tdp_mmu.h"
#include "sync/ack_line.h"
#include "sync/passage.h"

namespace stagetwo::stage2 {
// What a test does to a table that no caller can.
struct TdpTestAccess {
  static TdpRoot* root(MmuContext& context, u32 address_space = 0) {
    return context.roots_[address_space];
  }
  static pt::Found<Format> find(TdpMmu& mmu, MmuContext& context, Gfn gfn, unsigned level = 1) {
    return pt::find<Format>(context.roots_[0]->page->entries, mmu.policy_.root_level, gfn.raw(),
                            level);
  }
  template <typename F>
  static void for_each_table(TdpMmu& mmu, F&& fn) {
    mmu.pool_.for_each(fn);
  }
  static sync::BigReaderMutex& mmu_lock(TdpMmu& mmu) { return mmu.mmu_lock_; }
  static size_t possible_nx(TdpMmu& mmu) {
    const sync::MutexGuard pages(mmu.pages_lock_);
    return mmu.possible_nx_.count();
  }
  static unsigned cached(MmuContext& context) { return context.tables_.count(); }
  static void tire(MmuContext& context) { context.losses_ = 100; }
  // Zaps the entry of `level` that covers gfn as a holder of the shared lock does.
  static bool zap_frozen(TdpMmu& mmu, TdpRoot& root, Gfn gfn, unsigned level, pt::Gather* removed) {
    const sync::BigReaderGuard shared(mmu.mmu_lock_);
    for (TdpCursor at = mmu.cursor(root, GfnRange(gfn, 1), level); at.valid(); at.next()) {
      if (at.level() != level) continue;
      while (Format::is_present(at.old())) {
        if (mmu.zap_entry_frozen(at, removed)) return true;
      }
    }
    return false;
  }
  static bool zap_table(TdpMmu& mmu, TablePage& table, pt::Gather* removed) {
    const sync::BigWriterGuard alone(mmu.mmu_lock_);
    return mmu.zap_table(table, removed);
  }
};
}  // namespace stagetwo::stage2

namespace stagetwo::test {

using stage2::Entry;
using stage2::Fault;
using stage2::FaultOutcome;
using stage2::Format;
using stage2::MmuContext;
using stage2::Slot;
using stage2::TablePage;
using stage2::TdpMmu;
using stage2::TdpTestAccess;
using stage2::Walk;
using stage2::Word;

// gfn n of the first slot is at this host address plus n pages.
inline constexpr u64 kWorldHva = 0x7f00'0000'0000;

class TdpWorld final : public stage2::TdpHost {
 public:
  explicit TdpWorld(const stage2::TdpPolicy& policy = {}) : mmu(*this, policy) {}

  sync::InvalidationGate gate;
  sync::AckSet lines;
  sync::Passage readers;
  std::vector<Slot> slots;
  sync::Atomic<u64> generation{1};
  sync::Atomic<u64> flushes{0};
  sync::Atomic<u64> grace_periods{0};
  sync::Atomic<u64> dirty_marks{0};
  bool mixed = false;
  TdpMmu mmu;
  sync::EpochDomain old_roots{lines};

  Slot& add_slot(u64 base_gfn, u64 pages, u64 hva, u32 flags = 0) {
    Slot slot{};
    slot.base_gfn = Gfn(base_gfn);
    slot.page_count = pages;
    slot.hva = Hva(hva);
    slot.flags = flags;
    slots.push_back(slot);
    return slots.back();
  }
  const Slot* find(Gfn gfn) const {
    for (const Slot& slot : slots) {
      if (slot.gfns().contains(gfn)) return &slot;
    }
    return nullptr;
  }

  // What GuestMemory does before it asks for an entry, with a host where everything is present.
  Fault found(u64 gfn, Access access, unsigned host_level = 1) const {
    Fault fault;
    fault.gpa = Gpa(gfn << kPageShift);
    fault.access = access;
    fault.snapshot = gate.snapshot();
    fault.mmio_generation = generation.load();
    fault.gfn = Gfn(gfn);
    fault.slot = find(fault.gfn);
    if (fault.slot == nullptr) return fault;
    fault.slot_flags = fault.slot->flags;
    fault.page = fault.slot->gfn_to_hva(fault.gfn);
    fault.map_writable = (fault.slot_flags & stage2::kReadonly) == 0;
    fault.max_level = static_cast<u8>(host_level);
    return fault;
  }
  // One whole fault.
  FaultOutcome fault(MmuContext& context, u64 gfn, Access access, unsigned host_level = 1) {
    if (!mmu.load_root(context, 0) || !context.top_up()) return FaultOutcome::kNoMemory;
    Fault found_fault = found(gfn, access, host_level);
    return mmu.page_fault(context, found_fault);
  }
  Walk walk(MmuContext& context, u64 gfn, Access access = Access::kRead) {
    return mmu.walk(context, 0, Gfn(gfn), access);
  }
  // One whole removal.
  void zap(u64 gfn, u64 pages, bool may_yield = false) {
    pt::Gather removed;
    static_cast<void>(mmu.zap_leafs(0, GfnRange(Gfn(gfn), pages), &removed, may_yield));
    mmu.flush_and_release(&removed);
  }
  void zap_all() {
    mmu.invalidate_all_roots();
    flush_tlbs();
    mmu.zap_invalidated_roots();
  }

  // stage2::TdpHost
  void flush_tlbs() override {
    flushes.fetch_add(1, sync::kRelaxed);
    lines.barrier();
  }
  void ask_for_flush() override { static_cast<void>(lines.bump_all()); }
  sync::EpochDomain& epochs() override { return old_roots; }
  void synchronize() override {
    flush_tlbs();
    wait_for_sections();
  }
  void wait_for_sections() override {
    grace_periods.fetch_add(1, sync::kRelaxed);
    mmu.wait_for_shared();
    readers.wait_for_acquirers();
  }
  bool must_retry(const Fault& fault, HvaRange range) override {
    return gate.must_retry(fault.snapshot, range.start().raw() >> kPageShift,
                           (range.end().raw() - 1) >> kPageShift);
  }
  bool attributes_mixed(const Fault&, unsigned) override { return mixed; }
  void mark_dirty(MmuContext& context, const Slot& slot, Gfn gfn) override {
    dirty_marks.fetch_add(1, sync::kRelaxed);
    stage2::Memslots::mark_dirty(slot, gfn, context.ring);
  }
  bool is_logged(u32, Gfn gfn) override {
    const Slot* slot = find(gfn);
    return slot != nullptr && (slot->flags & stage2::kLogDirtyPages) != 0;
  }
  u64 slots_generation() override { return generation.load(); }
  const Slot* audit_slot(u32, Gfn gfn) override { return find(gfn); }
  // At rest, or with nobody on the lock-free way.
  void audit_right(const Slot& slot, u64 page) override {
    ST_CHECK((slot.dirty->words[page / 64].load() >> page % 64 & 1) != 0);
  }
};

}  // namespace stagetwo::test
