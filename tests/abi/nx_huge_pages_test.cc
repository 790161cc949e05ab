// SPDX-License-Identifier: Apache-2.0
// Huge pages that may not be executed, from the module parameter to the statistics: a fetch splits
// the page, recovery gives it back, a VM may opt out. Method: a guest whose segments are laid over
// huge pages of the stand-in; one run reads, another fetches.
#include <string>

#include "abi/kvm/parameters.h"
#include "host/hugetlb_standin.h"
#include "host/session.h"
#include "host/worker.h"
#include "tests/abi/stats_by_name.h"

namespace kvm_client {
namespace {

namespace hugetlb = stagetwo::host::hugetlb;

constexpr u64 kHuge = 2 << 20;
constexpr u64 kBase = 4 * kHuge;  // of the huge pages, in the guest
constexpr u64 kPages = 3;
constexpr int kMicroseconds = 1000;

// mov 0, %al (from DS); hlt
constexpr u8 kReadByte[] = {0xa0, 0x00, 0x00, 0xf4};
constexpr u8 kHlt = 0xf4;

void set_parameter(const char* name, const char* text) {
  const std::string path = std::string("kvm/parameters/") + name;
  ASSERT_TRUE(stagetwo::abi_kvm::find_parameter(path).store(text));
}

class NxHugePages : public Machine {
 protected:
  void SetUp() override {
    if (on_oracle()) GTEST_SKIP() << "oracle: the parameter is of the engine's session";
    hugetlb::enable();
    set_parameter("nx_huge_pages", "force");
    set_parameter("nx_huge_pages_recovery_ratio", "1");
    set_parameter("nx_huge_pages_recovery_period_ms", "0");
    Machine::SetUp();
  }
  void TearDown() override {
    stats_.close();
    Machine::TearDown();
    if (huge_ != nullptr) munmap(huge_, kPages * kHuge);
    hugetlb::debug_reset();
    stagetwo::host::debug_leave_session();
  }

  void boot() {
    add_memory();
    add_vcpu();
    const auto mapped = hugetlb::map({nullptr, kPages * kHuge, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0},
                                     2);
    ASSERT_TRUE(mapped);
    huge_ = static_cast<u8*>(*mapped);
    std::memset(huge_, kHlt, kPages * kHuge);
    kvm_userspace_memory_region region{};
    region.slot = 1;
    region.guest_phys_addr = kBase;
    region.memory_size = kPages * kHuge;
    region.userspace_addr = reinterpret_cast<u64>(huge_);
    ASSERT_EQ(call(vm_, KVM_SET_USER_MEMORY_REGION, &region), 0);
    load_code(kReadByte);
    stats_ = Fd(call(vm_, KVM_GET_STATS_FD));
    ASSERT_GE(stats_, 0);
  }
  void run_with(u64 code_base, u64 rip, u64 data_base) {
    kvm_sregs sregs{};
    ASSERT_EQ(call(vcpu_, KVM_GET_SREGS, &sregs), 0);
    sregs.cs.base = code_base;
    sregs.ds.base = data_base;
    ASSERT_EQ(call(vcpu_, KVM_SET_SREGS, &sregs), 0);
    kvm_regs regs{};
    regs.rip = rip;
    regs.rflags = 2;
    ASSERT_EQ(call(vcpu_, KVM_SET_REGS, &regs), 0);
    ASSERT_EQ(call(vcpu_, KVM_RUN), 0);
    ASSERT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_HLT));
  }
  void read_page(u64 n) { run_with(0, 0x1000, kBase + n * kHuge); }
  void fetch_page(u64 n) { run_with(kBase + n * kHuge, 0, 0); }

  u64 stat(const char* name) { return stat_of(stats_, name); }
  void expect(u64 pages_2m, u64 splits) {
    EXPECT_EQ(stat("pages_2m"), pages_2m);
    EXPECT_EQ(stat("nx_lpage_splits"), splits);
  }

  Fd stats_;
  u8* huge_ = nullptr;
};

TEST_F(NxHugePages, SplitByAFetchIsGivenBackAfterOneRecoveryPeriod) {
  boot();
  read_page(0);
  expect(1, 0);
  EXPECT_FALSE(stagetwo::host::worker_runs()) << "nothing to recover, no thread";
  fetch_page(0);
  expect(0, 1);
  fetch_page(1);
  expect(0, 2);
  read_page(0);
  expect(0, 2);
  set_parameter("nx_huge_pages_recovery_period_ms", "100");
  for (int i = 0; i < 300 && stat("nx_lpage_splits") != 0; ++i) usleep(10 * kMicroseconds);
  expect(0, 0);
  read_page(0);
  expect(1, 0);
}

TEST_F(NxHugePages, AreNotOfAVmThatOptsOut) {
  kvm_enable_cap cap{};
  cap.cap = KVM_CAP_VM_DISABLE_NX_HUGE_PAGES;
  const long answer = call(vm_, KVM_ENABLE_CAP, &cap);
  if (answer == -EPERM) GTEST_SKIP() << "skipped: needs root (CAP_SYS_BOOT)";
  ASSERT_EQ(answer, 0);
  boot();
  fetch_page(0);
  expect(1, 0);
  read_page(1);
  fetch_page(1);
  expect(2, 0);
}

TEST_F(NxHugePages, OptingOutComesBeforeTheFirstVcpuAndTakesNoArgument) {
  kvm_enable_cap cap{};
  cap.cap = KVM_CAP_VM_DISABLE_NX_HUGE_PAGES;
  cap.args[0] = 1;
  const long answer = call(vm_, KVM_ENABLE_CAP, &cap);
  if (answer == -EPERM) GTEST_SKIP() << "skipped: needs root (CAP_SYS_BOOT)";
  EXPECT_EQ(answer, -EINVAL);
  cap.args[0] = 0;
  add_vcpu();
  EXPECT_EQ(call(vm_, KVM_ENABLE_CAP, &cap), -EINVAL);
}

TEST_F(NxHugePages, FollowTheParameterFromTheNextRunOn) {
  boot();
  read_page(0);
  fetch_page(1);
  expect(1, 1);
  set_parameter("nx_huge_pages", "off");
  fetch_page(0);
  expect(1, 0);
  EXPECT_EQ(stat("pages_2m"), 1U);
  set_parameter("nx_huge_pages", "force");
  read_page(0);
  fetch_page(0);
  EXPECT_EQ(stat("nx_lpage_splits"), 1U);
}

TEST_F(NxHugePages, OfALoggedSlotAreForgottenByRecovery) {
  boot();
  fetch_page(0);
  expect(0, 1);
  kvm_userspace_memory_region region{};
  region.slot = 1;
  region.flags = KVM_MEM_LOG_DIRTY_PAGES;
  region.guest_phys_addr = kBase;
  region.memory_size = kPages * kHuge;
  region.userspace_addr = reinterpret_cast<u64>(huge_);
  ASSERT_EQ(call(vm_, KVM_SET_USER_MEMORY_REGION, &region), 0);
  const u64 small = stat("pages_4k");
  set_parameter("nx_huge_pages_recovery_period_ms", "20");
  for (int i = 0; i < 300 && stat("nx_lpage_splits") != 0; ++i) usleep(10 * kMicroseconds);
  EXPECT_EQ(stat("nx_lpage_splits"), 0U);
  EXPECT_EQ(stat("pages_4k"), small) << "still mapped";
}

}  // namespace
}  // namespace kvm_client
