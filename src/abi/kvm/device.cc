// SPDX-License-Identifier: Apache-2.0
// /dev/kvm itself: what can be asked before there is a VM. Holds no state, so every process may use
// a descriptor of it. kernel file: virt/kvm/kvm_main.c (kvm_dev_ioctl), arch/x86/kvm/x86.c.
#include "abi/kvm/kvm.h"

#include <algorithm>

#include "abi/kvm/capabilities.h"
#include "abi/kvm/client.h"
#include "abi/kvm/cpuid.h"
#include "abi/kvm/each_msr.h"
#include "abi/kvm/guest_memfd.h"
#include "abi/kvm/msr_list.h"
#include "abi/kvm/processor.h"
#include "abi/kvm/vm.h"

namespace stagetwo::abi_kvm {
namespace {

constexpr std::string_view kDeviceKind = "kvm";
constexpr u64 kSupportedMceCap = (u64{1} << 8) | (u64{1} << 24);  // MCG_CTL_P, MCG_SER_P

// The count always goes out, so that a caller learns how much room it needs.
Result<long> index_list(u64 arg, std::span<const u32> indices) {
  const auto asked = ST_TRY(copy_in<u32>(arg));
  const u32 count = static_cast<u32>(indices.size());
  ST_TRY(copy_out(arg, count));
  if (asked < count) return refuse(E2BIG);
  ST_TRY(copy_out_bytes(arg + sizeof(kvm_msr_list), indices.data(), indices.size_bytes()));
  return 0;
}

Result<void> check_padding(u64 entries, u32 count) {
  for (u32 i = 0; i < count; ++i) {
    const auto entry = copy_in<kvm_cpuid_entry2>(entries + u64{i} * sizeof(kvm_cpuid_entry2));
    if (!entry) return refuse(EINVAL);
    for (const u32 word : entry->padding)
      if (word != 0) return refuse(EINVAL);
  }
  return {};
}

Result<long> cpuid_list(u64 arg, bool emulated) {
  auto header = ST_TRY(copy_in<CountedHeader>(arg));
  const u64 entries = arg + sizeof(kvm_cpuid2);
  if (header.count < 1) return refuse(E2BIG);
  const u32 room = std::min(header.count, kMaxCpuidEntries);
  if (emulated) ST_TRY(check_padding(entries, room));
  const CpuidTable table = emulated ? emulated_cpuid() : supported_cpuid();
  const auto rows = table.entries();
  if (rows.size() > room) return refuse(E2BIG);
  ST_TRY(copy_out_bytes(entries, rows.data(), rows.size_bytes()));
  header.count = static_cast<u32>(rows.size());
  ST_TRY(copy_out(arg, header));
  return 0;
}

// KVM_GET_MSRS on the device: feature MSRs, until the first that is none. An MSR that is listed for
// vCPUs is no refusal either, and reads as 0.
Result<long> feature_msrs(u64 arg) {
  return each_msr(arg, true, [](kvm_msr_entry& entry) {
    const auto value = feature_msr(entry.index);
    if (!value && !is_listed_msr(entry.index)) return false;
    entry.data = value.value_or(0);
    return true;
  });
}

Result<long> device_attr(u64 arg, bool get) {
  const auto attr = ST_TRY(copy_in<kvm_device_attr>(arg));
  if (attr.group != KVM_X86_GRP_SYSTEM || attr.attr != KVM_X86_XCOMP_GUEST_SUPP)
    return refuse(ENXIO);
  const u64 extended_features = 0;  // nothing beyond x87 and SSE
  if (get) ST_TRY(copy_out(attr.addr, extended_features));
  return 0;
}

Result<long> device_ioctl(u32 request, u64 arg) {
  switch (request) {
    case KVM_GET_API_VERSION:
      if (arg != 0) return refuse(EINVAL);
      return KVM_API_VERSION;
    case KVM_CREATE_VM:
      return Vm::open(arg);
    case KVM_CHECK_EXTENSION:
      return check_extension(arg);
    case KVM_GET_VCPU_MMAP_SIZE:
      if (arg != 0) return refuse(EINVAL);
      return static_cast<long>(Processor::kRunAreaSize);
    case KVM_GET_MSR_INDEX_LIST:
      return index_list(arg, msr_index_list());
    case KVM_GET_MSR_FEATURE_INDEX_LIST:
      return index_list(arg, feature_msr_list());
    case KVM_GET_MSRS:
      return feature_msrs(arg);
    case KVM_GET_SUPPORTED_CPUID:
      return cpuid_list(arg, false);
    case KVM_GET_EMULATED_CPUID:
      return cpuid_list(arg, true);
    case KVM_X86_GET_MCE_CAP_SUPPORTED:
      ST_TRY(copy_out(arg, kSupportedMceCap));
      return 0;
    case KVM_GET_DEVICE_ATTR:
      return device_attr(arg, true);
    case KVM_HAS_DEVICE_ATTR:
      return device_attr(arg, false);
    default:
      return refuse(EINVAL);
  }
}

class DeviceFile final : public host::Description {
 public:
  long ioctl(int, unsigned long request, unsigned long arg) override {
    return answer(device_ioctl(static_cast<u32>(request), arg));
  }
};

// What stats readers in other processes hold: the contents answer, nothing else does.
class ForeignStatsFile final : public host::Description {
 public:
  long ioctl(int, unsigned long, unsigned long) override { return -ENOTTY; }
  [[nodiscard]] bool native_read() const override { return true; }
};

host::DescriptorSpec device_spec(int flags) {
  host::DescriptorSpec spec = host::shared_device(host::kMiscMajor, kMinor, flags);
  spec.wants_last_close = false;
  spec.seeks = true;  // noop_llseek
  return spec;
}

template <typename File>
Box<host::Description> attached() {
  auto file = make_box<File>("abi.attach");
  if (!file) return {};
  return std::move(*file);
}

}  // namespace

Result<int> open_device(int flags) {
  auto backing = ST_TRY(host::Backing::create(kDeviceKind.data(), 0));
  auto file = ST_TRY(make_box<DeviceFile>("abi.device"));
  return host::publish(std::move(file), std::move(backing), device_spec(flags));
}

Box<host::Description> attach(std::string_view kind, host::DescriptorSpec* spec) {
  if (kind == kDeviceKind) {
    *spec = device_spec(O_RDWR | O_CLOEXEC);
    return attached<DeviceFile>();
  }
  if (kind == "kvm-stats") {
    *spec = {.home = host::StateHome::kDescription, .open_flags = O_RDONLY | O_CLOEXEC};
    return attached<ForeignStatsFile>();
  }
  return attach_guest_memfd(kind, spec);
}

}  // namespace stagetwo::abi_kvm
