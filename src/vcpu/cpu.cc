// SPDX-License-Identifier: Apache-2.0
#include "vcpu/cpu.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/trace.h"
#include "stage2/address_space.h"
#include "sync/restartable.h"
#include "vcpu/block_cache.h"
#include "vcpu/mem.h"
#include "vcpu/paging.h"
#include "vcpu/run.h"

namespace stagetwo::vcpu {

void enter_section(Cpu& c) {
  if (c.line.enter()) after_flush_request(c);
}

void after_flush_request(Cpu& c) {
  c.memory->flushed(*c.mmu);
  c.flush_tlb();
  // The block ends: its page has lost the mark that sends stores into it the slow way.
  c.attention |= kAttendExit | kAttendCode;
}

void request_answered(Cpu& c) {
  trace::enter_room(trace::Room::vcpu, 8);
  after_flush_request(c);
}

void answer_request(Cpu& c) {
  if (c.holds == 0) {
    const Hold answers(c);
  } else if (c.line.poll()) {
    request_answered(c);
  }
}

LetGo::LetGo(Cpu& c) : c_(c) {
  ST_DCHECK(c.holds == 1);
  u64* const section = sync::restartable_section();
  if (section == nullptr) return;
  c.restart_section = section;
  c.holds = 0;
  c.line.let_go();
}

LetGo::~LetGo() {
  if (c_.holds != 0) return;
  sync::forget_restartable_section(c_.restart_section);
  c_.restart_section = &c_.no_section;
  c_.holds = 1;
  if (c_.line.hold()) request_answered(c_);
}

void leave_section(Cpu& c) {
  ++c.section;
  c.line.leave();
}

void Cpu::update_view() {
  const Mode old_mode = mode;
  const SoftTlb* old_tlb = tlb;
  const SystemState& sys = s.sys;
  const Segment& cs = sys.seg[kSegCs];
  if ((sys.cr0 & cr0::kPe) == 0 || (s.rflags & rflags::kVm) != 0) {
    mode = Mode::k16;
  } else if ((sys.efer & efer::kLma) != 0 && cs.l != 0) {
    mode = Mode::k64;
  } else {
    mode = cs.db != 0 ? Mode::k32 : Mode::k16;
  }
  TlbView view = kViewSupervisor;
  if (cpl() == 3) {
    const bool check = (sys.cr0 & cr0::kAm) != 0 && (s.rflags & rflags::kAc) != 0;
    view = check ? kViewUserAligned : kViewUser;
  } else if ((sys.cr4 & cr4::kSmap) != 0 && (s.rflags & rflags::kAc) != 0) {
    view = kViewSupervisorAc;
  }
  if (views != nullptr && tlb != &views[view]) look_through(views[view]);
  fs_base = sys.seg[kSegFs].base;
  gs_base = sys.seg[kSegGs].base;
  // Outside 64-bit mode CS's base and limit are part of what a link stands for.
  const bool same = mode == Mode::k64 && mode == old_mode && tlb == old_tlb;
  if (blocks != nullptr && !same) blocks->unlink();
}

void Cpu::update_attention() {
  const Events& e = s.events;
  u32 wanted = attention & (kAttendMmio | kAttendCode | kAttendExit | kAttendRing);
  const bool nmi = e.nmi_injected || (e.nmi_pending != 0 && !e.nmi_masked);
  if (e.shadow != 0 || e.triple_fault_pending || e.exception_pending || e.exception_injected ||
      nmi || e.interrupt_injected || (window_wanted && interrupt_window_open(*this))) {
    wanted |= kAttendEvents;
  }
  if ((s.rflags & rflags::kTf) != 0 || (debug.enabled && debug.single_step)) wanted |= kAttendTrap;
  attention = wanted;
}

void Cpu::flush_tlb() {
  for (unsigned i = 0; i < kViewCount; ++i) views[i].flush();
  std::fill(std::begin(code_filter), std::end(code_filter), 0);
  large_pages = false;
  if (blocks != nullptr) blocks->unlink();
}

void Cpu::flush_tlb_page(u64 linear) {
  if (large_pages) return flush_tlb();
  if (blocks != nullptr) blocks->unlink();
  for (unsigned i = 0; i < kViewCount; ++i) views[i].flush_page(linear);
}

// Laid out as the kernel does: data[0] flags, data[1..2] size and bytes, then what its hardware
// exit would have said, which for an interpreter is nothing.
Step Cpu::emulation_failure() {
  stop = Step::kExit;
  const u64 start = linear_rip();
  u8 bytes[15];
  const u64 room = kPageSize - (start & ~kPageMask);
  const u64 wanted = std::min<u64>(room, sizeof(bytes));
  const Hold hold(*this);
  const TlbEntry& e = tlb->slot(start);
  u64 size = 0;
  // Of a secure guest they are no business of the client's.
  if (e.exec_tag == (start & kPageMask) && !memory->private_memory().keeps_frames()) {
    size = host::copy_from(bytes, Hva(start + e.addend), wanted);
  }
  exit.kind = ExitKind::kInternalError;
  exit.error = 0;
  exit.internal = InternalErrorExit{};
  exit.internal.suberror = 1;
  exit.internal.ndata = 6;
  if (size != 0) {
    exit.internal.ndata = 8;
    exit.internal.data[0] = 1;
    auto* image = reinterpret_cast<u8*>(&exit.internal.data[1]);
    std::memset(image + 1, 0x90, 15);
    image[0] = static_cast<u8>(size);
    std::memcpy(image + 1, bytes, size);
  }
  if (policy->exit_on_emulation_failure) return Step::kExit;
  if (cpl() != 0) return raise(kVectorUd);
  // As in the kernel, the guest finds #UD waiting if the client goes on.
  s.events.exception_pending = true;
  s.events.exception_vector = kVectorUd;
  s.events.exception_has_error = false;
  return Step::kExit;
}

}  // namespace stagetwo::vcpu
