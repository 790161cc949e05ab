// SPDX-License-Identifier: Apache-2.0
// The local APIC of a vCPU: its get and set calls, and the accesses of a running guest that it or
// the VM's controllers answer. kernel file: arch/x86/kvm/lapic.c, x86.c.
#include "abi/kvm/processor.h"

#include "abi/kvm/client.h"
#include "abi/kvm/vm.h"

namespace stagetwo::abi_kvm {
namespace {

constexpr u64 kApicEnable = u64{1} << 11;
constexpr u64 kApicX2 = u64{1} << 10;
constexpr u64 kApicReserved = 0x2ff;

// Analogue: kvm_apic_set_base for the host: reserved bits, and x2APIC without enable.
bool valid_base(u64 base, const vcpu::Vcpu& cpu) {
  const u32 told = cpu.query_cpuid(0x80000008, 0).eax & 0xff;
  const u32 width = told != 0 ? told : 36;
  const bool has_x2apic = (cpu.query_cpuid(1, 0).ecx >> 21 & 1) != 0;
  u64 reserved = kApicReserved | (width < 64 ? ~u64{0} << width : 0);
  if (!has_x2apic) reserved |= kApicX2;
  if ((base & reserved) != 0) return false;
  return (base & kApicX2) == 0 || (base & kApicEnable) != 0;
}

}  // namespace

Result<void> Processor::create_unit(bool boot_cpu) {
  vcpu::CpuState& state = cpu_->state();
  if (!vm_.irqchip()) {
    state.mp_state = vcpu::MpState::kRunnable;
    return {};
  }
  state.mp_state = boot_cpu ? vcpu::MpState::kRunnable : vcpu::MpState::kUninitialized;
  vcpu::InterruptUnit::Config config;
  config.vcpu = cpu_;
  config.chip = vm_.chip();
  config.boot_cpu = boot_cpu;
  config.lint0_reenabled = (vm_.policy().disabled_quirks & KVM_X86_QUIRK_LINT0_REENABLED) == 0;
  config.bus_cycle_ns = vm_.apic_bus_cycle_ns();
  unit_ = ST_TRY(make_box<vcpu::InterruptUnit>("abi.interrupt_unit", config));
  return {};
}

Result<long> Processor::get_lapic(u64 arg) {
  if (!unit_) return refuse(EINVAL);
  kvm_lapic_state state{};
  unit_->get_state(reinterpret_cast<u8*>(state.regs));
  ST_TRY(copy_out(arg, state));
  return 0;
}

Result<long> Processor::set_lapic(u64 arg) {
  if (!unit_) return refuse(EINVAL);
  const auto state = ST_TRY(copy_in<kvm_lapic_state>(arg));
  ST_TRY(unit_->set_state(reinterpret_cast<const u8*>(state.regs)));
  return 0;
}

Result<long> Processor::get_mp_state(u64 arg) {
  if (unit_) unit_->accept_events();
  ST_TRY(copy_out(arg, kvm_mp_state{static_cast<u32>(cpu_->state().mp_state)}));
  return 0;
}

Result<long> Processor::set_mp_state(u64 arg) {
  const auto asked = ST_TRY(copy_in<kvm_mp_state>(arg));
  switch (asked.mp_state) {
    case KVM_MP_STATE_UNINITIALIZED:
    case KVM_MP_STATE_HALTED:
    case KVM_MP_STATE_INIT_RECEIVED:
    case KVM_MP_STATE_SIPI_RECEIVED:
      if (!unit_) return refuse(EINVAL);
      break;
    case KVM_MP_STATE_RUNNABLE:
      break;
    default:
      return refuse(EINVAL);
  }
  const auto state = static_cast<vcpu::MpState>(asked.mp_state);
  if (unit_) {
    unit_->set_mp_state(state);
  } else {
    cpu_->state().mp_state = state;
  }
  return 0;
}

Result<void> Processor::set_apic_base(u64 base) {
  if (!valid_base(base, *cpu_)) return refuse(EINVAL);
  if (unit_) return unit_->set_base(base, true);
  cpu_->state().sys.apic_base = base;
  return {};
}

bool Processor::device_write(bool port, u64 address, const void* data, u32 size) {
  if (!unit_) return false;
  return port ? unit_->port_write(static_cast<u16>(address), data, size)
              : unit_->mmio_write(Gpa(address), data, size);
}

vcpu::MsrOutcome Processor::read_msr(u32 index, u64* value) {
  return unit_ ? unit_->read_msr(index, value) : vcpu::MsrOutcome::kUnknown;
}

vcpu::MsrOutcome Processor::write_msr(u32 index, u64 value) {
  return unit_ ? unit_->write_msr(index, value) : vcpu::MsrOutcome::kUnknown;
}

}  // namespace stagetwo::abi_kvm
