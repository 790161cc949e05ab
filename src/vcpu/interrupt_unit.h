// SPDX-License-Identifier: Apache-2.0
#pragma once

// One processor's local APIC at work: what happens around each run of a vCPU whose VM has interrupt
// controllers. Vcpu itself knows no controller; this unit looks at them between two runs.
//
//   prepare    timer, NMI, INIT, SIPI; an interrupt that can be delivered is handed to the vCPU,
//   one
//              that cannot asks for the window
//   run        by the caller
//   absorb     an exit that a controller answers: the next run goes on as if nothing had been
//
// Linux analogue: kvm_apic_accept_events, kvm_cpu_get_interrupt, vcpu_block (kernel files: x86.c,
// lapic.c, irq.c). Differs: a running guest is taken out of its run to be given an interrupt.
// Invariants: I1  sys.cr8 and sys.apic_base of the vCPU are the APIC's after prepare().
//             I2  whoever makes something deliverable kicks: the guest's own writes here, others
//             through
//                 the APIC's wake callback.
// Locking: the vCPU's mutex, except wake(). Lifetime: borrows vCPU and Irqchip; on the bus from
// creation to destruction.

#include "sync/atomic.h"
#include "vcpu/irqchip.h"
#include "vcpu/lapic.h"
#include "vcpu/vcpu.h"

namespace stagetwo::vcpu {

class InterruptUnit {
 public:
  struct Config {
    Vcpu* vcpu = nullptr;
    Irqchip* chip = nullptr;
    bool boot_cpu = false;
    bool lint0_reenabled = true;
    u64 bus_cycle_ns = 1;
  };

  explicit InterruptUnit(const Config& config);
  InterruptUnit(const InterruptUnit&) = delete;
  InterruptUnit& operator=(const InterruptUnit&) = delete;
  ~InterruptUnit();

  enum class Turn : u8 {
    kRun,   // enter the guest
    kWait,  // halted or not started: sleep until wake(), a signal, or the deadline
  };
  // Post: request->request_interrupt_window is set where an interrupt waits for the window.
  [[nodiscard]] Turn prepare(RunRequest* request);
  // True: a controller has answered; run again with *request.
  // Pre: `exit` is what the run that `request` was for has returned.
  [[nodiscard]] bool absorb(const Exit& exit, RunRequest* request, u8* pio_page);

  // Sleeping. seen = sleep_ticket(); look at the world; sleep(seen, …) returns at once if wake()
  // came in between, else by the deadline of the timer or after `limit_ns`.
  [[nodiscard]] u32 sleep_ticket() const { return bell_.load(); }
  void sleep(u32 ticket, u64 limit_ns);
  // Ends a sleep and a run. Context: any thread, signal handlers.
  void wake();
  // Is the timer due? Cheap; called by the running thread now and then.
  [[nodiscard]] bool timer_is_due() const;

  // The guest's own accesses while it runs. False: not ours.
  [[nodiscard]] bool mmio_write(Gpa gpa, const void* data, u32 size);
  [[nodiscard]] bool port_write(u16 port, const void* data, u32 size);
  [[nodiscard]] MsrOutcome read_msr(u32 index, u64* value);
  [[nodiscard]] MsrOutcome write_msr(u32 index, u64 value);

  // The host's. Failure: EINVAL; nothing changed.
  [[nodiscard]] Result<void> set_base(u64 base, bool host_initiated);
  // KVM_GUESTDBG_BLOCKIRQ: interrupts wait while somebody single-steps the guest.
  void block_interrupts(bool blocked) { blocked_ = blocked; }
  void set_task_priority(u8 cr8) { lapic_.set_task_priority_class(cr8); }
  void get_state(u8* registers);
  [[nodiscard]] Result<void> set_state(const u8* registers);
  // KVM_SET_MP_STATE: SIPI_RECEIVED becomes a SIPI that waits. Pre: the state exists.
  void set_mp_state(MpState state);
  // What a get of the state sees: pending INIT and SIPI are taken first.
  void accept_events();

  [[nodiscard]] Lapic& lapic() { return lapic_; }

 private:
  static void woken(void* context) { static_cast<InterruptUnit*>(context)->wake(); }
  void take_init();
  void start_at(u8 vector);
  void deliver(RunRequest* request);
  [[nodiscard]] bool has_interrupt();
  [[nodiscard]] bool may_run();
  void follow_up();

  Vcpu* const vcpu_;
  Irqchip* const chip_;
  const bool boot_cpu_;
  Lapic lapic_;
  bool blocked_ = false;       // KVM_GUESTDBG_BLOCKIRQ
  u8 answer_[8] = {};          // of an absorbed read
  sync::Atomic<u32> bell_{0};  // counts wakes; slept on
};

}  // namespace stagetwo::vcpu
