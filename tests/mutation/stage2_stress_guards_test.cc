// SPDX-License-Identifier: Apache-2.0
// The stress that finds nothing finds something at once when a guard is missing: threads that
// access as vCPUs do, a range that is poison while it changes.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "base/guard.h"
#include "host/backstop.h"
#include "host/change.h"
#include "tests/support/pages.h"
#include "tests/support/toy_vcpu.h"

namespace stagetwo::stage2 {
namespace {

constexpr u64 kGpa = 0x100000;
constexpr size_t kBytes = test::ToyVcpu::kPages * kPageSize;
constexpr double kSeconds = 10;

// Accesses that came too late, until the first or until the time is over.
u64 late_accesses(const char* guard, double seconds) {
  EXPECT_TRUE(host::backstop::install());
  test::GuardedPages pages(test::ToyVcpu::kPages);
  auto memory = std::move(*GuestMemory::create(SlotPolicy{}));
  Region region;
  region.gpa = kGpa;
  region.size = kBytes;
  region.hva = pages.address();
  EXPECT_TRUE(memory->slots().set_region(region));
  if (guard != nullptr) mutation::remove(guard);
  u64 late = 0;
  {
    test::ToyVcpu vcpu(*memory, kGpa, 1, 4096);  // blocks longer than a system call
    std::atomic<bool> stop{false};
    std::thread thread([&] { vcpu.run(stop); });
    const test::Deadline deadline(seconds / test::test_seconds());
    while (vcpu.faulted == 0 && deadline.running()) {
      const u64 before = vcpu.stores;
      while (vcpu.stores < before + 100 && deadline.running()) std::this_thread::yield();
      host::change(pages.address(), kBytes, host::EventKind::kProtection, [&] {
        mprotect(pages.pointer(), kBytes, PROT_NONE);
        usleep(30);  // and not a spin: on a busy machine both threads may have one processor
        mprotect(pages.pointer(), kBytes, PROT_READ | PROT_WRITE);
      });
    }
    stop = true;
    thread.join();
    late = vcpu.faulted;
  }
  mutation::restore_all();
  return late;
}

TEST(Stress, WithEveryGuardFindsNothing) {
  EXPECT_EQ(0U, late_accesses(nullptr, 1));
}

TEST(Stress, WithoutTheWaitForAcknowledgementFindsALateAccess) {
  EXPECT_GT(late_accesses("ack_wait", kSeconds), 0U);
}

TEST(Stress, WithoutTheFlushFindsALateAccess) {
  EXPECT_GT(late_accesses("tlb_flush", kSeconds), 0U);
}

TEST(Stress, WithoutTheZapFindsALateAccess) {
  EXPECT_GT(late_accesses("notifier_zap", kSeconds), 0U);
}

}  // namespace
}  // namespace stagetwo::stage2
