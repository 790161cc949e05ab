// SPDX-License-Identifier: Apache-2.0
#pragma once

// The dirty log over the real tables: vCPUs store to one page by what a walk or the fast path gave
// them, a harvest takes the page's mark, its right to be stored to, and waits. After a last harvest
// with the vCPUs at rest, every store was in a page some harvest named.

#include "tests/sched/tdp_scenarios.h"

namespace stagetwo::test {

struct LogScenario : TdpScenario {
  static constexpr u64 kPage = 5;
  sync::AckLine lines[2];
  u64 stores = 0;  // outside the model: one thread runs at a time
  u64 harvested = 0;

  LogScenario() {
    for (sync::AckLine& line : lines) world.lines.add(line);
    slot().flags = stage2::kLogDirtyPages;
    slot().page_count = 64;
    slot().dirty = *stage2::DirtyBitmap::create(64);
    mapped(kPage, 1, Access::kRead);
  }
  ~LogScenario() {
    for (sync::AckLine& line : lines) world.lines.remove(line);
    stage2::DirtyBitmap::destroy(slot().dirty);
  }
  Slot& slot() { return world.slots[0]; }

  bool may_store(unsigned me) {
    return world.walk(context[me], kPage, Access::kWrite).kind == Walk::Kind::kHit;
  }
  // One run of a vCPU: asks once, and stores by the answer until it has to acknowledge.
  void guest_stores(unsigned me) {
    static_cast<void>(lines[me].enter());
    if (!may_store(me)) {
      Fault fault = world.found(kPage, Access::kWrite);
      FaultOutcome outcome = FaultOutcome::kRetry;
      static_cast<void>(world.mmu.fast_page_fault(context[me], fault, &outcome));
    }
    if (may_store(me)) {
      for (int block = 0; block < 3 && !lines[me].pending(); ++block) {
        sched::point();
        sched::note("stores");
        ++stores;
      }
    }
    lines[me].leave();
  }
  // As Memslots::get_dirty_log.
  void harvest() {
    const u64 mask = slot().dirty->words[0].exchange(0);
    sched::note(mask == 0 ? "harvests: no mark" : "harvests: takes the mark");
    if (mask == 0) return;
    world.mmu.write_protect_masked(slot(), 0, &mask, 1);
    world.flush_tlbs();
    harvested = stores;
  }
  void after() {
    harvest();
    EXPECT_EQ(stores, harvested) << "a store is in no harvest";
    TdpScenario::after();
  }
};

struct HarvestAgainstRestore : LogScenario {
  static constexpr unsigned kThreads = 2;
  void thread(unsigned me) {
    if (me == 1) return harvest();
    guest_stores(0);
    guest_stores(0);
  }
};

struct HarvestAgainstTwo : LogScenario {
  static constexpr unsigned kThreads = 3;
  void thread(unsigned me) {
    if (me == 2) {
      harvest();
      harvest();
      return;
    }
    guest_stores(me);
    guest_stores(me);
  }
};

// The page is marked already, and has lost the right for another reason (it was unmapped and read
// again): the mark of who restores it adds nothing but the order.
struct HarvestOfAnOldMark : LogScenario {
  static constexpr unsigned kThreads = 2;
  HarvestOfAnOldMark() { slot().dirty->words[0].store(u64{1} << kPage); }
  void thread(unsigned me) {
    if (me == 1) return harvest();
    guest_stores(0);
    guest_stores(0);
  }
};

// A log begins while a fault is on its way that found the slot without one: what is stored after
// the call returned is in a harvest.
struct LogBeginsAgainstInstall : TdpScenario {
  static constexpr unsigned kThreads = 2;
  static constexpr u64 kPage = 5;
  sync::AckLine line;
  stage2::DirtyBitmap* bitmap = *stage2::DirtyBitmap::create(64);
  u64 stores = 0;
  u64 before = 0;  // stores nobody has to name
  LogBeginsAgainstInstall() { world.lines.add(line); }
  ~LogBeginsAgainstInstall() {
    world.lines.remove(line);
    stage2::DirtyBitmap::destroy(bitmap);
  }
  void guest_stores() {
    Fault fault = world.found(kPage, Access::kWrite);
    static_cast<void>(world.mmu.page_fault(context[0], fault));
    static_cast<void>(line.enter());
    if (world.walk(context[0], kPage, Access::kWrite).kind == Walk::Kind::kHit) {
      for (int block = 0; block < 3 && !line.pending(); ++block) {
        sched::point();
        ++stores;
      }
    }
    line.leave();
  }
  void thread(unsigned me) {
    if (me == 0) return guest_stores();
    const u64 page = (kWorldHva >> kPageShift) + kPage;
    world.gate.begin(page, page);
    world.slots[0].flags = stage2::kLogDirtyPages;
    world.slots[0].dirty = bitmap;
    world.mmu.wait_for_shared();
    world.mmu.write_protect_slot(world.slots[0], 1);
    world.flush_tlbs();
    world.gate.end(page, page);
    before = stores;
  }
  void after() {
    const bool marked = bitmap->words[0].load() != 0;
    EXPECT_TRUE(marked || stores == before) << "a store is in no harvest";
    TdpScenario::after();
  }
};

// A large page is split while vCPUs store through it and set its D: nothing is lost of either.
struct SplitAgainstStores : TdpScenario {
  static constexpr unsigned kThreads = 3;
  bool faulted = false;
  SplitAgainstStores() {
    mapped(512, 2);
    static_cast<void>(world.walk(context[0], 512));
  }
  void thread(unsigned me) {
    if (me == 2) return world.mmu.try_split_huge(world.slots[0], GfnRange(Gfn(512), 512), 1);
    faulted |= world.walk(context[me], 513, Access::kWrite).kind != Walk::Kind::kHit;
  }
  void after() {
    EXPECT_FALSE(faulted) << "a split makes nobody fault";
    EXPECT_TRUE(Format::is_dirty(entry(513))) << "D is inherited, or set below";
    EXPECT_EQ(world.mmu.count_pages().pages_2m, 0U);
    TdpScenario::after();
  }
};

}  // namespace stagetwo::test
