// SPDX-License-Identifier: Apache-2.0
// Registers of a vCPU: general, segment and control registers. What combinations are possible is
// the processor's knowledge (Vcpu::set_system_state).
#include "abi/kvm/processor.h"

#include <algorithm>

#include "abi/kvm/client.h"
#include "abi/kvm/vm.h"

namespace stagetwo::abi_kvm {
namespace {

constexpr u64 kHighestPriority = 15;

kvm_segment shown(const vcpu::Segment& s) {
  kvm_segment out{};
  out.base = s.base;
  out.limit = s.limit;
  out.selector = s.selector;
  out.type = s.type;
  out.present = s.present;
  out.dpl = s.dpl;
  out.db = s.db;
  out.s = s.s;
  out.l = s.l;
  out.g = s.g;
  out.avl = s.avl;
  out.unusable = s.unusable;
  return out;
}

vcpu::Segment taken(const kvm_segment& s) {
  vcpu::Segment out;
  out.base = s.base;
  out.limit = s.limit;
  out.selector = s.selector;
  out.type = s.type & 0xf;
  out.present = s.present != 0;
  out.dpl = s.dpl & 3;
  out.db = s.db != 0;
  out.s = s.s != 0;
  out.l = s.l != 0;
  out.g = s.g != 0;
  out.avl = s.avl != 0;
  out.unusable = s.unusable != 0;
  return out;
}

kvm_dtable shown(const vcpu::DescTable& t) {
  return {.base = t.base, .limit = t.limit, .padding = {}};
}

// The part that kvm_sregs and kvm_sregs2 share.
template <typename Sregs>
void show_system(const vcpu::SystemState& sys, Sregs* out) {
  out->cs = shown(sys.seg[vcpu::kSegCs]);
  out->ds = shown(sys.seg[vcpu::kSegDs]);
  out->es = shown(sys.seg[vcpu::kSegEs]);
  out->fs = shown(sys.seg[vcpu::kSegFs]);
  out->gs = shown(sys.seg[vcpu::kSegGs]);
  out->ss = shown(sys.seg[vcpu::kSegSs]);
  out->tr = shown(sys.tr);
  out->ldt = shown(sys.ldt);
  out->gdt = shown(sys.gdt);
  out->idt = shown(sys.idt);
  out->cr0 = sys.cr0;
  out->cr2 = sys.cr2;
  out->cr3 = sys.cr3;
  out->cr4 = sys.cr4;
  out->cr8 = sys.cr8;
  out->efer = sys.efer;
  out->apic_base = sys.apic_base;
}

template <typename Sregs>
vcpu::SystemState take_system(const Sregs& in) {
  vcpu::SystemState sys;
  sys.seg[vcpu::kSegCs] = taken(in.cs);
  sys.seg[vcpu::kSegDs] = taken(in.ds);
  sys.seg[vcpu::kSegEs] = taken(in.es);
  sys.seg[vcpu::kSegFs] = taken(in.fs);
  sys.seg[vcpu::kSegGs] = taken(in.gs);
  sys.seg[vcpu::kSegSs] = taken(in.ss);
  sys.tr = taken(in.tr);
  sys.ldt = taken(in.ldt);
  sys.gdt = {in.gdt.base, in.gdt.limit};
  sys.idt = {in.idt.base, in.idt.limit};
  sys.cr0 = in.cr0;
  sys.cr2 = in.cr2;
  sys.cr3 = in.cr3;
  sys.cr4 = in.cr4;
  sys.cr8 = in.cr8;
  sys.efer = in.efer;
  sys.apic_base = in.apic_base;
  return sys;
}

}  // namespace

void Processor::read_regs(kvm_regs* out) const {
  const vcpu::CpuState& s = cpu_->state();
  out->rax = s.gpr[vcpu::kRax];
  out->rbx = s.gpr[vcpu::kRbx];
  out->rcx = s.gpr[vcpu::kRcx];
  out->rdx = s.gpr[vcpu::kRdx];
  out->rsi = s.gpr[vcpu::kRsi];
  out->rdi = s.gpr[vcpu::kRdi];
  out->rsp = s.gpr[vcpu::kRsp];
  out->rbp = s.gpr[vcpu::kRbp];
  out->r8 = s.gpr[vcpu::kR8];
  out->r9 = s.gpr[vcpu::kR9];
  out->r10 = s.gpr[vcpu::kR10];
  out->r11 = s.gpr[vcpu::kR11];
  out->r12 = s.gpr[vcpu::kR12];
  out->r13 = s.gpr[vcpu::kR13];
  out->r14 = s.gpr[vcpu::kR14];
  out->r15 = s.gpr[vcpu::kR15];
  out->rip = s.rip;
  out->rflags = s.rflags;
}

void Processor::write_regs(const kvm_regs& regs) {
  vcpu::CpuState& s = cpu_->state();
  s.gpr[vcpu::kRax] = regs.rax;
  s.gpr[vcpu::kRbx] = regs.rbx;
  s.gpr[vcpu::kRcx] = regs.rcx;
  s.gpr[vcpu::kRdx] = regs.rdx;
  s.gpr[vcpu::kRsi] = regs.rsi;
  s.gpr[vcpu::kRdi] = regs.rdi;
  s.gpr[vcpu::kRsp] = regs.rsp;
  s.gpr[vcpu::kRbp] = regs.rbp;
  s.gpr[vcpu::kR8] = regs.r8;
  s.gpr[vcpu::kR9] = regs.r9;
  s.gpr[vcpu::kR10] = regs.r10;
  s.gpr[vcpu::kR11] = regs.r11;
  s.gpr[vcpu::kR12] = regs.r12;
  s.gpr[vcpu::kR13] = regs.r13;
  s.gpr[vcpu::kR14] = regs.r14;
  s.gpr[vcpu::kR15] = regs.r15;
  s.rip = regs.rip;
  s.rflags = regs.rflags | 2;  // bit 1 reads as one
  s.events.exception_pending = false;
  cpu_->registers_changed();
}

Result<long> Processor::get_regs(u64 arg) {
  kvm_regs regs{};
  read_regs(&regs);
  ST_TRY(copy_out(arg, regs));
  return 0;
}

Result<long> Processor::set_regs(u64 arg) {
  write_regs(ST_TRY(copy_in<kvm_regs>(arg)));
  return 0;
}

void Processor::read_sregs(kvm_sregs* out) const {
  const vcpu::CpuState& s = cpu_->state();
  show_system(s.sys, out);
  if (s.events.interrupt_injected && !s.events.interrupt_soft) {
    const u8 vector = s.events.interrupt_vector;
    out->interrupt_bitmap[vector / 64] |= u64{1} << (vector % 64);
  }
}

Result<void> Processor::apply_system(const vcpu::SystemState& system) {
  const vcpu::SystemState before = cpu_->state().sys;
  ST_TRY(cpu_->set_system_state(system));
  cpu_->state().sys.apic_base = before.apic_base;
  // Analogue: the answer of kvm_set_cr8, which nobody looks at.
  const bool possible = system.cr8 <= kHighestPriority;
  if (!possible) cpu_->state().sys.cr8 = before.cr8;
  if (auto based = set_apic_base(system.apic_base); !based) {
    static_cast<void>(cpu_->set_system_state(before));
    return based;
  }
  if (unit_ && possible) unit_->set_task_priority(static_cast<u8>(system.cr8));
  return {};
}

Result<void> Processor::write_sregs(const kvm_sregs& sregs) {
  vcpu::SystemState system = take_system(sregs);
  std::copy_n(cpu_->state().sys.pdptr, 4, system.pdptr);
  ST_TRY(apply_system(system));
  vcpu::CpuState& s = cpu_->state();
  for (u32 word = 0; word < 4; ++word) {
    if (sregs.interrupt_bitmap[word] == 0) continue;
    s.events.interrupt_injected = true;
    s.events.interrupt_soft = false;
    s.events.interrupt_vector = static_cast<u8>(
        word * 64 + static_cast<u32>(__builtin_ctzll(sregs.interrupt_bitmap[word])));
    break;
  }
  return {};
}

Result<long> Processor::get_sregs(u64 arg) {
  kvm_sregs sregs{};
  read_sregs(&sregs);
  ST_TRY(copy_out(arg, sregs));
  return 0;
}

Result<long> Processor::set_sregs(u64 arg) {
  ST_TRY(write_sregs(ST_TRY(copy_in<kvm_sregs>(arg))));
  return 0;
}

Result<long> Processor::get_sregs2(u64 arg) {
  kvm_sregs2 sregs{};
  const vcpu::SystemState& sys = cpu_->state().sys;
  show_system(sys, &sregs);
  const bool pae = (sys.cr0 & vcpu::cr0::kPg) != 0 && (sys.cr4 & vcpu::cr4::kPae) != 0 &&
                   (sys.efer & vcpu::efer::kLma) == 0;
  if (pae) {
    sregs.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
    std::copy_n(sys.pdptr, 4, sregs.pdptrs);
  }
  ST_TRY(copy_out(arg, sregs));
  return 0;
}

Result<long> Processor::set_sregs2(u64 arg) {
  const auto sregs = ST_TRY(copy_in<kvm_sregs2>(arg));
  const bool pdptrs = (sregs.flags & KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0;
  const bool pae = (sregs.cr0 & vcpu::cr0::kPg) != 0 && (sregs.cr4 & vcpu::cr4::kPae) != 0 &&
                   (sregs.efer & vcpu::efer::kLma) == 0;
  if ((sregs.flags & ~u64{KVM_SREGS2_FLAGS_PDPTRS_VALID}) != 0) return refuse(EINVAL);
  if (pdptrs && !pae) return refuse(EINVAL);
  vcpu::SystemState system = take_system(sregs);
  std::copy_n(cpu_->state().sys.pdptr, 4, system.pdptr);
  if (pdptrs) std::copy_n(sregs.pdptrs, 4, system.pdptr);
  ST_TRY(apply_system(system));
  return 0;
}

}  // namespace stagetwo::abi_kvm
