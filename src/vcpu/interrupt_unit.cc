// SPDX-License-Identifier: Apache-2.0
#include "vcpu/interrupt_unit.h"

#include <time.h>

#include <algorithm>
#include <cstring>

#include "base/sys.h"

namespace stagetwo::vcpu {
namespace {

constexpr u32 kMsrApicBase = 0x1b;
constexpr u32 kMsrTscDeadline = 0x6e0;
constexpr u64 kNsPerMs = 1'000'000;

u64 reserved_base_bits(const Vcpu& vcpu) {
  const u32 told = vcpu.query_cpuid(0x80000008, 0).eax & 0xff;
  const u32 width = told != 0 ? told : 36;
  const bool x2apic = (vcpu.query_cpuid(1, 0).ecx >> 21 & 1) != 0;
  return (width < 64 ? ~u64{0} << width : 0) | (x2apic ? 0 : Lapic::kBaseX2apic);
}

}  // namespace

InterruptUnit::InterruptUnit(const Config& config)
    : vcpu_(config.vcpu),
      chip_(config.chip),
      boot_cpu_(config.boot_cpu),
      lapic_({.id = config.vcpu->id(),
              .boot_cpu = config.boot_cpu,
              .lint0_reenabled = config.lint0_reenabled,
              .bus_cycle_ns = config.bus_cycle_ns,
              .bus = &config.chip->bus(),
              .wake_context = this,
              .wake = &InterruptUnit::woken}) {
  vcpu_->state().sys.apic_base = lapic_.base();
  chip_->bus().attach(&lapic_);
  if (boot_cpu_) chip_->set_pic_observer(&InterruptUnit::woken, this);
}

InterruptUnit::~InterruptUnit() {
  if (boot_cpu_) chip_->set_pic_observer(nullptr, nullptr);
  chip_->bus().detach(&lapic_);
}

void InterruptUnit::wake() {
  bell_.fetch_add(1);
  vcpu_->request_exit();
  sys::futex_wake(bell_.address(), 1);
}

void InterruptUnit::sleep(u32 ticket, u64 limit_ns) {
  const u64 now = sys::monotonic_ns();
  u64 until = limit_ns;
  if (const auto deadline = lapic_.timer_deadline_ns()) {
    if (*deadline <= now) return;
    until = std::min(until, *deadline - now);
  }
  // A deadline in ticks of the guest's counter is looked at every millisecond.
  if (lapic_.tsc_deadline() != 0) until = std::min(until, kNsPerMs);
  timespec relative{};
  relative.tv_sec = static_cast<time_t>(until / 1'000'000'000);
  relative.tv_nsec = static_cast<long>(until % 1'000'000'000);
  static_cast<void>(sys::futex_wait(bell_.address(), ticket, &relative));
}

bool InterruptUnit::timer_is_due() const {
  if (lapic_.tsc_deadline() != 0) return vcpu_->guest_tsc() >= lapic_.tsc_deadline();
  const auto deadline = lapic_.timer_deadline_ns();
  return deadline && sys::monotonic_ns() >= *deadline;
}

// Intel SDM volume 3, "Processor State After INIT"; what survives stays.
void InterruptUnit::take_init() {
  CpuState& s = vcpu_->state();
  const CpuState before = s;
  s.reset(boot_cpu_);
  for (unsigned i = 0; i < 16; ++i) s.xmm[i] = before.xmm[i];
  s.mxcsr = before.mxcsr;
  s.x87 = before.x87;
  s.msr = before.msr;
  s.xcr0 = before.xcr0;
  s.sys.cr0 = 0x10 | (before.sys.cr0 & 0x60000000);
  s.sys.apic_base = before.sys.apic_base;
  lapic_.reset(/*init_event=*/true);
  static_cast<void>(vcpu_->set_system_state(SystemState(s.sys)));
  s.mp_state = boot_cpu_ ? MpState::kRunnable : MpState::kInitReceived;
}

void InterruptUnit::start_at(u8 vector) {
  CpuState& s = vcpu_->state();
  SystemState sys = s.sys;
  sys.seg[kSegCs].selector = static_cast<u16>(vector << 8);
  sys.seg[kSegCs].base = u64{vector} << 12;
  static_cast<void>(vcpu_->set_system_state(sys));
  s.rip = 0;
  s.mp_state = MpState::kRunnable;
}

void InterruptUnit::accept_events() {
  if (lapic_.take_init()) take_init();
  const MpState state = vcpu_->state().mp_state;
  // A SIPI counts while the processor waits for one, and is lost otherwise.
  if (const auto vector = lapic_.take_startup(); vector && state == MpState::kInitReceived)
    start_at(*vector);
}

bool InterruptUnit::has_interrupt() {
  return lapic_.pending_vector().has_value() || (lapic_.accepts_pic() && chip_->pic_output());
}

bool InterruptUnit::may_run() {
  CpuState& s = vcpu_->state();
  if (s.mp_state == MpState::kHalted) {
    const Events& e = s.events;
    const bool wanted = (has_interrupt() && vcpu_->interrupts_enabled()) || e.interrupt_injected ||
                        (e.nmi_pending != 0 && !e.nmi_masked) || e.exception_pending ||
                        e.exception_injected || e.triple_fault_pending;
    if (wanted) s.mp_state = MpState::kRunnable;
  }
  return s.mp_state == MpState::kRunnable;
}

void InterruptUnit::deliver(RunRequest* request) {
  if (blocked_ || !has_interrupt()) return;
  if (vcpu_->ready_for_interrupt_injection()) {
    const bool from_pic = lapic_.accepts_pic() && chip_->pic_output();
    const u8 vector = from_pic ? chip_->acknowledge_pic() : lapic_.acknowledge();
    vcpu_->interrupt(vector);
  }
  request->request_interrupt_window = has_interrupt();
}

InterruptUnit::Turn InterruptUnit::prepare(RunRequest* request) {
  CpuState& s = vcpu_->state();
  // What the guest did to CR8 since the last look.
  if (s.sys.cr8 != lapic_.task_priority_class())
    lapic_.set_task_priority_class(static_cast<u8>(s.sys.cr8));
  lapic_.poll_timer(sys::monotonic_ns(), vcpu_->guest_tsc());
  if (lapic_.take_nmi()) vcpu_->nmi();
  accept_events();
  request->request_interrupt_window = false;
  if (!may_run()) return Turn::kWait;
  deliver(request);
  s.sys.cr8 = lapic_.task_priority_class();
  return Turn::kRun;
}

bool InterruptUnit::absorb(const Exit& exit, RunRequest* request, u8* pio_page) {
  request->completion = {};
  switch (exit.kind) {
    case ExitKind::kMmio: {
      if (exit.mmio.write) return false;  // offered when it happened: mmio_write
      const u64 gpa = exit.mmio.gpa.raw();
      const u32 size = std::min<u32>(exit.mmio.len, sizeof(answer_));
      std::memset(answer_, 0, sizeof(answer_));
      if (lapic_.claims(gpa)) {
        lapic_.mmio_read(static_cast<u32>(gpa & 0xfff), answer_, size, sys::monotonic_ns());
      } else if (!chip_->mmio_read(gpa, answer_, size)) {
        return false;
      }
      request->completion.mmio_data = answer_;
      return true;
    }
    case ExitKind::kIo: {
      if (exit.io.out) return false;
      for (u32 i = 0; i < exit.io.count; ++i) {
        if (!chip_->port_read(exit.io.port, pio_page + i * exit.io.size, exit.io.size))
          return false;
      }
      return true;
    }
    case ExitKind::kHlt:
      return true;  // the state says halted; prepare() waits
    case ExitKind::kIrqWindow:
      return true;  // asked for by deliver()
    default:
      return false;
  }
}

void InterruptUnit::follow_up() {
  vcpu_->state().sys.cr8 = lapic_.task_priority_class();
  if (has_interrupt() || lapic_.has_event()) vcpu_->request_exit();
}

bool InterruptUnit::mmio_write(Gpa gpa, const void* data, u32 size) {
  if (lapic_.claims(gpa.raw())) {
    const u32 offset = static_cast<u32>(gpa.raw() & 0xfff);
    lapic_.mmio_write(offset, static_cast<const u8*>(data), size, sys::monotonic_ns());
  } else if (!chip_->mmio_write(gpa.raw(), data, size)) {
    return false;
  }
  follow_up();
  return true;
}

bool InterruptUnit::port_write(u16 port, const void* data, u32 size) {
  if (!chip_->port_write(port, data, size)) return false;
  follow_up();
  return true;
}

Result<void> InterruptUnit::set_base(u64 base, bool host_initiated) {
  ST_TRY(lapic_.set_base(base, reserved_base_bits(*vcpu_), host_initiated));
  vcpu_->state().sys.apic_base = base;
  return {};
}

MsrOutcome InterruptUnit::read_msr(u32 index, u64* value) {
  if (index == kMsrApicBase) {
    *value = lapic_.base();
    return MsrOutcome::kDone;
  }
  if (index == kMsrTscDeadline) {
    *value = lapic_.tsc_deadline();
    return MsrOutcome::kDone;
  }
  if (index < 0x800 || index > 0x8ff) return MsrOutcome::kUnknown;
  const auto read = lapic_.msr_read(index, sys::monotonic_ns());
  if (!read) return MsrOutcome::kRefused;
  *value = *read;
  return MsrOutcome::kDone;
}

MsrOutcome InterruptUnit::write_msr(u32 index, u64 value) {
  if (index == kMsrApicBase) {
    if (!set_base(value, false)) return MsrOutcome::kRefused;
  } else if (index == kMsrTscDeadline) {
    lapic_.set_tsc_deadline(value);
  } else if (index >= 0x800 && index <= 0x8ff) {
    if (!lapic_.msr_write(index, value, sys::monotonic_ns())) return MsrOutcome::kRefused;
  } else {
    return MsrOutcome::kUnknown;
  }
  follow_up();
  return MsrOutcome::kDone;
}

void InterruptUnit::get_state(u8* registers) {
  lapic_.get_state(registers, sys::monotonic_ns());
}

Result<void> InterruptUnit::set_state(const u8* registers) {
  ST_TRY(lapic_.set_state(registers, sys::monotonic_ns()));
  vcpu_->state().sys.cr8 = lapic_.task_priority_class();
  return {};
}

void InterruptUnit::set_mp_state(MpState state) {
  CpuState& s = vcpu_->state();
  s.mp_state = state;
  if (state != MpState::kSipiReceived) return;
  s.mp_state = MpState::kInitReceived;
  static_cast<void>(lapic_.accept({.vector = 0, .mode = DeliveryMode::kStartup}));
}

}  // namespace stagetwo::vcpu
