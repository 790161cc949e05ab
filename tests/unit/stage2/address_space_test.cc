// SPDX-License-Identifier: Apache-2.0
// Goal: what a guest access gets, what KVM's own accesses get, and what each costs.
// Method: a thread plays the vCPU (vm_fixture.h). What takes translations away is
// invalidation_test.cc's.
#include "stage2/address_space.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "base/failpoint.h"
#include "base/trace.h"
#include "host/change.h"
#include "host/mapping_level.h"
#include "tests/support/tdp_world.h"
#include "tests/unit/stage2/vm_fixture.h"

namespace stagetwo::stage2 {
namespace {

TEST_F(Memory, AnAccessIsAnsweredWithTheHostPage) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  Fault f;
  EXPECT_EQ(FaultOutcome::kFixed, fault(kGpa + 0x3123, Access::kWrite, &f));
  EXPECT_EQ(Hva(pages_.address() + 0x3000), f.page);
  EXPECT_TRUE(f.writable);
  EXPECT_EQ(FaultOutcome::kFixed, fault(kGpa + 0x4000, Access::kRead, &f));
  EXPECT_FALSE(f.writable);  // nobody knows yet whether the host would let it
  EXPECT_EQ(FaultOutcome::kFixed, fault(kGpa + 0x3000, Access::kRead, &f));
  EXPECT_TRUE(f.writable);
}

TEST_F(Memory, NoSlotIsMmio) {
  EXPECT_EQ(FaultOutcome::kMmio, fault(kGpa, Access::kRead));
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  EXPECT_EQ(FaultOutcome::kMmio, fault(kGpa - 1, Access::kRead));
  EXPECT_EQ(FaultOutcome::kMmio, fault(kGpa + pages_.bytes(), Access::kRead));
}

TEST_F(Memory, AReadOnlySlotReadsMemoryAndItsWritesAreMmio) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address(), kReadonly));
  Fault f;
  EXPECT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kRead, &f));
  EXPECT_FALSE(f.writable);
  EXPECT_EQ(FaultOutcome::kMmio, fault(kGpa, Access::kWrite));
  EXPECT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kExec));
}

TEST_F(Memory, AnUnbackedHvaIsTheClientsToKnow) {
  ASSERT_EQ(0, slot(0, kGpa, 4096, pages_.address() + pages_.bytes()));
  EXPECT_EQ(FaultOutcome::kToUser, fault(kGpa, Access::kRead));
  ASSERT_EQ(0, mprotect(pages_.pointer(), pages_.bytes(), PROT_READ));
  ASSERT_EQ(0, slot(1, 2 * kGpa, 4096, pages_.address()));
  EXPECT_EQ(FaultOutcome::kFixed, fault(2 * kGpa, Access::kRead));
  EXPECT_EQ(FaultOutcome::kToUser, fault(2 * kGpa, Access::kWrite));
}

// A table of accesses and what pf_* they raise, as the kernel counts them.
TEST_F(Memory, AFaultWritesNoWordOfTheVmThatAnotherVcpuWrites) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  EXPECT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kWrite));  // root and tables are there now
  // What each sees of the VM is its own: its context, its line, and what it adds and takes away
  // again in the cells of the read sections.
  std::vector<u8> before(sizeof(GuestMemory));
  std::memcpy(before.data(), static_cast<void*>(memory_.get()), before.size());
  EXPECT_EQ(FaultOutcome::kFixed, fault_once(kGpa + 0x3000, Access::kWrite));
  EXPECT_EQ(0, std::memcmp(before.data(), static_cast<void*>(memory_.get()), before.size()));
}

TEST_F(Memory, FaultsAreCountedByTheirOutcome) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  const PfCounts& counts = context_->counts;
  EXPECT_EQ(FaultOutcome::kFixed, fault_once(kGpa, Access::kWrite));
  EXPECT_EQ(FaultOutcome::kSpurious, fault_once(kGpa, Access::kRead));
  EXPECT_EQ(FaultOutcome::kSpurious, fault_once(kGpa, Access::kWrite));  // without a lock
  EXPECT_EQ(FaultOutcome::kMmio, fault_once(0, Access::kRead));
  EXPECT_EQ(4U, counts.taken.get());
  EXPECT_EQ(1U, counts.fixed.get());
  EXPECT_EQ(2U, counts.spurious.get());
  EXPECT_EQ(1U, counts.emulate.get());
  EXPECT_EQ(1U, counts.fast.get());
  EXPECT_EQ(1U, counts.mmio_spte_created.get());
  EXPECT_EQ(1U, memory_->count_pages().pages_4k);
}

TEST_F(Memory, APrefetchMapsWithoutMarkingAndCountsOnlyWhatItFixed) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  Fault f = ask(kGpa, Access::kRead);
  f.prefetch = true;
  EXPECT_EQ(FaultOutcome::kFixed, memory_->handle_fault(*context_, f));
  EXPECT_EQ(FaultOutcome::kSpurious, memory_->handle_fault(*context_, f));
  f.gpa = Gpa(0);
  EXPECT_EQ(FaultOutcome::kMmio, memory_->handle_fault(*context_, f));
  const Word word = TdpTestAccess::find(memory_->tdp(), *context_, gpa_to_gfn(Gpa(kGpa))).word;
  EXPECT_FALSE(Format::is_accessed(word));
  EXPECT_EQ(0U, context_->counts.taken.get());
  EXPECT_EQ(1U, context_->counts.fixed.get());
  EXPECT_EQ(0U, context_->counts.spurious.get());
  EXPECT_EQ(Walk::Kind::kHit, look(kGpa));
  EXPECT_TRUE(Format::is_accessed(
      TdpTestAccess::find(memory_->tdp(), *context_, gpa_to_gfn(Gpa(kGpa))).word));
}

// F3 13. The lock is held by another thread meanwhile: who took it would never come back.
TEST_F(Memory, AStoreToAPageProtectedForTheLogTakesNoLock) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes() - 0x2000, pages_.address(), kLogDirtyPages));
  const Hva bitmap(pages_.address() + 0xf000);
  // Known to be writable, mapped by a load: logged pages are mapped without the right to store.
  const u64 value = 5;
  ASSERT_EQ(FaultOutcome::kFixed, memory_->write(Gpa(kGpa + 0x3000), &value, 8));
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa + 0x3000, Access::kRead));
  ASSERT_TRUE(memory_->slots().get_dirty_log(0, bitmap));
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa + 0x3000, Access::kRead));
  ASSERT_EQ(Walk::Kind::kMiss, look(kGpa + 0x3000, Access::kWrite));
  const u64 fast = context_->counts.fast.get();
  std::atomic<int> phase{0};
  std::thread holder([&] {
    const sync::BigWriterGuard alone(TdpTestAccess::mmu_lock(memory_->tdp()));
    phase = 1;
    while (phase != 2) std::this_thread::yield();
  });
  while (phase != 1) std::this_thread::yield();
  EXPECT_EQ(FaultOutcome::kFixed, fault_once(kGpa + 0x3000, Access::kWrite));
  EXPECT_EQ(Walk::Kind::kHit, look(kGpa + 0x3000, Access::kWrite));
  EXPECT_EQ(fast + 1, context_->counts.fast.get());
  phase = 2;
  holder.join();
  ASSERT_TRUE(memory_->slots().get_dirty_log(0, bitmap));
  u64 word = 0;
  ASSERT_TRUE(host::load(bitmap, &word));
  EXPECT_EQ(u64{1} << 3, word);
}

// F3 14.
TEST_F(Memory, AStoreTheHostForbidsIsNotGrantedWithoutALock) {
  ASSERT_EQ(0, mprotect(pages_.pointer(), pages_.bytes(), PROT_READ));
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  ASSERT_EQ(0, slot(1, 2 * kGpa, pages_.bytes(), pages_.address(), kReadonly));
  for (const u64 gpa : {kGpa, 2 * kGpa}) {
    ASSERT_EQ(FaultOutcome::kFixed, fault(gpa, Access::kRead));
    const Word word = TdpTestAccess::find(memory_->tdp(), *context_, gpa_to_gfn(Gpa(gpa))).word;
    EXPECT_FALSE(Format::is_host_writable(word));
    EXPECT_FALSE(Format::is_restorable(word));
  }
  EXPECT_EQ(FaultOutcome::kToUser, fault(kGpa, Access::kWrite));
  EXPECT_EQ(FaultOutcome::kMmio, fault(2 * kGpa, Access::kWrite));
  EXPECT_EQ(0U, context_->counts.fast.get());
}

// While no slot has them, changes of the pages ring for nobody.
TEST_F(Memory, NothingIsKnownOfPagesThatHadNoSlotMeanwhile) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kWrite));
  ASSERT_EQ(0, slot(0, 0, 0, 0));
  host::change(pages_.address(), pages_.bytes(), host::EventKind::kProtection,
               [this] { mprotect(pages_.pointer(), pages_.bytes(), PROT_NONE); });
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  EXPECT_EQ(FaultOutcome::kToUser, fault(kGpa, Access::kRead));
}

// F3 15.
TEST_F(Memory, ACachedNoSlotDoesNotOutliveTheSlotThatIsMadeThere) {
  EXPECT_EQ(FaultOutcome::kMmio, fault(kGpa, Access::kRead));
  EXPECT_EQ(Walk::Kind::kMmio, look(kGpa));
  EXPECT_EQ(Walk::Kind::kMmio, look(kGpa, Access::kWrite));
  EXPECT_EQ(1U, context_->counts.mmio_spte_created.get());
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  EXPECT_EQ(Walk::Kind::kMiss, look(kGpa));
  EXPECT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kRead));
  ASSERT_EQ(0, slot(0, 0, 0, 0));
  EXPECT_EQ(FaultOutcome::kMmio, fault(kGpa, Access::kRead));
  EXPECT_EQ(2U, context_->counts.mmio_spte_created.get());
}

// F3 16.
TEST_F(Memory, TheWrapOfTheGenerationTakesEveryCachedNoSlotAway) {
  EXPECT_EQ(FaultOutcome::kMmio, fault(4 * kGpa, Access::kRead));  // under generation 0
  EXPECT_EQ(Walk::Kind::kMmio, look(4 * kGpa));
  memory_->slots().debug_set_generation(kMmioGenerationMask + 1 - 2 * kMaxAddressSpaces);
  EXPECT_EQ(Walk::Kind::kMiss, look(4 * kGpa));
  const u64 wraps = trace::mark_count("stage2_generation_wraps");
  ASSERT_EQ(0, slot(0, kGpa, 4096, pages_.address()));
  ASSERT_EQ(0, slot(1, 2 * kGpa, 4096, pages_.address()));
  EXPECT_EQ(wraps + 1, trace::mark_count("stage2_generation_wraps"));
  // The number is that of the old entry again; the entry is not there.
  EXPECT_EQ(0U, memory_->slots().generation() & kMmioGenerationMask);
  EXPECT_EQ(Walk::Kind::kMiss, look(4 * kGpa));
  ASSERT_EQ(0, slot(2, 4 * kGpa, 4096, pages_.address()));
  EXPECT_EQ(wraps + 1, trace::mark_count("stage2_generation_wraps"));
  EXPECT_EQ(FaultOutcome::kFixed, fault(4 * kGpa, Access::kRead));
}

TEST_F(Memory, NothingIsRememberedAboveWhatTheTableCovers) {
  EXPECT_EQ(FaultOutcome::kMmio, fault(u64{1} << 58, Access::kRead));
  EXPECT_EQ(0U, context_->counts.mmio_spte_created.get());
}

TEST_F(Memory, AHugePageOfTheHostIsOneEntry) {
  constexpr u64 k2M = 2 << 20;
  auto* map = static_cast<char*>(
      mmap(nullptr, 3 * k2M, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  auto* at = reinterpret_cast<char*>((reinterpret_cast<u64>(map) + k2M - 1) & ~(k2M - 1));
  if (madvise(at, k2M, MADV_HUGEPAGE) != 0) GTEST_SKIP() << "no transparent huge pages here";
  *at = 1;
  ASSERT_EQ(0, slot(0, 4 * k2M, k2M, reinterpret_cast<u64>(at)));
  Fault f;
  EXPECT_EQ(FaultOutcome::kFixed, fault(4 * k2M + 0x5000, Access::kWrite, &f));
  const unsigned expected = host::mapping_level(Hva(reinterpret_cast<u64>(at)));
  EXPECT_EQ(expected, f.level);
  EXPECT_EQ(Hva(reinterpret_cast<u64>(at) + 0x5000), f.page);
  if (expected == 2) {
    EXPECT_EQ(Walk::Kind::kHit, look(4 * k2M + 0x1ff000, Access::kWrite, &f));
    EXPECT_EQ(Hva(reinterpret_cast<u64>(at) + 0x1ff000), f.page);
    EXPECT_EQ(1U, memory_->count_pages().pages_2m);
    EXPECT_EQ(1U, context_->counts.taken.get());
  }
  ASSERT_EQ(0, slot(0, 0, 0, 0));
  EXPECT_EQ(0U, memory_->count_pages().pages_2m);
  munmap(map, 3 * k2M);
}

TEST_F(Memory, WithoutMemoryForATableAFaultIsRefusedAndTheNextSucceeds) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  const u64 refused = failpoint::sweep([&] {
    const FaultOutcome outcome = fault_once(kGpa, Access::kWrite);
    EXPECT_TRUE(outcome == FaultOutcome::kNoMemory || outcome == FaultOutcome::kFixed ||
                outcome == FaultOutcome::kSpurious);
    memory_->check_world();
  });
  EXPECT_GE(refused, 2U);
  EXPECT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kWrite));
}

TEST_F(Memory, OwnAccessesCrossPagesAndSlots) {
  ASSERT_EQ(0, slot(0, kGpa, 4096, pages_.address()));
  ASSERT_EQ(0, slot(1, kGpa + 4096, 4096, pages_.address() + 0x4000));
  u8 bytes[6000];
  for (size_t i = 0; i < sizeof(bytes); ++i) bytes[i] = static_cast<u8>(i * 7);
  size_t done = 0;
  EXPECT_EQ(FaultOutcome::kFixed, memory_->write(Gpa(kGpa + 100), bytes, sizeof(bytes), &done));
  EXPECT_EQ(sizeof(bytes), done);
  EXPECT_EQ(0, std::memcmp(pages_.bytes_at(100), bytes, 3996));
  EXPECT_EQ(0, std::memcmp(pages_.bytes_at(0x4000), bytes + 3996, sizeof(bytes) - 3996));
  u8 back[6000] = {};
  EXPECT_EQ(FaultOutcome::kFixed, memory_->read(Gpa(kGpa + 100), back, sizeof(back)));
  EXPECT_EQ(0, std::memcmp(back, bytes, sizeof(bytes)));
}

TEST_F(Memory, OwnAccessesStopWhereMemoryEnds) {
  ASSERT_EQ(0, slot(0, kGpa, 4096, pages_.address()));
  u8 bytes[200] = {};
  size_t done = 0;
  EXPECT_EQ(FaultOutcome::kMmio, memory_->read(Gpa(kGpa + 4000), bytes, sizeof(bytes), &done));
  EXPECT_EQ(96U, done);
}

TEST_F(Memory, OwnWritesAreInTheDirtyLogAndReadsAreNot) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes() - 0x2000, pages_.address(), kLogDirtyPages));
  const u64 value = 5;
  u64 seen = 0;
  EXPECT_EQ(FaultOutcome::kFixed, memory_->write(Gpa(kGpa + 0x1ffc), &value, 8));
  EXPECT_EQ(FaultOutcome::kFixed, memory_->read(Gpa(kGpa + 0x5000), &seen, 8));
  u64 expected = 0;
  bool swapped = false;
  EXPECT_EQ(FaultOutcome::kFixed,
            memory_->cmpxchg(Gpa(kGpa + 0x7000), &expected, u64{9}, &swapped));
  EXPECT_TRUE(swapped);
  auto* bitmap = reinterpret_cast<u64*>(pages_.bytes_at(0xf000));
  ASSERT_TRUE(memory_->slots().get_dirty_log(0, Hva(pages_.address() + 0xf000)));
  EXPECT_EQ(u64{0b10000110}, *bitmap);
}

TEST_F(Memory, TheFormThatMustNotBlockAsksOnlyForWhatIsKnownResident) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  u64 value = 0;
  bool swapped = false;
  EXPECT_EQ(FaultOutcome::kFixed, memory_->read(Gpa(kGpa), &value, 8));
  // Present, but not known to be writable.
  EXPECT_EQ(FaultOutcome::kRetry, memory_->try_cmpxchg(Gpa(kGpa), &value, u64{1}, &swapped));
  EXPECT_EQ(FaultOutcome::kFixed, memory_->cmpxchg(Gpa(kGpa), &value, u64{1}, &swapped));
  EXPECT_EQ(FaultOutcome::kFixed, memory_->try_cmpxchg(Gpa(kGpa), &value, u64{1}, &swapped));
  EXPECT_EQ(FaultOutcome::kMmio, memory_->try_cmpxchg(Gpa(0), &value, u64{1}, &swapped));
  host::change(pages_.address(), 4096, host::EventKind::kUnmap, [&] {
    EXPECT_EQ(FaultOutcome::kRetry, memory_->try_cmpxchg(Gpa(kGpa), &value, u64{1}, &swapped));
  });
}

TEST_F(Memory, AnUnannouncedChangeIsAnErrorNotASignal) {
  void* map = mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_EQ(0, slot(0, kGpa, 8192, reinterpret_cast<u64>(map)));
  u64 value = 3;
  EXPECT_EQ(FaultOutcome::kFixed, memory_->write(Gpa(kGpa), &value, 8));
  munmap(map, 8192);  // nobody rang
  EXPECT_EQ(FaultOutcome::kToUser, memory_->read(Gpa(kGpa), &value, 8));
}

TEST_F(Memory, CreateWithoutMemoryLeavesNothing) {
  const AllocUse before = alloc_use();
  const unsigned subscribers = host::debug_notifier_count();
  const u64 refused = failpoint::sweep([&] {
    auto made = GuestMemory::create(SlotPolicy{});
    if (!made) {
      EXPECT_EQ(ENOMEM, to_int(made.error()));
    }
  });
  EXPECT_GE(refused, 2U);
  EXPECT_EQ(before.blocks, alloc_use().blocks);
  EXPECT_EQ(subscribers, host::debug_notifier_count());
}

TEST_F(Memory, DestructionNeedsNoMemory) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address(), kLogDirtyPages));
  memory_->lines().remove(line_);
  context_.reset();
  failpoint::arm(nullptr, 1, failpoint::kForever);
  memory_.reset();
  EXPECT_EQ(0U, failpoint::failed());
  failpoint::disarm();
}

}  // namespace
}  // namespace stagetwo::stage2
