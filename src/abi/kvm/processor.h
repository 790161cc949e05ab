// SPDX-License-Identifier: Apache-2.0
#pragma once

// One vCPU as its descriptor shows it: the run page, the registers' get and set calls, KVM_RUN.
//
// Linux analogue: struct kvm_vcpu with kvm_vcpu_ioctl and kvm_arch_vcpu_ioctl(_run). The processor
// itself is vcpu::Vcpu; this class translates between it and the uapi structs.
// Invariants: I1  one request at a time (lock_), KVM_RUN included.
//             I2  the run page is the client's as much as ours: every field is read once, and a
//             struct
//                 of it is copied before it is checked.
//             I3  a refusal changes nothing, except where the kernel has already applied a part.
// Locking: lock_ (rank: kVcpu). Lifetime: owned by the VM; the mapping of the run area too, so it
// is usable after the descriptor's last close.

#include <optional>

#include "abi/kvm/stats.h"
#include "abi/kvm/summary.h"
#include "abi/kvm/uapi.h"
#include "base/alloc.h"
#include "base/result.h"
#include "host/descriptor.h"
#include "host/run_section.h"
#include "stage2/dirty_ring.h"
#include "stage2/fault.h"
#include "sync/mutex.h"
#include "vcpu/interrupt_unit.h"
#include "vcpu/vcpu.h"

namespace stagetwo::abi_kvm {

class Vm;

class Processor {
 public:
  static constexpr u64 kRunAreaSize = 3 * kPageSize;
  static constexpr u64 kRingOffset = KVM_DIRTY_LOG_PAGE_OFFSET * kPageSize;

  // Pre: `backing` holds kRunAreaSize bytes, and with a ring kRingOffset + ring_size.
  // Failure: ENOMEM; nothing is left behind.
  [[nodiscard]] static Result<Box<Processor>> create(Vm& vm, u32 id, bool boot_cpu,
                                                     const host::Backing& backing, u32 ring_size);
  Processor(Vm& vm, u32 id);
  Processor(const Processor&) = delete;
  Processor& operator=(const Processor&) = delete;
  ~Processor();

  // The descriptor of a processor of `vm`. Failure: EMFILE, ENFILE, ENOMEM.
  [[nodiscard]] Result<long> publish(host::Backing backing);

  // A request on the vCPU's descriptor.
  [[nodiscard]] Result<long> ioctl(u32 request, u64 arg);

  [[nodiscard]] u32 id() const { return id_; }
  [[nodiscard]] u32 ring_size() const { return ring_size_; }
  [[nodiscard]] Vm& vm() { return vm_; }
  [[nodiscard]] kvm_coalesced_mmio_ring* ring() const;
  [[nodiscard]] u8* pio_page() const;
  // Called by the running thread itself, now and then: has a signal come that the mask lets
  // through?
  [[nodiscard]] bool poll_signal();
  // Makes a run stop soon. Context: any thread, signal handlers.
  void kick();
  // Accesses of the running guest that a controller of the VM answers. False, kUnknown: not ours.
  [[nodiscard]] bool device_write(bool port, u64 address, const void* data, u32 size);
  [[nodiscard]] vcpu::MsrOutcome read_msr(u32 index, u64* value);
  [[nodiscard]] vcpu::MsrOutcome write_msr(u32 index, u64 value);

 private:
  // processor.cc
  Result<void> map_areas(const host::Backing& backing, u32 ring_size);
  Result<long> dispatch(u32 request, u64 arg);
  Result<long> dispatch_events(u32 request, u64 arg);
  Result<long> set_signal_mask(u64 arg);
  Result<long> stats_fd();
  // processor_regs.cc
  Result<long> get_regs(u64 arg);
  Result<long> set_regs(u64 arg);
  Result<long> get_sregs(u64 arg);
  Result<long> set_sregs(u64 arg);
  Result<long> get_sregs2(u64 arg);
  Result<long> set_sregs2(u64 arg);
  void read_regs(kvm_regs* out) const;
  void write_regs(const kvm_regs& regs);
  void read_sregs(kvm_sregs* out) const;
  Result<void> write_sregs(const kvm_sregs& sregs);
  Result<void> apply_system(const vcpu::SystemState& system);
  // processor_fpu.cc
  Result<long> get_fpu(u64 arg);
  Result<long> set_fpu(u64 arg);
  Result<long> get_xsave(u64 arg);
  Result<long> set_xsave(u64 arg);
  Result<long> get_xcrs(u64 arg);
  Result<long> set_xcrs(u64 arg);
  // processor_events.cc
  Result<long> get_events(u64 arg);
  Result<long> set_events(u64 arg);
  void read_events(kvm_vcpu_events* out) const;
  Result<void> write_events(kvm_vcpu_events events);
  Result<long> get_debugregs(u64 arg);
  Result<long> set_debugregs(u64 arg);
  Result<long> set_guest_debug(u64 arg);
  Result<long> interrupt(u64 arg);
  Result<long> setup_mce(u64 arg);
  Result<long> set_mce(u64 arg);
  // processor_msrs.cc
  Result<long> get_msrs(u64 arg);
  Result<long> set_msrs(u64 arg);
  Result<long> set_cpuid(u64 arg);
  Result<long> set_cpuid2(u64 arg);
  Result<long> get_cpuid2(u64 arg);
  Result<long> adopt_cpuid(std::span<vcpu::CpuidEntry> entries);
  Result<long> translate(u64 arg);
  Result<long> set_tsc_khz(u64 khz);
  Result<long> device_attr(u32 request, u64 arg);
  Result<long> enable_cap(u64 arg);
  // processor_apic.cc
  Result<void> create_unit(bool boot_cpu);
  Result<long> get_lapic(u64 arg);
  Result<long> set_lapic(u64 arg);
  Result<long> set_mp_state(u64 arg);
  Result<long> get_mp_state(u64 arg);
  Result<void> set_apic_base(u64 base);
  // processor_run.cc
  Result<long> run(u64 arg);
  Result<long> pre_fault_memory(u64 arg);
  Result<void> pre_fault(kvm_pre_fault_memory* range);
  int show_refusal(const stage2::Fault& fault);
  Result<u64> pre_fault_page(u64 gpa, unsigned known_level, host::RunSection& section);
  Result<long> enter(bool immediate, host::RunSection& section);
  Result<void> load_sync_regs();
  void store_sync_regs();
  vcpu::RunRequest request_of(bool immediate) const;
  void show(const vcpu::Exit& exit);
  void count(const vcpu::Exit& exit);
  static void copy_fault_counts(void* context);
  void save_after_run();
  Result<long> run_guest(bool immediate, host::RunSection& section);
  Result<long> refuse_signalled();
  Result<long> wait_for_init(bool immediate, host::RunSection& section);
  enum class Served : u8 { kNotOurs, kYes, kSignalled };
  Served serve(const vcpu::HypercallExit& call, vcpu::RunRequest* request,
               host::RunSection& section);
  bool serve_unanswered(bool immediate, vcpu::RunRequest* request, host::RunSection& section);
  bool begin_secure_run(host::RunSection& section);
  Result<long> enter_secure(bool immediate, host::RunSection& section);
  bool signalled(host::RunSection& section);
  void nap(u32 ticket, host::RunSection& section);

  std::optional<vcpu::HypercallExit> unanswered_;  // made at this RIP, when a signal came
  u64 unanswered_at_ = 0;
  Vm& vm_;
  const u32 id_;
  // Shared with the client; immutable after create().
  void* run_area_ = nullptr;  // kRunAreaSize bytes
  kvm_run* run_ = nullptr;
  void* ring_area_ = nullptr;  // ring_size_ bytes; null: the VM has no dirty rings
  u32 ring_size_ = 0;
  Box<stage2::DirtyRing> dirty_ring_;  // in the VM's list while the processor lives
  Stats<VcpuStat> stats_{vcpu_stat_descriptors()};
  SummaryEntry summary_{stats_};

  sync::Mutex lock_{sync::Rank::kVcpu};
  vcpu::Vcpu* cpu_ = nullptr;      // owned; immutable after create()
  Box<vcpu::InterruptUnit> unit_;  // where the VM has controllers; immutable after create()
  vcpu::Exit interrupted_;  // what a wait that a signal ends reports; immutable after create()
  host::RunSection* section_ = nullptr;  // of the thread inside run()
  bool has_signal_mask_ = false;
  host::KernelSigset signal_mask_ = 0;
  u32 tsc_khz_ = 0;
};

}  // namespace stagetwo::abi_kvm
