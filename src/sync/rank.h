// SPDX-License-Identifier: Apache-2.0
#pragma once

// The acquisition order of the whole house (docs/locking.md): a lock may be taken only while every
// lock the thread holds stands above it here. Two locks of one rank are never held together.
// Debug builds end the process at the first violation and print both places.

#include "base/types.h"

namespace stagetwo::sync {

// clang-format off
enum class Rank : u8 {
  kSession,           // shim: session directory, first open, wrapped signal handlers
  kDescriptors,       // host: (dev, ino) → description
  kVm,                // abi/kvm: one VM's vCPU list and settings        (kvm->lock)
  kVcpu,              // abi/kvm: one vCPU's ioctls, KVM_RUN included    (vcpu->mutex)
  kContainer,         // vfio: containers, groups                        (container->lock)
  kDevice,            // vfio: one device's regions and interrupts
  kIoas,              // iommu: one IOAS                                  (ioas/iopt rwsem)
  kIoDomains,         // iommu: the domains of an IOAS                    (iopt->domains_rwsem)
  kUv,                // uv: one secure guest's life cycle                (uvmem_lock)
  kSlots,             // stage2: memslot changes                          (slots_lock)
  kSlotsArch,         // stage2: what hangs off slots                     (slots_arch_lock)
  kActive,            // stage2: slot update waits for invalidations      (mn_invalidate_lock)
  kMemObject,         // mem: who is bound to one memory object          (filemap invalidate_lock)
  kAddressSpace,      // host: shared for faults, exclusive for changes   (mmap_lock)
  kNotifiers,         // host: the registry of subscribers                (the notifier SRCU)
  kPassage,           // sync: waiters of one passage (sync/passage.h)
  kOwners,            // host: absent pages and their owners
  kPins,              // host: pinned pages
  kReclaim,           // reclaim: lists of cold pages
  kMemStore,          // mem: swap store, sealed store
  kSecondary,         // stage2 mmu_lock | iommu domain | mirror device: never two
  kAttributes,        // stage2: memory attributes of a VM's frames      (mem_attr_array)
  kGate,              // sync: writers of one invalidation gate
  kAckSet,            // sync: which ack lines belong to a set
  kTdpPages,          // stage2: roots and possible-NX tables, inside mmu_lock (tdp_mmu_pages_lock)
  kPageTable,         // pt: splitting and collapsing
  kInterrupts,        // vcpu, abi/kvm: routing, pending interrupts       (irq_lock)
  kCoalesced,         // abi/kvm: coalesced rings                         (ring_lock)
  kBlocks,            // vcpu: decoded blocks
  kRetired,           // sync: the retire list of an epoch
  kFrames,            // mem: frame counts
  kLru,               // mem: page lists
  kStats,             // statistics, reports
  kLeaf,              // nothing is taken under it
  kCount
};
// clang-format on
static_assert(static_cast<unsigned>(Rank::kCount) <= 64, "the held ranks are a mask of 64 bits");

const char* name_of(Rank rank);

}  // namespace stagetwo::sync
