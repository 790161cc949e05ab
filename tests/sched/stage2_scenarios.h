// SPDX-License-Identifier: Apache-2.0
#pragma once

// The real fault path, the real slots and the real bell under the scheduler. What a system call of
// the client changes is `meaning`, outside the memory model, as the kernel's tables are. A thread
// that holds an installed translation says so; while the range changes nobody may.
//
// A scenario that fails leaves locks of the process held: mutation programs run it in a child.

#include "base/failpoint.h"
#include "host/change.h"
#include "stage2/address_space.h"
#include "stage2/dirty_ring.h"
#include "tests/sched/tdp_scenarios.h"
#include "tests/support/guest_memory_access.h"
#include "tests/support/pages.h"

namespace stagetwo::test {

using namespace stagetwo::sync;
using stage2::Fault;
using stage2::FaultOutcome;

inline constexpr u64 kGpa = 0x100000;

// A VM with one slot, of one page if nothing else is said, and the lines of up to two vCPUs.
struct SmallVm {
  GuardedPages pages;
  Box<stage2::GuestMemory> memory;
  AckLine lines[2];
  Box<stage2::MmuContext> contexts[2];
  stage2::DirtyRing* rings[2] = {};  // where a scenario has them
  // Outside the model: one thread runs at a time.
  int holders = 0;
  bool changing = false;
  u64 meaning = 0;
  int blocks = 3;  // how long a vCPU goes on by one translation

  explicit SmallVm(u32 flags = 0, u64 slot_pages = 1) : pages(slot_pages + 1) {
    memory = std::move(*stage2::GuestMemory::create(stage2::SlotPolicy{}));
    static_cast<void>(set(kGpa, slot_pages * kPageSize, flags));
    for (AckLine& line : lines) memory->lines().add(line);
    for (auto& context : contexts) context = std::move(*memory->new_context());
  }
  ~SmallVm() {
    for (AckLine& line : lines) memory->lines().remove(line);
  }
  bool set(u64 gpa, u64 size, u32 flags) {
    stage2::Region region;
    region.flags = flags;
    region.gpa = gpa;
    region.size = size;
    region.hva = pages.address();
    return memory->slots().set_region(region).has_value();
  }
  // The client's system call.
  void change_meaning() {
    sched::expect(holders == 0, "the range changes while somebody holds a translation");
    changing = true;
    sched::note("the system call begins");
    sched::point();
    ++meaning;
    sched::point();
    sched::note("... and ends: another page now");
    changing = false;
  }
  void use(u64 translated) {
    sched::point();
    sched::note("uses its translation");
    sched::expect(!changing, "an old translation is used while the range changes");
    sched::expect(meaning == translated, "an old translation is used after the range changed");
  }
  // Enters as vcpu does.
  void enter(unsigned me) {
    if (lines[me].enter()) memory->flushed(*contexts[me]);
  }
  // One guest access of vCPU `me`, as vcpu makes it; up to three uses. Returns the last outcome.
  template <typename F>
  FaultOutcome guest_access(unsigned me, F&& each_use) {
    FaultOutcome outcome = FaultOutcome::kRetry;
    contexts[me]->ring = rings[me];
    for (int tries = 0; tries < 6; ++tries) {
      Fault fault{};
      fault.gpa = Gpa(kGpa);
      fault.access = Access::kWrite;
      fault.ring = rings[me];
      enter(me);
      const bool hit = memory->translate(*contexts[me], fault) == stage2::Walk::Kind::kHit;
      if (hit) {
        // An entry that could be found stands for what the range means now.
        ++holders;
        const u64 translated = meaning;
        for (int block = 0; block < blocks && !lines[me].pending(); ++block) each_use(translated);
        --holders;
      }
      lines[me].leave();
      if (hit) return FaultOutcome::kFixed;
      outcome = memory->handle_fault(*contexts[me], fault);
      if (outcome != FaultOutcome::kFixed && outcome != FaultOutcome::kSpurious &&
          outcome != FaultOutcome::kRetry) {
        return outcome;
      }
    }
    return outcome;
  }
};

// One vCPU, one thread that unmaps and maps again at the same address.
struct FaultAgainstChange : SmallVm {
  static constexpr unsigned kThreads = 2;
  void thread(unsigned me) {
    if (me == 0) {
      guest_access(0, [this](u64 translated) { use(translated); });
    } else {
      host::change(pages.address(), kPageSize, host::EventKind::kUnmap,
                   [this] { change_meaning(); });
    }
  }
};

// The same with blocks of guest code that are long beside a change.
struct LongBlockAgainstChange : SmallVm {
  static constexpr unsigned kThreads = 2;
  // The page is there already: a schedule has nothing to do but to meet the block.
  LongBlockAgainstChange() {
    guest_access(0, [](u64) {});
  }
  void thread(unsigned me) {
    if (me == 0) {
      guest_access(0, [this](u64 translated) {
        for (int i = 0; i < 40; ++i) use(translated);
      });
    } else {
      host::change(pages.address(), kPageSize, host::EventKind::kUnmap,
                   [this] { change_meaning(); });
    }
  }
};

// The race the sequence is there for: a page is looked up, the range changes, the entry is
// installed. Told apart from FaultAgainstChange in that the vCPU knows what its own lookup found.
struct LookupAgainstChange : SmallVm {
  static constexpr unsigned kThreads = 2;
  void vcpu() {
    for (int tries = 0; tries < 3; ++tries) {
      Fault fault{};
      fault.gpa = Gpa(kGpa);
      fault.access = Access::kWrite;
      const FaultOutcome looked_up =
          stage2::GuestMemoryTestAccess::find(*memory, *contexts[0], fault);
      const u64 found = meaning;
      if (looked_up != FaultOutcome::kFixed) continue;
      sched::note(found == 0 ? "has looked up: the old page" : "has looked up: the new page");
      sched::point();
      if (memory->tdp().page_fault(*contexts[0], fault) != FaultOutcome::kFixed) continue;
      enter(0);
      const bool hit = memory->translate(*contexts[0], fault) == stage2::Walk::Kind::kHit;
      if (hit) {
        ++holders;
        for (int block = 0; block < blocks && !lines[0].pending(); ++block) use(found);
        --holders;
      }
      lines[0].leave();
      if (hit) return;
    }
  }
  void thread(unsigned me) {
    if (me == 0) return vcpu();
    host::change(pages.address(), kPageSize, host::EventKind::kUnmap, [this] { change_meaning(); });
  }
};

// Slots come, move and go, and a move fails late, while a range of theirs changes: what a change
// sees of the slots is what there was or what there is, never a half; a change that is under way
// when a slot begins to change ends with what it began with; and a fault uses nothing that changes.
struct SlotsAgainstChange : SmallVm {
  static constexpr unsigned kThreads = 3;
  struct Seen {
    u64 hva[2] = {};
    bool by_hva = false;
    bool operator==(const Seen&) const = default;
  };
  Seen look() {
    Seen seen;
    const stage2::Memslots::Reader section(memory->slots());
    for (u64 i = 0; i < 2; ++i) {
      const stage2::Slot* slot = section.find(0, gpa_to_gfn(Gpa((i + 1) * kGpa)));
      if (slot != nullptr) seen.hva[i] = slot->hva.raw() + slot->flags;
    }
    seen.by_hva = section.overlaps(HvaRange(Hva(pages.address()), kPageSize));
    return seen;
  }
  // Nothing of the slots changes between what it looks at.
  void expect_whole(const Seen& seen) {
    const unsigned places = (seen.hva[0] != 0 ? 1U : 0U) + (seen.hva[1] != 0 ? 1U : 0U);
    sched::expect(places <= 1, "a slot that moves is in two places");
    sched::expect(places == 0 || seen.by_hva, "a slot of the guest's is not found by its address");
    sched::expect(seen.hva[0] % kPageSize == 0 && seen.hva[1] % kPageSize == 0,
                  "a slot is half gone");
  }
  unsigned begun = 0;  // changes of slots, outside the model
  unsigned done = 0;
  void change_slot(u64 gpa, u64 size, bool succeeds = true) {
    ++begun;
    sched::note(size == 0 ? "deletes the slot" : "makes or moves the slot");
    sched::expect(set(gpa, size, 0) == succeeds, "a change of a slot");
    ++done;
    sched::note("... done");
  }
  void change_slots() {
    change_slot(2 * kGpa, kPageSize);
    failpoint::arm("stage2.slot_invalid", 1, 1);
    change_slot(kGpa, kPageSize, false);  // has no memory for its last part
    failpoint::disarm();
    change_slot(0, 0);
    change_slot(kGpa, kPageSize);
  }
  void thread(unsigned me) {
    if (me == 0) return change_slots();
    if (me == 1) {
      guest_access(0, [this](u64 translated) { use(translated); });
      return;
    }
    for (int round = 0; round < 2; ++round) {
      host::change(pages.address(), kPageSize, host::EventKind::kUnmap, [this] {
        const bool at_rest = begun == done;
        const Seen before = look();
        change_meaning();
        if (!at_rest) return;
        expect_whole(before);
        // A slot that comes is found by the host's addresses as soon as it is known at all.
        Seen after = look();
        after.by_hva = before.by_hva;
        sched::expect(after == before, "the slots of a change are not those it began with");
      });
    }
  }
};

struct TwoFaultsAgainstChange : SmallVm {
  static constexpr unsigned kThreads = 3;
  void thread(unsigned me) {
    if (me < 2) {
      guest_access(me, [this](u64 translated) { use(translated); });
    } else {
      host::change(pages.address(), kPageSize, host::EventKind::kUnmap,
                   [this] { change_meaning(); });
    }
  }
};

// DELETE: nobody sees MMIO while another vCPU still holds the page, and after the call the client
// may do with the memory what it likes.
struct FaultAgainstDelete : SmallVm {
  static constexpr unsigned kThreads = 3;
  void vcpu(unsigned me) {
    const FaultOutcome outcome = guest_access(me, [this](u64 translated) { use(translated); });
    if (outcome == FaultOutcome::kMmio) {
      sched::expect(holders == 0, "no slot, and a translation of it lives");
    }
  }
  void thread(unsigned me) {
    if (me < 2) {
      vcpu(me);
    } else {
      set(0, 0, 0);
      change_meaning();
    }
  }
};

// An own access of KVM (an ioctl, a page walk) against a change.
struct OwnWriteAgainstChange : SmallVm {
  static constexpr unsigned kThreads = 2;
  void thread(unsigned me) {
    if (me == 0) {
      stage2::GuestMemoryTestAccess::own_write(*memory, Gpa(kGpa), [this] {
        ++holders;
        sched::point();
        sched::expect(!changing, "an own access during the change");
        --holders;
        return true;
      });
    } else {
      host::change(pages.address(), kPageSize, host::EventKind::kUnmap,
                   [this] { change_meaning(); });
    }
  }
};

// A new slot against a change under way: the fault that finds the slot never uses what the change
// takes, whichever of the two was first.
struct CreateAgainstChange : SmallVm {
  static constexpr unsigned kThreads = 3;
  CreateAgainstChange() { static_cast<void>(set(0, 0, 0)); }
  void thread(unsigned me) {
    if (me == 0) {
      set(kGpa, kPageSize, 0);
    } else if (me == 1) {
      guest_access(0, [this](u64 translated) { use(translated); });
    } else {
      host::change(pages.address(), kPageSize, host::EventKind::kUnmap,
                   [this] { change_meaning(); });
    }
  }
};

// A harvest of the dirty log against a vCPU that stores: after a last harvest with the vCPU at rest
// every store is in a page some harvest named.
struct HarvestAgainstStores : SmallVm {
  static constexpr unsigned kThreads = 2;
  u64 stores = 0;
  u64 harvested = 0;
  HarvestAgainstStores() : SmallVm(stage2::kLogDirtyPages) { blocks = 100; }
  void harvest() {
    const Hva bitmap(pages.address() + kPageSize);
    if (!memory->slots().get_dirty_log(0, bitmap)) sched::fail("the harvest was refused");
    if ((*pages.bytes_at(kPageSize) & 1) != 0) harvested = stores;
  }
  void thread(unsigned me) {
    if (me == 0) {
      for (int round = 0; round < 2; ++round) {
        guest_access(0, [this](u64) {
          sched::point();
          ++stores;
        });
      }
    } else {
      // Until there was something: the interesting harvests take a page that is being stored to.
      for (int i = 0; i < 20 && harvested == 0; ++i) harvest();
    }
  }
  void last_harvest() {
    harvest();
    EXPECT_EQ(stores, harvested) << "a store is in no harvest";
  }
};

// The audit beside a vCPU that takes its right to store back without a lock, and marks it after.
struct RestoreBesideTheAudit : SmallVm {
  static constexpr unsigned kThreads = 2;
  RestoreBesideTheAudit() : SmallVm(stage2::kLogDirtyPages) {
    guest_access(0, [](u64) {});
    static_cast<void>(memory->slots().get_dirty_log(0, Hva(pages.address() + kPageSize)));
  }
  void thread(unsigned me) {
    if (me == 0) {
      guest_access(0, [](u64) {});
    } else {
      memory->check_world();
    }
  }
};

// A slot goes while a vCPU has the root that it was in, which nobody walks any more, in its hands.
struct SlotGoesBesideACollector : SmallVm {
  static constexpr unsigned kThreads = 2;
  SlotGoesBesideACollector() {
    for (const unsigned vcpu : {0U, 1U}) guest_access(vcpu, [](u64) {});
  }
  void thread(unsigned me) {
    if (me == 0) {
      guest_access(0, [](u64) {});
      guest_access(0, [](u64) {});
      return;
    }
    static_cast<void>(set(0, 0, 0));
    memory->check_world();
  }
};

// A slot goes beside a vCPU that used it and comes again with a log: no table that a vCPU may walk
// has anything of the first any more.
struct SlotAgainBesideTheAudit : SmallVm {
  static constexpr unsigned kThreads = 3;
  SlotAgainBesideTheAudit() {
    for (const unsigned vcpu : {0U, 1U}) guest_access(vcpu, [](u64) {});
  }
  void thread(unsigned me) {
    if (me < 2) {
      guest_access(me, [](u64) {});
      guest_access(me, [](u64) {});
      return;
    }
    static_cast<void>(set(0, 0, 0));
    memory->check_world();
    static_cast<void>(set(kGpa, kPageSize, stage2::kLogDirtyPages));
    memory->check_world();
  }
};

// A change takes a whole table, whose memory is somebody else's as soon as the change may begin: a
// fault that restores the right to store walks without a lock, and must not write there.
struct RestoreAgainstTableRelease : SmallVm {
  static constexpr unsigned kThreads = 2;
  static constexpr u64 kFrames = u64{1} << stage2::Format::kIndexBits;
  static constexpr Word kTheirs =
      stage2::Format::make_leaf(0x1000, 1, {.host_writable = true, .mmu_writable = true});
  stage2::TablePage* theirs = nullptr;  // outside the model

  RestoreAgainstTableRelease() : SmallVm(stage2::kLogDirtyPages, kFrames) {
    guest_access(0, [](u64) {});
    const Hva bitmap(pages.address() + kFrames * kPageSize);
    static_cast<void>(memory->slots().get_dirty_log(0, bitmap));
  }
  ~RestoreAgainstTableRelease() {
    if (theirs != nullptr) TdpPoolAccess::give_back(memory->tdp(), theirs);
  }
  void thread(unsigned me) {
    if (me == 0) {
      Fault fault{};
      fault.gpa = Gpa(kGpa);
      fault.access = Access::kWrite;
      static_cast<void>(memory->handle_fault(*contexts[0], fault));
      sched::expect(theirs == nullptr || TdpPoolAccess::is_filled(*theirs, kTheirs),
                    "a fault writes to a table that was given back");
      return;
    }
    host::change(pages.address(), kFrames * kPageSize, host::EventKind::kUnmap, [] {});
    theirs = TdpPoolAccess::take_filled(memory->tdp(), kTheirs);
  }
};

// The same with rings: two vCPUs store to one page, the client collects, resets, and reads the page
// afterwards, as its rules say.
struct ResetAgainstStores : SmallVm {
  static constexpr unsigned kThreads = 3;
  static constexpr u32 kEntries = 128;
  stage2::DirtyGfn entries[2][kEntries] = {};
  stage2::DirtyRing first{0, entries[0], sizeof(entries[0])};
  stage2::DirtyRing second{1, entries[1], sizeof(entries[1])};
  u32 next[2] = {};
  u64 stores = 0;
  u64 seen = 0;

  ResetAgainstStores() : SmallVm(0) {
    memory->slots().use_dirty_rings();
    memory->slots().add_ring(first);
    memory->slots().add_ring(second);
    static_cast<void>(set(kGpa, kPageSize, stage2::kLogDirtyPages));
    blocks = 100;
    rings[0] = &first;
    rings[1] = &second;
  }
  ~ResetAgainstStores() {
    memory->slots().remove_ring(first);
    memory->slots().remove_ring(second);
  }
  void harvest() {
    u32 collected = 0;
    for (unsigned ring = 0; ring < 2; ++ring) {
      for (; entries[ring][next[ring]].flags.load(kAcquire) == stage2::kGfnDirtied; ++next[ring]) {
        entries[ring][next[ring]].flags.store(stage2::kGfnReset, kRelease);
        ++collected;
      }
    }
    if (memory->slots().reset_dirty_rings() != collected) {
      sched::fail("a reset takes what was collected");
    }
    if (collected != 0) seen = stores;
  }
  void thread(unsigned me) {
    if (me == 2) {
      for (int i = 0; i < 20 && seen == 0; ++i) harvest();
      return;
    }
    for (int round = 0; round < 2; ++round) {
      guest_access(me, [this](u64) {
        sched::point();
        ++stores;
      });
    }
  }
  [[nodiscard]] bool lost_a_store() {
    harvest();
    return stores != seen;
  }
};

// One ring alone, round and round: what the client reads is what was pushed, a reset takes what it
// collected, and there is always room.
struct RingRound {
  static constexpr unsigned kThreads = 2;
  static constexpr u32 kEntries = 4;
  static constexpr u64 kPushes = 10;
  stage2::DirtyGfn entries[kEntries] = {};
  stage2::DirtyRing ring{0, entries, sizeof(entries), 0};  // no reserve: every entry is used

  void thread(unsigned me) {
    if (me == 0) {
      for (u64 page = 0; page < kPushes; ++page) {
        while (ring.soft_full()) spin_hint();
        ring.push(5, page + 1);
      }
      return;
    }
    for (u64 page = 0; page < kPushes;) {
      u32 collected = 0;
      for (; entries[page % kEntries].flags.load(kAcquire) == stage2::kGfnDirtied; ++page) {
        stage2::DirtyGfn& entry = entries[page % kEntries];
        sched::expect(entry.slot.load(kRelaxed) == 5, "the slot is shown with the flag");
        sched::expect(entry.offset.load(kRelaxed) == page + 1, "each page once, in order");
        entry.flags.store(stage2::kGfnReset, kRelease);
        ++collected;
      }
      const u32 taken = ring.reset([](u32, u64, u64) {});
      sched::expect(taken == collected, "a reset takes what was collected");
      if (collected == 0) spin_hint();
    }
  }
};

}  // namespace stagetwo::test
