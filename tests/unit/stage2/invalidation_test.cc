// SPDX-License-Identifier: Apache-2.0
// Goal: what a change of the client's addresses, or of the slots, does to the translations there
// are and to the faults on their way. Method: a thread plays the vCPU (vm_fixture.h); the room is
// held to the contract of every subscriber of the bell.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "base/trace.h"
#include "host/change.h"
#include "tests/support/guest_memory_access.h"
#include "tests/support/notifier_contract.h"
#include "tests/support/tdp_world.h"
#include "tests/unit/stage2/vm_fixture.h"

namespace stagetwo::stage2 {
namespace {

class Invalidation : public Memory {
 protected:
  void change(u64 offset, u64 bytes, host::EventKind kind = host::EventKind::kUnmap) {
    host::change(pages_.address() + offset, bytes, kind, [] {});
  }
  void change_of(void* at, u64 bytes) {
    host::change(reinterpret_cast<u64>(at), bytes, host::EventKind::kClear, [] {});
  }
  u64 pages_mapped() { return memory_->count_pages().pages_4k; }
};

TEST_F(Invalidation, AnEntryIsGoneWhenTheChangeBeginsAndNoneIsMadeUntilItEnds) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kWrite));
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa + 0x1000, Access::kWrite));
  host::change(pages_.address(), 4096, host::EventKind::kUnmap, [&] {
    EXPECT_EQ(Walk::Kind::kMiss, look(kGpa));
    EXPECT_EQ(FaultOutcome::kRetry, fault_once(kGpa, Access::kRead));
    EXPECT_EQ(Walk::Kind::kHit, look(kGpa + 0x1000, Access::kWrite));  // not in the range
  });
  EXPECT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kWrite));
}

TEST_F(Invalidation, APageKnownResidentIsNotAskedForAgainUntilAnInvalidationEnded) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  EXPECT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kWrite));
  EXPECT_EQ(1U, context_->populated.get());
  // Slots come and go over it: the host's pages are what they were.
  ASSERT_EQ(0, slot(0, 2 * kGpa, pages_.bytes(), pages_.address()));
  EXPECT_EQ(FaultOutcome::kFixed, fault(2 * kGpa, Access::kWrite));
  EXPECT_EQ(1U, context_->populated.get());
  change(0x5000, 1, host::EventKind::kClear);
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  EXPECT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kWrite));
  EXPECT_EQ(2U, context_->populated.get());
}

TEST_F(Invalidation, AChangeElsewhereTakesNothing) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  test::GuardedPages elsewhere(1);
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kRead));
  host::change(elsewhere.address(), 4096, host::EventKind::kUnmap, [] {});
  EXPECT_EQ(Walk::Kind::kHit, look(kGpa));
  EXPECT_EQ(0U, memory_->counts().invalidations);
}

TEST_F(Invalidation, EveryAliasOfAnHvaIsZapped) {
  constexpr u32 kAliases = 40;  // more than are looked up at once
  for (u32 i = 0; i < kAliases; ++i) {
    ASSERT_EQ(0, slot(i, kGpa * (i + 1), pages_.bytes(), pages_.address()));
    ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa * (i + 1) + 0x2000, Access::kRead));
    ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa * (i + 1) + 0x4000, Access::kRead));
  }
  EXPECT_EQ(2 * kAliases, pages_mapped());
  change(0x2000, 4096);
  EXPECT_EQ(kAliases, pages_mapped());
  for (u32 i = 0; i < kAliases; ++i) {
    EXPECT_EQ(Walk::Kind::kMiss, look(kGpa * (i + 1) + 0x2000));
    EXPECT_EQ(Walk::Kind::kHit, look(kGpa * (i + 1) + 0x4000));
  }
}

// Two VMs, and in one of them two slots, over one page of the host's: each alias goes, each is
// aged.
TEST_F(Invalidation, EveryVmThatUsesAnHvaIsZappedAndAged) {
  auto second = std::move(*GuestMemory::create(policy_));
  auto context = std::move(*second->new_context());
  Region region;
  region.gpa = 4 * kGpa;
  region.size = pages_.bytes();
  region.hva = pages_.address();
  ASSERT_TRUE(second->slots().set_region(region));
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  ASSERT_EQ(0, slot(1, 2 * kGpa, pages_.bytes(), pages_.address()));
  const HvaRange page(Hva(pages_.address()), kPageSize);
  const auto use_all = [&] {
    ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kRead));
    ASSERT_EQ(FaultOutcome::kFixed, fault(2 * kGpa, Access::kRead));
    Fault other = ask(4 * kGpa, Access::kRead);
    ASSERT_EQ(FaultOutcome::kFixed, second->handle_fault(*context, other));
  };
  const auto mapped = [&] {
    return memory_->count_pages().pages_4k + second->count_pages().pages_4k;
  };
  use_all();
  EXPECT_EQ(3U, mapped());
  EXPECT_TRUE(host::clear_flush_young(page));
  EXPECT_FALSE(host::test_young(page)) << "each alias is old";
  Fault other = ask(4 * kGpa, Access::kRead);
  sync::AckLine line;
  second->lines().add(line);
  {
    const sync::RunningSection running(line);
    ASSERT_EQ(Walk::Kind::kHit, second->translate(*context, other));
  }
  second->lines().remove(line);
  EXPECT_TRUE(host::test_young(page)) << "one use by one of them is a use";
  change(0, kPageSize);
  EXPECT_EQ(0U, mapped());
  context.reset();
}

// Borrowers hold no count of anything: when start has returned, nothing refers to the range.
TEST_F(Invalidation, AfterAStartNoEntryRefersToTheRange) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  for (u64 offset = 0; offset < pages_.bytes(); offset += kPageSize) {
    ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa + offset, Access::kWrite));
  }
  EXPECT_EQ(16U, pages_mapped());
  host::change(pages_.address(), pages_.bytes(), host::EventKind::kUnmap, [&] {
    EXPECT_EQ(0U, pages_mapped());
    EXPECT_EQ(0, munmap(pages_.pointer(), pages_.bytes()));
    EXPECT_EQ(pages_.pointer(), mmap(pages_.pointer(), pages_.bytes(), PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
  });
}

TEST_F(Invalidation, ARangeBetweenTwoThatChangeIsRetriedAndOneOutsideIsNot) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  const auto once = [this](u64 page) {
    return fault_once(kGpa + page * kPageSize, Access::kWrite);
  };
  {
    const host::InvalidateSection low(
        {{Hva(pages_.address() + 0x2000), 0x1000}, host::EventKind::kClear});
    const host::InvalidateSection high(
        {{Hva(pages_.address() + 0x6000), 0x1000}, host::EventKind::kClear});
    EXPECT_EQ(FaultOutcome::kRetry, once(4)) << "one hull around both";
    EXPECT_EQ(FaultOutcome::kFixed, once(9));
  }
  EXPECT_EQ(FaultOutcome::kFixed, once(4));
}

// The process ends: everything goes once, and who faults later waits for the end.
TEST_F(Invalidation, ReleaseTakesEverythingAndLetsNothingBack) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kWrite));
  memory_->release();
  EXPECT_EQ(0U, pages_mapped());
  EXPECT_EQ(FaultOutcome::kRetry, fault_once(kGpa, Access::kRead));
  EXPECT_EQ(0U, pages_mapped());
}

TEST_F(Invalidation, AStartWaitsUntilARunningVcpuAcknowledges) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kRead));
  std::atomic<int> phase{0};
  std::atomic<bool> changed{false};
  std::thread vcpu([&] {
    const sync::RunningSection running(line_);
    phase = 1;
    while (!line_.pending()) std::this_thread::yield();
    EXPECT_FALSE(changed);
    EXPECT_TRUE(line_.poll());
    while (!changed) std::this_thread::yield();
  });
  while (phase != 1) std::this_thread::yield();
  host::change(pages_.address(), 4096, host::EventKind::kUnmap, [&] { changed = true; });
  vcpu.join();
}

// The thread that would have to acknowledge is this one's peer, and never does.
TEST_F(Invalidation, AStartThatFindsNothingMappedWaitsForNoVcpu) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kRead));
  std::atomic<int> phase{0};
  std::thread vcpu([&] {
    const sync::RunningSection running(line_);
    phase = 1;
    while (phase != 2) std::this_thread::yield();
    EXPECT_FALSE(line_.pending());
  });
  while (phase != 1) std::this_thread::yield();
  change(0x3000, 4096);
  phase = 2;
  vcpu.join();
  EXPECT_EQ(1U, memory_->counts().flushes_saved);
}

TEST_F(Invalidation, DeleteAndMoveTakeEveryTranslationOfTheVmByDefault) {
  ASSERT_EQ(0, slot(0, kGpa, 4 * 4096, pages_.address()));
  ASSERT_EQ(0, slot(1, 2 * kGpa, 4 * 4096, pages_.address() + 4 * 4096));
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kRead));
  ASSERT_EQ(FaultOutcome::kFixed, fault(2 * kGpa, Access::kRead));
  ASSERT_EQ(0, slot(0, 4 * kGpa, 4 * 4096, pages_.address()));
  EXPECT_EQ(0U, pages_mapped());
  EXPECT_EQ(FaultOutcome::kMmio, fault(kGpa, Access::kRead));
  EXPECT_EQ(FaultOutcome::kFixed, fault(4 * kGpa, Access::kRead));
  EXPECT_EQ(FaultOutcome::kFixed, fault(2 * kGpa, Access::kRead));
  ASSERT_EQ(0, slot(0, 0, 0, 0));
  EXPECT_EQ(0U, pages_mapped());
  EXPECT_EQ(FaultOutcome::kFixed, fault(2 * kGpa, Access::kRead));
}

TEST_F(Invalidation, WithTheQuirkDisabledASlotTakesItsOwnTranslationsAlone) {
  memory_->set_slot_zap_all(false);
  ASSERT_EQ(0, slot(0, kGpa, 4 * 4096, pages_.address()));
  ASSERT_EQ(0, slot(1, 2 * kGpa, 4 * 4096, pages_.address() + 4 * 4096));
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kRead));
  ASSERT_EQ(FaultOutcome::kFixed, fault(2 * kGpa, Access::kRead));
  ASSERT_EQ(0, slot(0, 4 * kGpa, 4 * 4096, pages_.address()));
  EXPECT_EQ(1U, pages_mapped());
  EXPECT_EQ(Walk::Kind::kHit, look(2 * kGpa));
  EXPECT_EQ(FaultOutcome::kMmio, fault(kGpa, Access::kRead));
  ASSERT_EQ(0, slot(1, 0, 0, 0));
  EXPECT_EQ(0U, pages_mapped());
}

TEST_F(Invalidation, LoggingTakesTheRightToStoreAndItsEndGivesItBackWithoutALock) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  Fault f;
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kWrite));
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address(), kLogDirtyPages));
  EXPECT_EQ(Walk::Kind::kMiss, look(kGpa, Access::kWrite));
  EXPECT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kRead, &f));
  EXPECT_FALSE(f.writable);  // a load gives no right to store to who must mark
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  EXPECT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kWrite, &f));
  EXPECT_TRUE(f.writable);
}

TEST_F(Invalidation, AStoreIsInTheLogOfTheHarvestThatFollowsIt) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes() - 0x2000, pages_.address(), kLogDirtyPages));
  const Hva bitmap(pages_.address() + 0xf000);
  const auto harvest = [&] {
    EXPECT_TRUE(memory_->slots().get_dirty_log(0, bitmap));
    u64 word = ~u64{0};
    EXPECT_TRUE(host::load(bitmap, &word));
    return word;
  };
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa + 0x3000, Access::kRead));
  EXPECT_EQ(0U, harvest());
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa + 0x3000, Access::kWrite));
  EXPECT_EQ(u64{1} << 3, harvest());
  EXPECT_EQ(Walk::Kind::kMiss, look(kGpa + 0x3000, Access::kWrite));  // marks again
  EXPECT_EQ(0U, harvest());
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa + 0x3000, Access::kWrite));
  EXPECT_EQ(u64{1} << 3, harvest());
}

TEST_F(Invalidation, ALoggedHostPageIsWrittenByTheHostWithoutAMark) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes() - 0x2000, pages_.address(), kLogDirtyPages));
  *static_cast<volatile char*>(pages_.pointer()) = 1;
  const Hva bitmap(pages_.address() + 0xf000);
  ASSERT_TRUE(memory_->slots().get_dirty_log(0, bitmap));
  u64 word = ~u64{0};
  ASSERT_TRUE(host::load(bitmap, &word));
  EXPECT_EQ(0U, word);
}

// F3 17, by progress and not by time: a zap yields to the faults that ask for the lock, each fault
// gets through, and the zap comes to its end all the same.
TEST_F(Invalidation, AZapBesideAStormOfFaultsYieldsAndEnds) {
  constexpr u64 kBytes = u64{16} << 20;
  constexpr u64 kBig = u64{1} << 32;
  constexpr int kMostRounds = 300;
  void* big = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  ASSERT_EQ(0, slot(1, kBig, kBytes, reinterpret_cast<u64>(big), kLogDirtyPages));  // 4 KiB entries
  std::atomic<bool> zapping{false};
  std::atomic<bool> over{false};
  std::atomic<u64> during{0};
  std::thread storm([&] {
    auto context = std::move(*memory_->new_context());
    while (!over) {
      const bool began_beside = zapping;
      Fault f = ask(kGpa, Access::kRead);
      static_cast<void>(memory_->handle_fault(*context, f));
      if (began_beside && zapping) ++during;
    }
  });
  const u64 yields = trace::mark_count("tdp_zap_yields");
  const auto enough = [&] { return during > 0 && trace::mark_count("tdp_zap_yields") > yields; };
  for (int round = 0; round < kMostRounds && !enough(); ++round) {
    for (u64 offset = 0; offset < kBytes; offset += kPageSize) {
      const FaultOutcome outcome = fault_once(kBig + offset, Access::kRead);
      ASSERT_TRUE(outcome == FaultOutcome::kFixed || outcome == FaultOutcome::kRetry);
    }
    zapping = true;
    change_of(big, kBytes);
    zapping = false;
    ASSERT_LE(pages_mapped(), 1U);  // the storm's
  }
  over = true;
  storm.join();
  EXPECT_TRUE(enough());
  ASSERT_EQ(0, slot(1, 0, 0, 0));
  munmap(big, kBytes);
}

TEST_F(Invalidation, SlotsOfAHostRangeAreFoundInPiecesHoweverManyThereAre) {
  constexpr u32 kSlots = 1000;
  test::GuardedPages backing(kSlots);
  for (u32 i = 0; i < kSlots; ++i) {
    // Every second frame, so that neighbours do not join.
    ASSERT_EQ(0, slot(i, kGpa + 2 * i * kPageSize, kPageSize, backing.address() + i * kPageSize));
    ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa + 2 * i * kPageSize, Access::kRead));
  }
  EXPECT_EQ(kSlots, pages_mapped());
  host::change(backing.address(), kSlots * kPageSize, host::EventKind::kClear, [] {});
  EXPECT_EQ(0U, pages_mapped());
  for (u32 i = 0; i < kSlots; ++i) ASSERT_EQ(0, slot(i, 0, 0, 0));
}

// --- the contract of every subscriber ---

struct GuestMemorySubscriber {
  GuestMemorySubscriber() {
    EXPECT_TRUE(host::backstop::install());
    memory = std::move(*GuestMemory::create(SlotPolicy{}));
    context = std::move(*memory->new_context());
    Region region;
    region.gpa = kGpa;
    region.size = pages.bytes();
    region.hva = pages.address();
    EXPECT_TRUE(memory->slots().set_region(region));
    memory->lines().add(line);
  }
  ~GuestMemorySubscriber() { memory->lines().remove(line); }
  HvaRange mine() { return {Hva(pages.address()), pages.bytes()}; }
  HvaRange foreign() { return {Hva(0x1000), 4096}; }
  Fault ask(Hva hva) {
    Fault f{};
    f.gpa = Gpa(kGpa + (hva - Hva(pages.address())));
    return f;
  }
  bool still_holds(Hva hva) {
    Fault f = ask(hva);
    const sync::RunningSection running(line);
    if (running.must_flush()) memory->flushed(*context);
    return memory->translate(*context, f) == Walk::Kind::kHit;
  }
  bool may_use_now(Hva hva) {
    Fault f = ask(hva);
    const FaultOutcome outcome = memory->handle_fault(*context, f);
    if (outcome != FaultOutcome::kFixed && outcome != FaultOutcome::kSpurious) return false;
    return still_holds(hva);
  }
  bool may_use(Hva hva) {
    while (!may_use_now(hva)) std::this_thread::yield();
    return true;
  }
  template <typename F>
  bool use_with(Hva hva, F&& between) {
    Fault f = ask(hva);
    f.access = Access::kWrite;
    if (GuestMemoryTestAccess::find(*memory, *context, f) != FaultOutcome::kFixed) return false;
    between();
    const FaultOutcome outcome = memory->tdp().page_fault(*context, f);
    return outcome == FaultOutcome::kFixed || outcome == FaultOutcome::kSpurious;
  }
  // As a vCPU that is at work in a block of guest code.
  template <typename F>
  void hold(Hva hva, F&& during) {
    Fault f = ask(hva);
    const sync::RunningSection running(line);
    if (running.must_flush()) memory->flushed(*context);
    EXPECT_EQ(Walk::Kind::kHit, memory->translate(*context, f));
    during();
  }
  test::GuardedPages pages{4};
  Box<GuestMemory> memory;
  Box<MmuContext> context;
  sync::AckLine line;
};

}  // namespace
}  // namespace stagetwo::stage2

namespace stagetwo::test {
INSTANTIATE_TYPED_TEST_SUITE_P(GuestMemory, NotifierContract, stage2::GuestMemorySubscriber);
// Guests take no pages away themselves.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(NotifierContractOfTakers);
}  // namespace stagetwo::test
