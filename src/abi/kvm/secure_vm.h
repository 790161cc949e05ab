// SPDX-License-Identifier: Apache-2.0
#pragma once

// What makes the guest of one VM a secure one, where guests may become that (`--secure`): the
// hypervisor's half of it (uv/secure_guest.h), its memory in this process, and the VM's stage-2
// table as the ultravisor has it emptied. The guest's calls come from Processor::run, memory slots
// from Vm, translations from stage2. The ultravisor is the process's own, made at the first VM.
//
// Analogue: kvmppc_uvmem_* as kvm_main.c and book3s_hv.c call them, and the calls a guest makes
// with `sc 2`; ours makes them by VMCALL: docs/howto-secure-guests.md.
//
// I1  a slot is the guest's when stage2 has it and until stage2 has it no more; one that cannot be
//     the guest's is refused, or, before KVM_CAP_PPC_SECURE_GUEST is enabled, refuses that. A slot
//     that moves is zeros at its new place, and is where it was if that is refused.
// I2  the page a fault was told of is gone from the table before anything happens to it.
// Locking: lock_ (rank vm), over slots and their change; never together with a lock of the Vm's.
// Lifetime: made before the VM's first vCPU and slot, ends after its last vCPU, before its memory.

#include <optional>

#include "base/alloc.h"
#include "base/result.h"
#include "base/vec.h"
#include "stage2/address_space.h"
#include "stage2/frame_keeper.h"
#include "sync/mutex.h"
#include "uv/process_pages.h"
#include "uv/secure_guest.h"
#include "uv/ultravisor.h"
#include "vcpu/exit.h"

namespace stagetwo::abi_kvm {

struct SecureMachine;

class SecureVm final : public stage2::FrameKeeper, private uv::GuestTable, private uv::ChangeLog {
 public:
  // Can a guest of this process become secure? Makes the ultravisor, the first time.
  [[nodiscard]] static bool offered();
  // Null: too many guests, or no memory; the VM's guest cannot become secure then.
  [[nodiscard]] static Box<SecureVm> create(stage2::GuestMemory& memory);

  SecureVm(SecureMachine& machine, u32 lpid, stage2::GuestMemory& memory);
  SecureVm(const SecureVm&) = delete;
  SecureVm& operator=(const SecureVm&) = delete;
  ~SecureVm();

  // KVM_CAP_PPC_SECURE_GUEST. Failure: EINVAL, a slot is there that cannot be a secure guest's.
  [[nodiscard]] Result<void> enable() TA_EXCL(lock_);
  // KVM_PPC_SVM_OFF. Failure: EBUSY, a vCPU runs; EINVAL, the ultravisor refuses.
  [[nodiscard]] Result<void> off() { return guest_.svm_off(); }
  // As stage2's set_region(); and EINVAL where the slot cannot be the secure guest's.
  [[nodiscard]] Result<void> set_region(const stage2::Region& region) TA_EXCL(lock_);

  // Around KVM_RUN. False: the guest's life is changing; come back later.
  [[nodiscard]] bool run_begin() { return guest_.run_begin(); }
  void run_end() { guest_.run_end(); }
  // The guest's call (vcpu::is_secure_call): what it finds in RAX. Nothing: not yet, it is to be
  // made again, and the guest does not go on before.
  [[nodiscard]] std::optional<u64> call(const vcpu::HypercallExit& call);

  // stage2::FrameKeeper
  Where find(Gfn gfn, Hva* page) override;
  stage2::FaultOutcome bring(Gfn gfn) override;
  bool keeps() override;

 private:
  // A memory slot as it is, and as the guest has it.
  struct Known {
    u32 slot = 0;
    u32 flags = 0;
    u32 uv_slot = 0;
    Gpa base;
    HvaRange at;
    bool fits = false;       // it is the guest's
    bool is_mapped = false;  // and so is its memory, which is no other slot's
  };
  [[nodiscard]] Known* find_slot(u32 slot) TA_REQ(lock_);
  [[nodiscard]] bool is_anothers(HvaRange at) const TA_REQ(lock_);
  [[nodiscard]] u32 free_uv_slot() const TA_REQ(lock_);
  [[nodiscard]] Result<void> plug(Known known, bool can_be_secure) TA_REQ(lock_);
  void unplug(u32 slot) TA_REQ(lock_);
  [[nodiscard]] Result<void> move(Known* known, const stage2::Region& region) TA_REQ(lock_);

  // uv::GuestTable
  void going(u64 first, u64 count) override;
  void gone() override;
  // uv::ChangeLog
  void changed(Gpa page, u64 bytes) override;

  SecureMachine& machine_;
  const u32 lpid_;
  stage2::GuestMemory& memory_;
  uv::SecureGuest guest_;  // outlives its pages, which hear the bell
  uv::ProcessPages pages_;
  sync::Mutex lock_{sync::Rank::kVm};
  Vec<Known> slots_ TA_GUARDED(lock_){"abi.secure_slots"};
  bool enabled_ TA_GUARDED(lock_) = false;
};

}  // namespace stagetwo::abi_kvm
