// SPDX-License-Identifier: Apache-2.0
#pragma once

// The real TDP MMU under the scheduler, with faults, removals and lock-free walks against each
// other. Host addresses have no memory behind them; what a system call of the client changes is
// `meaning`, as in stage2_scenarios.h.

#include "tests/sched/sched_support.h"
#include "tests/support/tdp_world.h"

namespace stagetwo::stage2 {
struct TdpPoolAccess {
  // A table that was given back is somebody else's at once.
  static void reuse_last(TdpMmu& mmu, Word entry) {
    TablePage* page = mmu.pool_.allocate();
    for (unsigned i = 0; i < 8; ++i) page->entries[i].store(entry, sync::kRelease);
    mmu.pool_.give_back(page);
  }
  // The same, and stays theirs.
  static TablePage* take_filled(TdpMmu& mmu, Word entry) {
    TablePage* page = mmu.pool_.allocate();
    for (unsigned i = 0; i < kTableEntries; ++i) page->entries[i].store(entry, sync::kRelease);
    return page;
  }
  // By exchanges, which read what was written last.
  static bool is_filled(TablePage& page, Word entry) {
    for (unsigned i = 0; i < kTableEntries; ++i) {
      Word was = entry;
      if (!page.entries[i].compare_exchange(was, entry)) return false;
    }
    return true;
  }
  static void give_back(TdpMmu& mmu, TablePage* page) { mmu.pool_.give_back(page); }
  // So are the last `count`, each with a leaf of its level in its last place.
  static void reuse(TdpMmu& mmu, unsigned count) {
    TablePage* pages[8];
    for (unsigned n = 0; n < count; ++n) {
      pages[n] = mmu.pool_.allocate();
      const Word leaf = Format::make_leaf(u64{1} << 30, pages[n]->level, {});
      pages[n]->entries[stage2::kTableEntries - 1].store(leaf, sync::kRelease);
    }
    for (unsigned n = 0; n < count; ++n) mmu.pool_.give_back(pages[n]);
  }
  static bool warned(TdpMmu& mmu) { return mmu.warned_.load(sync::kRelaxed); }
};
}  // namespace stagetwo::stage2

namespace stagetwo::test {

using stage2::TdpPoolAccess;
namespace sched = sync::sched;

struct TdpScenario {
  TdpWorld world;
  MmuContext context[3]{MmuContext(world.mmu), MmuContext(world.mmu), MmuContext(world.mmu)};

  explicit TdpScenario(const stage2::TdpPolicy& policy = {}) : world(policy) {
    world.add_slot(0, 4096, kWorldHva);
    for (MmuContext& c : context) {
      static_cast<void>(world.mmu.load_root(c, 0));
      static_cast<void>(c.top_up());
    }
  }
  // Outside the run.
  void mapped(u64 gfn, unsigned level = 1, Access access = Access::kWrite) {
    ASSERT_EQ(world.fault(context[0], gfn, access, level), FaultOutcome::kFixed);
  }
  Word entry(u64 gfn, unsigned level = 1) {
    return TdpTestAccess::find(world.mmu, context[0], Gfn(gfn), level).word;
  }
  void zap_frozen(u64 gfn, unsigned level) {
    pt::Gather removed;
    static_cast<void>(TdpTestAccess::zap_frozen(world.mmu, *TdpTestAccess::root(context[2]),
                                                Gfn(gfn), level, &removed));
    world.mmu.flush_and_release(&removed);
  }
  // After the run.
  void after() {
    sched::expect(!TdpPoolAccess::warned(world.mmu), "a walk met a table of another level");
    world.mmu.check_world();
  }
};

// F3 1, 2: a fault whose goal is an entry that another thread has frozen.
struct FrozenGoal : TdpScenario {
  static constexpr unsigned kThreads = 2;
  FaultOutcome outcome = FaultOutcome::kRetry;
  FrozenGoal() { mapped(512, 2); }
  void thread(unsigned me) {
    if (me == 0) {
      outcome = world.fault(context[0], 512, Access::kWrite, 2);
    } else {
      zap_frozen(512, 2);
    }
  }
};

// F3 3, 4: the table above the goal goes between two reads of the entry that leads to it.
struct ParentGoes : TdpScenario {
  static constexpr unsigned kThreads = 2;
  ParentGoes() { mapped(5); }
  void thread(unsigned me) {
    if (me == 0) {
      static_cast<void>(world.fault(context[0], 6, Access::kWrite));
    } else {
      zap_frozen(5, 2);
    }
    // In time, not at the end: the wrong leaf may be taken away again.
    sched::expect(!TdpPoolAccess::warned(world.mmu), "a walk met a table of another level");
  }
};

// The same, where only the audit at the end may complain.
struct ParentGoesAudited : TdpScenario {
  static constexpr unsigned kThreads = 2;
  ParentGoesAudited() { mapped(5); }
  void thread(unsigned me) {
    if (me == 0) {
      static_cast<void>(world.fault(context[0], 6, Access::kWrite));
    } else {
      zap_frozen(5, 2);
    }
  }
  void after() { world.mmu.check_world(); }
};

// F3 5, 6: a table is linked, taken out by another thread, and only then about to be listed.
struct ListedAfterItWent : TdpScenario {
  static constexpr unsigned kThreads = 2;
  ListedAfterItWent() : TdpScenario({.nx_huge_pages = true}) { mapped(5); }
  void thread(unsigned me) {
    if (me == 0) {
      static_cast<void>(world.fault(context[0], 512, Access::kExec, 2));
    } else {
      zap_frozen(512, 2);
    }
  }
};

// A table is linked below one that is being taken out: it goes with it, or is not linked.
struct LinkedBelowWhatGoes : TdpScenario {
  static constexpr unsigned kThreads = 2;
  LinkedBelowWhatGoes() { mapped(5); }
  void thread(unsigned me) {
    if (me == 0) {
      static_cast<void>(world.fault(context[0], 9, Access::kWrite));
    } else {
      zap_frozen(5, 3);
    }
  }
};

// An entry is frozen by one thread, and its table taken out by another.
struct FrozenBelowWhatGoes : TdpScenario {
  static constexpr unsigned kThreads = 3;
  FrozenBelowWhatGoes() { mapped(5); }
  void thread(unsigned me) {
    if (me == 2) {
      static_cast<void>(world.fault(context[0], 5, Access::kWrite));
    } else {
      zap_frozen(5, me + 1);
    }
  }
};

// F3 8: two vCPUs install one frame; one is first, the other's table is given back.
struct SameFrame : TdpScenario {
  static constexpr unsigned kThreads = 2;
  FaultOutcome outcome[2] = {};
  void thread(unsigned me) { outcome[me] = world.fault(context[me], 5, Access::kWrite); }
  void after() {
    TdpScenario::after();
    const auto is = [this](FaultOutcome a, FaultOutcome b) {
      return (outcome[0] == a && outcome[1] == b) || (outcome[0] == b && outcome[1] == a);
    };
    EXPECT_TRUE(is(FaultOutcome::kFixed, FaultOutcome::kSpurious) ||
                is(FaultOutcome::kFixed, FaultOutcome::kRetry) ||
                (outcome[0] == FaultOutcome::kRetry && outcome[1] == FaultOutcome::kRetry));
    EXPECT_LE(world.mmu.count_pages().tables, 4U);
    u64 cached = 0;
    for (MmuContext& c : context) cached += TdpTestAccess::cached(c);
    EXPECT_EQ(world.mmu.tables().live(), cached + world.mmu.count_pages().tables);
  }
};

// The lookup-install race: a vCPU faults and uses what it got; another thread changes what the host
// address means.
template <unsigned kLevel>
struct InstallAtLevelAgainstChange : TdpScenario {
  static constexpr unsigned kThreads = 2;
  sync::AckLine line;
  int holders = 0;  // outside the model: one thread runs at a time
  bool changing = false;
  u64 meaning = 0;
  u64 installed = 0;
  InstallAtLevelAgainstChange() { world.lines.add(line); }
  ~InstallAtLevelAgainstChange() { world.lines.remove(line); }
  void vcpu() {
    for (int tries = 0; tries < 3; ++tries) {
      // A large entry comes by another of its frames.
      Fault fault = world.found(kLevel == 1 ? 5 : 2, Access::kWrite, kLevel);
      const u64 found = meaning;
      sched::note(found == 0 ? "has looked up: the old page" : "has looked up: the new page");
      sched::point();  // faultin
      if (!context[0].top_up()) return;
      const FaultOutcome outcome = world.mmu.page_fault(context[0], fault);
      if (outcome == FaultOutcome::kFixed) installed = found;
      if (outcome == FaultOutcome::kRetry) continue;
      static_cast<void>(line.enter());
      if (world.walk(context[0], 5, Access::kWrite).kind == Walk::Kind::kHit) {
        ++holders;
        for (int block = 0; block < 3 && !line.pending(); ++block) {
          sched::point();
          sched::note("uses its translation");
          sched::expect(!changing, "an old translation is used while the range changes");
          sched::expect(installed == meaning, "an old translation is used after the change");
        }
        --holders;
      }
      line.leave();
    }
  }
  void thread(unsigned me) {
    if (me == 0) return vcpu();
    const u64 page = (kWorldHva >> kPageShift) + 5;
    world.gate.begin(page, page);
    pt::Gather removed;
    static_cast<void>(world.mmu.zap_leafs(0, GfnRange(Gfn(5), 1), &removed, true));
    world.flush_tlbs();
    world.mmu.release(&removed);
    sched::expect(holders == 0, "the range changes while somebody holds a translation");
    changing = true;
    sched::note("the system call: another page now");
    sched::point();
    ++meaning;
    changing = false;
    world.gate.end(page, page);
  }
};

using InstallAgainstChange = InstallAtLevelAgainstChange<1>;
using LargeInstallAgainstChange = InstallAtLevelAgainstChange<2>;

// A fault on its way while every root is made invalid: what it finds must not go into the old tree,
// which is taken apart by somebody who expects no more installs.
struct InstallAgainstInvalidation : TdpScenario {
  static constexpr unsigned kThreads = 2;
  InstallAgainstInvalidation() { mapped(512); }
  void thread(unsigned me) {
    if (me == 0) {
      // The root was loaded before; the fault begins with it.
      Fault fault = world.found(5, Access::kWrite);
      static_cast<void>(world.mmu.page_fault(context[0], fault));
    } else {
      world.mmu.invalidate_all_roots();
      world.flush_tlbs();
      world.mmu.zap_invalidated_roots();
      sched::expect(entry(5, 4) == Format::kNonpresent, "an invalid root was installed into");
    }
  }
  void after() {
    EXPECT_EQ(entry(5, 4), Format::kNonpresent);
    TdpScenario::after();
  }
};

// The lock-free path on a page the host does not let anybody write.
struct FastOnReadOnly : TdpScenario {
  static constexpr unsigned kThreads = 1;
  FastOnReadOnly() {
    world.slots[0].flags = stage2::kReadonly;
    mapped(5, 1, Access::kRead);
  }
  void thread(unsigned) {
    Fault fault = world.found(5, Access::kWrite);
    FaultOutcome outcome = FaultOutcome::kRetry;
    sched::expect(!world.mmu.fast_page_fault(context[0], fault, &outcome),
                  "a read-only page is made writable");
  }
};

// A walk on its way down while its table is unlinked, given back and used for something else.
struct WalkAgainstRelease : TdpScenario {
  static constexpr unsigned kThreads = 2;
  sync::AckLine line;
  WalkAgainstRelease() {
    mapped(512 + 5);
    world.lines.add(line);
  }
  ~WalkAgainstRelease() { world.lines.remove(line); }
  void thread(unsigned me) {
    if (me == 0) {
      static_cast<void>(line.enter());
      const Walk walk = world.walk(context[0], 512 + 5);
      sched::expect(
          walk.kind != Walk::Kind::kHit || walk.page.raw() == kWorldHva + (512 + 5) * kPageSize,
          "a walk reads a table that was given back");
      line.leave();
    } else {
      world.zap(512, 8);
      TdpPoolAccess::reuse_last(world.mmu, Format::make_leaf(0x1000, 1, {}));
    }
  }
};

// Lock-free writers of A, D and W against a removal: what was taken away stays away.
struct LockFreeAgainstZap : TdpScenario {
  static constexpr unsigned kThreads = 3;
  LockFreeAgainstZap() {
    world.slots[0].flags = stage2::kLogDirtyPages;
    mapped(5, 1, Access::kRead);
  }
  void thread(unsigned me) {
    if (me == 0) {
      static_cast<void>(world.walk(context[0], 5, Access::kWrite));
      static_cast<void>(world.walk(context[0], 5, Access::kRead));
    } else if (me == 1) {
      Fault fault = world.found(5, Access::kWrite);
      FaultOutcome outcome = FaultOutcome::kRetry;
      static_cast<void>(world.mmu.fast_page_fault(context[1], fault, &outcome));
    } else {
      world.zap(5, 1);
      sched::expect(entry(5) == Format::kNonpresent, "an entry came back");
    }
  }
};

// A second removal comes before the first has flushed, in a yield or after its end. It finds the
// entry gone; nobody may use the page when it is done.
struct TwoZaps : TdpScenario {
  static constexpr unsigned kThreads = 3;
  sync::AckLine line;
  int holders = 0;
  TwoZaps() {
    mapped(5);
    mapped(6);
    world.lines.add(line);
  }
  ~TwoZaps() { world.lines.remove(line); }
  void thread(unsigned me) {
    if (me == 0) {
      static_cast<void>(line.enter());
      if (world.walk(context[0], 5).kind == Walk::Kind::kHit) {
        ++holders;
        for (int block = 0; block < 6 && !line.pending(); ++block) {
          sched::note("uses the page");
          sched::point();
        }
        --holders;
      }
      line.leave();
    } else if (me == 1) {
      pt::Gather removed;
      static_cast<void>(world.mmu.zap_leafs(0, GfnRange(Gfn(5), 4), &removed, true));
      world.mmu.flush_and_release(&removed);
    } else {
      pt::Gather removed;
      const bool owed = world.mmu.zap_leafs(0, GfnRange(Gfn(5), 1), &removed, false);
      if (owed) world.mmu.flush();
      world.mmu.release(&removed);
      sched::expect(holders == 0, "an entry is gone, and its page is in use");
    }
  }
};

// A slot moves that nobody uses, and nobody waits; then one that a vCPU still uses through the root
// that became invalid: its page is the client's only when the vCPU has left it.
struct OldRootAgainstSlots : TdpScenario {
  static constexpr unsigned kThreads = 2;
  sync::AckLine line;
  int holders = 0;
  OldRootAgainstSlots() {
    mapped(5);
    world.lines.add(line);
  }
  ~OldRootAgainstSlots() { world.lines.remove(line); }
  void one_goes(u64 gfn) {
    world.mmu.invalidate_all_roots();
    if (world.mmu.in_use(0, GfnRange(Gfn(gfn), 1))) world.mmu.flush();
    if (gfn == 5) sched::expect(holders == 0, "a slot is gone, and a page of it is in use");
    world.mmu.zap_invalidated_roots();
  }
  void thread(unsigned me) {
    if (me == 0) {
      if (line.enter()) world.mmu.drop_obsolete_roots(context[0]);
      if (world.walk(context[0], 5).kind == Walk::Kind::kHit) {
        ++holders;
        for (int block = 0; block < 300; ++block) sched::point();
        --holders;
      }
      line.leave();
    } else {
      one_goes(1024);
      one_goes(5);
    }
  }
};

// The lock-free path walks the root of its context, invalid or not, with its line outside. The
// frame is the last of all, so that few steps lie between the unlinking of its tables and the end.
struct OldRootAgainstRelease : TdpScenario {
  static constexpr unsigned kThreads = 2;
  static constexpr u64 kLast = pt::frame_limit<Format>(4) - 1;
  OldRootAgainstRelease() { mapped(kLast); }
  void thread(unsigned me) {
    if (me == 0) {
      const auto section = world.readers.enter();
      const Walk walk = world.walk(context[0], kLast);
      sched::expect(
          walk.kind != Walk::Kind::kHit || walk.page.raw() == kWorldHva + kLast * kPageSize,
          "a walk reads a table that was given back");
      world.readers.leave(section);
    } else {
      world.mmu.invalidate_all_roots();
      world.mmu.zap_invalidated_roots();
      TdpPoolAccess::reuse(world.mmu, 3);
    }
  }
};

// Roots are loaded by two vCPUs while a slot update makes all of them invalid.
struct RootsAgainstInvalidation : TdpScenario {
  static constexpr unsigned kThreads = 3;
  void thread(unsigned me) {
    if (me < 2) {
      for (int round = 0; round < 2; ++round) {
        world.mmu.drop_obsolete_roots(context[me]);
        static_cast<void>(world.fault(context[me], 5, Access::kWrite));
      }
    } else {
      world.mmu.invalidate_all_roots();
      world.flush_tlbs();
    }
  }
  void after() {
    TdpScenario::after();
    world.mmu.zap_invalidated_roots();
    for (MmuContext& c : context) EXPECT_TRUE(world.mmu.load_root(c, 0).has_value());
    EXPECT_EQ(world.mmu.root_count(), 1U);
    TdpScenario::after();
  }
};

// The last user gives an invalid root up beside the audit, which is no user.
struct LastUserBesideTheAudit : TdpScenario {
  static constexpr unsigned kThreads = 2;
  LastUserBesideTheAudit() {
    mapped(5);
    world.mmu.invalidate_all_roots();
    world.flush_tlbs();
    world.mmu.zap_invalidated_roots();
    for (const unsigned other : {1U, 2U}) static_cast<void>(world.mmu.load_root(context[other], 0));
  }
  void thread(unsigned me) {
    if (me == 0) {
      static_cast<void>(world.mmu.load_root(context[0], 0));
    } else {
      world.mmu.check_world();
    }
  }
};

// The scenario over many seeds, with its after() in every one.
template <typename Scenario>
Found search_with_after(unsigned limit) {
  Found result;
  for (unsigned i = 0; i < limit; ++i) {
    result.seed = seed_is_fixed() ? seed() : i + 1;
    auto* scenario = new Scenario;
    result.outcome = sched::run({.seed = result.seed}, Scenario::kThreads,
                                [&](unsigned index) { scenario->thread(index); });
    ++result.runs;
    if (!result.outcome.finished()) {
      static auto& kept = *new std::vector<Scenario*>;
      kept.push_back(scenario);
      result.found = true;
      return result;
    }
    scenario->after();
    delete scenario;
    if (::testing::Test::HasFailure()) {
      result.found = true;
      return result;
    }
    if (seed_is_fixed()) break;
  }
  return result;
}

template <typename Scenario>
void expect_holds_with_after(unsigned seeds) {
  const Found found = search_with_after<Scenario>(seeds);
  EXPECT_FALSE(found.found) << "STAGETWO_SEED=" << found.seed << ": " << found.outcome.why
                            << " after " << found.outcome.steps << " steps";
}

}  // namespace stagetwo::test
