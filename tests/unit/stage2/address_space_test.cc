// SPDX-License-Identifier: Apache-2.0
// Goal: what a guest access gets, and what a change of the client's addresses does to it.
// Method: a thread plays the vCPU with a line of its own and asks in the order vcpu does.
#include "stage2/address_space.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "base/failpoint.h"
#include "host/backstop.h"
#include "host/change.h"
#include "tests/support/notifier_contract.h"
#include "tests/support/pages.h"

namespace stagetwo::stage2 {
namespace {

constexpr u64 kGpa = 0x100000;

class Memory : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    auto made = GuestMemory::create(SlotPolicy{});
    ASSERT_TRUE(made);
    memory_ = std::move(*made);
    memory_->lines().add(line_);
  }
  void TearDown() override {
    if (!memory_) return;
    memory_->check_world();
    memory_->lines().remove(line_);
  }
  int slot(u32 id, u64 gpa, u64 size, u64 hva, u32 flags = 0) {
    Region region;
    region.slot = id;
    region.flags = flags;
    region.gpa = gpa;
    region.size = size;
    region.hva = hva;
    const auto done = memory_->slots().set_region(region);
    return done ? 0 : to_int(done.error());
  }
  // One guest access as vcpu does it, until it is installed or is not memory.
  FaultOutcome fault(u64 gpa, Access access, Fault* out) {
    for (;;) {
      *out = Fault{};
      out->gpa = Gpa(gpa);
      out->access = access;
      const FaultOutcome outcome = memory_->handle_fault(*out);
      if (outcome == FaultOutcome::kRetry) continue;
      if (outcome != FaultOutcome::kFixed) return outcome;
      const sync::RunningSection running(line_);
      if (memory_->install(*out)) return outcome;
    }
  }
  FaultOutcome fault(u64 gpa, Access access) {
    Fault ignored;
    return fault(gpa, access, &ignored);
  }

  Box<GuestMemory> memory_;
  sync::AckLine line_;
  test::GuardedPages pages_{16};
};

TEST_F(Memory, AnAccessIsAnsweredWithTheHostPage) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  Fault f;
  EXPECT_EQ(FaultOutcome::kFixed, fault(kGpa + 0x3123, Access::kWrite, &f));
  EXPECT_EQ(Hva(pages_.address() + 0x3000), f.page);
  EXPECT_TRUE(f.writable);
  EXPECT_EQ(FaultOutcome::kFixed, fault(kGpa + 0x4000, Access::kRead, &f));
  EXPECT_FALSE(f.writable);
  EXPECT_EQ(FaultOutcome::kFixed, fault(kGpa + 0x3000, Access::kRead, &f));
  EXPECT_TRUE(f.writable);  // known, from the write before
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

TEST_F(Memory, AResidentPageIsNotAskedForAgainUntilAnInvalidation) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  EXPECT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kWrite));
  EXPECT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kWrite));
  EXPECT_EQ(1U, memory_->counts().populated);
  host::change(pages_.address() + 0x5000, 1, host::EventKind::kClear, [] {});
  EXPECT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kWrite));
  EXPECT_EQ(2U, memory_->counts().populated);
}

TEST_F(Memory, AnAnswerIsStaleOnceAnOverlappingChangeBegan) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  Fault f{};
  f.gpa = Gpa(kGpa);
  ASSERT_EQ(FaultOutcome::kFixed, memory_->handle_fault(f));
  host::change(pages_.address(), 4096, host::EventKind::kUnmap, [&] {
    const sync::RunningSection running(line_);
    EXPECT_FALSE(memory_->install(f));
  });
  const sync::RunningSection running(line_);
  EXPECT_FALSE(memory_->install(f));  // over, but it was in between
}

TEST_F(Memory, AChangeElsewhereInvalidatesNothing) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  test::GuardedPages elsewhere(1);
  Fault f{};
  f.gpa = Gpa(kGpa);
  ASSERT_EQ(FaultOutcome::kFixed, memory_->handle_fault(f));
  host::change(elsewhere.address(), 4096, host::EventKind::kUnmap, [] {});
  const sync::RunningSection running(line_);
  EXPECT_TRUE(memory_->install(f));
  EXPECT_EQ(0U, memory_->counts().invalidations);
}

TEST_F(Memory, EveryAliasOfAnHvaIsInvalidated) {
  for (u32 i = 0; i < 4; ++i) {
    ASSERT_EQ(0, slot(i, kGpa * (i + 1), pages_.bytes(), pages_.address()));
  }
  Fault f[4];
  for (u32 i = 0; i < 4; ++i) {
    f[i].gpa = Gpa(kGpa * (i + 1) + 0x2000);
    ASSERT_EQ(FaultOutcome::kFixed, memory_->handle_fault(f[i]));
  }
  host::change(pages_.address() + 0x2000, 4096, host::EventKind::kUnmap, [] {});
  const sync::RunningSection running(line_);
  for (const Fault& one : f) EXPECT_FALSE(memory_->install(one));
}

TEST_F(Memory, DeleteAndMoveMakeAnswersStale) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  Fault f{};
  f.gpa = Gpa(kGpa);
  ASSERT_EQ(FaultOutcome::kFixed, memory_->handle_fault(f));
  ASSERT_EQ(0, slot(0, 2 * kGpa, pages_.bytes(), pages_.address()));
  {
    const sync::RunningSection running(line_);
    EXPECT_FALSE(memory_->install(f));
  }
  EXPECT_EQ(FaultOutcome::kMmio, fault(kGpa, Access::kRead));
  EXPECT_EQ(FaultOutcome::kFixed, fault(2 * kGpa, Access::kRead));
}

TEST_F(Memory, AStartWaitsUntilARunningVcpuAcknowledges) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
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

TEST_F(Memory, AVcpusWriteFaultIsMarkedWhenInstalledAndNotBefore) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes() - 0x2000, pages_.address(), kLogDirtyPages));
  const Hva bitmap(pages_.address() + 0xf000);
  Fault f{};
  f.gpa = Gpa(kGpa + 0x3000);
  f.access = Access::kWrite;
  ASSERT_EQ(FaultOutcome::kFixed, memory_->handle_fault(f));
  ASSERT_TRUE(memory_->slots().get_dirty_log(0, bitmap));
  u64 word = ~u64{0};
  ASSERT_TRUE(host::load(bitmap, &word));
  EXPECT_EQ(0U, word);
  {
    const sync::RunningSection running(line_);
    EXPECT_TRUE(memory_->install(f));
  }
  ASSERT_TRUE(memory_->slots().get_dirty_log(0, bitmap));
  ASSERT_TRUE(host::load(bitmap, &word));
  EXPECT_EQ(u64{1} << 3, word);
}

TEST_F(Memory, ALoggingSlotGivesNoWritableAnswerToARead) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address(), kLogDirtyPages));
  Fault f;
  EXPECT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kWrite, &f));
  EXPECT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kRead, &f));
  EXPECT_FALSE(f.writable);
}

TEST_F(Memory, TheFormThatMustNotBlockAsksOnlyForWhatIsKnownResident) {
  ASSERT_EQ(0, slot(0, kGpa, pages_.bytes(), pages_.address()));
  u64 value = 0;
  EXPECT_EQ(FaultOutcome::kRetry, memory_->try_read(Gpa(kGpa), &value, 8));
  EXPECT_EQ(FaultOutcome::kFixed, memory_->read(Gpa(kGpa), &value, 8));
  EXPECT_EQ(FaultOutcome::kFixed, memory_->try_read(Gpa(kGpa), &value, 8));
  bool swapped = false;
  EXPECT_EQ(FaultOutcome::kRetry, memory_->try_cmpxchg(Gpa(kGpa), &value, u64{1}, &swapped));
  EXPECT_EQ(FaultOutcome::kFixed, memory_->cmpxchg(Gpa(kGpa), &value, u64{1}, &swapped));
  EXPECT_EQ(FaultOutcome::kFixed, memory_->try_cmpxchg(Gpa(kGpa), &value, u64{1}, &swapped));
  EXPECT_EQ(FaultOutcome::kMmio, memory_->try_read(Gpa(0), &value, 8));
  host::change(pages_.address(), 4096, host::EventKind::kUnmap,
               [&] { EXPECT_EQ(FaultOutcome::kRetry, memory_->try_read(Gpa(kGpa), &value, 8)); });
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
  failpoint::arm(nullptr, 1, failpoint::kForever);
  memory_.reset();
  EXPECT_EQ(0U, failpoint::failed());
  failpoint::disarm();
}

// The same room under the contract of every subscriber.
struct GuestMemorySubscriber {
  GuestMemorySubscriber() {
    EXPECT_TRUE(host::backstop::install());
    memory = std::move(*GuestMemory::create(SlotPolicy{}));
    Region region;
    region.gpa = kGpa;
    region.size = pages.bytes();
    region.hva = pages.address();
    EXPECT_TRUE(memory->slots().set_region(region));
    memory->lines().add(line);
  }
  ~GuestMemorySubscriber() { memory->lines().remove(line); }
  host::MmuNotifier& notifier() { return *memory; }
  HvaRange mine() { return {Hva(pages.address()), pages.bytes()}; }
  HvaRange foreign() { return {Hva(0x1000), 4096}; }
  bool may_use(Hva hva) {
    Fault f{};
    f.gpa = Gpa(kGpa + (hva - Hva(pages.address())));
    if (memory->handle_fault(f) != FaultOutcome::kFixed) return false;
    const sync::RunningSection running(line);
    return memory->install(f);
  }
  test::GuardedPages pages{4};
  Box<GuestMemory> memory;
  sync::AckLine line;
};

}  // namespace
}  // namespace stagetwo::stage2

namespace stagetwo::test {
INSTANTIATE_TYPED_TEST_SUITE_P(GuestMemory, NotifierContract, stage2::GuestMemorySubscriber);
}  // namespace stagetwo::test
