// SPDX-License-Identifier: Apache-2.0
#pragma once

// Who calls TdpMmu::recover_nx(), and when: an item of the engine's worker thread, added when the
// first huge page of the VM was split for NX. Analogue: kvm_nx_huge_page_recovery_worker (kernel
// file: mmu.c), which is a thread of each VM. Differs: a VM that never splits has none.
//
// The policy is asked each time. It may change in another process, which cannot wake us, so it is
// looked at once a second at least.
// Locking: start() any thread; turns as host/worker.h. Lifetime: stop() before the tables end.

#include "host/worker.h"
#include "stage2/tdp_mmu.h"

namespace stagetwo::stage2 {

// The owner's answers. Null: never.
struct NxPolicy {
  bool (*enabled)() = nullptr;
  u64 (*recovery_ratio)() = nullptr;      // one in so many is recovered in each turn; 0: none
  u64 (*recovery_period_ms)() = nullptr;  // 0: so that half of them are gone after an hour
};

class NxRecovery final : public host::WorkItem {
 public:
  NxRecovery(TdpMmu& mmu, const NxPolicy& policy) : mmu_(mmu), policy_(policy) {}
  ~NxRecovery() { stop(); }

  // Idempotent. Context: no lock, the line does not run.
  void start() {
    if (!added_.load(sync::kRelaxed)) [[unlikely]]
      add();
  }
  void stop();

  [[nodiscard]] bool enabled() const { return policy_.enabled != nullptr && policy_.enabled(); }

  // host::WorkItem
  void turn() override;
  u64 period_ns() override;

 private:
  void add();
  // Until recovery is due; nullopt-like kNoTimeout: it is off.
  [[nodiscard]] u64 until_due() const;

  TdpMmu& mmu_;
  const NxPolicy policy_;
  sync::Atomic<bool> added_{false};
  sync::Atomic<u64> last_{0};  // the last recovery, or the first split
};

}  // namespace stagetwo::stage2
