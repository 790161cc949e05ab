// SPDX-License-Identifier: Apache-2.0
// Goal: after an invalidation returned, nobody dereferences the old meaning; no store is lost to
// the dirty log; slots come and go under running vCPUs. Method: threads that access as vCPUs do,
// against changes that would turn a late access into a fault or into damage.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "host/backstop.h"
#include "host/change.h"
#include "tests/support/guest_memory_access.h"
#include "tests/support/pages.h"
#include "tests/support/toy_vcpu.h"

namespace stagetwo::stage2 {
namespace {

constexpr u64 kGpa = 0x100000;
constexpr size_t kBytes = test::ToyVcpu::kPages * kPageSize;

class Stress : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    memory_ = std::move(*GuestMemory::create(SlotPolicy{}));
    seed_ = test::announced_seed("Stage2Stress");
  }
  bool set(u64 size, u32 flags = 0, u64 gpa = kGpa) {
    Region region;
    region.flags = flags;
    region.gpa = size == 0 ? 0 : gpa;
    region.size = size;
    region.hva = size == 0 ? 0 : pages_.address();
    return memory_->slots().set_region(region).has_value();
  }
  // Every second one lets go between its accesses.
  void start(unsigned count) {
    using Way = test::ToyVcpu::Way;
    for (unsigned i = 0; i < count; ++i) {
      vcpus_.push_back(std::make_unique<test::ToyVcpu>(*memory_, kGpa, seed_ + i, 8,
                                                       i % 2 == 0 ? Way::kHolds : Way::kLetsGo));
    }
    for (auto& vcpu : vcpus_) {
      threads_.emplace_back([&vcpu, this] { vcpu->run(stop_); });
    }
  }
  void finish() {
    stop_ = true;
    for (std::thread& thread : threads_) thread.join();
    for (const auto& vcpu : vcpus_) {
      stores_ += vcpu->stores;
      faulted_ += vcpu->faulted;
    }
    vcpus_.clear();
    memory_->check_world();
  }
  void report(const char* what, u64 rounds) {
    std::printf("%llu %s, %llu stores, %llu retries\n", static_cast<unsigned long long>(rounds),
                what, static_cast<unsigned long long>(stores_),
                static_cast<unsigned long long>(memory_->counts().retries));
  }

  test::GuardedPages pages_{test::ToyVcpu::kPages + 1};
  Box<GuestMemory> memory_;
  u64 seed_ = 0;
  std::atomic<bool> stop_{false};
  std::vector<std::unique_ptr<test::ToyVcpu>> vcpus_;
  std::vector<std::thread> threads_;
  u64 stores_ = 0;
  u64 faulted_ = 0;
};

// A fault paused between its look at the host and its installation, while the page is unmapped and
// other memory is mapped at its address: one retry, and the new bytes.
TEST_F(Stress, AFaultPausedBeforeItsInstallRetriesOnceAndSeesTheNewBytes) {
  ASSERT_TRUE(set(kBytes));
  std::memset(pages_.pointer(), 0x11, kBytes);
  auto context = std::move(*memory_->new_context());
  sync::AckLine line;
  memory_->lines().add(line);
  Fault f{};
  f.gpa = Gpa(kGpa);
  ASSERT_EQ(FaultOutcome::kFixed, GuestMemoryTestAccess::find(*memory_, *context, f));
  host::change(pages_.address(), kBytes, host::EventKind::kUnmap, [this] {
    munmap(pages_.pointer(), kBytes);
    void* again = mmap(pages_.pointer(), kBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    std::memset(again, 0x22, kBytes);
  });
  EXPECT_EQ(FaultOutcome::kRetry, memory_->tdp().page_fault(*context, f));
  EXPECT_EQ(1U, memory_->counts().retries);
  ASSERT_EQ(FaultOutcome::kFixed, memory_->handle_fault(*context, f));
  {
    const sync::RunningSection running(line);
    if (running.must_flush()) memory_->flushed(*context);
    ASSERT_EQ(Walk::Kind::kHit, memory_->translate(*context, f));
    u8 byte = 0;
    ASSERT_TRUE(host::load(f.page, &byte));
    EXPECT_EQ(0x22, byte);
  }
  EXPECT_EQ(1U, memory_->counts().retries);
  memory_->lines().remove(line);
}

TEST_F(Stress, TheRangeIsPoisonAfterEachStartAndNobodyFaults) {
  ASSERT_TRUE(set(kBytes));
  start(4);
  const test::Deadline deadline;
  u64 rounds = 0;
  while (deadline.running()) {
    host::change(pages_.address(), kBytes, host::EventKind::kProtection, [this] {
      mprotect(pages_.pointer(), kBytes, PROT_NONE);
      mprotect(pages_.pointer(), kBytes, PROT_READ | PROT_WRITE);
    });
    if (++rounds % 4 == 0)
      std::this_thread::yield();  // a start that finds nothing waits for nobody
  }
  finish();
  report("invalidations", rounds);
  EXPECT_EQ(0U, faulted_);
  EXPECT_GT(stores_, 0U);
}

// The slot goes, its addresses are given to somebody else, whose bytes stay what they are.
TEST_F(Stress, AnAddressThatIsReusedIsNotWrittenByThoseWhoHadItBefore) {
  ASSERT_TRUE(set(kBytes));
  start(2);
  const test::Deadline deadline;
  u64 rounds = 0;
  u64 damaged = 0;
  std::vector<u8> canary(kBytes);
  while (rounds < 100'000 && deadline.running()) {
    std::memset(canary.data(), static_cast<int>(rounds & 0xff), kBytes);
    ASSERT_TRUE(set(0));
    host::change(pages_.address(), kBytes, host::EventKind::kUnmap, [&] {
      munmap(pages_.pointer(), kBytes);
      mmap(pages_.pointer(), kBytes, PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    });
    std::memcpy(pages_.pointer(), canary.data(), kBytes);
    if (rounds % 8 == 0) std::this_thread::yield();
    damaged += std::memcmp(pages_.pointer(), canary.data(), kBytes) != 0;
    ASSERT_TRUE(set(kBytes));
    if (rounds % 4 == 0) std::this_thread::yield();
    ++rounds;
  }
  finish();
  report("reuses", rounds);
  EXPECT_EQ(0U, damaged);
  EXPECT_EQ(0U, faulted_);
}

TEST_F(Stress, SlotsMoveAndLogUnderRunningVcpus) {
  ASSERT_TRUE(set(kBytes));
  start(3);
  const test::Deadline deadline;
  test::RandomSource random(seed_);
  u64 rounds = 0;
  while (deadline.running()) {
    const u32 flags = random.one_in(2) ? kLogDirtyPages : 0;
    ASSERT_TRUE(set(kBytes, flags, random.one_in(3) ? 4 * kGpa : kGpa));
    if (random.one_in(4)) {
      ASSERT_TRUE(set(0));
    }
    if (random.one_in(16)) memory_->check_world();
    ++rounds;
    if (rounds % 8 == 0) std::this_thread::yield();
  }
  finish();
  report("slot calls", rounds);
  EXPECT_EQ(0U, faulted_);
}

// Pages are filled with one counter per word; what a harvest does not name did not change since the
// harvest before.
TEST_F(Stress, EveryChangedPageIsInSomeHarvest) {
  ASSERT_TRUE(set(kBytes, kLogDirtyPages));
  start(3);
  const test::Deadline deadline;
  const Hva bitmap(pages_.address() + kBytes);
  const auto* named = reinterpret_cast<const u64*>(pages_.bytes_at(kBytes));
  std::vector<u8> copy(kBytes);
  u64 harvests = 0;
  const auto harvest = [&] {
    ASSERT_TRUE(memory_->slots().get_dirty_log(0, bitmap));
    ++harvests;
    for (unsigned page = 0; page < test::ToyVcpu::kPages; ++page) {
      if ((*named >> page & 1) == 0) continue;
      ASSERT_EQ(kPageSize, host::copy_from(copy.data() + page * kPageSize,
                                           Hva(pages_.address() + page * kPageSize), kPageSize));
    }
  };
  while (vcpus_[0]->stores == 0) std::this_thread::yield();
  while (harvests < 10'000 && deadline.running()) {
    harvest();
    std::this_thread::yield();
  }
  stop_ = true;
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  harvest();
  EXPECT_EQ(0, std::memcmp(copy.data(), pages_.pointer(), kBytes)) << "a store is in no harvest";
  finish();
  report("harvests", harvests);
}

}  // namespace
}  // namespace stagetwo::stage2
