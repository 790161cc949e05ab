// SPDX-License-Identifier: Apache-2.0
#pragma once

// One VM as its descriptor shows it: settings, memory slots, vCPUs.
//
// Linux analogue: struct kvm with kvm_vm_ioctl and kvm_arch_vm_ioctl (kernel files:
// virt/kvm/kvm_main.c, arch/x86/kvm/x86.c). Errnos and the order of checks are theirs. Invariants:
// I1  a vCPU, once created, lives as long as the VM; its id is taken for good.
//             I2  settings that must not change under vCPUs are refused once one was created.
//             I3  a refusal changes nothing.
// Locking: lock_ (rank: kVm) for settings and the list of vCPUs; slots have their own. The
// descriptor is made outside lock_ (the registry's rank is higher). Lifetime: counted: one for the
// VM's descriptor, one for each vCPU or stats descriptor. The last put() destroys; no call on a
// descriptor can be running then.

#include "abi/kvm/guest_clock.h"
#include "abi/kvm/io_zones.h"
#include "abi/kvm/msr_filter.h"
#include "abi/kvm/stats.h"
#include "abi/kvm/uapi.h"
#include "base/alloc.h"
#include "base/result.h"
#include "base/vec.h"
#include "reclaim/reclaim.h"
#include "stage2/address_space.h"
#include "sync/atomic.h"
#include "sync/mutex.h"
#include "vcpu/irqchip.h"
#include "vcpu/vcpu.h"

namespace stagetwo::abi_kvm {

class Processor;
class SecureVm;

class Vm {
 public:
  // KVM_CREATE_VM: the new descriptor. Failure: EINVAL (type), EMFILE, ENFILE, ENOMEM.
  [[nodiscard]] static Result<long> open(u64 type);

  Vm(u64 type, Box<stage2::GuestMemory> memory);
  Vm(const Vm&) = delete;
  Vm& operator=(const Vm&) = delete;
  ~Vm();

  void get();
  void put();

  // A request on the VM's descriptor.
  [[nodiscard]] Result<long> ioctl(u32 request, u64 arg);

  [[nodiscard]] stage2::GuestMemory& memory() { return *memory_; }
  // KVM_X86_SW_PROTECTED_VM?
  [[nodiscard]] bool has_private_memory() const { return memory_->private_memory().on(); }
  // What makes its guest secure; null: it cannot become that.
  [[nodiscard]] SecureVm* secure() const { return secure_.get(); }
  [[nodiscard]] const vcpu::VmPolicy& policy() const { return policy_; }
  [[nodiscard]] Stats<VmStat>& stats() { return stats_; }
  [[nodiscard]] GuestClock& clock() { return clock_; }
  // Null: no such vCPU.
  [[nodiscard]] Processor* processor(u32 id) const;
  // Words that vCPUs read and KVM_ENABLE_CAP writes.
  [[nodiscard]] bool exception_payload() const { return exception_payload_.load(sync::kRelaxed); }
  [[nodiscard]] bool triple_fault_event() const { return triple_fault_event_.load(sync::kRelaxed); }
  // The interrupt controllers; null: the client has them. Set at most once, before the first vCPU.
  [[nodiscard]] vcpu::Irqchip* chip() const { return chip_.load(sync::kAcquire); }
  [[nodiscard]] bool irqchip() const { return chip() != nullptr; }
  [[nodiscard]] u64 apic_bus_cycle_ns() const { return apic_bus_cycle_ns_.load(sync::kRelaxed); }

 private:
  // vm.cc
  Result<long> create_vcpu(u64 id);
  Result<long> admit_vcpu(u64 id);
  void forget_vcpu(Processor* processor);
  Result<long> stats_fd();
  static void walk_pages(void* context);
  void show_reclaim();
  // vm_memory.cc
  Result<long> set_region(u64 arg, bool first_version);
  Result<void> change_slot(const stage2::Region& region);
  Result<long> set_attributes(u64 arg);
  Result<long> create_guest_memfd(u64 arg);
  Result<long> get_dirty_log(u64 arg);
  Result<long> clear_dirty_log(u64 arg);
  Result<long> reset_dirty_rings();
  Result<long> set_nr_mmu_pages(u64 count);
  // vm_settings.cc
  Result<long> enable_cap(u64 arg);
  Result<long> enable(const kvm_enable_cap& cap);
  Result<long> enable_manual_dirty_log(const kvm_enable_cap& cap);
  Result<long> enable_dirty_rings(u32 bytes);
  Result<long> enable_max_vcpu_id(u64 limit);
  Result<long> enable_no_nx_pages(u64 arg);
  Result<long> set_boot_cpu_id(u64 id);
  Result<long> set_identity_map(u64 arg);
  Result<long> set_tsc_khz(u64 khz);
  Result<long> enable_apic_bus_cycle(u64 ns);
  Result<long> get_clock(u64 arg);
  Result<long> set_clock(u64 arg);
  Result<long> arch_ioctl(u32 request, u64 arg);
  // vm_irqchip.cc
  Result<long> create_irqchip();
  Result<long> irqchip_ioctl(u32 request, u64 arg);
  Result<long> pit_ioctl(u32 request, u64 arg);
  Result<long> get_irqchip(u64 arg);
  Result<long> set_irqchip(u64 arg);
  Result<long> irq_line(u64 arg, bool with_status);
  Result<long> signal_msi(u64 arg);
  Result<long> set_gsi_routing(u64 arg);

  // What vCPUs ask of us; `context` is the Vm.
  // The quirk, and the VM type, that let a slot take every translation with it.
  void choose_slot_zap();
  static bool msr_allowed(void* context, u32 index, bool write);
  static bool coalesce_mmio(void* context, u32 id, Gpa gpa, const void* data, u32 len);
  static bool coalesce_pio(void* context, u32 id, u16 port, const void* data, u32 len);
  static bool signal_pending(void* context, u32 id);
  static vcpu::MsrOutcome read_msr(void* context, u32 id, u32 index, u64* value);
  static vcpu::MsrOutcome write_msr(void* context, u32 id, u32 index, u64 value);

  sync::Atomic<u32> refs_{1};
  Box<stage2::GuestMemory> memory_;  // immutable after construction
  Box<SecureVm> secure_;             // the same; ends before the memory
  const u64 type_;
  vcpu::VmPolicy policy_;  // word-sized fields, written under lock_
  reclaim::Guest usage_;   // what a limit of memory may take
  Stats<VmStat> stats_{vm_stat_descriptors()};
  GuestClock clock_;
  IoZones zones_;
  MsrFilter msr_filter_;
  sync::Atomic<bool> exception_payload_{false};
  sync::Atomic<bool> triple_fault_event_{false};
  sync::Atomic<vcpu::Irqchip*> chip_{nullptr};  // owned; set under lock_ with release
  sync::Atomic<u64> apic_bus_cycle_ns_{1};
  // Bytes; 0: none. Written once, under lock_, before the first vCPU.
  sync::Atomic<u32> dirty_ring_size_{0};
  // Indexed by id; written under lock_ with release, read by vCPUs with acquire. Pages, so that a
  // VM with few vCPUs touches few of them.
  sync::Atomic<Processor*>* by_id_ = nullptr;
  // Where coalesced writes go. Written under lock_ with release, read by vCPUs with acquire.
  sync::Atomic<kvm_coalesced_mmio_ring*> ring_{nullptr};

  mutable sync::Mutex lock_{sync::Rank::kVm};
  Vec<Processor*> vcpus_ TA_GUARDED(lock_){"abi.vcpus"};
  u32 created_ TA_GUARDED(lock_) = 0;  // admitted, whether or not finished
  u32 max_vcpu_ids_ TA_GUARDED(lock_) = 0;
  u32 boot_cpu_id_ TA_GUARDED(lock_) = 0;
  u64 mmu_pages_ TA_GUARDED(lock_) = 0;
};

}  // namespace stagetwo::abi_kvm
