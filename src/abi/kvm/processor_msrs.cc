// SPDX-License-Identifier: Apache-2.0
// MSRs and CPUID of a vCPU, and what is left of its get and set calls.
#include "abi/kvm/processor.h"

#include "abi/kvm/capabilities.h"
#include "abi/kvm/client.h"
#include "abi/kvm/each_msr.h"
#include "abi/kvm/host_cpu.h"
#include "abi/kvm/msr_list.h"
#include "abi/kvm/vm.h"
#include "base/vec.h"

namespace stagetwo::abi_kvm {
namespace {

constexpr u32 kLeaf1ApicBit = 9;
constexpr u32 kMsrApicBase = 0x1b;
constexpr u64 kApicEnable = u64{1} << 11;

}  // namespace

Result<long> Processor::get_msrs(u64 arg) {
  return each_msr(arg, true, [this](kvm_msr_entry& entry) {
    u64 value = 0;
    const auto outcome = cpu_->get_msr(entry.index, &value, true);
    const bool done = outcome == vcpu::MsrOutcome::kDone;
    entry.data = done ? value : 0;
    return done || (outcome == vcpu::MsrOutcome::kUnknown && is_listed_msr(entry.index));
  });
}

Result<long> Processor::set_msrs(u64 arg) {
  return each_msr(arg, false, [this](const kvm_msr_entry& entry) {
    if (cpu_->has_run() && is_immutable_msr(entry.index)) {
      u64 value = 0;
      return cpu_->get_msr(entry.index, &value, true) == vcpu::MsrOutcome::kDone &&
             value == entry.data;
    }
    if (entry.index == kMsrApicBase) return set_apic_base(entry.data).has_value();
    const auto outcome = cpu_->set_msr(entry.index, entry.data, true);
    if (outcome == vcpu::MsrOutcome::kDone) return true;
    return outcome == vcpu::MsrOutcome::kUnknown && entry.data == 0 && is_listed_msr(entry.index);
  });
}

// What the kernel keeps true in the stored entries whatever the client wrote.
Result<long> Processor::adopt_cpuid(std::span<vcpu::CpuidEntry> entries) {
  const bool apic_on = (cpu_->state().sys.apic_base & kApicEnable) != 0;
  for (vcpu::CpuidEntry& entry : entries) {
    if (entry.function == 1) {
      entry.edx &= ~(u32{1} << kLeaf1ApicBit);
      if (apic_on) entry.edx |= u32{1} << kLeaf1ApicBit;
      break;
    }
  }
  for (const vcpu::CpuidEntry& entry : entries) {
    if (entry.function != 0x80000008) continue;
    const u32 linear = entry.eax >> 8 & 0xff;
    // A wrong width in a set equal to nothing stored: after a run that is EINVAL all the same.
    if (linear != 48 && linear != 57 && linear != 0) return refuse(EINVAL);
    break;
  }
  ST_TRY(cpu_->set_cpuid(entries));
  return 0;
}

Result<long> Processor::set_cpuid2(u64 arg) {
  const auto header = ST_TRY(copy_in<CountedHeader>(arg));
  if (header.count > kMaxCpuidEntries) return refuse(E2BIG);
  Vec<vcpu::CpuidEntry> entries("abi.cpuid");
  ST_TRY(entries.reserve(header.count));
  for (u32 i = 0; i < header.count; ++i) {
    const u64 at = arg + sizeof(header) + u64{i} * sizeof(kvm_cpuid_entry2);
    const auto e = ST_TRY(copy_in<kvm_cpuid_entry2>(at));
    ST_TRY(entries.push_back({e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx}));
  }
  return adopt_cpuid(entries.span());
}

Result<long> Processor::set_cpuid(u64 arg) {
  const auto header = ST_TRY(copy_in<CountedHeader>(arg));
  if (header.count > kMaxCpuidEntries) return refuse(E2BIG);
  Vec<vcpu::CpuidEntry> entries("abi.cpuid");
  ST_TRY(entries.reserve(header.count));
  for (u32 i = 0; i < header.count; ++i) {
    const u64 at = arg + sizeof(header) + u64{i} * sizeof(kvm_cpuid_entry);
    const auto e = ST_TRY(copy_in<kvm_cpuid_entry>(at));
    ST_TRY(entries.push_back({e.function, 0, 0, e.eax, e.ebx, e.ecx, e.edx}));
  }
  return adopt_cpuid(entries.span());
}

Result<long> Processor::get_cpuid2(u64 arg) {
  auto header = ST_TRY(copy_in<CountedHeader>(arg));
  const auto entries = cpu_->cpuid();
  if (header.count < entries.size()) return refuse(E2BIG);
  u64 at = arg + sizeof(header);
  for (const vcpu::CpuidEntry& e : entries) {
    const kvm_cpuid_entry2 out{.function = e.function,
                               .index = e.index,
                               .flags = e.flags,
                               .eax = e.eax,
                               .ebx = e.ebx,
                               .ecx = e.ecx,
                               .edx = e.edx,
                               .padding = {}};
    ST_TRY(copy_out(at, out));
    at += sizeof(out);
  }
  header.count = static_cast<u32>(entries.size());
  ST_TRY(copy_out(arg, header));
  return 0;
}

Result<long> Processor::translate(u64 arg) {
  auto tr = ST_TRY(copy_in<kvm_translation>(arg));
  Gpa gpa(~u64{0});
  tr.valid = cpu_->translate(Gva(tr.linear_address), &gpa) ? 1 : 0;
  tr.physical_address = tr.valid != 0 ? gpa.raw() : ~u64{0};
  tr.writeable = 1;
  tr.usermode = 0;
  ST_TRY(copy_out(arg, tr));
  return 0;
}

// Without KVM_CAP_TSC_CONTROL a rate below the host's is refused, as on hardware that cannot scale;
// the host's own rate and the request to catch up are accepted.
Result<long> Processor::set_tsc_khz(u64 khz) {
  const auto wanted = static_cast<u32>(khz) != 0 ? static_cast<u32>(khz) : host_tsc_khz();
  if (wanted != vm_.policy().tsc_khz) return refuse(EINVAL);
  tsc_khz_ = wanted;
  return 0;
}

Result<long> Processor::device_attr(u32, u64 arg) {
  ST_TRY(copy_in<kvm_device_attr>(arg));
  return refuse(ENXIO);
}

Result<long> Processor::enable_cap(u64 arg) {
  ST_TRY(copy_in<kvm_enable_cap>(arg));
  return refuse(EINVAL);
}

}  // namespace stagetwo::abi_kvm
