// SPDX-License-Identifier: Apache-2.0
// Sizes and offsets of uapi.h, as Linux 6.12 on x86-64 has them. A failure here means that a client
// compiled against the kernel's header would misread what we write.
#include <cstddef>

#include "abi/kvm/uapi.h"

namespace stagetwo::abi_kvm {
#define ST_SIZE(type, bytes) static_assert(sizeof(struct type) == (bytes), #type)
#define ST_AT(type, member, at) \
  static_assert(offsetof(struct type, member) == (at), #type "." #member)

ST_SIZE(kvm_clear_dirty_log, 24);
ST_SIZE(kvm_clock_data, 48);
ST_SIZE(kvm_coalesced_mmio, 24);
ST_SIZE(kvm_coalesced_mmio_ring, 8);
ST_SIZE(kvm_coalesced_mmio_zone, 16);
ST_SIZE(kvm_cpuid, 8);
ST_SIZE(kvm_cpuid2, 8);
ST_SIZE(kvm_cpuid_entry, 24);
ST_SIZE(kvm_cpuid_entry2, 40);
ST_SIZE(kvm_create_device, 12);
ST_SIZE(kvm_create_guest_memfd, 64);
ST_SIZE(kvm_debug_exit_arch, 32);
ST_SIZE(kvm_debugregs, 128);
ST_SIZE(kvm_device_attr, 24);
ST_SIZE(kvm_dirty_gfn, 16);
ST_SIZE(kvm_dirty_log, 16);
ST_SIZE(kvm_dtable, 16);
ST_SIZE(kvm_enable_cap, 104);
ST_SIZE(kvm_enc_region, 16);
ST_SIZE(kvm_fpu, 416);
ST_SIZE(kvm_guest_debug, 72);
ST_SIZE(kvm_guest_debug_arch, 64);
ST_SIZE(kvm_hyperv_eventfd, 24);
ST_SIZE(kvm_hyperv_exit, 56);
ST_SIZE(kvm_interrupt, 4);
ST_SIZE(kvm_ioapic_state, 216);
ST_SIZE(kvm_ioeventfd, 64);
ST_SIZE(kvm_irq_level, 8);
ST_SIZE(kvm_irq_routing, 8);
ST_SIZE(kvm_irq_routing_entry, 48);
ST_SIZE(kvm_irq_routing_hv_sint, 8);
ST_SIZE(kvm_irq_routing_irqchip, 8);
ST_SIZE(kvm_irq_routing_msi, 16);
ST_SIZE(kvm_irq_routing_xen_evtchn, 12);
ST_SIZE(kvm_irqchip, 520);
ST_SIZE(kvm_irqfd, 32);
ST_SIZE(kvm_lapic_state, 1024);
ST_SIZE(kvm_memory_attributes, 32);
ST_SIZE(kvm_mp_state, 4);
ST_SIZE(kvm_msi, 32);
ST_SIZE(kvm_msr_entry, 16);
ST_SIZE(kvm_msr_filter, 392);
ST_SIZE(kvm_msr_filter_range, 24);
ST_SIZE(kvm_msr_list, 4);
ST_SIZE(kvm_msrs, 8);
ST_SIZE(kvm_nested_state, 128);
ST_SIZE(kvm_pic_state, 16);
ST_SIZE(kvm_pit_channel_state, 24);
ST_SIZE(kvm_pit_config, 64);
ST_SIZE(kvm_pit_state, 72);
ST_SIZE(kvm_pit_state2, 112);
ST_SIZE(kvm_pmu_event_filter, 32);
ST_SIZE(kvm_pre_fault_memory, 64);
ST_SIZE(kvm_regs, 144);
ST_SIZE(kvm_reinject_control, 32);
ST_SIZE(kvm_run, 2352);
ST_SIZE(kvm_segment, 24);
ST_SIZE(kvm_sev_cmd, 24);
ST_SIZE(kvm_signal_mask, 4);
ST_SIZE(kvm_sregs, 312);
ST_SIZE(kvm_sregs2, 320);
ST_SIZE(kvm_stats_desc, 16);
ST_SIZE(kvm_stats_header, 24);
ST_SIZE(kvm_svm_nested_state_data, 4096);
ST_SIZE(kvm_svm_nested_state_hdr, 8);
ST_SIZE(kvm_sync_regs, 520);
ST_SIZE(kvm_tpr_access_ctl, 40);
ST_SIZE(kvm_translation, 24);
ST_SIZE(kvm_userspace_memory_region, 32);
ST_SIZE(kvm_userspace_memory_region2, 160);
ST_SIZE(kvm_vapic_addr, 8);
ST_SIZE(kvm_vcpu_events, 64);
ST_SIZE(kvm_vmx_nested_state_data, 8192);
ST_SIZE(kvm_vmx_nested_state_hdr, 32);
ST_SIZE(kvm_x86_mce, 64);
ST_SIZE(kvm_xcr, 16);
ST_SIZE(kvm_xcrs, 392);
ST_SIZE(kvm_xen_exit, 80);
ST_SIZE(kvm_xen_hvm_attr, 72);
ST_SIZE(kvm_xen_hvm_config, 56);
ST_SIZE(kvm_xen_vcpu_attr, 72);
ST_SIZE(kvm_xsave, 4096);

ST_AT(kvm_run, immediate_exit, 1);
ST_AT(kvm_run, exit_reason, 8);
ST_AT(kvm_run, ready_for_interrupt_injection, 12);
ST_AT(kvm_run, if_flag, 13);
ST_AT(kvm_run, flags, 14);
ST_AT(kvm_run, cr8, 16);
ST_AT(kvm_run, apic_base, 24);
ST_AT(kvm_run, io.direction, 32);
ST_AT(kvm_run, io.port, 34);
ST_AT(kvm_run, io.count, 36);
ST_AT(kvm_run, io.data_offset, 40);
ST_AT(kvm_run, mmio.phys_addr, 32);
ST_AT(kvm_run, mmio.data, 40);
ST_AT(kvm_run, mmio.len, 48);
ST_AT(kvm_run, mmio.is_write, 52);
ST_AT(kvm_run, hypercall.args, 40);
ST_AT(kvm_run, hypercall.ret, 88);
ST_AT(kvm_run, hypercall.flags, 96);
ST_AT(kvm_run, internal.data, 40);
ST_AT(kvm_run, emulation_failure.insn_size, 48);
ST_AT(kvm_run, emulation_failure.insn_bytes, 49);
ST_AT(kvm_run, msr.reason, 40);
ST_AT(kvm_run, msr.data, 48);
ST_AT(kvm_run, memory_fault.gpa, 40);
ST_AT(kvm_run, memory_fault.size, 48);
ST_AT(kvm_run, kvm_valid_regs, 288);
ST_AT(kvm_run, kvm_dirty_regs, 296);
ST_AT(kvm_run, s, 304);
ST_AT(kvm_signal_mask, sigset, 4);
ST_AT(kvm_vcpu_events, sipi_vector, 16);
ST_AT(kvm_vcpu_events, smi, 24);
ST_AT(kvm_vcpu_events, triple_fault, 28);
ST_AT(kvm_vcpu_events, exception_has_payload, 55);
ST_AT(kvm_fpu, xmm, 152);
ST_AT(kvm_fpu, mxcsr, 408);
ST_AT(kvm_sregs, cr0, 224);
ST_AT(kvm_sregs, efer, 264);
ST_AT(kvm_sregs, interrupt_bitmap, 280);
ST_AT(kvm_sregs2, pdptrs, 288);
ST_AT(kvm_stats_desc, name, 16);
ST_AT(kvm_coalesced_mmio_ring, coalesced_mmio, 8);
ST_AT(kvm_msr_filter_range, bitmap, 16);
ST_AT(kvm_userspace_memory_region2, guest_memfd, 40);
ST_AT(kvm_irqchip, chip, 8);
ST_AT(kvm_ioapic_state, redirtbl, 24);

static_assert(KVM_GET_TSC_KHZ == 0xaea3 && KVM_ENABLE_CAP == 0x4068aea3, "same type and number");
static_assert(KVM_GET_SUPPORTED_CPUID == 0xc008ae05 && KVM_SET_USER_MEMORY_REGION2 == 0x40a0ae49);
static_assert(KVM_RUN == 0xae80 && KVM_GET_SREGS == 0x8138ae83 && KVM_GET_STATS_FD == 0xaece);

#undef ST_SIZE
#undef ST_AT
}  // namespace stagetwo::abi_kvm
