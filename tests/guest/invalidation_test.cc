// SPDX-License-Identifier: Apache-2.0
// Goal: MADV_DONTNEED, munmap with a new mapping at the same address, and mprotect behave under a
// running vCPU. Method: a guest that stores to every page of a window without pause, one to four
// processors of it; the test is the client that changes the window's memory through the bell. Guest
// accesses are guarded: one that comes too late is counted, not survived.
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "host/backstop.h"
#include "host/change.h"
#include "host/faultin.h"
#include "sync/restartable.h"
#include "tests/support/pages.h"
#include "tests/support/random_source.h"
#include "tests/unit/vcpu/guest.h"

#if !defined(MREMAP_DONTUNMAP)
#define MREMAP_DONTUNMAP 4
#endif

namespace stagetwo::vcpu::testing {
namespace {

constexpr u64 kWindow = 0x200000;  // where the window lies in the guest
constexpr unsigned kPages = 16;
constexpr size_t kBytes = kPages * kPageSize;

// One vCPU with memory, tables and program of its own at slot 0, and the shared window at slot 1.
class Processor {
 public:
  explicit Processor(u64 window) : guest_(kWindow) {
    guest_.long_mode();
    //          mov esi, 0x200000        the window
    // outer:   mov rdi, rsi
    //          mov ecx, 16
    // inner:   nop
    //          add qword [rdi], 1
    //          add rdi, 4096
    //          dec ecx
    //          jne inner
    //          jmp outer
    guest_.code({0xbe, 0x00, 0x00, 0x20, 0x00, 0x48, 0x89, 0xf7, 0xb9, 0x10, 0x00,
                 0x00, 0x00, 0x90, 0x48, 0x83, 0x07, 0x01, 0x48, 0x81, 0xc7, 0x00,
                 0x10, 0x00, 0x00, 0xff, 0xc9, 0x75, 0xf0, 0xeb, 0xe6});
    add_window(window);
  }
  void add_window(u64 hva) { guest_.add_slot(1, kWindow, kBytes, reinterpret_cast<void*>(hva)); }
  void remove_window() { guest_.add_slot(1, 0, 0, nullptr); }

  void start() {
    thread_ = std::thread([this] {
      while (!stop_.load()) {
        const Exit& exit = guest_.run();
        ++exits_;
        if (exit.kind == ExitKind::kMmio) ++mmio_;
        if (exit.kind == ExitKind::kUnknown && exit.error == EFAULT) ++efault_;
      }
    });
  }
  void finish() {
    stop_ = true;
    guest_.cpu().request_exit();
    thread_.join();
  }
  u64 mmio() const { return mmio_; }
  u64 efault() const { return efault_; }
  u64 exits() const { return exits_; }
  Guest& guest() { return guest_; }

 private:
  Guest guest_;
  std::thread thread_;
  std::atomic<bool> stop_{false};
  std::atomic<u64> mmio_{0};
  std::atomic<u64> efault_{0};
  std::atomic<u64> exits_{0};
};

class Invalidation : public ::testing::Test {
 protected:
  void run(unsigned count) {
    late_before_ = late_accesses();
    for (unsigned i = 0; i < count; ++i) {
      processors_.push_back(std::make_unique<Processor>(pages_.address()));
    }
    for (auto& one : processors_) one->start();
    wait_for_stores();
  }
  void finish() {
    for (auto& one : processors_) one->finish();
    faults_ = late_accesses() - late_before_;
  }
  // What a fault asks of the processor is no access of the guest's.
  static u64 late_accesses() {
    return host::backstop::fixed_count() - host::debug_refused_touches();
  }
  u64 word(unsigned page) {
    u64 value = 0;
    EXPECT_TRUE(host::load(Hva(pages_.address() + page * kPageSize), &value));
    return value;
  }
  // The guest is alive: every page of the window changes.
  void wait_for_stores() {
    for (unsigned page = 0; page < kPages; ++page) {
      const u64 before = word(page);
      while (word(page) == before) std::this_thread::yield();
    }
  }
  // What became of vCPUs that did not answer within the time one that runs needs.
  sync::AckSet::Counts waits() {
    sync::AckSet::Counts sum;
    for (auto& one : processors_) {
      const sync::AckSet::Counts counts = one->guest().memory().lines().counts();
      sum.let_go += counts.let_go;
      sum.waited += counts.waited;
    }
    return sum;
  }
  int change(host::EventKind kind, const std::function<int()>& call) {
    return host::change(pages_.address(), kBytes, kind, call);
  }

  test::GuardedPages pages_{kPages};
  std::vector<std::unique_ptr<Processor>> processors_;
  u64 late_before_ = 0;
  u64 faults_ = 0;
};

TEST_F(Invalidation, DiscardedPagesReadZeroAndTheGuestGoesOn) {
  run(2);
  const test::Deadline deadline(0.3);
  u64 rounds = 0;
  do {
    // Far beyond what the guest reaches by itself before the next look.
    for (unsigned page = 0; page < kPages; ++page) {
      ASSERT_TRUE(host::store(Hva(pages_.address() + page * kPageSize), u64{1} << 60));
    }
    ASSERT_EQ(0, change(host::EventKind::kClear,
                        [this] { return madvise(pages_.pointer(), kBytes, MADV_DONTNEED); }));
    for (unsigned page = 0; page < kPages; ++page) {
      EXPECT_LT(word(page), u64{1} << 59) << "the guest kept a page that was discarded";
    }
    wait_for_stores();
    ++rounds;
  } while (deadline.running());
  finish();
  EXPECT_EQ(0U, faults_);
  std::printf("%llu rounds\n", static_cast<unsigned long long>(rounds));
}

TEST_F(Invalidation, ANewMappingAtTheSameAddressIsWhatTheGuestUsesAtOnce) {
  run(2);
  const test::Deadline deadline(0.3);
  u64 rounds = 0;
  do {
    // The old memory stays reachable by another name: nothing may be written there any more.
    u64* old = nullptr;
    ASSERT_EQ(0, change(host::EventKind::kUnmap, [&] {
                // The place is never free: what a vCPU maps at its first run could come there, and
                // be gone with the next call.
                void* moved =
                    mremap(pages_.pointer(), kBytes, kBytes,
                           MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
                           mmap(nullptr, kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
                old = static_cast<u64*>(moved);
                void* fresh = mmap(pages_.pointer(), kBytes, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
                return fresh == pages_.pointer() ? 0 : -1;
              }));
    u64 frozen[kPages];
    for (unsigned page = 0; page < kPages; ++page) frozen[page] = old[page * 512];
    wait_for_stores();
    for (unsigned page = 0; page < kPages; ++page) {
      EXPECT_EQ(frozen[page], old[page * 512]) << "a store reached the old memory";
      EXPECT_LT(word(page), frozen[page] + (u64{1} << 40));
    }
    munmap(old, kBytes);
    ++rounds;
  } while (deadline.running());
  finish();
  EXPECT_EQ(0U, faults_);
  std::printf("%llu rounds\n", static_cast<unsigned long long>(rounds));
}

TEST_F(Invalidation, TheRangeIsPoisonAfterEachStartAndNoGuestAccessFaults) {
  run(4);
  const test::Deadline deadline;
  u64 rounds = 0;
  while (rounds < 20'000 && deadline.running()) {
    ASSERT_EQ(0, change(host::EventKind::kProtection, [this] {
                return mprotect(pages_.pointer(), kBytes, PROT_NONE) |
                       mprotect(pages_.pointer(), kBytes, PROT_READ | PROT_WRITE);
              }));
    ++rounds;
  }
  wait_for_stores();
  finish();
  EXPECT_EQ(0U, faults_);
  std::printf("%llu invalidations\n", static_cast<unsigned long long>(rounds));
}

// Where accesses cannot be taken back, vCPUs are waited for as they poll.
TEST_F(Invalidation, WithoutRestartableSectionsNoGuestAccessFaultsEither) {
  const sync::NoRestartableSections none;
  run(2);
  const test::Deadline deadline(0.2);
  u64 rounds = 0;
  while (rounds < 200 && deadline.running()) {
    ASSERT_EQ(0, change(host::EventKind::kProtection, [this] {
                return mprotect(pages_.pointer(), kBytes, PROT_NONE) |
                       mprotect(pages_.pointer(), kBytes, PROT_READ | PROT_WRITE);
              }));
    ++rounds;
  }
  wait_for_stores();
  EXPECT_EQ(0U, waits().let_go);
  finish();
  EXPECT_EQ(0U, faults_);
}

// Four processors and the client on one CPU: while the client changes the window none of them runs,
// and nearly none is waited for. The few are those that were preempted where they hold.
TEST_F(Invalidation, ProcessorsThatAreNotScheduledArePassed) {
  if (sync::restartable_section() == nullptr) {
    GTEST_SKIP() << "accesses are not restartable: ThreadSanitizer, or a libc or kernel without";
  }
  cpu_set_t all, one;
  ASSERT_EQ(0, sched_getaffinity(0, sizeof(all), &all));
  CPU_ZERO(&one);
  CPU_SET(static_cast<size_t>(sched_getcpu()), &one);
  ASSERT_EQ(0, sched_setaffinity(0, sizeof(one), &one));  // the processors' threads inherit it
  run(4);
  const sync::AckSet::Counts before = waits();
  constexpr int kRounds = 10;
  for (int round = 0; round < kRounds; ++round) {
    wait_for_stores();  // all use the window again
    ASSERT_EQ(0, change(host::EventKind::kProtection, [this] {
                return mprotect(pages_.pointer(), kBytes, PROT_NONE) |
                       mprotect(pages_.pointer(), kBytes, PROT_READ | PROT_WRITE);
              }));
  }
  const sync::AckSet::Counts after = waits();
  finish();
  ASSERT_EQ(0, sched_setaffinity(0, sizeof(all), &all));
  const u64 passed = after.let_go - before.let_go;
  const u64 waited = after.waited - before.waited;
  EXPECT_GE(passed, u64{kRounds});
  EXPECT_LT(waited, passed / 4);
  EXPECT_EQ(0U, faults_);
  std::printf("%llu passed, %llu waited for\n", static_cast<unsigned long long>(passed),
              static_cast<unsigned long long>(waited));
}

TEST_F(Invalidation, LostRightsAreEfaultAndGivenBackOnesServeAgain) {
  run(1);
  ASSERT_EQ(0, change(host::EventKind::kProtection,
                      [this] { return mprotect(pages_.pointer(), kBytes, PROT_READ); }));
  while (processors_[0]->efault() == 0) std::this_thread::yield();
  const u64 frozen = word(3);
  std::this_thread::yield();
  EXPECT_EQ(frozen, word(3));
  ASSERT_EQ(0, mprotect(pages_.pointer(), kBytes, PROT_READ | PROT_WRITE));  // a gain rings nobody
  wait_for_stores();
  finish();
  EXPECT_EQ(0U, faults_);
}

// munmap by one thread, mmap by another at the same address filled with canaries.
TEST_F(Invalidation, ReusedAddressesKeepTheirCanaries) {
  run(2);
  const test::Deadline deadline;
  u64 rounds = 0;
  u64 damaged = 0;
  std::vector<u8> canary(kBytes, 0xC5);
  while (rounds < 100'000 && deadline.running()) {
    for (auto& one : processors_) one->remove_window();
    // Under way before the hole opens, so that nothing of its own comes to lie in it: its stack, or
    // what a sanitizer maps for a thread that begins.
    std::atomic<bool> ready{false};
    std::atomic<bool> gone{false};
    void* again = MAP_FAILED;
    std::thread other([&] {
      ready = true;
      while (!gone) std::this_thread::yield();
      again = mmap(pages_.pointer(), kBytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
      if (again != MAP_FAILED) std::memcpy(again, canary.data(), kBytes);
    });
    while (!ready) std::this_thread::yield();
    const int unmapped =
        change(host::EventKind::kUnmap, [this] { return munmap(pages_.pointer(), kBytes); });
    gone = true;
    other.join();
    ASSERT_EQ(0, unmapped);
    ASSERT_NE(MAP_FAILED, again) << "somebody else was quicker with the addresses";
    damaged += std::memcmp(pages_.pointer(), canary.data(), kBytes) != 0;
    for (auto& one : processors_) one->add_window(pages_.address());
    if (rounds % 4 == 0) wait_for_stores();
    ++rounds;
  }
  finish();
  EXPECT_EQ(0U, damaged);
  EXPECT_EQ(0U, faults_);
  EXPECT_GT(processors_[0]->mmio() + processors_[1]->mmio(), 0U);
  std::printf("%llu reuses\n", static_cast<unsigned long long>(rounds));
}

}  // namespace
}  // namespace stagetwo::vcpu::testing
