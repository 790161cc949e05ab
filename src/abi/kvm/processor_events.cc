// SPDX-License-Identifier: Apache-2.0
// Events of a vCPU (exceptions, interrupts, NMIs), debugging, and machine checks.
// kernel file: arch/x86/kvm/x86.c (kvm_vcpu_ioctl_x86_get_vcpu_events and neighbours).
#include "abi/kvm/processor.h"

#include <algorithm>

#include "abi/kvm/capabilities.h"
#include "abi/kvm/client.h"
#include "abi/kvm/vm.h"

namespace stagetwo::abi_kvm {
namespace {

constexpr u32 kNmiVector = 2;
constexpr u32 kEventFlags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR |
                            KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM |
                            KVM_VCPUEVENT_VALID_PAYLOAD | KVM_VCPUEVENT_VALID_TRIPLE_FAULT;

// Machine check: Intel SDM volume 3, "Machine-check global control MSRs" and "error-reporting
// banks".
constexpr u64 kMcgCtlPresent = u64{1} << 8;
constexpr u64 kMcgSerPresent = u64{1} << 24;
constexpr u64 kMcgStatusInProgress = u64{1} << 2;
constexpr u64 kStatusValid = u64{1} << 63;
constexpr u64 kStatusOverflow = u64{1} << 62;
constexpr u64 kStatusUncorrected = u64{1} << 61;

bool is_soft(u8 vector) {
  return vector == BP_VECTOR || vector == OF_VECTOR;
}

}  // namespace

void Processor::read_events(kvm_vcpu_events* out) const {
  cpu_->bound_nmis();
  const vcpu::Events& e = cpu_->state().events;
  *out = {};
  // Without an instruction length, a software exception is met again at its instruction.
  if (!is_soft(e.exception_vector)) {
    out->exception.injected = e.exception_injected;
    out->exception.pending = e.exception_pending;
    if (!vm_.exception_payload()) out->exception.injected |= e.exception_pending;
  }
  out->exception.nr = e.exception_vector;
  out->exception.has_error_code = e.exception_has_error;
  out->exception.error_code = e.exception_error;
  out->exception_has_payload = e.exception_has_payload;
  out->exception_payload = e.exception_payload;
  out->interrupt.injected = e.interrupt_injected && !e.interrupt_soft;
  out->interrupt.nr = e.interrupt_vector;
  out->interrupt.shadow = e.shadow;
  out->nmi.injected = e.nmi_injected;
  out->nmi.pending = e.nmi_pending;
  out->nmi.masked = e.nmi_masked;
  out->flags =
      KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM;
  if (vm_.exception_payload()) out->flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
  if (vm_.triple_fault_event()) {
    out->triple_fault.pending = e.triple_fault_pending;
    out->flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
  }
}

// Every check stands before the first change, which is stricter than the kernel in one place: a bad
// triple-fault flag leaves the exception alone here.
Result<void> Processor::write_events(kvm_vcpu_events in) {
  if ((in.flags & ~kEventFlags) != 0) return refuse(EINVAL);
  if ((in.flags & KVM_VCPUEVENT_VALID_PAYLOAD) != 0) {
    if (!vm_.exception_payload()) return refuse(EINVAL);
    if (in.exception.pending != 0) {
      in.exception.injected = 0;
    } else {
      in.exception_has_payload = 0;
    }
  } else {
    in.exception.pending = 0;
    in.exception_has_payload = 0;
  }
  if ((in.exception.injected != 0 || in.exception.pending != 0) &&
      (in.exception.nr > 31 || in.exception.nr == kNmiVector))
    return refuse(EINVAL);
  // There is no system management mode.
  if ((in.flags & KVM_VCPUEVENT_VALID_SMM) != 0 &&
      (in.smi.smm != 0 || in.smi.pending != 0 || in.smi.smm_inside_nmi != 0))
    return refuse(EINVAL);
  if ((in.flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT) != 0 && !vm_.triple_fault_event())
    return refuse(EINVAL);

  vcpu::Events& e = cpu_->state().events;
  e.exception_injected = in.exception.injected != 0;
  e.exception_pending = in.exception.pending != 0;
  e.exception_vector = in.exception.nr;
  e.exception_has_error = in.exception.has_error_code != 0;
  e.exception_error = in.exception.error_code;
  e.exception_has_payload = in.exception_has_payload != 0;
  e.exception_payload = in.exception_payload;
  e.interrupt_injected = in.interrupt.injected != 0;
  e.interrupt_vector = in.interrupt.nr;
  e.interrupt_soft = in.interrupt.soft != 0;
  if ((in.flags & KVM_VCPUEVENT_VALID_SHADOW) != 0) e.shadow = in.interrupt.shadow & 3;
  e.nmi_injected = in.nmi.injected != 0;
  if ((in.flags & KVM_VCPUEVENT_VALID_NMI_PENDING) != 0) e.nmi_pending = in.nmi.pending;
  e.nmi_masked = in.nmi.masked != 0;
  cpu_->bound_nmis();
  if ((in.flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT) != 0)
    e.triple_fault_pending = in.triple_fault.pending != 0;
  return {};
}

Result<long> Processor::get_events(u64 arg) {
  kvm_vcpu_events events;
  read_events(&events);
  ST_TRY(copy_out(arg, events));
  return 0;
}

Result<long> Processor::set_events(u64 arg) {
  ST_TRY(write_events(ST_TRY(copy_in<kvm_vcpu_events>(arg))));
  return 0;
}

Result<long> Processor::interrupt(u64 arg) {
  const auto asked = ST_TRY(copy_in<kvm_interrupt>(arg));
  if (asked.irq >= KVM_NR_INTERRUPTS) return refuse(EINVAL);
  if (vm_.irqchip()) return refuse(ENXIO);
  cpu_->interrupt(static_cast<u8>(asked.irq));
  return 0;
}

Result<long> Processor::get_debugregs(u64 arg) {
  const vcpu::CpuState& s = cpu_->state();
  kvm_debugregs out{};
  std::copy_n(s.dr, 4, out.db);
  out.dr6 = s.dr6;
  out.dr7 = s.dr7;
  ST_TRY(copy_out(arg, out));
  return 0;
}

Result<long> Processor::set_debugregs(u64 arg) {
  const auto in = ST_TRY(copy_in<kvm_debugregs>(arg));
  if (in.flags != 0) return refuse(EINVAL);
  if (in.dr6 >> 32 != 0 || in.dr7 >> 32 != 0) return refuse(EINVAL);
  vcpu::CpuState& s = cpu_->state();
  std::copy_n(in.db, 4, s.dr);
  s.dr6 = in.dr6;
  s.dr7 = in.dr7;
  cpu_->registers_changed();
  return 0;
}

Result<long> Processor::set_guest_debug(u64 arg) {
  const auto in = ST_TRY(copy_in<kvm_guest_debug>(arg));
  vcpu::Events& e = cpu_->state().events;
  if ((in.control & (KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP)) != 0) {
    if (e.exception_pending) return refuse(EBUSY);
    e.exception_pending = true;
    e.exception_vector = (in.control & KVM_GUESTDBG_INJECT_DB) != 0 ? DB_VECTOR : BP_VECTOR;
    e.exception_has_error = false;
    e.exception_has_payload = false;
  }
  vcpu::GuestDebug debug;
  debug.enabled = (in.control & KVM_GUESTDBG_ENABLE) != 0;
  debug.single_step = debug.enabled && (in.control & KVM_GUESTDBG_SINGLESTEP) != 0;
  debug.software_bp = debug.enabled && (in.control & KVM_GUESTDBG_USE_SW_BP) != 0;
  debug.hardware_bp = debug.enabled && (in.control & KVM_GUESTDBG_USE_HW_BP) != 0;
  std::copy_n(in.arch.debugreg, 8, debug.dr);
  cpu_->set_guest_debug(debug);
  if (unit_) unit_->block_interrupts(debug.enabled && (in.control & KVM_GUESTDBG_BLOCKIRQ) != 0);
  return 0;
}

Result<long> Processor::setup_mce(u64 arg) {
  const auto cap = ST_TRY(copy_in<u64>(arg));
  const u64 banks = cap & 0xff;
  if (banks == 0 || banks > kMaxMceBanks) return refuse(EINVAL);
  if ((cap & ~(kMcgCtlPresent | kMcgSerPresent | 0xff | 0xff0000)) != 0) return refuse(EINVAL);
  vcpu::Msrs& msr = cpu_->state().msr;
  msr.mcg_cap = cap;
  if ((cap & kMcgCtlPresent) != 0) msr.mcg_ctl = ~u64{0};
  for (u64 bank = 0; bank < banks; ++bank) msr.mc_bank[bank][0] = ~u64{0};
  return 0;
}

Result<long> Processor::set_mce(u64 arg) {
  const auto mce = ST_TRY(copy_in<kvm_x86_mce>(arg));
  vcpu::CpuState& s = cpu_->state();
  vcpu::Msrs& msr = s.msr;
  if (mce.bank >= (msr.mcg_cap & 0xff) || (mce.status & kStatusValid) == 0) return refuse(EINVAL);
  u64* const bank = msr.mc_bank[mce.bank];  // control, status, address, misc
  const bool uncorrected = (mce.status & kStatusUncorrected) != 0;
  const bool reporting_off =
      ((msr.mcg_cap & kMcgCtlPresent) != 0 && msr.mcg_ctl != ~u64{0}) || bank[0] != ~u64{0};
  if (uncorrected && reporting_off) return 0;
  if (uncorrected &&
      ((msr.mcg_status & kMcgStatusInProgress) != 0 || (s.sys.cr4 & vcpu::cr4::kMce) == 0)) {
    s.events.triple_fault_pending = true;
    return 0;
  }
  const bool occupied = (bank[1] & kStatusValid) != 0;
  if (!uncorrected && occupied && (bank[1] & kStatusUncorrected) != 0) {
    bank[1] |= kStatusOverflow;
    return 0;
  }
  bank[1] = mce.status | (occupied ? kStatusOverflow : 0);
  bank[2] = mce.addr;
  bank[3] = mce.misc;
  if (uncorrected) {
    msr.mcg_status = mce.mcg_status;
    s.events.exception_pending = true;
    s.events.exception_vector = MC_VECTOR;
    s.events.exception_has_error = false;
    s.events.exception_has_payload = false;
  }
  return 0;
}

}  // namespace stagetwo::abi_kvm
