// SPDX-License-Identifier: Apache-2.0
#include "abi/kvm/capabilities.h"

#include <sched.h>

#include <algorithm>
#include <array>

#include "abi/kvm/level.h"
#include "abi/kvm/secure_vm.h"
#include "abi/kvm/uapi.h"
#include "base/sys.h"

#include <sys/syscall.h>

namespace stagetwo::abi_kvm {
namespace {

constexpr int kOnlineCpus = -1;  // the answer is a property of this machine
constexpr int kOfLevel = -2;     // the answer is one of the ABI level
constexpr int kSecure = -3;      // 1 where guests may become secure

constexpr std::array kTable = {
    Capability{0, "IRQCHIP", 1, Enable::kNone, ""},
    Capability{1, "HLT", 1, Enable::kNone, ""},
    Capability{2, "MMU_SHADOW_CACHE_CONTROL", 1, Enable::kNone, "there is no shadow cache"},
    Capability{3, "USER_MEMORY", 1, Enable::kNone, ""},
    Capability{4, "SET_TSS_ADDR", 1, Enable::kNone, "the address is not needed and not used"},
    Capability{7, "EXT_CPUID", 1, Enable::kNone, ""},
    Capability{9, "NR_VCPUS", kOnlineCpus, Enable::kNone, "online processors"},
    Capability{10, "NR_MEMSLOTS", kUserMemSlots, Enable::kNone, ""},
    Capability{12, "NOP_IO_DELAY", 1, Enable::kNone, ""},
    Capability{14, "MP_STATE", 1, Enable::kNone, ""},
    Capability{15, "COALESCED_MMIO", KVM_COALESCED_MMIO_PAGE_OFFSET, Enable::kNone, ""},
    Capability{16, "SYNC_MMU", 1, Enable::kNone, ""},
    Capability{21, "DESTROY_MEMORY_REGION_WORKS", 1, Enable::kNone, ""},
    Capability{22, "USER_NMI", 1, Enable::kNone, ""},
    Capability{23, "SET_GUEST_DEBUG", 1, Enable::kNone, ""},
    Capability{25, "IRQ_ROUTING", kMaxIrqRoutes, Enable::kNone, "routes"},
    Capability{26, "IRQ_INJECT_STATUS", 1, Enable::kNone, ""},
    Capability{30, "JOIN_MEMORY_REGIONS_WORKS", 1, Enable::kNone, ""},
    Capability{31, "MCE", kMaxMceBanks, Enable::kNone, "banks"},
    Capability{34, "SET_BOOT_CPU_ID", 1, Enable::kNone, ""},
    Capability{37, "SET_IDENTITY_MAP_ADDR", 1, Enable::kNone,
               "the address is not needed and not used"},
    Capability{39, "ADJUST_CLOCK", kClockFlags, Enable::kNone, "flags of KVM_GET_CLOCK"},
    Capability{40, "INTERNAL_ERROR_DATA", 1, Enable::kNone, ""},
    Capability{41, "VCPU_EVENTS", 1, Enable::kNone, ""},
    Capability{47, "PCI_SEGMENT", 1, Enable::kNone, ""},
    Capability{50, "DEBUGREGS", 1, Enable::kNone, ""},
    Capability{51, "X86_ROBUST_SINGLESTEP", 1, Enable::kNone, ""},
    Capability{54, "ENABLE_CAP", 1, Enable::kNone, ""},
    Capability{55, "XSAVE", 1, Enable::kNone, "x87 and SSE parts"},
    Capability{61, "GET_TSC_KHZ", 1, Enable::kNone, ""},
    Capability{66, "MAX_VCPUS", kMaxVcpus, Enable::kNone, ""},
    Capability{72, "TSC_DEADLINE_TIMER", 1, Enable::kNone, ""},
    Capability{74, "SYNC_REGS", KVM_SYNC_X86_VALID_FIELDS, Enable::kNone, ""},
    Capability{77, "SIGNAL_MSI", 1, Enable::kNone, ""},
    Capability{81, "READONLY_MEM", 1, Enable::kNone, ""},
    Capability{89, "DEVICE_CTRL", 1, Enable::kNone,
               "no device type is built: KVM_CREATE_DEVICE is ENODEV"},
    Capability{95, "EXT_EMUL_CPUID", 1, Enable::kNone, ""},
    Capability{97, "IOAPIC_POLARITY_IGNORED", 1, Enable::kNone, ""},
    Capability{98, "ENABLE_CAP_VM", 1, Enable::kNone, ""},
    Capability{105, "CHECK_EXTENSION_VM", 1, Enable::kNone, ""},
    Capability{116, "DISABLE_QUIRKS", 1, Enable::kVm, ""},
    Capability{128, "MAX_VCPU_ID", kMaxVcpuIds, Enable::kVm, ""},
    Capability{136, "IMMEDIATE_EXIT", 1, Enable::kNone, ""},
    Capability{143, "X86_DISABLE_EXITS", kDisableExits, Enable::kVm, "HLT, PAUSE, CSTATE"},
    Capability{153, "GET_MSR_FEATURES", 1, Enable::kNone, ""},
    Capability{162, "COALESCED_PIO", 1, Enable::kNone, ""},
    Capability{164, "EXCEPTION_PAYLOAD", 1, Enable::kVm, ""},
    Capability{168, "MANUAL_DIRTY_LOG_PROTECT2", 3, Enable::kVm, "manual protect, initially set"},
    Capability{181, "PPC_SECURE_GUEST", kSecure, Enable::kVm, "POWER's; 1 with `--secure`"},
    Capability{184, "LAST_CPU", 1, Enable::kNone, ""},
    Capability{185, "SMALLER_MAXPHYADDR", 1, Enable::kNone, ""},
    Capability{188, "X86_USER_SPACE_MSR", 1, Enable::kVm, ""},
    Capability{189, "X86_MSR_FILTER", 1, Enable::kNone, ""},
    Capability{192, "DIRTY_LOG_RING", kMaxDirtyRing, Enable::kVm, "bytes; before the first vCPU"},
    Capability{195, "SET_GUEST_DEBUG2", kGuestDebugMask, Enable::kNone, ""},
    Capability{200, "SREGS2", 1, Enable::kNone, ""},
    Capability{201, "EXIT_HYPERCALL", kHypercallMask, Enable::kVm, "KVM_HC_MAP_GPA_RANGE"},
    Capability{203, "BINARY_STATS_FD", 1, Enable::kNone, ""},
    Capability{204, "EXIT_ON_EMULATION_FAILURE", 1, Enable::kVm, ""},
    Capability{208, "XSAVE2", sizeof(kvm_xsave), Enable::kNone, "bytes of KVM_GET_XSAVE2"},
    Capability{209, "SYS_ATTRIBUTES", 1, Enable::kNone, ""},
    Capability{213, "DISABLE_QUIRKS2", kValidQuirks, Enable::kVm, ""},
    Capability{215, "SYSTEM_EVENT_DATA", 1, Enable::kNone, ""},
    Capability{218, "X86_TRIPLE_FAULT_EVENT", 1, Enable::kVm, ""},
    Capability{220, "VM_DISABLE_NX_HUGE_PAGES", 1, Enable::kVm, "needs CAP_SYS_BOOT"},
    Capability{223, "DIRTY_LOG_RING_ACQ_REL", kMaxDirtyRing, Enable::kVm, "as 192"},
    Capability{231, "USER_MEMORY2", 1, Enable::kNone, ""},
    Capability{232, "MEMORY_FAULT_INFO", 1, Enable::kNone, ""},
    Capability{233, "MEMORY_ATTRIBUTES", KVM_MEMORY_ATTRIBUTE_PRIVATE, Enable::kNone,
               "private; 0 of a default VM"},
    Capability{234, "GUEST_MEMFD", 1, Enable::kNone, "of a default VM 0 with --abi=6.12"},
    Capability{235, "VM_TYPES", 1 << KVM_X86_DEFAULT_VM | 1 << KVM_X86_SW_PROTECTED_VM,
               Enable::kNone, "default and software-protected VM"},
    Capability{236, "PRE_FAULT_MEMORY", 1, Enable::kNone, ""},
    Capability{237, "X86_APIC_BUS_CYCLES_NS", 1, Enable::kVm, "the default"},
    Capability{238, "X86_GUEST_MODE", 1, Enable::kNone, ""},
    Capability{244, "GUEST_MEMFD_FLAGS", kOfLevel, Enable::kNone,
               "MMAP, INIT_SHARED with --abi=6.18, 0 with 6.12"},
};

constexpr bool ordered() {
  return std::ranges::adjacent_find(kTable, [](const Capability& a, const Capability& b) {
           return a.number >= b.number;
         }) == kTable.end();
}
static_assert(ordered(), "the table is searched by halves");

int online_cpus() {
  u64 mask[kMaxVcpus / 64] = {};
  const long bytes = sys::call(SYS_sched_getaffinity, 0, sizeof(mask), sys::arg(mask));
  if (bytes <= 0) return 1;
  int count = 0;
  for (const u64 word : mask) count += __builtin_popcountll(word);
  return std::max(count, 1);
}

}  // namespace

std::span<const Capability> capabilities() {
  return kTable;
}

int check_extension(u64 number) {
  const auto* row = std::ranges::lower_bound(kTable, number, {}, &Capability::number);
  if (row == kTable.end() || row->number != number) return 0;
  if (row->value == kOfLevel)
    return level().says_memfd_flags ? static_cast<int>(level().memfd_flags) : 0;
  if (row->value == kSecure) return SecureVm::offered() ? 1 : 0;
  return row->value == kOnlineCpus ? online_cpus() : row->value;
}

int check_vm_extension(u64 number, bool private_memory, bool can_be_secure) {
  switch (number) {
    case KVM_CAP_MEMORY_ATTRIBUTES:
      return private_memory ? int{KVM_MEMORY_ATTRIBUTE_PRIVATE} : 0;
    case KVM_CAP_GUEST_MEMFD:
      return private_memory || level().memfd_for_all ? 1 : 0;
    case KVM_CAP_GUEST_MEMFD_FLAGS:
      if (!level().says_memfd_flags || !private_memory) break;
      return static_cast<int>(level().private_memfd_flags);
    case KVM_CAP_PPC_SECURE_GUEST:
      return can_be_secure ? 1 : 0;
    default:
      break;
  }
  return check_extension(number);
}

}  // namespace stagetwo::abi_kvm
