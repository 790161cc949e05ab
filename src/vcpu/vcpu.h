// SPDX-License-Identifier: Apache-2.0
#pragma once

// The façade of the room: one x86-64 processor of a guest, interpreted by the thread that calls
// run(). Linux analogue: `struct kvm_vcpu` with kvm_arch_vcpu_ioctl_run.
//
// Invariants: I1  run() never keeps a host address across a poll that asked for a flush.
//             I2  between two run() calls `state()` is exact and may be changed freely; what was
//                 changed behind the caches (segments, control registers) goes through
//                 set_system_state.
//             I3  an exit leaves RIP where the kernel leaves it (kernel file: x86.c).
// Locking: the caller holds the vCPU's mutex over every call, except request_exit (any thread,
// signal handlers included). Lifetime: borrows GuestMemory, VmPolicy and the PIO page until
// destroyed.

#include <span>

#include "addr/addr.h"
#include "base/result.h"
#include "vcpu/exit.h"
#include "vcpu/state.h"

namespace stagetwo::stage2 {
class DirtyRing;
class GuestMemory;
class MmuContext;
}  // namespace stagetwo::stage2

namespace stagetwo::vcpu {

struct Cpu;  // the executor's own view: cpu.h

// Analogue: struct kvm_cpuid_entry2, same field order.
struct CpuidEntry {
  u32 function;
  u32 index;
  u32 flags;  // bit 0: `index` is significant
  u32 eax;
  u32 ebx;
  u32 ecx;
  u32 edx;
  friend constexpr bool operator==(const CpuidEntry&, const CpuidEntry&) = default;
};

enum class MsrOutcome : u8 { kDone, kUnknown, kRefused };

// What all vCPUs of a VM share; owned by the VM, may be changed while vCPUs run (word-sized fields,
// read once per use). The function pointers may be null.
struct VmPolicy {
  bool exit_on_emulation_failure = false;  // KVM_CAP_EXIT_ON_EMULATION_FAILURE
  bool irqchip = false;                    // HLT waits instead of exiting
  u64 hypercall_exits = 0;                 // KVM_CAP_EXIT_HYPERCALL mask
  u64 disabled_quirks = 0;                 // KVM_CAP_DISABLE_QUIRKS2
  u32 msr_exit_reasons = 0;   // KVM_CAP_X86_USER_SPACE_MSR: 1 inval, 2 unknown, 4 filter
  u64 hlt_in_guest = 0;       // KVM_CAP_X86_DISABLE_EXITS bits
  bool secure_calls = false;  // H_SVM_* and UV_* numbers leave the guest as kHypercall
  u32 physical_width = 0;     // of the processor below, in bits; 0: the guest's own is as wide
  u32 tsc_khz = 0;
  u64 tsc_origin = 0;  // the machine's counter when the guest's began at zero; 0: at vCPU creation

  void* context = nullptr;
  // False: the filter denies the access.
  bool (*msr_allowed)(void* context, u32 index, bool write) = nullptr;
  // MSRs this room does not know (KVM's paravirtual ones).
  MsrOutcome (*read_msr)(void* context, u32 vcpu_id, u32 index, u64* value) = nullptr;
  MsrOutcome (*write_msr)(void* context, u32 vcpu_id, u32 index, u64 value) = nullptr;
  // A write that a coalescing zone or an eventfd swallows: true means no exit.
  bool (*coalesce_mmio)(void* context, u32 vcpu_id, Gpa gpa, const void* data, u32 len) = nullptr;
  bool (*coalesce_pio)(void* context, u32 vcpu_id, u16 port, const void* data, u32 len) = nullptr;
  // A signal is pending under KVM_SET_SIGNAL_MASK; polled now and then while the guest runs.
  bool (*signal_pending)(void* context, u32 vcpu_id) = nullptr;
};

struct VcpuConfig {
  u32 id = 0;
  bool boot_cpu = true;
  stage2::GuestMemory* memory = nullptr;
  stage2::DirtyRing* ring = nullptr;  // where the VM has dirty rings
  const VmPolicy* policy = nullptr;
  u8* pio_page = nullptr;  // 4096 bytes of the run area at data_offset; null: an internal page
};

// What the client left in the run page before KVM_RUN; each is looked at only if the last exit
// wants it.
struct Completion {
  const u8* mmio_data = nullptr;  // 8 bytes
  u64 hypercall_ret = 0;
  u64 msr_data = 0;
  bool msr_error = false;
};

struct RunRequest {
  Completion completion;
  bool immediate_exit = false;            // complete what is pending, run nothing
  bool request_interrupt_window = false;  // exit as soon as an interrupt could be injected
};

struct GuestDebug {
  bool enabled = false;
  bool single_step = false;
  bool software_bp = false;
  bool hardware_bp = false;
  u64 dr[8] = {};
};

class Vcpu {
 public:
  // Failure: ENOMEM.
  [[nodiscard]] static Result<Vcpu*> create(const VcpuConfig& config);
  static void destroy(Vcpu* vcpu);
  Vcpu(const Vcpu&) = delete;
  Vcpu& operator=(const Vcpu&) = delete;

  // KVM_RUN. Post: the returned exit is valid until the next call of run().
  // Context: the calling thread becomes the guest; no lock but the vCPU's own is held.
  [[nodiscard]] const Exit& run(const RunRequest& request);

  // After an exit with kHypercall that nobody answered: the guest makes the call again.
  void repeat_call();

  // Asks a running guest to come out with kInterrupted, or the next run() if none is running.
  // Context: any thread, async-signal-safe. The request is consumed by the run it ends.
  void request_exit();

  // Registers. Writing RIP cancels the completion of a pending IN/OUT, as in the kernel.
  [[nodiscard]] CpuState& state();
  [[nodiscard]] const CpuState& state() const;
  // To be called after KVM_SET_REGS wrote gpr, rip or rflags through state().
  void registers_changed();

  // KVM_SET_SREGS. Failure: EINVAL for an impossible CR0, CR4 or EFER; nothing changed.
  // Post: every cached translation is gone.
  [[nodiscard]] Result<void> set_system_state(const SystemState& system);

  // KVM_SET_CPUID2: entries are copied. Failure: E2BIG, ENOMEM; EINVAL after the first run unless
  // equal to what is there.
  [[nodiscard]] Result<void> set_cpuid(std::span<const CpuidEntry> entries);
  [[nodiscard]] std::span<const CpuidEntry> cpuid() const;

  // The CPUID instruction: what the guest would see.
  [[nodiscard]] CpuidEntry query_cpuid(u32 function, u32 index) const;

  // KVM_GET_MSRS / KVM_SET_MSRS of one register. kUnknown: this room has no such MSR.
  [[nodiscard]] MsrOutcome get_msr(u32 index, u64* value, bool host_initiated);
  [[nodiscard]] MsrOutcome set_msr(u32 index, u64 value, bool host_initiated);

  // Was the guest ever entered? A run that only completed an exit does not count.
  [[nodiscard]] bool has_run() const;

  // KVM_INTERRUPT. One that still waits for delivery is replaced.
  void interrupt(u8 vector);
  void nmi();
  // Drops the NMIs that cannot wait: one may, and a second where nothing holds the first back.
  void bound_nmis();
  // Reported in the run page after every exit.
  [[nodiscard]] bool ready_for_interrupt_injection() const;
  [[nodiscard]] bool interrupts_enabled() const;

  void set_guest_debug(const GuestDebug& debug);
  // Bus-independent translation for KVM_TRANSLATE; false: not mapped.
  [[nodiscard]] bool translate(Gva gva, Gpa* gpa);

  // TSC as the guest reads it now.
  [[nodiscard]] u64 guest_tsc() const;
  [[nodiscard]] u32 id() const;

  // Its view of the VM's stage-2 table: faults outside a run, and the counts of those in one.
  [[nodiscard]] stage2::MmuContext& mmu();

  // Guest instructions executed so far (an estimate at block granularity while running).
  [[nodiscard]] u64 instructions() const;

 private:
  explicit Vcpu(Cpu* cpu) : cpu_(cpu) {}
  ~Vcpu() = default;

  Cpu* cpu_;  // owned
};

}  // namespace stagetwo::vcpu
