// SPDX-License-Identifier: Apache-2.0
#pragma once

// A stage-2 table, the slots around it, and beside both what is known of them without tables: which
// leaf stands where, which pages must be in the log, which may be old. One thread; every operation
// ends with the table at rest.

#include <gtest/gtest.h>

#include <list>
#include <memory>
#include <set>
#include <vector>

#include "base/failpoint.h"
#include "stage2/tdp_mmu.h"
#include "sync/ack_line.h"
#include "sync/passage.h"
#include "tests/model/naive_table.h"
#include "tests/support/random_source.h"

namespace stagetwo::stage2 {
struct TdpTestAccess {
  static pt::Found<Format> find(TdpMmu& mmu, MmuContext& context, u32 space, u64 gfn) {
    return pt::find<Format>(context.roots_[space]->page->entries, mmu.policy_.root_level, gfn);
  }
};
}  // namespace stagetwo::stage2

namespace stagetwo::test {

using stage2::Fault;
using stage2::FaultOutcome;
using stage2::Format;
using stage2::MmuContext;
using stage2::Slot;
using stage2::TdpMmu;
using stage2::Walk;

constexpr u32 kSpaces = stage2::kMaxAddressSpaces;
constexpr u64 kGiBFrames = 262144;
constexpr u64 kHvaBase = 0x7e00'0000'0000;

class ModelHost final : public stage2::TdpHost {
 public:
  explicit ModelHost(const stage2::TdpPolicy& policy) : mmu(*this, policy) {}

  sync::InvalidationGate gate;
  sync::AckSet lines;
  sync::Passage readers;
  std::list<Slot> slots;
  u64 generation = stage2::kMaxAddressSpaces;
  std::set<u64> marked[kSpaces];  // frames in the log
  bool mixed = false;
  TdpMmu mmu;
  sync::EpochDomain old_roots{lines};

  [[nodiscard]] Slot* find(u32 space, u64 gfn) {
    for (Slot& slot : slots) {
      if (slot.id >> 16 == space && slot.gfns().contains(Gfn(gfn))) return &slot;
    }
    return nullptr;
  }

  void flush_tlbs() override { lines.barrier(); }
  void ask_for_flush() override { static_cast<void>(lines.bump_all()); }
  sync::EpochDomain& epochs() override { return old_roots; }
  void synchronize() override {
    flush_tlbs();
    wait_for_sections();
  }
  void wait_for_sections() override {
    mmu.wait_for_shared();
    readers.wait_for_acquirers();
  }
  bool must_retry(const Fault& fault, HvaRange range) override {
    return gate.must_retry(fault.snapshot, range.start().raw() >> kPageShift,
                           (range.end().raw() - 1) >> kPageShift);
  }
  bool attributes_mixed(const Fault&, unsigned) override { return mixed; }
  void mark_dirty(MmuContext&, const Slot& slot, Gfn gfn) override {
    marked[slot.id >> 16].insert(gfn.raw());
  }
  u64 slots_generation() override { return generation; }
  const Slot* audit_slot(u32 space, Gfn gfn) override { return find(space, gfn.raw()); }
  void audit_right(const Slot&, u64) override {}  // its slots have no bitmaps
  bool is_logged(u32 space, Gfn gfn) override {
    const Slot* slot = find(space, gfn.raw());
    return slot != nullptr && (slot->flags & stage2::kLogDirtyPages) != 0;
  }
};

class TdpModel {
 public:
  TdpModel(u64 seed, bool nx) : random_(seed), nx_(nx), host_({.nx_huge_pages = nx}) {
    for (int i = 0; i < 3; ++i) add_context();
  }
  ~TdpModel() {
    failpoint::disarm();
    contexts_.clear();
  }

  // One operation. Fails the test where the table does not do what is known of it.
  void step();
  // Every leaf is where it is expected, and no other is anywhere.
  void compare();
  void check_world() { host_.mmu.check_world(); }
  [[nodiscard]] TdpMmu& mmu() { return host_.mmu; }
  u64 accesses = 0;
  u64 refused = 0;  // for want of memory

 private:
  struct Place {
    u32 space;
    u64 gfn;
  };
  MmuContext& some_context() { return *contexts_[random_.below(contexts_.size())]; }
  Slot* some_slot();
  Place some_place();
  void add_context() { contexts_.push_back(std::make_unique<MmuContext>(host_.mmu)); }

  // What a vCPU does until its access goes through, or is the VMM's.
  FaultOutcome access(MmuContext& context, Place place, Access kind);
  FaultOutcome fault_in(MmuContext& context, Place place, Access kind, bool prefetch);
  void learn(MmuContext& context, Place place, const Fault& fault);
  void expect_hit(Place place, Access kind, const Walk& walk);

  // Changes of the world, each whole.
  void probe();
  void zap(u32 space, GfnRange range);
  void bell();
  void create_slot();
  void remove_slot(Slot& slot);
  void move_slot(Slot& slot);
  void toggle_logging(Slot& slot);
  void forget_log(const Slot& slot);
  void split(const Slot& slot, GfnRange range);
  void recover(const Slot& slot);
  [[nodiscard]] unsigned level_of(u32 space, u64 frame);
  [[nodiscard]] static u64 next_small(NaiveTable& table, const Slot& slot, u64 from,
                                      unsigned level);
  void invalidate_roots();
  void harvest(Slot& slot);
  void age(const Slot& slot);
  void change_nx();
  void change_contexts();
  void access_without_memory();

  RandomSource random_;
  bool nx_;
  ModelHost host_;
  std::vector<std::unique_ptr<MmuContext>> contexts_;
  NaiveTable table_[kSpaces];
  std::set<u64> stored_[kSpaces];  // since logging began or the last harvest
};

}  // namespace stagetwo::test
