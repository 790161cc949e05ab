// SPDX-License-Identifier: Apache-2.0
// Settings of a VM: KVM_ENABLE_CAP and the requests that set one value.
#include "abi/kvm/vm.h"

#include <linux/capability.h>

#include "abi/kvm/capabilities.h"
#include "abi/kvm/client.h"
#include "abi/kvm/host_cpu.h"
#include "abi/kvm/secure_vm.h"
#include "host/capable.h"

namespace stagetwo::abi_kvm {

Result<long> Vm::enable_cap(u64 arg) {
  return enable(ST_TRY(copy_in<kvm_enable_cap>(arg)));
}

Result<long> Vm::enable_manual_dirty_log(const kvm_enable_cap& cap) {
  u64 allowed = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;
  if ((cap.args[0] & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE) != 0)
    allowed |= KVM_DIRTY_LOG_INITIALLY_SET;
  if (cap.flags != 0 || (cap.args[0] & ~allowed) != 0) return refuse(EINVAL);
  memory_->slots().set_dirty_protect(
      {.manual = (cap.args[0] & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE) != 0,
       .initially_set = (cap.args[0] & KVM_DIRTY_LOG_INITIALLY_SET) != 0});
  return 0;
}

// The flags of the request are not looked at, and of the size only the low half: as in the kernel.
Result<long> Vm::enable_dirty_rings(u32 bytes) {
  ST_TRY(stage2::DirtyRing::check_size(bytes));
  sync::MutexGuard guard(lock_);
  if (dirty_ring_size_.load(sync::kRelaxed) != 0 || created_ != 0) return refuse(EINVAL);
  memory_->slots().use_dirty_rings();
  dirty_ring_size_.store(bytes, sync::kRelaxed);
  return 0;
}

// The limit is set once; below the boot processor's id it makes no sense.
Result<long> Vm::enable_max_vcpu_id(u64 limit) {
  if (limit > kMaxVcpuIds) return refuse(EINVAL);
  sync::MutexGuard guard(lock_);
  if (boot_cpu_id_ > limit) return refuse(EINVAL);
  if (max_vcpu_ids_ == limit) return 0;
  if (max_vcpu_ids_ != 0) return refuse(EINVAL);
  max_vcpu_ids_ = static_cast<u32>(limit);
  return 0;
}

Result<long> Vm::enable_no_nx_pages(u64 arg) {
  if (!host::capable(CAP_SYS_BOOT)) return refuse(EPERM);
  if (arg != 0) return refuse(EINVAL);
  sync::MutexGuard guard(lock_);
  if (created_ != 0) return refuse(EINVAL);
  memory_->disable_nx_huge_pages();
  return 0;
}

// Analogue: kvm_memslot_flush_zap_all (kernel file: mmu.c).
void Vm::choose_slot_zap() {
  memory_->set_slot_zap_all(type_ == KVM_X86_DEFAULT_VM &&
                            (policy_.disabled_quirks & KVM_X86_QUIRK_SLOT_ZAP_ALL) == 0);
}

Result<long> Vm::enable(const kvm_enable_cap& cap) {
  if (cap.cap == KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) return enable_manual_dirty_log(cap);
  if (cap.cap == KVM_CAP_DIRTY_LOG_RING || cap.cap == KVM_CAP_DIRTY_LOG_RING_ACQ_REL)
    return enable_dirty_rings(static_cast<u32>(cap.args[0]));
  if (cap.flags != 0) return refuse(EINVAL);
  const u64 value = cap.args[0];
  switch (cap.cap) {
    case KVM_CAP_DISABLE_QUIRKS2:
      if ((value & ~kValidQuirks) != 0) return refuse(EINVAL);
      [[fallthrough]];
    case KVM_CAP_DISABLE_QUIRKS: {
      sync::MutexGuard guard(lock_);
      write_once(policy_.disabled_quirks, policy_.disabled_quirks | (value & kValidQuirks));
      choose_slot_zap();
      return 0;
    }
    case KVM_CAP_X86_DISABLE_EXITS:
      if ((value & ~u64{KVM_X86_DISABLE_VALID_EXITS}) != 0) return refuse(EINVAL);
      write_once(policy_.hlt_in_guest, policy_.hlt_in_guest | (value & kDisableExits));
      return 0;
    case KVM_CAP_EXCEPTION_PAYLOAD:
      exception_payload_.store(value != 0);
      return 0;
    case KVM_CAP_X86_TRIPLE_FAULT_EVENT:
      triple_fault_event_.store(value != 0);
      return 0;
    case KVM_CAP_X86_USER_SPACE_MSR:
      if ((value & ~u64{KVM_MSR_EXIT_REASON_VALID_MASK}) != 0) return refuse(EINVAL);
      write_once(policy_.msr_exit_reasons, static_cast<u32>(value));
      return 0;
    case KVM_CAP_EXIT_HYPERCALL:
      if ((value & ~kHypercallMask) != 0) return refuse(EINVAL);
      write_once(policy_.hypercall_exits, value);
      return 0;
    case KVM_CAP_EXIT_ON_EMULATION_FAILURE:
      if ((value & ~u64{1}) != 0) return refuse(EINVAL);
      write_once(policy_.exit_on_emulation_failure, value != 0);
      return 0;
    case KVM_CAP_PPC_SECURE_GUEST:
      if (!secure_) return refuse(EINVAL);
      ST_TRY(secure_->enable());
      return 0;
    case KVM_CAP_MAX_VCPU_ID:
      return enable_max_vcpu_id(value);
    case KVM_CAP_X86_APIC_BUS_CYCLES_NS:
      return enable_apic_bus_cycle(value);
    case KVM_CAP_VM_DISABLE_NX_HUGE_PAGES:
      return enable_no_nx_pages(value);
    default:
      return refuse(EINVAL);
  }
}

Result<long> Vm::set_boot_cpu_id(u64 id) {
  sync::MutexGuard guard(lock_);
  if (created_ != 0) return refuse(EBUSY);
  if (id > kMaxVcpuIds || (max_vcpu_ids_ != 0 && id > max_vcpu_ids_)) return refuse(EINVAL);
  boot_cpu_id_ = static_cast<u32>(id);
  return 0;
}

// The kernel needs the address on processors that cannot run real mode; nothing here does.
Result<long> Vm::set_identity_map(u64 arg) {
  sync::MutexGuard guard(lock_);
  if (created_ != 0) return refuse(EINVAL);
  ST_TRY(copy_in<u64>(arg));
  return 0;
}

Result<long> Vm::set_tsc_khz(u64 khz) {
  const auto wanted = static_cast<u32>(khz);
  write_once(policy_.tsc_khz, wanted != 0 ? wanted : host_tsc_khz());
  return 0;
}

Result<long> Vm::get_clock(u64 arg) {
  ST_TRY(copy_out(arg, clock_.get()));
  return 0;
}

Result<long> Vm::set_clock(u64 arg) {
  const auto data = ST_TRY(copy_in<kvm_clock_data>(arg));
  sync::MutexGuard guard(lock_);
  ST_TRY(clock_.set(data));
  return 0;
}

Result<long> Vm::enable_apic_bus_cycle(u64 ns) {
  u64 longest = 0;
  // The longest count with the largest divider must have a time.
  if (ns == 0 || __builtin_mul_overflow(u64{0xffffffff} * 128, ns, &longest)) return refuse(EINVAL);
  sync::MutexGuard guard(lock_);
  if (!irqchip()) return refuse(ENXIO);
  if (created_ != 0) return refuse(EINVAL);
  apic_bus_cycle_ns_.store(ns);
  return 0;
}

Result<long> Vm::arch_ioctl(u32 request, u64 arg) {
  constexpr u64 kHighestTss = 0xffffffffU - 3 * kPageSize + 1;
  switch (request) {
    case KVM_SET_TSS_ADDR:
      if (arg > kHighestTss) return refuse(EINVAL);
      return 0;
    case KVM_SET_IDENTITY_MAP_ADDR:
      return set_identity_map(arg);
    case KVM_SET_NR_MMU_PAGES:
      return set_nr_mmu_pages(arg);
    case KVM_PPC_SVM_OFF:
      if (!secure_) return refuse(ENOTTY);
      ST_TRY(secure_->off());
      return 0;
    case KVM_SET_BOOT_CPU_ID:
      return set_boot_cpu_id(arg);
    case KVM_SET_CLOCK:
      return set_clock(arg);
    case KVM_GET_CLOCK:
      return get_clock(arg);
    case KVM_SET_TSC_KHZ:
      return set_tsc_khz(arg);
    case KVM_GET_TSC_KHZ:
      return read_once(policy_.tsc_khz);
    case KVM_X86_SET_MSR_FILTER: {
      sync::MutexGuard guard(lock_);
      ST_TRY(msr_filter_.set(arg));
      return 0;
    }
    default:
      return irqchip_ioctl(request, arg);
  }
}

}  // namespace stagetwo::abi_kvm
