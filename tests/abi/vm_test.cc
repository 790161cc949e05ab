// SPDX-License-Identifier: Apache-2.0
// VM descriptors: settings, slots, capabilities, and who may use them.
#include <sys/wait.h>

#include "tests/abi/kvm_client.h"

namespace kvm_client {
namespace {

class Vm : public Machine {
 protected:
  long enable(u32 cap, u64 arg = 0, u32 flags = 0) {
    kvm_enable_cap request{};
    request.cap = cap;
    request.flags = flags;
    request.args[0] = arg;
    return call(vm_, KVM_ENABLE_CAP, &request);
  }
};

TEST_F(Vm, UnknownRequestIsEnotty) {
  EXPECT_EQ(call(vm_, 0xae77), -ENOTTY);
  EXPECT_EQ(call(vm_, KVM_GET_API_VERSION), -ENOTTY);
  EXPECT_EQ(call(vm_, KVM_RUN), -ENOTTY);
}
TEST_F(Vm, WorksOnTheLowHalfOfTheRequest) {
  EXPECT_EQ(call(vm_, KVM_CHECK_EXTENSION | 0xffffffff00000000UL, KVM_CAP_USER_MEMORY), 1);
}
TEST_F(Vm, AnswersCapabilitiesAsTheDeviceDoes) {
  for (unsigned long cap = 0; cap < 250; ++cap) {
    // What only VMs with private memory have.
    if (cap == KVM_CAP_MEMORY_ATTRIBUTES || cap == KVM_CAP_GUEST_MEMFD) continue;
    // Later kernels: one flag less without a split interrupt controller.
    if (on_oracle() && cap == KVM_CAP_X2APIC_API) continue;
    EXPECT_EQ(call(vm_, KVM_CHECK_EXTENSION, cap), call(device_, KVM_CHECK_EXTENSION, cap)) << cap;
  }
}

TEST_F(Vm, VcpuIdsEndAtTheMaximum) {
  EXPECT_EQ(call(vm_, KVM_CREATE_VCPU, 4096), -EINVAL);
  EXPECT_EQ(call(vm_, KVM_CREATE_VCPU, 1UL << 32), -EINVAL) << "not truncated";
  const Fd last(call(vm_, KVM_CREATE_VCPU, 4095));
  EXPECT_GE(last, 0);
}
TEST_F(Vm, VcpuIdIsTakenForGood) {
  Fd first(call(vm_, KVM_CREATE_VCPU, 3));
  ASSERT_GE(first, 0);
  EXPECT_EQ(call(vm_, KVM_CREATE_VCPU, 3), -EEXIST);
  first.close();
  EXPECT_EQ(call(vm_, KVM_CREATE_VCPU, 3), -EEXIST);
}
TEST_F(Vm, RefusedVcpuDoesNotCount) {
  const Fd first(call(vm_, KVM_CREATE_VCPU, 0));
  for (int i = 0; i < 2000; ++i) ASSERT_EQ(call(vm_, KVM_CREATE_VCPU, 0), -EEXIST);
  const Fd second(call(vm_, KVM_CREATE_VCPU, 1));
  EXPECT_GE(second, 0);
}
TEST_F(Vm, VcpuOutlivesTheVmDescriptor) {
  add_vcpu();
  vm_.close();
  kvm_regs regs{};
  EXPECT_EQ(call(vcpu_, KVM_GET_REGS, &regs), 0);
  EXPECT_EQ(regs.rip, 0xfff0U);
}

TEST_F(Vm, MaxVcpuIdIsSetOnceAndBounds) {
  EXPECT_EQ(enable(KVM_CAP_MAX_VCPU_ID, 4097), -EINVAL);
  EXPECT_EQ(enable(KVM_CAP_MAX_VCPU_ID, 2), 0);
  EXPECT_EQ(enable(KVM_CAP_MAX_VCPU_ID, 2), 0) << "the same again";
  EXPECT_EQ(enable(KVM_CAP_MAX_VCPU_ID, 3), -EINVAL);
  EXPECT_EQ(call(vm_, KVM_CREATE_VCPU, 2), -EINVAL);
}
TEST_F(Vm, MaxVcpuIdMayNotBeBelowTheBootProcessor) {
  EXPECT_EQ(call(vm_, KVM_SET_BOOT_CPU_ID, 5), 0);
  EXPECT_EQ(enable(KVM_CAP_MAX_VCPU_ID, 4), -EINVAL);
}
TEST_F(Vm, BootProcessorIsChosenBeforeTheFirstVcpu) {
  EXPECT_EQ(call(vm_, KVM_SET_BOOT_CPU_ID, 5000), -EINVAL);
  add_vcpu();
  EXPECT_EQ(call(vm_, KVM_SET_BOOT_CPU_ID, 1), -EBUSY);
}

TEST_F(Vm, EnableCapOfABadPointerIsEfault) {
  EXPECT_EQ(call(vm_, KVM_ENABLE_CAP, kBadPointer), -EFAULT);
}
TEST_F(Vm, EnableCapRefusesFlags) {
  EXPECT_EQ(enable(KVM_CAP_DISABLE_QUIRKS2, 0, 1), -EINVAL);
  EXPECT_EQ(enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 0, 1), -EINVAL);
}
TEST_F(Vm, CapabilityThatCannotBeEnabledIsEinval) {
  EXPECT_EQ(enable(KVM_CAP_USER_MEMORY), -EINVAL);
  EXPECT_EQ(enable(KVM_CAP_MEMORY_FAULT_INFO), -EINVAL);
  EXPECT_EQ(enable(12345), -EINVAL);
}
TEST_F(Vm, ManualDirtyLogTakesZeroOneAndThree) {
  EXPECT_EQ(enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 0), 0);
  EXPECT_EQ(enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 1), 0);
  EXPECT_EQ(enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 2), -EINVAL);
  EXPECT_EQ(enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 3), 0);
  EXPECT_EQ(enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 4), -EINVAL);
}
TEST_F(Vm, UnknownQuirkIsEinvalInTheSecondFormOnly) {
  EXPECT_EQ(enable(KVM_CAP_DISABLE_QUIRKS2, u64{1} << 40), -EINVAL);
  EXPECT_EQ(enable(KVM_CAP_DISABLE_QUIRKS, u64{1} << 40), 0);
  EXPECT_EQ(enable(KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_SLOT_ZAP_ALL), 0);
}
TEST_F(Vm, HypercallExitsAreBoundedByTheirMask) {
  EXPECT_EQ(enable(KVM_CAP_EXIT_HYPERCALL, 1 << 12), 0);
  EXPECT_EQ(enable(KVM_CAP_EXIT_HYPERCALL, 1 << 11), -EINVAL);
}
TEST_F(Vm, EmulationFailureExitIsOnOrOff) {
  EXPECT_EQ(enable(KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1), 0);
  EXPECT_EQ(enable(KVM_CAP_EXIT_ON_EMULATION_FAILURE, 2), -EINVAL);
}
TEST_F(Vm, UserSpaceMsrReasonsAreBounded) {
  EXPECT_EQ(enable(KVM_CAP_X86_USER_SPACE_MSR, 7), 0);
  EXPECT_EQ(enable(KVM_CAP_X86_USER_SPACE_MSR, 8), -EINVAL);
}

TEST_F(Vm, SmallMmuCacheIsEinval) {
  EXPECT_EQ(call(vm_, KVM_SET_NR_MMU_PAGES, 63), -EINVAL);
  EXPECT_EQ(call(vm_, KVM_SET_NR_MMU_PAGES, 64), 0);
}
TEST_F(Vm, TssAddressMustFitBelowFourGigabytes) {
  EXPECT_EQ(call(vm_, KVM_SET_TSS_ADDR, 0xffffd000), 0);
  EXPECT_EQ(call(vm_, KVM_SET_TSS_ADDR, 0xffffd001), -EINVAL);
}
TEST_F(Vm, IdentityMapIsSetBeforeTheFirstVcpu) {
  u64 address = 0xfffbc000;
  EXPECT_EQ(call(vm_, KVM_SET_IDENTITY_MAP_ADDR, &address), 0);
  EXPECT_EQ(call(vm_, KVM_SET_IDENTITY_MAP_ADDR, kBadPointer), -EFAULT);
  add_vcpu();
  EXPECT_EQ(call(vm_, KVM_SET_IDENTITY_MAP_ADDR, &address), -EINVAL);
}
TEST_F(Vm, TscRateIsKnown) {
  EXPECT_GT(call(vm_, KVM_GET_TSC_KHZ), 1000);
}
TEST_F(Vm, ClockRefusesUnknownFlags) {
  kvm_clock_data clock{};
  EXPECT_EQ(call(vm_, KVM_GET_CLOCK, &clock), 0);
  EXPECT_EQ(call(vm_, KVM_SET_CLOCK, &clock), 0);
  clock.flags = 1;
  EXPECT_EQ(call(vm_, KVM_SET_CLOCK, &clock), -EINVAL);
  EXPECT_EQ(call(vm_, KVM_GET_CLOCK, kBadPointer), -EFAULT);
}

TEST_F(Vm, IrqchipComesOnceAndBeforeVcpus) {
  EXPECT_EQ(call(vm_, KVM_CREATE_IRQCHIP), 0);
  EXPECT_EQ(call(vm_, KVM_CREATE_IRQCHIP), -EEXIST);
}
TEST_F(Vm, IrqchipAfterAVcpuIsEinval) {
  add_vcpu();
  EXPECT_EQ(call(vm_, KVM_CREATE_IRQCHIP), -EINVAL);
}
TEST_F(Vm, TimerNeedsAnIrqchip) {
  EXPECT_EQ(call(vm_, KVM_CREATE_PIT), -ENOENT);
  kvm_pit_config config{};
  EXPECT_EQ(call(vm_, KVM_CREATE_PIT2, &config), -ENOENT);
  EXPECT_EQ(call(vm_, KVM_CREATE_PIT2, kBadPointer), -EFAULT);
  kvm_pit_state2 state{};
  EXPECT_EQ(call(vm_, KVM_GET_PIT2, &state), -ENXIO);
}
// POWER's: a processor of this kind never has them.
TEST_F(Vm, SecureGuestsAreNotOffered) {
  constexpr unsigned kSecureGuest = 181;               // KVM_CAP_PPC_SECURE_GUEST
  constexpr unsigned long kSvmOff = _IO(KVMIO, 0xb3);  // KVM_PPC_SVM_OFF
  EXPECT_EQ(call(device_, KVM_CHECK_EXTENSION, kSecureGuest), 0);
  EXPECT_EQ(call(vm_, KVM_CHECK_EXTENSION, kSecureGuest), 0);
  EXPECT_EQ(enable(kSecureGuest, 1), -EINVAL);
  EXPECT_EQ(call(vm_, kSvmOff), -ENOTTY);
}

TEST_F(Vm, DeviceTypeThatDoesNotExistIsEnodev) {
  kvm_create_device device{};
  device.type = 9999;
  EXPECT_EQ(call(vm_, KVM_CREATE_DEVICE, &device), -ENODEV);
  EXPECT_EQ(call(vm_, KVM_CREATE_DEVICE, kBadPointer), -EFAULT);
}

TEST_F(Vm, CoalescedZoneOfAnUnknownBusIsEinval) {
  kvm_coalesced_mmio_zone zone{};
  zone.addr = 0x1000;
  zone.size = 8;
  EXPECT_EQ(call(vm_, KVM_REGISTER_COALESCED_MMIO, &zone), 0);
  EXPECT_EQ(call(vm_, KVM_UNREGISTER_COALESCED_MMIO, &zone), 0);
  EXPECT_EQ(call(vm_, KVM_UNREGISTER_COALESCED_MMIO, &zone), 0);
  zone.pio = 2;
  EXPECT_EQ(call(vm_, KVM_REGISTER_COALESCED_MMIO, &zone), -EINVAL);
  EXPECT_EQ(call(vm_, KVM_REGISTER_COALESCED_MMIO, kBadPointer), -EFAULT);
}

TEST_F(Vm, MsrFilterRefusals) {
  kvm_msr_filter filter{};
  EXPECT_EQ(call(vm_, KVM_X86_SET_MSR_FILTER, &filter), 0) << "empty and allowing";
  filter.flags = KVM_MSR_FILTER_DEFAULT_DENY;
  EXPECT_EQ(call(vm_, KVM_X86_SET_MSR_FILTER, &filter), -EINVAL) << "empty and denying";
  filter.flags = 2;
  EXPECT_EQ(call(vm_, KVM_X86_SET_MSR_FILTER, &filter), -EINVAL);
  u8 bits[0x600] = {};
  filter.flags = 0;
  filter.ranges[3] = {.flags = 3, .nmsrs = 8, .base = 0x10, .bitmap = bits};
  EXPECT_EQ(call(vm_, KVM_X86_SET_MSR_FILTER, &filter), 0);
  filter.ranges[3].flags = 0;
  EXPECT_EQ(call(vm_, KVM_X86_SET_MSR_FILTER, &filter), -EINVAL);
  filter.ranges[3].flags = 4;
  EXPECT_EQ(call(vm_, KVM_X86_SET_MSR_FILTER, &filter), -EINVAL);
  filter.ranges[3].flags = 1;
  filter.ranges[3].nmsrs = 0x600 * 8 + 1;
  EXPECT_EQ(call(vm_, KVM_X86_SET_MSR_FILTER, &filter), -EINVAL);
  filter.ranges[3].nmsrs = 8;
  filter.ranges[3].bitmap = reinterpret_cast<u8*>(kBadPointer);
  EXPECT_EQ(call(vm_, KVM_X86_SET_MSR_FILTER, &filter), -EFAULT);
  EXPECT_EQ(call(vm_, KVM_X86_SET_MSR_FILTER, kBadPointer), -EFAULT);
}

TEST_F(Vm, SlotRefusalsReachTheCaller) {
  add_memory();
  kvm_userspace_memory_region2 region{};
  region.memory_size = 0x1000;
  region.userspace_addr = reinterpret_cast<u64>(memory_);
  region.slot = 1;
  region.guest_phys_addr = 0x1000;
  EXPECT_EQ(call(vm_, KVM_SET_USER_MEMORY_REGION2, &region), -EEXIST) << "overlap";
  region.guest_phys_addr = 0x100001;
  EXPECT_EQ(call(vm_, KVM_SET_USER_MEMORY_REGION2, &region), -EINVAL) << "unaligned";
  region.guest_phys_addr = 0x100000;
  region.flags = 4;
  EXPECT_EQ(call(vm_, KVM_SET_USER_MEMORY_REGION, &region), -EINVAL) << "first version";
  if (!on_oracle()) {
    EXPECT_EQ(call(vm_, KVM_SET_USER_MEMORY_REGION2, &region), -EINVAL);
  }
  region.flags = 0;
  region.slot = 32764;
  EXPECT_EQ(call(vm_, KVM_SET_USER_MEMORY_REGION2, &region), -EINVAL);
  region.slot = 32763;
  EXPECT_EQ(call(vm_, KVM_SET_USER_MEMORY_REGION2, &region), 0);
  region.memory_size = 0;
  EXPECT_EQ(call(vm_, KVM_SET_USER_MEMORY_REGION2, &region), 0);
  EXPECT_EQ(call(vm_, KVM_SET_USER_MEMORY_REGION2, &region), -EINVAL) << "no such slot";
  EXPECT_EQ(call(vm_, KVM_SET_USER_MEMORY_REGION2, kBadPointer), -EFAULT);
}
TEST_F(Vm, DirtyLogOfASlotThatDoesNotLogIsEnoent) {
  add_memory();
  u64 bitmap = 0;
  kvm_dirty_log log{};
  log.dirty_bitmap = &bitmap;
  EXPECT_EQ(call(vm_, KVM_GET_DIRTY_LOG, &log), -ENOENT);
  log.slot = 0x8000;
  EXPECT_EQ(call(vm_, KVM_GET_DIRTY_LOG, &log), -EINVAL);
  kvm_clear_dirty_log clear{};
  EXPECT_EQ(call(vm_, KVM_CLEAR_DIRTY_LOG, &clear), -ENOENT);
  EXPECT_EQ(call(vm_, KVM_GET_DIRTY_LOG, kBadPointer), -EFAULT);
}
TEST_F(Vm, LaterFeaturesAreNotThere) {
  if (on_oracle()) GTEST_SKIP() << "oracle: a real kernel may have them";
  EXPECT_EQ(call(vm_, KVM_MEMORY_ENCRYPT_OP, kBadPointer), -ENOTTY);
  EXPECT_EQ(call(vm_, KVM_XEN_HVM_CONFIG, kBadPointer), -ENOTTY);
}

TEST_F(Vm, BelongsToTheProcessThatMadeIt) {
  add_vcpu();
  const pid_t child = fork();
  if (child == 0) {
    int wrong = 0;
    if (call(vm_, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) != -EIO) wrong |= 1;
    if (call(vm_, 0xae77) != -EIO) wrong |= 2;
    if (call(vcpu_, KVM_RUN) != -EIO) wrong |= 4;
    if (call(device_, KVM_GET_API_VERSION) != 12) wrong |= 8;
    _exit(wrong);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(call(vm_, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY), 1);
}

}  // namespace
}  // namespace kvm_client
