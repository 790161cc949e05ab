// SPDX-License-Identifier: Apache-2.0
#include "abi/kvm/requests.h"

#include <array>

#include "abi/kvm/uapi.h"

namespace stagetwo::abi_kvm {
namespace {

#define ST_REQUEST(name, on, remark)         \
  Request {                                  \
    KVM_##name, "KVM_" #name, On::on, remark \
  }
constexpr std::array kRequests = {
    ST_REQUEST(GET_API_VERSION, kDevice, ""),
    ST_REQUEST(CREATE_VM, kDevice, ""),
    ST_REQUEST(GET_MSR_INDEX_LIST, kDevice, ""),
    ST_REQUEST(CHECK_EXTENSION, kDevice, ""),
    ST_REQUEST(GET_VCPU_MMAP_SIZE, kDevice, ""),
    ST_REQUEST(GET_SUPPORTED_CPUID, kDevice, ""),
    ST_REQUEST(GET_EMULATED_CPUID, kDevice, ""),
    ST_REQUEST(GET_MSR_FEATURE_INDEX_LIST, kDevice, ""),
    ST_REQUEST(GET_MSRS, kDevice, ""),
    ST_REQUEST(X86_GET_MCE_CAP_SUPPORTED, kDevice, ""),
    ST_REQUEST(GET_DEVICE_ATTR, kDevice, ""),
    ST_REQUEST(HAS_DEVICE_ATTR, kDevice, ""),
    ST_REQUEST(CREATE_VCPU, kVm, ""),
    ST_REQUEST(CHECK_EXTENSION, kVm, ""),
    ST_REQUEST(ENABLE_CAP, kVm, ""),
    ST_REQUEST(SET_USER_MEMORY_REGION, kVm, ""),
    ST_REQUEST(SET_USER_MEMORY_REGION2, kVm, ""),
    ST_REQUEST(SET_MEMORY_ATTRIBUTES, kVm, ""),
    ST_REQUEST(CREATE_GUEST_MEMFD, kVm, ""),
    ST_REQUEST(GET_DIRTY_LOG, kVm, ""),
    ST_REQUEST(CLEAR_DIRTY_LOG, kVm, ""),
    ST_REQUEST(RESET_DIRTY_RINGS, kVm, ""),
    ST_REQUEST(SET_NR_MMU_PAGES, kVm, ""),
    ST_REQUEST(SET_TSS_ADDR, kVm, ""),
    ST_REQUEST(SET_IDENTITY_MAP_ADDR, kVm, ""),
    ST_REQUEST(CREATE_IRQCHIP, kVm, ""),
    ST_REQUEST(GET_IRQCHIP, kVm, ""),
    ST_REQUEST(SET_IRQCHIP, kVm, ""),
    ST_REQUEST(IRQ_LINE, kVm, ""),
    ST_REQUEST(IRQ_LINE_STATUS, kVm, ""),
    ST_REQUEST(SIGNAL_MSI, kVm, ""),
    ST_REQUEST(SET_GSI_ROUTING, kVm, ""),
    ST_REQUEST(CREATE_PIT, kVm, "no timer is built: ENOENT"),
    ST_REQUEST(CREATE_PIT2, kVm, "no timer is built: ENOENT"),
    ST_REQUEST(GET_PIT, kVm, "no timer is built: ENXIO"),
    ST_REQUEST(SET_PIT, kVm, "no timer is built: ENXIO"),
    ST_REQUEST(GET_PIT2, kVm, "no timer is built: ENXIO"),
    ST_REQUEST(SET_PIT2, kVm, "no timer is built: ENXIO"),
    ST_REQUEST(REINJECT_CONTROL, kVm, "no timer is built: ENXIO"),
    ST_REQUEST(REGISTER_COALESCED_MMIO, kVm, ""),
    ST_REQUEST(UNREGISTER_COALESCED_MMIO, kVm, ""),
    ST_REQUEST(SET_BOOT_CPU_ID, kVm, ""),
    ST_REQUEST(PPC_SVM_OFF, kVm, "POWER's; with `--secure`, else ENOTTY"),
    ST_REQUEST(SET_CLOCK, kVm, ""),
    ST_REQUEST(GET_CLOCK, kVm, ""),
    ST_REQUEST(SET_TSC_KHZ, kVm, ""),
    ST_REQUEST(GET_TSC_KHZ, kVm, ""),
    ST_REQUEST(X86_SET_MSR_FILTER, kVm, ""),
    ST_REQUEST(CREATE_DEVICE, kVm, "no device type is built: ENODEV"),
    ST_REQUEST(GET_STATS_FD, kVm, ""),
    ST_REQUEST(RUN, kVcpu, ""),
    ST_REQUEST(GET_REGS, kVcpu, ""),
    ST_REQUEST(SET_REGS, kVcpu, ""),
    ST_REQUEST(GET_SREGS, kVcpu, ""),
    ST_REQUEST(SET_SREGS, kVcpu, ""),
    ST_REQUEST(GET_SREGS2, kVcpu, ""),
    ST_REQUEST(SET_SREGS2, kVcpu, ""),
    ST_REQUEST(GET_FPU, kVcpu, ""),
    ST_REQUEST(SET_FPU, kVcpu, ""),
    ST_REQUEST(GET_XSAVE, kVcpu, ""),
    ST_REQUEST(GET_XSAVE2, kVcpu, ""),
    ST_REQUEST(SET_XSAVE, kVcpu, ""),
    ST_REQUEST(GET_XCRS, kVcpu, ""),
    ST_REQUEST(SET_XCRS, kVcpu, "no XSAVE in the guest: EINVAL"),
    ST_REQUEST(GET_MSRS, kVcpu, ""),
    ST_REQUEST(SET_MSRS, kVcpu, ""),
    ST_REQUEST(SET_CPUID, kVcpu, ""),
    ST_REQUEST(SET_CPUID2, kVcpu, ""),
    ST_REQUEST(GET_CPUID2, kVcpu, ""),
    ST_REQUEST(GET_MP_STATE, kVcpu, ""),
    ST_REQUEST(SET_MP_STATE, kVcpu, ""),
    ST_REQUEST(GET_VCPU_EVENTS, kVcpu, ""),
    ST_REQUEST(SET_VCPU_EVENTS, kVcpu, ""),
    ST_REQUEST(GET_DEBUGREGS, kVcpu, ""),
    ST_REQUEST(SET_DEBUGREGS, kVcpu, ""),
    ST_REQUEST(SET_GUEST_DEBUG, kVcpu, ""),
    ST_REQUEST(SET_SIGNAL_MASK, kVcpu, ""),
    ST_REQUEST(GET_LAPIC, kVcpu, ""),
    ST_REQUEST(SET_LAPIC, kVcpu, ""),
    ST_REQUEST(INTERRUPT, kVcpu, ""),
    ST_REQUEST(NMI, kVcpu, ""),
    ST_REQUEST(TRANSLATE, kVcpu, ""),
    ST_REQUEST(X86_SETUP_MCE, kVcpu, ""),
    ST_REQUEST(X86_SET_MCE, kVcpu, ""),
    ST_REQUEST(SET_TSC_KHZ, kVcpu, ""),
    ST_REQUEST(GET_TSC_KHZ, kVcpu, ""),
    ST_REQUEST(GET_STATS_FD, kVcpu, ""),
    ST_REQUEST(HAS_DEVICE_ATTR, kVcpu, "no attribute: ENXIO"),
    ST_REQUEST(GET_DEVICE_ATTR, kVcpu, "no attribute: ENXIO"),
    ST_REQUEST(SET_DEVICE_ATTR, kVcpu, "no attribute: ENXIO"),
    ST_REQUEST(PRE_FAULT_MEMORY, kVcpu, ""),
    ST_REQUEST(ENABLE_CAP, kVcpu, "no capability of a vCPU is offered: EINVAL"),
};
#undef ST_REQUEST

}  // namespace

std::span<const Request> requests() {
  return kRequests;
}

}  // namespace stagetwo::abi_kvm
