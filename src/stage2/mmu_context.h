// SPDX-License-Identifier: Apache-2.0
#pragma once

// One vCPU's view of the table: its roots, the tables it has in hand for its next fault, its counts
// and where its dirty pages go. Analogue: struct kvm_mmu with the memory caches, pf_* statistics
// and dirty ring of struct kvm_vcpu (kernel file: kvm_host.h).
//
// Locking: its vCPU's thread only. Counts are read by others, racily.
// Lifetime: borrows the TdpMmu and ends before it; refs each root it has loaded.

#include "stage2/memslots.h"
#include "stage2/resident_cache.h"
#include "stage2/table_pool.h"
#include "sync/atomic.h"

namespace stagetwo::stage2 {

class DirtyRing;
class TdpMmu;
struct TdpRoot;

// A number one thread raises and any thread reads.
class OwnedCount {
 public:
  void raise() { value_.store(value_.load(sync::kRelaxed) + 1, sync::kRelaxed); }
  [[nodiscard]] u64 get() const { return value_.load(sync::kRelaxed); }

 private:
  sync::Atomic<u64> value_{0};  // written by its owner, read by anyone, relaxed: a statistic
};

// The kernel's pf_* statistics. The table counts `fast` and `mmio_spte_created`, GuestMemory the
// outcomes.
struct PfCounts {
  OwnedCount taken;
  OwnedCount fixed;
  OwnedCount emulate;
  OwnedCount spurious;
  OwnedCount fast;
  OwnedCount mmio_spte_created;
};

class alignas(64) MmuContext {
 public:
  explicit MmuContext(TdpMmu& mmu);
  MmuContext(const MmuContext&) = delete;
  MmuContext& operator=(const MmuContext&) = delete;
  // Gives back roots and tables. Context: no lock, the thread's line does not run.
  ~MmuContext();

  // Tables for the next fault, before any lock. Failure: ENOMEM.
  [[nodiscard]] Result<void> top_up() { return tables_.top_up(); }
  [[nodiscard]] bool has_root(u32 address_space) const { return roots_[address_space] != nullptr; }
  [[nodiscard]] TdpMmu& mmu() { return mmu_; }

  PfCounts counts;
  OwnedCount populated;       // faults for which the host was asked
  ResidentCache resident;     // what it was asked for
  DirtyRing* ring = nullptr;  // null: the bitmaps of the slots

 private:
  friend class TdpMmu;
  friend struct TdpTestAccess;

  TdpMmu& mmu_;
  TdpRoot* roots_[kMaxAddressSpaces] = {};
  // Obsolete roots, given back where that may take a lock.
  TdpRoot* dropped_[kMaxAddressSpaces] = {};
  TableCache tables_;
  u32 losses_ = 0;  // faults in a row that lost a race for an entry
};

}  // namespace stagetwo::stage2
