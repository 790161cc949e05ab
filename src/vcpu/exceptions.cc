// SPDX-License-Identifier: Apache-2.0
//
// Exceptions and interrupts on their way into the guest: gate, stack, frame, new CS:RIP.
// A fault while a fault is delivered becomes the double fault, a fault while that is delivered ends
// the guest: KVM_EXIT_SHUTDOWN. Nothing of the state changes before the whole frame is written.
// Spec: Intel SDM vol. 3, chapter 6 (6.14 for 64-bit mode, table 6-5 for the double fault).
#include "base/trace.h"
#include "vcpu/mem.h"
#include "vcpu/run.h"
#include "vcpu/segments.h"

namespace stagetwo::vcpu {
namespace {

struct Event {
  u8 vector;
  bool has_error;
  u32 error;
  bool software;  // INT n and friends: gate DPL counts
  bool external;  // sets EXT in error codes
  u64 rip;        // pushed
  u64 rflags;     // pushed
};

struct Gate {
  u64 offset;
  u16 selector;
  u8 type;
  u8 dpl;
  u8 ist;
  bool present;
};

u32 vector_error(const Event& e) {
  return e.vector * 8U + 2U + (e.external ? 1U : 0U);
}

bool read_gate(Cpu& c, const Event& e, Gate* gate) {
  const bool wide = c.s.long_mode();
  const u64 size = wide ? 16 : 8;
  const DescTable& idt = c.s.sys.idt;
  if (e.vector * size + size - 1 > idt.limit) {
    c.raise(kVectorGp, vector_error(e));
    return false;
  }
  u64 raw[2] = {0, 0};
  if (!load_bytes(c, idt.base + e.vector * size, raw, static_cast<u32>(size), Who::kSystem)) {
    return false;
  }
  gate->offset = (raw[0] & 0xffff) | (raw[0] >> 32 & 0xffff0000) | (wide ? raw[1] << 32 : 0);
  gate->selector = static_cast<u16>(raw[0] >> 16);
  gate->type = raw[0] >> 40 & 0x1f;
  gate->dpl = raw[0] >> 45 & 3;
  gate->present = (raw[0] >> 47 & 1) != 0;
  gate->ist = wide ? raw[0] >> 32 & 7 : 0;
  const bool known =
      gate->type == 14 || gate->type == 15 || (!wide && (gate->type == 6 || gate->type == 7));
  if (!known || (e.software && gate->dpl < c.cpl())) {
    c.raise(kVectorGp, vector_error(e));
    return false;
  }
  if (!gate->present) {
    c.raise(kVectorNp, vector_error(e));
    return false;
  }
  return true;
}

// RSP for a privilege level or an IST slot out of the 64-bit TSS.
bool tss64_stack(Cpu& c, u64 offset, u64* rsp) {
  const Segment& tr = c.s.sys.tr;
  if (offset + 7 > tr.limit) {
    c.raise(kVectorTs, tr.selector & ~3U);
    return false;
  }
  return load_bytes(c, tr.base + offset, rsp, 8, Who::kSystem);
}

bool target_code(Cpu& c, const Gate& gate, bool external, Segment* cs, u8* cpl) {
  const u32 ext = external ? 1 : 0;
  if ((gate.selector & ~3U) == 0) {
    c.raise(kVectorGp, ext);
    return false;
  }
  Descriptor d;
  if (!read_descriptor(c, gate.selector, kVectorGp, &d)) return false;
  const u32 error = (gate.selector & ~3U) | ext;
  const bool wide = c.s.long_mode();
  if (!d.is_code() || d.dpl() > c.cpl() || (wide && (!d.l() || d.db()))) {
    c.raise(kVectorGp, error);
    return false;
  }
  if (!d.present()) {
    c.raise(kVectorNp, error);
    return false;
  }
  *cpl = d.conforming() ? c.cpl() : d.dpl();
  *cs = d.segment(static_cast<u16>((gate.selector & ~3U) | *cpl));
  return true;
}

void enter_handler(Cpu& c, const Gate& gate, const Segment& cs, u64 offset) {
  c.s.sys.seg[kSegCs] = cs;
  c.s.rip = offset;
  u64 clear = rflags::kTf | rflags::kNt | rflags::kRf | rflags::kVm;
  if ((gate.type & 1) == 0) clear |= rflags::kIf;
  c.s.rflags &= ~clear;
  c.s.events.shadow = 0;
}

Step deliver_long(Cpu& c, const Event& e) {
  Gate gate;
  Segment cs;
  u8 cpl = 0;
  if (!read_gate(c, e, &gate) || !target_code(c, gate, e.external, &cs, &cpl)) return c.stop;
  const bool inner = cpl != c.cpl();
  u64 rsp = c.s.gpr[kRsp];
  if (gate.ist != 0) {
    if (!tss64_stack(c, 0x24 + 8U * (gate.ist - 1U), &rsp)) return c.stop;
  } else if (inner) {
    if (!tss64_stack(c, 4 + 8U * cpl, &rsp)) return c.stop;
  }
  const bool la57 = (c.s.sys.cr4 & cr4::kLa57) != 0;
  rsp &= ~u64{15};
  u64 frame[6];
  unsigned n = 0;
  if (e.has_error) frame[n++] = e.error;
  frame[n++] = e.rip;
  frame[n++] = c.s.sys.seg[kSegCs].selector;
  frame[n++] = e.rflags;
  frame[n++] = c.s.gpr[kRsp];
  frame[n++] = c.s.sys.seg[kSegSs].selector;
  const u64 bottom = rsp - 8 * n;
  if (!is_canonical(bottom, la57)) return c.raise(kVectorSs, 0);
  if (!is_canonical(gate.offset, la57)) return c.raise(kVectorGp, 0);
  if (!store_bytes(c, bottom, frame, 8 * n, Who::kSystem)) return c.stop;
  if (inner) c.s.sys.seg[kSegSs] = null_stack_segment(cpl);
  c.s.gpr[kRsp] = bottom;
  enter_handler(c, gate, cs, gate.offset);
  return Step::kNext;
}

// 16- and 32-bit protected mode; task gates and virtual-8086 mode end as emulation failures.
Step deliver_protected(Cpu& c, const Event& e) {
  Gate gate;
  Segment cs;
  u8 cpl = 0;
  if (c.v86()) return c.emulation_failure();
  if (!read_gate(c, e, &gate) || !target_code(c, gate, e.external, &cs, &cpl)) return c.stop;
  const bool wide = gate.type >= 14;
  const u32 width = wide ? 4 : 2;
  const bool inner = cpl != c.cpl();
  Segment ss = c.s.sys.seg[kSegSs];
  u64 sp = c.s.gpr[kRsp];
  if (inner) {
    u32 new_sp = 0;
    u16 new_ss = 0;
    const bool tss32 = (c.s.sys.tr.type & 8) != 0;
    const u64 at = c.s.sys.tr.base + (tss32 ? 4 + 8U * cpl : 2 + 4U * cpl);
    if (!load_bytes(c, at, &new_sp, tss32 ? 4 : 2, Who::kSystem) ||
        !load_bytes(c, at + (tss32 ? 4 : 2), &new_ss, 2, Who::kSystem)) {
      return c.stop;
    }
    if (!load_stack_segment(c, new_ss, cpl, kVectorTs, &ss)) return c.stop;
    sp = new_sp;
  }
  const u32 sp_mask = ss.db != 0 ? 0xffffffff : 0xffff;
  u32 values[6];
  unsigned n = 0;
  if (e.has_error) values[n++] = e.error;
  values[n++] = static_cast<u32>(e.rip);
  values[n++] = c.s.sys.seg[kSegCs].selector;
  values[n++] = static_cast<u32>(e.rflags);
  if (inner) {
    values[n++] = static_cast<u32>(c.s.gpr[kRsp]);
    values[n++] = c.s.sys.seg[kSegSs].selector;
  }
  const u32 bottom = static_cast<u32>(sp - width * n) & sp_mask;
  for (unsigned i = 0; i < n; ++i) {
    const u64 at = (ss.base + ((bottom + width * i) & sp_mask)) & 0xffffffff;
    if (!store_bytes(c, at, &values[i], width, Who::kSystem)) return c.stop;
  }
  c.s.sys.seg[kSegSs] = ss;
  c.s.gpr[kRsp] = (c.s.gpr[kRsp] & ~u64{sp_mask}) | bottom;
  enter_handler(c, gate, cs, wide ? gate.offset & 0xffffffff : gate.offset & 0xffff);
  return Step::kNext;
}

Step deliver_real(Cpu& c, const Event& e) {
  if (e.vector * 4U + 3U > c.s.sys.idt.limit) return c.raise(kVectorGp, 0);
  u32 entry = 0;
  if (!load_bytes(c, c.s.sys.idt.base + e.vector * 4U, &entry, 4, Who::kSystem)) return c.stop;
  Segment& cs = c.s.sys.seg[kSegCs];
  const u16 values[3] = {static_cast<u16>(e.rip), cs.selector, static_cast<u16>(e.rflags)};
  const u16 bottom = static_cast<u16>(c.s.gpr[kRsp] - 6);
  for (unsigned i = 0; i < 3; ++i) {
    const u64 at = c.s.sys.seg[kSegSs].base + static_cast<u16>(bottom + 2 * i);
    if (!store_bytes(c, at & 0xffffffff, &values[i], 2, Who::kSystem)) return c.stop;
  }
  c.s.gpr[kRsp] = (c.s.gpr[kRsp] & ~u64{0xffff}) | bottom;
  cs.selector = static_cast<u16>(entry >> 16);
  cs.base = u64{cs.selector} << 4;
  c.s.rip = entry & 0xffff;
  c.s.rflags &= ~(rflags::kIf | rflags::kTf | rflags::kAc | rflags::kRf);
  c.s.events.shadow = 0;
  return Step::kNext;
}

Step deliver(Cpu& c, const Event& e) {
  trace::emit(
      e.software || e.external ? trace::Event::kvm_inj_virq : trace::Event::kvm_inj_exception,
      trace::Room::vcpu, e.vector, e.error);
  Step step = Step::kNext;
  if (c.real_mode()) {
    step = deliver_real(c, e);
  } else if (c.s.long_mode()) {
    step = deliver_long(c, e);
  } else {
    step = deliver_protected(c, e);
  }
  c.update_view();
  c.update_attention();
  return step;
}

enum class Class : u8 { kBenign, kContributory, kPageFault, kDouble };

Class class_of(u8 vector) {
  switch (vector) {
    case kVectorDe:
    case kVectorTs:
    case kVectorNp:
    case kVectorSs:
    case kVectorGp:
      return Class::kContributory;
    case kVectorPf:
      return Class::kPageFault;
    case kVectorDf:
      return Class::kDouble;
    default:
      return Class::kBenign;
  }
}

// What a fault during the delivery of another one becomes. False: the guest is at its end.
bool combine(u8 first, Fault* second) {
  const Class a = class_of(first), b = class_of(second->vector);
  if (a == Class::kDouble) return false;
  const bool serial = a == Class::kBenign || b == Class::kBenign ||
                      (a == Class::kContributory && b == Class::kPageFault);
  if (!serial) *second = Fault{.vector = kVectorDf, .has_error = true};
  return true;
}

// Delivers, and whatever that leads to.
Step deliver_chain(Cpu& c, Event event) {
  // Bounded: each turn of a benign first fault makes the next one contributory or a page fault.
  for (;;) {
    const Step step = deliver(c, event);
    if (step != Step::kFault) return step;
    Fault next = c.fault;
    if (next.vector == kVectorPf) c.s.sys.cr2 = next.payload;
    if (!combine(event.vector, &next)) {
      c.exit.kind = ExitKind::kShutdown;
      c.exit.error = 0;
      return Step::kExit;
    }
    event.vector = next.vector;
    event.has_error = next.has_error && !c.real_mode();
    event.error = next.error;
    event.software = false;
  }
}

// The host wants the thread, or refuses a page that the delivery needs (KVM_RUN fails): the event
// is delivered next time, as what a processor was vectoring at an exit is (kernel file: vmx/vmx.c,
// __vmx_complete_interrupts).
bool is_put_off(const Cpu& c, Step step) {
  return step == Step::kAgain || (step == Step::kExit && c.exit.error != 0);
}

}  // namespace

Step deliver_fault(Cpu& c, Fault fault) {
  if (fault.vector == kVectorPf) c.s.sys.cr2 = fault.payload;
  if (fault.vector == kVectorDb) {
    c.s.dr6 = (c.s.dr6 & ~u64{0xf}) | fault.payload;
    c.s.dr7 &= ~u64{0x2000};
  }
  u64 flags = c.rflags();
  if (!fault.trap && fault.vector != kVectorDb) flags |= rflags::kRf;
  const Event event{.vector = fault.vector,
                    .has_error = fault.has_error && !c.real_mode(),
                    .error = fault.error,
                    .software = false,
                    .external = false,
                    .rip = c.s.rip,
                    .rflags = flags};
  const Step step = deliver_chain(c, event);
  if (is_put_off(c, step)) {
    Events& e = c.s.events;
    e.exception_injected = true;
    e.exception_vector = fault.vector;
    e.exception_has_error = fault.has_error;
    e.exception_error = fault.error;
    c.update_attention();
  }
  return step;
}

Step deliver_interrupt(Cpu& c, u8 vector) {
  const Event event{.vector = vector,
                    .has_error = false,
                    .error = 0,
                    .software = false,
                    .external = true,
                    .rip = c.s.rip,
                    .rflags = c.rflags()};
  const Step step = deliver_chain(c, event);
  if (is_put_off(c, step)) {
    Events& e = c.s.events;
    if (vector == kVectorNmi) {
      e.nmi_injected = true;
    } else {
      e.interrupt_injected = true;
      e.interrupt_vector = vector;
    }
    c.update_attention();
  }
  return step;
}

Step software_interrupt(Cpu& c, u8 vector, bool privileged) {
  const Event event{.vector = vector,
                    .has_error = false,
                    .error = 0,
                    .software = !privileged,
                    .external = false,
                    .rip = c.next_rip,
                    .rflags = c.rflags()};
  const Step step = deliver(c, event);
  // An instruction that calls a handler leaves no single-step trap: TF is clear by then.
  if (step == Step::kNext) c.trap_due = false;
  return step == Step::kNext ? Step::kJump : step;
}

}  // namespace stagetwo::vcpu
