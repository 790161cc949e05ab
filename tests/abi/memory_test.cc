// SPDX-License-Identifier: Apache-2.0
// Memory as a client sees it: KVM_PRE_FAULT_MEMORY, the quirk that lets a slot take every
// translation with it, and the page counts of the statistics.
#include <array>

#include "tests/abi/stats_by_name.h"

namespace kvm_client {
namespace {

class PreFault : public Machine {
 protected:
  void SetUp() override {
    Machine::SetUp();
    if (on_oracle() && call(device_, KVM_CHECK_EXTENSION, KVM_CAP_PRE_FAULT_MEMORY) == 0) {
      GTEST_SKIP() << "oracle: a kernel before 6.12 has no KVM_PRE_FAULT_MEMORY";
    }
    add_memory();  // 0x1000 to 0x5000
    add_vcpu();
  }
  long pre_fault(u64 gpa, u64 size, u64 flags = 0) {
    range_ = {};
    range_.gpa = gpa;
    range_.size = size;
    range_.flags = flags;
    return call(vcpu_, KVM_PRE_FAULT_MEMORY, &range_);
  }
  kvm_pre_fault_memory range_{};
};

TEST_F(PreFault, IsOffered) {
  EXPECT_EQ(call(device_, KVM_CHECK_EXTENSION, KVM_CAP_PRE_FAULT_MEMORY), 1);
}

TEST_F(PreFault, RefusesInTheKernelsOrderAndChangesNothing) {
  EXPECT_EQ(call(vcpu_, KVM_PRE_FAULT_MEMORY, kBadPointer), -EFAULT);
  for (const auto& [gpa, size, flags] : {std::array<u64, 3>{0x1000, 0x1000, 1},
                                         {0x1001, 0x1000, 0},
                                         {0x1000, 0x1001, 0},
                                         {0x1000, 0, 0},
                                         {u64{0} - 0x1000, 0x1000, 0},
                                         {u64{0} - 0x1000, 0x2000, 0}}) {
    EXPECT_EQ(pre_fault(gpa, size, flags), -EINVAL) << gpa << ' ' << size << ' ' << flags;
    EXPECT_EQ(range_.gpa, gpa);
    EXPECT_EQ(range_.size, size);
  }
  EXPECT_EQ(pre_fault(0x9000, 0x1000), -ENOENT);
  EXPECT_EQ(range_.size, 0x1000U);
}

TEST_F(PreFault, WritesBackWhatIsLeftAndAnyProgressIsSuccess) {
  EXPECT_EQ(pre_fault(0x1000, 0x4000), 0);
  EXPECT_EQ(range_.gpa, 0x5000U);
  EXPECT_EQ(range_.size, 0U);
  EXPECT_EQ(pre_fault(0x1000, 0x4000), 0);  // what is there is left as it is
  EXPECT_EQ(range_.size, 0U);
  EXPECT_EQ(pre_fault(0x4000, 0x3000), 0);
  EXPECT_EQ(range_.gpa, 0x5000U);
  EXPECT_EQ(range_.size, 0x2000U);
  EXPECT_EQ(call(vcpu_, KVM_PRE_FAULT_MEMORY, &range_), -ENOENT);
  EXPECT_EQ(range_.size, 0x2000U);
}

TEST_F(PreFault, OfAnAddressThatHasNoPageIsTheClientsToKnow) {
  ASSERT_EQ(::munmap(memory_ + 0x2000, 0x1000), 0);
  EXPECT_EQ(pre_fault(0x1000, 0x4000), 0);
  EXPECT_EQ(range_.gpa, 0x3000U);
  EXPECT_EQ(pre_fault(0x3000, 0x1000), -EFAULT);
}

TEST_F(PreFault, LeavesTheGuestNothingToFault) {
  if (on_oracle()) GTEST_SKIP() << "oracle: another kernel counts its own faults, too";
  ASSERT_EQ(pre_fault(0x1000, 0x4000), 0);
  load_code({0xa1, 0x00, 0x20, 0xa1, 0x00, 0x40, 0xf4});  // mov ax, [0x2000]; [0x4000]; hlt
  ASSERT_EQ(call(vcpu_, KVM_RUN), 0);
  ASSERT_EQ(run_->exit_reason, u32{KVM_EXIT_HLT});
  const Fd stats(call(vcpu_, KVM_GET_STATS_FD));
  EXPECT_EQ(stat_of(stats, "pf_taken"), 0U);
  EXPECT_EQ(stat_of(stats, "pf_fixed"), 4U);
}

class PageCounts : public Machine {
 protected:
  void SetUp() override {
    if (on_oracle()) GTEST_SKIP() << "oracle: another kernel maps more than was touched";
    Machine::SetUp();
  }
  u64 pages_4k(int fd) { return stat_of(fd, "pages_4k"); }
  void run_over_three_pages() {
    load_code({0xa1, 0x00, 0x20, 0xa3, 0x00, 0x30, 0xf4});  // ax = [0x2000]; [0x3000] = ax; hlt
    ASSERT_EQ(call(vcpu_, KVM_RUN), 0);
    ASSERT_EQ(run_->exit_reason, u32{KVM_EXIT_HLT});
  }
};

TEST_F(PageCounts, AreTrueWhenTheyAreRead) {
  add_memory();
  add_vcpu();
  const Fd stats(call(vm_, KVM_GET_STATS_FD));
  EXPECT_EQ(pages_4k(stats), 0U);
  run_over_three_pages();
  EXPECT_EQ(pages_4k(stats), 3U);
  kvm_userspace_memory_region gone{};
  ASSERT_EQ(call(vm_, KVM_SET_USER_MEMORY_REGION, &gone), 0);
  EXPECT_EQ(pages_4k(stats), 0U);
}

TEST_F(PageCounts, OutliveTheVmsDescriptor) {
  add_memory();
  add_vcpu();
  const Fd stats(call(vm_, KVM_GET_STATS_FD));
  run_over_three_pages();
  vcpu_.close();
  vm_.close();
  EXPECT_EQ(pages_4k(stats), 3U);
}

TEST_F(PageCounts, OfOtherSlotsStayWhenTheQuirkIsDisabled) {
  for (const bool quirk : {true, false}) {
    add_memory();
    add_vcpu();
    const Fd stats(call(vm_, KVM_GET_STATS_FD));
    if (!quirk) {
      kvm_enable_cap cap{};
      cap.cap = KVM_CAP_DISABLE_QUIRKS2;
      cap.args[0] = KVM_X86_QUIRK_SLOT_ZAP_ALL;
      ASSERT_EQ(call(vm_, KVM_ENABLE_CAP, &cap), 0);
    }
    kvm_userspace_memory_region other{};
    other.slot = 1;
    other.guest_phys_addr = 0x100000;
    other.memory_size = 0x1000;
    other.userspace_addr = reinterpret_cast<u64>(memory_);
    ASSERT_EQ(call(vm_, KVM_SET_USER_MEMORY_REGION, &other), 0);
    run_over_three_pages();
    other.memory_size = 0;
    ASSERT_EQ(call(vm_, KVM_SET_USER_MEMORY_REGION, &other), 0);
    EXPECT_EQ(pages_4k(stats), quirk ? 0U : 3U);
    TearDown();
    run_ = nullptr;
    memory_ = nullptr;
    SetUp();
  }
}

}  // namespace
}  // namespace kvm_client
