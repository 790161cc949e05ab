// SPDX-License-Identifier: Apache-2.0
// KVM_RUN.
//
//   check the sync-register masks      EINVAL; nothing was touched
//   load what the client marked dirty  a refusal leaves what was loaded before it, as the kernel's
//   complete the last exit, run        Vcpu::run
//   show the exit in the run page
//   store the registers asked for, and the words every return carries
//
// An exit that never entered the guest (immediate_exit, a refusal) leaves exit_reason and its
// payload alone: a client decodes the same exit twice. Signals: see host/run_section.h. kernel
// file: arch/x86/kvm/x86.c (kvm_arch_vcpu_ioctl_run, vcpu_run, post_kvm_run_save).
#include "abi/kvm/processor.h"

#include <algorithm>
#include <cstring>

#include "abi/kvm/client.h"
#include "abi/kvm/level.h"
#include "abi/kvm/secure_vm.h"
#include "abi/kvm/vm.h"
#include "base/sys.h"
#include "base/trace.h"
#include "host/worker.h"
#include "sync/futex.h"

namespace stagetwo::abi_kvm {
namespace {

constexpr u64 kPioDataOffset = KVM_PIO_PAGE_OFFSET * kPageSize;

u32 reason_of(vcpu::ExitKind kind) {
  switch (kind) {
    case vcpu::ExitKind::kUnknown:
      return KVM_EXIT_UNKNOWN;
    case vcpu::ExitKind::kIo:
      return KVM_EXIT_IO;
    case vcpu::ExitKind::kDebug:
      return KVM_EXIT_DEBUG;
    case vcpu::ExitKind::kHypercall:
      return KVM_EXIT_HYPERCALL;
    case vcpu::ExitKind::kHlt:
      return KVM_EXIT_HLT;
    case vcpu::ExitKind::kMmio:
      return KVM_EXIT_MMIO;
    case vcpu::ExitKind::kIrqWindow:
      return KVM_EXIT_IRQ_WINDOW_OPEN;
    case vcpu::ExitKind::kShutdown:
      return KVM_EXIT_SHUTDOWN;
    case vcpu::ExitKind::kInterrupted:
      return KVM_EXIT_INTR;
    case vcpu::ExitKind::kSetTpr:
      return KVM_EXIT_SET_TPR;
    case vcpu::ExitKind::kInternalError:
      return KVM_EXIT_INTERNAL_ERROR;
    case vcpu::ExitKind::kRdMsr:
      return KVM_EXIT_X86_RDMSR;
    case vcpu::ExitKind::kWrMsr:
      return KVM_EXIT_X86_WRMSR;
    case vcpu::ExitKind::kDirtyRingFull:
      return KVM_EXIT_DIRTY_RING_FULL;
    case vcpu::ExitKind::kMemoryFault:
      return KVM_EXIT_MEMORY_FAULT;
  }
  return KVM_EXIT_UNKNOWN;
}

// The payload, field by field: bytes the exit does not use keep what was there.
void show_payload(const vcpu::Exit& exit, kvm_run* run) {
  switch (exit.kind) {
    case vcpu::ExitKind::kIo:
      run->io.direction = exit.io.out ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN;
      run->io.size = exit.io.size;
      run->io.port = exit.io.port;
      run->io.count = exit.io.count;
      run->io.data_offset = kPioDataOffset;
      break;
    case vcpu::ExitKind::kMmio:
      run->mmio.phys_addr = exit.mmio.gpa.raw();
      std::memcpy(run->mmio.data, exit.mmio.data, sizeof(run->mmio.data));
      run->mmio.len = exit.mmio.len;
      run->mmio.is_write = exit.mmio.write;
      break;
    case vcpu::ExitKind::kHypercall:
      run->hypercall.nr = exit.hypercall.nr;
      std::copy_n(exit.hypercall.args, 3, run->hypercall.args);  // as many as MAP_GPA_RANGE has
      if (level().clears_hypercall_answer) run->hypercall.ret = 0;
      run->hypercall.flags = exit.hypercall.flags;
      break;
    case vcpu::ExitKind::kInternalError:
      run->internal.suberror = exit.internal.suberror;
      run->internal.ndata = exit.internal.ndata;
      std::copy_n(exit.internal.data, std::min<u32>(exit.internal.ndata, 16), run->internal.data);
      break;
    case vcpu::ExitKind::kMemoryFault:
      run->memory_fault.flags = exit.memory_fault.flags;
      run->memory_fault.gpa = exit.memory_fault.gpa.raw();
      run->memory_fault.size = exit.memory_fault.size;
      break;
    case vcpu::ExitKind::kDebug:
      run->debug.arch.exception = exit.debug.exception;
      run->debug.arch.pc = exit.debug.pc;
      run->debug.arch.dr6 = exit.debug.dr6;
      run->debug.arch.dr7 = exit.debug.dr7;
      break;
    case vcpu::ExitKind::kRdMsr:
    case vcpu::ExitKind::kWrMsr:
      run->msr.error = 0;
      std::memset(run->msr.pad, 0, sizeof(run->msr.pad));
      run->msr.reason = exit.msr.reason;
      run->msr.index = exit.msr.index;
      run->msr.data = exit.msr.data;
      break;
    case vcpu::ExitKind::kUnknown:
    case vcpu::ExitKind::kHlt:
    case vcpu::ExitKind::kIrqWindow:
    case vcpu::ExitKind::kShutdown:
    case vcpu::ExitKind::kInterrupted:
    case vcpu::ExitKind::kSetTpr:
    case vcpu::ExitKind::kDirtyRingFull:
      break;
  }
}

void kick_processor(void* who) {
  static_cast<Processor*>(who)->kick();
}

}  // namespace

void Processor::kick() {
  if (unit_) {
    unit_->wake();
  } else {
    cpu_->request_exit();
  }
}

bool Processor::poll_signal() {
  if (unit_ && unit_->timer_is_due()) return true;
  return section_ != nullptr &&
         (section_->exit_requested() || (section_->needs_polling() && section_->poll_pending()));
}

Result<long> Processor::run(u64 arg) {
  if (arg != 0) return refuse(EINVAL);
  host::RunSection section(&kick_processor, this, has_signal_mask_ ? &signal_mask_ : nullptr);
  section_ = &section;
  const bool immediate = read_once(run_->immediate_exit) != 0;
  write_once(run_->flags, u16{0});
  vm_.memory().before_run();
  host::work_without_thread();
  host::sweep_closed_memory();
  auto result =
      vm_.secure() == nullptr ? enter(immediate, section) : enter_secure(immediate, section);
  if (read_once(run_->kvm_valid_regs) != 0) store_sync_regs();
  save_after_run();
  section_ = nullptr;
  trace::emit(trace::Event::kvm_userspace_exit, trace::Room::abi_kvm, id_,
              read_once(run_->exit_reason), result ? 0 : static_cast<u64>(to_int(result.error())));
  copy_fault_counts(this);
  stats_.block().publish();
  vm_.stats().block().publish();
  return result;
}

Result<long> Processor::enter(bool immediate, host::RunSection& section) {
  if (cpu_->state().mp_state == vcpu::MpState::kUninitialized)
    return wait_for_init(immediate, section);
  constexpr u64 kFields = KVM_SYNC_X86_VALID_FIELDS;
  if ((read_once(run_->kvm_valid_regs) & ~kFields) != 0 ||
      (read_once(run_->kvm_dirty_regs) & ~kFields) != 0)
    return refuse(EINVAL);
  ST_TRY(load_sync_regs());
  if (!vm_.irqchip()) {
    const u64 cr8 = read_once(run_->cr8);
    if ((cr8 & ~u64{0xf}) != 0) return refuse(EINVAL);
    cpu_->state().sys.cr8 = cr8;
  }
  return run_guest(immediate, section);
}

bool Processor::signalled(host::RunSection& section) {
  return section.exit_requested() || section.poll_pending();
}

// Until something wakes the processor. Signals under KVM_SET_SIGNAL_MASK wake nobody by themselves:
// they are looked at every millisecond.
void Processor::nap(u32 ticket, host::RunSection& section) {
  constexpr u64 kMillisecond = 1'000'000;
  stats_.set(VcpuStat::kBlocking, 1);
  const u64 start = sys::monotonic_ns();
  unit_->sleep(ticket, section.needs_polling() ? kMillisecond : 100 * kMillisecond);
  stats_.add(VcpuStat::kHaltWaitNs, sys::monotonic_ns() - start);
  stats_.set(VcpuStat::kBlocking, 0);
}

Result<long> Processor::run_guest(bool immediate, host::RunSection& section) {
  vcpu::RunRequest request = request_of(immediate);
  if (!serve_unanswered(immediate, &request, section)) return refuse_signalled();
  for (;;) {
    // A signal that came before the guest was entered completes the last exit, then ends the run.
    if (!immediate && signalled(section)) kick();
    const u32 ticket = unit_ ? unit_->sleep_ticket() : 0;
    const bool wait =
        unit_ && !immediate && unit_->prepare(&request) == vcpu::InterruptUnit::Turn::kWait;
    if (wait && !signalled(section)) {
      nap(ticket, section);
      continue;
    }
    const vcpu::Exit& exit = wait ? interrupted_ : cpu_->run(request);
    count(exit);
    if (exit.kind == vcpu::ExitKind::kHypercall) {
      const Served served = serve(exit.hypercall, &request, section);
      if (served == Served::kYes) continue;
      if (served == Served::kSignalled) return refuse_signalled();
    }
    if (unit_ && unit_->absorb(exit, &request, pio_page())) continue;
    // A kick left over from an earlier run is nobody's: the client has had its answer.
    const bool stale = exit.kind == vcpu::ExitKind::kInterrupted && !exit.immediate && !immediate &&
                       !signalled(section);
    if (stale) {
      request.completion = {};
      continue;
    }
    show(exit);
    if (exit.error != 0) return refuse(exit.error);
    return 0;
  }
}

// A call of a guest that is or wants to be secure. The client sees nothing of it.
// A signal ends the run before the answer; the next run begins with it. The guest does not go on
// before: in UV_ESM it could not even fetch the call once more. A client that moved RIP wants it
// to do something else.
bool Processor::serve_unanswered(bool immediate, vcpu::RunRequest* request,
                                 host::RunSection& section) {
  if (!unanswered_) return true;
  if (cpu_->state().rip != unanswered_at_) {
    unanswered_.reset();
    cpu_->repeat_call();
    return true;
  }
  if (immediate) return false;
  const vcpu::HypercallExit call = *unanswered_;
  unanswered_.reset();
  return serve(call, request, section) == Served::kYes;
}

Processor::Served Processor::serve(const vcpu::HypercallExit& call, vcpu::RunRequest* request,
                                   host::RunSection& section) {
  if (vm_.secure() == nullptr || !vcpu::is_secure_call(call.nr)) return Served::kNotOurs;
  const vcpu::HypercallExit asked = call;
  for (;;) {
    if (const auto answer = vm_.secure()->call(asked)) {
      request->completion = {};
      request->completion.hypercall_ret = *answer;
      return Served::kYes;
    }
    if (signalled(section)) {
      unanswered_ = asked;
      unanswered_at_ = cpu_->state().rip;
      return Served::kSignalled;
    }
    // UV_ESM goes on by being called; others wait for another vCPU.
    if (asked.nr != static_cast<u64>(uv::Call::kUvEsm)) sync::yield_thread();
  }
}

// While a guest's life changes no vCPU of it begins to run. False: a signal came first.
bool Processor::begin_secure_run(host::RunSection& section) {
  constexpr u64 kMillisecond = 1'000'000;
  sync::Atomic<u32> nobody_wakes{0};
  while (!vm_.secure()->run_begin()) {
    if (signalled(section)) return false;
    sync::futex_wait(nobody_wakes, 0, kMillisecond);
  }
  return true;
}

Result<long> Processor::enter_secure(bool immediate, host::RunSection& section) {
  if (!begin_secure_run(section)) {
    write_once(run_->exit_reason, u32{KVM_EXIT_INTR});
    return refuse(EINTR);
  }
  const auto result = enter(immediate, section);
  vm_.secure()->run_end();
  return result;
}

// A processor that waits for INIT does not enter the guest. Whatever ends the wait, the client is
// asked to come again: the kernel's answer too.
Result<long> Processor::wait_for_init(bool immediate, host::RunSection& section) {
  if (immediate) return refuse(EINTR);
  while (!signalled(section)) {
    const u32 ticket = unit_->sleep_ticket();
    unit_->accept_events();
    if (cpu_->state().mp_state != vcpu::MpState::kUninitialized) return refuse(EAGAIN);
    nap(ticket, section);
  }
  return refuse_signalled();
}

Result<long> Processor::refuse_signalled() {
  write_once(run_->exit_reason, u32{KVM_EXIT_INTR});
  stats_.add(VcpuStat::kSignalExits);
  return refuse(EINTR);
}

vcpu::RunRequest Processor::request_of(bool immediate) const {
  vcpu::RunRequest request;
  request.immediate_exit = immediate;
  // With the interrupt controllers here, the window is ours to ask for.
  request.request_interrupt_window = !unit_ && read_once(run_->request_interrupt_window) != 0;
  request.completion.mmio_data = run_->mmio.data;
  request.completion.hypercall_ret = read_once(run_->hypercall.ret);
  request.completion.msr_data = read_once(run_->msr.data);
  request.completion.msr_error = read_once(run_->msr.error) != 0;
  return request;
}

void Processor::show(const vcpu::Exit& exit) {
  if (exit.kind == vcpu::ExitKind::kInterrupted && exit.immediate) return;
  show_payload(exit, run_);
  write_once(run_->exit_reason, reason_of(exit.kind));
}

Result<void> Processor::load_sync_regs() {
  const u64 dirty = read_once(run_->kvm_dirty_regs);
  if (dirty == 0) return {};
  if ((dirty & KVM_SYNC_X86_REGS) != 0) {
    write_regs(snapshot(run_->s.regs.regs));
    write_once(run_->kvm_dirty_regs, read_once(run_->kvm_dirty_regs) & ~u64{KVM_SYNC_X86_REGS});
  }
  if ((dirty & KVM_SYNC_X86_SREGS) != 0) {
    if (!write_sregs(snapshot(run_->s.regs.sregs))) return refuse(EINVAL);
    write_once(run_->kvm_dirty_regs, read_once(run_->kvm_dirty_regs) & ~u64{KVM_SYNC_X86_SREGS});
  }
  if ((dirty & KVM_SYNC_X86_EVENTS) != 0) {
    if (!write_events(snapshot(run_->s.regs.events))) return refuse(EINVAL);
    write_once(run_->kvm_dirty_regs, read_once(run_->kvm_dirty_regs) & ~u64{KVM_SYNC_X86_EVENTS});
  }
  return {};
}

void Processor::store_sync_regs() {
  const u64 wanted = read_once(run_->kvm_valid_regs);
  if ((wanted & KVM_SYNC_X86_REGS) != 0) {
    kvm_regs regs{};
    read_regs(&regs);
    run_->s.regs.regs = regs;
  }
  if ((wanted & KVM_SYNC_X86_SREGS) != 0) {
    kvm_sregs sregs{};
    read_sregs(&sregs);
    run_->s.regs.sregs = sregs;
  }
  if ((wanted & KVM_SYNC_X86_EVENTS) != 0) {
    kvm_vcpu_events events;
    read_events(&events);
    run_->s.regs.events = events;
  }
}

void Processor::save_after_run() {
  const vcpu::CpuState& s = cpu_->state();
  run_->if_flag = cpu_->interrupts_enabled() ? 1 : 0;
  run_->cr8 = s.sys.cr8;
  run_->apic_base = s.sys.apic_base;
  run_->ready_for_interrupt_injection =
      vm_.irqchip() || cpu_->ready_for_interrupt_injection() ? 1 : 0;
}

// KVM_PRE_FAULT_MEMORY (kernel file: virt/kvm/kvm_main.c). What is left of the range is written
// back whatever the answer is; any progress makes the answer 0.
Result<long> Processor::pre_fault_memory(u64 arg) {
  auto range = ST_TRY(copy_in<kvm_pre_fault_memory>(arg));
  const Result<void> done = pre_fault(&range);
  ST_TRY(copy_out(arg, range));
  if (!done) return refuse(done.error());
  return 0;
}

Result<void> Processor::pre_fault(kvm_pre_fault_memory* range) {
  if (range->flags != 0) return refuse(EINVAL);
  if (((range->gpa | range->size) & ~kPageMask) != 0 || range->gpa + range->size <= range->gpa) {
    return refuse(EINVAL);
  }
  host::RunSection section(&kick_processor, this, nullptr);
  const u64 whole = range->size;
  unsigned level = 0;  // of the entry before; 0: of none
  do {
    constexpr u64 kBlock = u64{1} << 21;
    // The page before lies under the same table of small entries: the host need not be asked again.
    const bool same_table = level == 1 && (range->gpa & (kBlock - 1)) != 0;
    const Result<u64> mapped = pre_fault_page(range->gpa, same_table ? 1 : 0, section);
    if (!mapped) {
      if (range->size != whole) break;
      return refuse(mapped.error());
    }
    level = static_cast<unsigned>(*mapped);
    const u64 span = kPageSize << (9 * (level - 1));
    const u64 step = std::min<u64>(range->size, span - (range->gpa & (span - 1)));
    range->gpa += step;
    range->size -= step;
  } while (range->size != 0);
  return {};
}

// What the VMM is to arrange stands in the run page, as when the guest had asked.
int Processor::show_refusal(const stage2::Fault& fault) {
  vcpu::Exit exit;
  exit.kind = vcpu::ExitKind::kMemoryFault;
  exit.memory_fault = {.flags = fault.is_private ? u64{KVM_MEMORY_EXIT_FLAG_PRIVATE} : 0,
                       .gpa = Gpa(fault.gpa.raw() & kPageMask),
                       .size = kPageSize};
  show(exit);
  return fault.error;
}

// The level of the entry that covers the page now.
Result<u64> Processor::pre_fault_page(u64 gpa, unsigned known_level, host::RunSection& section) {
  for (;;) {
    if (signalled(section)) return refuse(EINTR);
    stage2::Fault fault;
    fault.gpa = Gpa(gpa);
    fault.prefetch = true;
    if (known_level != 0) fault.level = static_cast<u8>(known_level);
    switch (vm_.memory().handle_fault(cpu_->mmu(), fault)) {
      case stage2::FaultOutcome::kFixed:
      case stage2::FaultOutcome::kSpurious:
        return u64{fault.level};
      case stage2::FaultOutcome::kRetry:
        sync::yield_thread();
        break;
      case stage2::FaultOutcome::kMmio:
      case stage2::FaultOutcome::kEmulate:
        return refuse(ENOENT);
      case stage2::FaultOutcome::kToUser:
        return refuse(EFAULT);
      case stage2::FaultOutcome::kMemoryFault:
        return refuse(show_refusal(fault));
      case stage2::FaultOutcome::kPoison:
        return refuse(EHWPOISON);
      case stage2::FaultOutcome::kNoMemory:
        return refuse(ENOMEM);
    }
  }
}

void Processor::copy_fault_counts(void* context) {
  Processor& processor = *static_cast<Processor*>(context);
  const stage2::PfCounts& counts = processor.cpu_->mmu().counts;
  Stats<VcpuStat>& stats = processor.stats_;
  stats.set(VcpuStat::kPfTaken, counts.taken.get());
  stats.set(VcpuStat::kPfFixed, counts.fixed.get());
  stats.set(VcpuStat::kPfEmulate, counts.emulate.get());
  stats.set(VcpuStat::kPfSpurious, counts.spurious.get());
  stats.set(VcpuStat::kPfFast, counts.fast.get());
  stats.set(VcpuStat::kPfMmioSpteCreated, counts.mmio_spte_created.get());
}

void Processor::count(const vcpu::Exit& exit) {
  stats_.add(VcpuStat::kExits);
  switch (exit.kind) {
    case vcpu::ExitKind::kIo:
      stats_.add(VcpuStat::kIoExits);
      break;
    case vcpu::ExitKind::kMmio:
      stats_.add(VcpuStat::kMmioExits);
      break;
    case vcpu::ExitKind::kHlt:
      stats_.add(VcpuStat::kHaltExits);
      break;
    case vcpu::ExitKind::kHypercall:
      stats_.add(VcpuStat::kHypercalls);
      break;
    case vcpu::ExitKind::kIrqWindow:
      stats_.add(VcpuStat::kRequestIrqExits);
      break;
    case vcpu::ExitKind::kInternalError:
      stats_.add(VcpuStat::kInsnEmulationFail);
      break;
    case vcpu::ExitKind::kInterrupted:
      if (!exit.immediate) stats_.add(VcpuStat::kSignalExits);
      break;
    default:
      break;
  }
}

}  // namespace stagetwo::abi_kvm
