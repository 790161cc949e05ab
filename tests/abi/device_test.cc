// SPDX-License-Identifier: Apache-2.0
// /dev/kvm: every answer and every refusal.
#include <vector>

#include "abi/kvm/parameters.h"
#include "base/text.h"
#include "tests/abi/kvm_client.h"

namespace kvm_client {
namespace {

class Device : public testing::Test {
 protected:
  void SetUp() override {
    fd_ = Fd(open_kvm());
    ASSERT_GE(fd_, 0);
  }
  Fd fd_;
};

// Room for a struct that ends in an array.
template <typename Header, typename Entry>
struct Counted {
  explicit Counted(u32 count) : bytes(sizeof(Header) + count * sizeof(Entry) + sizeof(Entry)) {
    std::memcpy(bytes.data(), &count, sizeof(count));
  }
  u8* data() { return bytes.data(); }
  u32 count() {
    u32 value = 0;
    std::memcpy(&value, bytes.data(), sizeof(value));
    return value;
  }
  Entry entry(u32 index) {
    Entry value;
    std::memcpy(&value, bytes.data() + sizeof(Header) + index * sizeof(Entry), sizeof(value));
    return value;
  }
  void set_entry(u32 index, const Entry& value) {
    std::memcpy(bytes.data() + sizeof(Header) + index * sizeof(Entry), &value, sizeof(value));
  }
  std::vector<u8> bytes;
};
using Cpuid = Counted<kvm_cpuid2, kvm_cpuid_entry2>;
using MsrList = Counted<kvm_msr_list, u32>;
using Msrs = Counted<kvm_msrs, kvm_msr_entry>;

TEST_F(Device, ApiVersionIsTwelve) {
  EXPECT_EQ(call(fd_, KVM_GET_API_VERSION), 12);
}
TEST_F(Device, ApiVersionTakesNoArgument) {
  EXPECT_EQ(call(fd_, KVM_GET_API_VERSION, 1), -EINVAL);
}
TEST_F(Device, MmapSizeIsThreePages) {
  EXPECT_EQ(call(fd_, KVM_GET_VCPU_MMAP_SIZE), 12288);
}
TEST_F(Device, MmapSizeTakesNoArgument) {
  EXPECT_EQ(call(fd_, KVM_GET_VCPU_MMAP_SIZE, 1), -EINVAL);
}
TEST_F(Device, UnknownRequestIsEinval) {
  EXPECT_EQ(call(fd_, 0xae77), -EINVAL);
  EXPECT_EQ(call(fd_, KVM_RUN), -EINVAL);
  EXPECT_EQ(call(fd_, KVM_CREATE_VCPU), -EINVAL);
  EXPECT_EQ(call(fd_, 0x12345678), -EINVAL);
}
TEST_F(Device, UnknownVmTypeIsEinval) {
  EXPECT_EQ(call(fd_, KVM_CREATE_VM, 17), -EINVAL);
  EXPECT_EQ(call(fd_, KVM_CREATE_VM, ~0UL), -EINVAL);
}
TEST_F(Device, UnknownCapabilityIsZero) {
  EXPECT_EQ(call(fd_, KVM_CHECK_EXTENSION, 9999), 0);
  EXPECT_EQ(call(fd_, KVM_CHECK_EXTENSION, ~0UL), 0);
}
TEST_F(Device, VmDescriptorIsCloseOnExec) {
  const Fd vm(call(fd_, KVM_CREATE_VM));
  EXPECT_EQ(fcntl(vm, F_GETFD), FD_CLOEXEC);
}

TEST_F(Device, MsrIndexListTellsTheCountWhenThereIsNoRoom) {
  MsrList none(0);
  EXPECT_EQ(call(fd_, KVM_GET_MSR_INDEX_LIST, none.data()), -E2BIG);
  ASSERT_GT(none.count(), 0U);
  MsrList enough(none.count());
  EXPECT_EQ(call(fd_, KVM_GET_MSR_INDEX_LIST, enough.data()), 0);
  EXPECT_EQ(enough.count(), none.count());
  EXPECT_NE(enough.entry(0), 0U);
}
TEST_F(Device, MsrFeatureListTellsTheCountWhenThereIsNoRoom) {
  MsrList none(0);
  EXPECT_EQ(call(fd_, KVM_GET_MSR_FEATURE_INDEX_LIST, none.data()), -E2BIG);
  MsrList enough(none.count());
  EXPECT_EQ(call(fd_, KVM_GET_MSR_FEATURE_INDEX_LIST, enough.data()), 0);
}
TEST_F(Device, MsrListOfABadPointerIsEfault) {
  EXPECT_EQ(call(fd_, KVM_GET_MSR_INDEX_LIST, kBadPointer), -EFAULT);
  EXPECT_EQ(call(fd_, KVM_GET_MSR_FEATURE_INDEX_LIST, kBadPointer), -EFAULT);
}
TEST_F(Device, EveryFeatureMsrCanBeRead) {
  MsrList none(0);
  call(fd_, KVM_GET_MSR_FEATURE_INDEX_LIST, none.data());
  MsrList list(none.count());
  ASSERT_EQ(call(fd_, KVM_GET_MSR_FEATURE_INDEX_LIST, list.data()), 0);
  for (u32 i = 0; i < list.count(); ++i) {
    Msrs one(1);
    one.set_entry(0, {.index = list.entry(i), .reserved = 0, .data = 0});
    EXPECT_EQ(call(fd_, KVM_GET_MSRS, one.data()), 1) << std::hex << list.entry(i);
  }
}
TEST_F(Device, ReadingMsrsStopsAtTheFirstThatIsNoFeature) {
  Msrs two(2);
  two.set_entry(0, {.index = 0x12345, .reserved = 0, .data = 0});
  two.set_entry(1, {.index = 0x8b, .reserved = 0, .data = 0});
  EXPECT_EQ(call(fd_, KVM_GET_MSRS, two.data()), 0);
}
TEST_F(Device, ReadingTooManyMsrsIsE2big) {
  Msrs many(256);
  EXPECT_EQ(call(fd_, KVM_GET_MSRS, many.data()), -E2BIG);
}

TEST_F(Device, CpuidWithoutRoomIsE2big) {
  Cpuid none(0);
  EXPECT_EQ(call(fd_, KVM_GET_SUPPORTED_CPUID, none.data()), -E2BIG);
  Cpuid one(1);
  EXPECT_EQ(call(fd_, KVM_GET_SUPPORTED_CPUID, one.data()), -E2BIG);
  EXPECT_EQ(one.count(), 1U) << "unchanged";
}
TEST_F(Device, CpuidSaysHowManyEntriesItWrote) {
  Cpuid table(100);
  ASSERT_EQ(call(fd_, KVM_GET_SUPPORTED_CPUID, table.data()), 0);
  EXPECT_LT(table.count(), 100U);
  EXPECT_EQ(table.entry(0).function, 0U);
}
TEST_F(Device, CpuidRoomMayBeAnyNumber) {
  Cpuid table(300);
  EXPECT_EQ(call(fd_, KVM_GET_SUPPORTED_CPUID, table.data()), 0);
}
TEST_F(Device, CpuidOfABadPointerIsEfault) {
  EXPECT_EQ(call(fd_, KVM_GET_SUPPORTED_CPUID, kBadPointer), -EFAULT);
}
TEST_F(Device, EmulatedCpuidRefusesDirtyPadding) {
  Cpuid table(10);
  EXPECT_EQ(call(fd_, KVM_GET_EMULATED_CPUID, table.data()), 0);
  Cpuid dirty(10);
  kvm_cpuid_entry2 entry{};
  entry.padding[2] = 1;
  dirty.set_entry(9, entry);
  EXPECT_EQ(call(fd_, KVM_GET_EMULATED_CPUID, dirty.data()), -EINVAL);
}

TEST_F(Device, UnknownAttributeIsEnxio) {
  kvm_device_attr attr{};
  attr.group = 7;
  EXPECT_EQ(call(fd_, KVM_HAS_DEVICE_ATTR, &attr), -ENXIO);
  attr.group = 0;
  attr.attr = 99;
  EXPECT_EQ(call(fd_, KVM_GET_DEVICE_ATTR, &attr), -ENXIO);
}
TEST_F(Device, SupportedXcrBitsCanBeRead) {
  u64 value = ~u64{0};
  kvm_device_attr attr{};
  attr.addr = reinterpret_cast<u64>(&value);
  EXPECT_EQ(call(fd_, KVM_HAS_DEVICE_ATTR, &attr), 0);
  EXPECT_EQ(call(fd_, KVM_GET_DEVICE_ATTR, &attr), 0);
  EXPECT_NE(value, ~u64{0});
  attr.addr = kBadPointer;
  EXPECT_EQ(call(fd_, KVM_GET_DEVICE_ATTR, &attr), -EFAULT);
}
TEST_F(Device, MachineCheckCapabilityCanBeRead) {
  u64 value = 0;
  EXPECT_EQ(call(fd_, KVM_X86_GET_MCE_CAP_SUPPORTED, &value), 0);
  EXPECT_EQ(call(fd_, KVM_X86_GET_MCE_CAP_SUPPORTED, kBadPointer), -EFAULT);
}

TEST(Parameters, AreAnsweredForTheModulesThisProcessorHas) {
  using stagetwo::abi_kvm::find_parameter;
  const auto text_of = [](const char* path) {
    stagetwo::FixedString<32> text;
    if (const auto parameter = find_parameter(path)) parameter.show(text);
    return std::string(text.view());
  };
  EXPECT_EQ(text_of("kvm/parameters/force_emulation_prefix"), "0\n");
  EXPECT_EQ(text_of("/sys/module/kvm/parameters/tdp_mmu"), "Y\n");
  EXPECT_EQ(text_of("kvm/parameters/no_such_thing"), "");
  EXPECT_NE(!find_parameter("kvm_amd/parameters/npt"), !find_parameter("kvm_intel/parameters/ept"));
}

}  // namespace
}  // namespace kvm_client
