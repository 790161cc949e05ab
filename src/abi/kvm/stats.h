// SPDX-License-Identifier: Apache-2.0
#pragma once

// Binary statistics of a VM and of a vCPU: counters in the object, and any number of files
// (KVM_GET_STATS_FD) whose contents are kept up to date from them.
//
//   0        header, 24 bytes
//   24       id, 48 bytes: "kvm-PID" or "kvm-PID/vcpu-N"
//   72       descriptors, 64 bytes each
//   72+64n   data, u64s
//
// Linux analogue: virt/kvm/binary_stats.c. Differs: the kernel computes a read; here the file is a
// memfd that readers read by themselves. A read through libc is seen and refreshes the file first;
// for others a counter is visible from the next publish() on, which every exit to user space does.
// Locking: counters are atomics; the list of files has a lock of its own (rank: leaf of the room).
// Lifetime: a file holds a reference on the VM, so it outlives the VM's descriptor.

#include <iterator>
#include <span>

#include "base/alloc.h"
#include "base/result.h"
#include "base/vec.h"
#include "host/descriptor.h"
#include "reclaim/reclaim.h"
#include "sync/atomic.h"
#include "sync/mutex.h"

namespace stagetwo::abi_kvm {

class Vm;

// The order is the kernel's and so is the data's.
enum class VmStat : u32 {
  kRemoteTlbFlush,
  kRemoteTlbFlushRequests,
  kMmuShadowZapped,
  kMmuPteWrite,
  kMmuPdeZapped,
  kMmuFlooded,
  kMmuRecycled,
  kMmuCacheMiss,
  kMmuUnsync,
  kPages4k,
  kPages2m,
  kPages1g,
  kNxLpageSplits,
  kMaxRmapSize,
  kMaxHashCollisions,
  // Ours, behind the kernel's: guest memory under a limit (reclaim/reclaim.h). The first two are
  // the VM's, the others those of all VMs of the process, which share the store.
  kGuestResident,
  kGuestLimit,
  kReclaim,
  kReclaimAge = kReclaim + std::size(reclaim::kFigures),
  kCount = kReclaimAge + reclaim::kAgeBuckets
};

enum class VcpuStat : u32 {
  kHaltSuccessfulPoll,
  kHaltAttemptedPoll,
  kHaltPollInvalid,
  kHaltWakeup,
  kHaltPollSuccessNs,
  kHaltPollFailNs,
  kHaltWaitNs,
  kHaltPollSuccessHist,
  kHaltPollFailHist = kHaltPollSuccessHist + 32,
  kHaltWaitHist = kHaltPollFailHist + 32,
  kBlocking = kHaltWaitHist + 32,
  kPfTaken,
  kPfFixed,
  kPfEmulate,
  kPfSpurious,
  kPfFast,
  kPfMmioSpteCreated,
  kPfGuest,
  kTlbFlush,
  kInvlpg,
  kExits,
  kIoExits,
  kMmioExits,
  kSignalExits,
  kIrqWindowExits,
  kNmiWindowExits,
  kL1dFlush,
  kHaltExits,
  kRequestIrqExits,
  kIrqExits,
  kHostStateReload,
  kFpuReload,
  kInsnEmulation,
  kInsnEmulationFail,
  kHypercalls,
  kIrqInjections,
  kNmiInjections,
  kReqEvent,
  kNestedRun,
  kDirectedYieldAttempted,
  kDirectedYieldSuccessful,
  kPreemptionReported,
  kPreemptionOther,
  kGuestMode,
  kNotifyWindowExits,
  kCount
};

struct StatDescriptor {
  const char* name;
  u32 flags;
  s16 exponent;
  u16 size;
  u32 offset;  // in u64s
};

// The counters of one object and the files that show them.
class StatsBlock {
 public:
  // `values` outlives the block.
  StatsBlock(std::span<const StatDescriptor> table, std::span<sync::Atomic<u64>> values);
  StatsBlock(const StatsBlock&) = delete;
  StatsBlock& operator=(const StatsBlock&) = delete;
  ~StatsBlock();

  // A new descriptor, close-on-exec, read-only. `id` is cut at 47 characters. Takes a reference on
  // `vm` for as long as the file is held. Failure: EMFILE, ENFILE, ENOMEM.
  [[nodiscard]] Result<int> open(Vm& vm, const char* id);

  // What computes the values that nobody counts, before a read. Before the first open().
  void set_source(void (*compute)(void* context), void* context) {
    compute_ = compute;
    context_ = context;
  }
  // Computes, and shows the values.
  void refresh();
  // Shows the present values in all open files; a relaxed load when there are none.
  void publish();
  // The file at `data` is gone.
  void forget(sync::Atomic<u64>* data);

 private:
  std::span<const StatDescriptor> table_;
  std::span<sync::Atomic<u64>> values_;
  void (*compute_)(void* context) = nullptr;
  void* context_ = nullptr;
  sync::Atomic<u32> open_{0};
  sync::Mutex lock_;
  Vec<sync::Atomic<u64>*> files_ TA_GUARDED(lock_){"abi.stats"};
};

template <typename Stat>
class Stats {
 public:
  explicit Stats(std::span<const StatDescriptor> table) : block_(table, values_) {}
  void add(Stat stat, u64 count = 1) { at(stat).fetch_add(count, sync::kRelaxed); }
  void set(Stat stat, u64 value) { at(stat).store(value, sync::kRelaxed); }
  [[nodiscard]] u64 get(Stat stat) { return at(stat).load(sync::kRelaxed); }
  [[nodiscard]] StatsBlock& block() { return block_; }

 private:
  sync::Atomic<u64>& at(Stat stat) { return values_[static_cast<u32>(stat)]; }
  sync::Atomic<u64> values_[static_cast<u32>(Stat::kCount)] = {};
  StatsBlock block_;
};

[[nodiscard]] std::span<const StatDescriptor> vm_stat_descriptors();
[[nodiscard]] std::span<const StatDescriptor> vcpu_stat_descriptors();

}  // namespace stagetwo::abi_kvm
