// SPDX-License-Identifier: Apache-2.0
#pragma once

// The software TLB of one vCPU: direct mapped, one compare and one addition on a hit. It is a cache
// above stage 2 and a borrower: what it holds is valid until the next acknowledged flush.
// Linux analogue: the processor's own TLB; the flush request is kvm_flush_remote_tlbs.
//
// I1  A tag is the page address of a canonical linear address, or kNoTag.
// I2  `write_tag` is set only if the guest's PTE has D set, the page is marked in the dirty log,
// and
//     no cached code of this vCPU stands on the host page (block_cache.h).
// I3  Entries differ by privilege: one array for user accesses, one for supervisor accesses, one
//     for supervisor accesses with EFLAGS.AC set under SMAP, one for user accesses whose alignment
//     is checked: that one never has a data tag, so that every access takes the slow way.
// I4  An access that crosses a page never hits: its last byte's page has another slot.
// Locking: none; its vCPU's thread only.

#include "addr/addr.h"
#include "vcpu/state.h"

namespace stagetwo::vcpu {

inline constexpr u64 kNoTag = ~u64{0};

struct TlbEntry {
  u64 read_tag = kNoTag;
  u64 write_tag = kNoTag;
  u64 exec_tag = kNoTag;
  u64 addend = 0;  // host address minus linear address
};

inline constexpr u64 kTlbEntries = 512;

struct SoftTlb {
  TlbEntry entry[kTlbEntries];
  bool used = false;

  [[nodiscard]] TlbEntry& slot(u64 linear) {
    return entry[linear >> kPageShift & (kTlbEntries - 1)];
  }
  // The page tag an access of `size` bytes must find; differs from the slot's if it crosses.
  [[nodiscard]] static constexpr u64 tag(u64 linear, u64 size) {
    return (linear + size - 1) & kPageMask;
  }

  void flush() {
    if (!used) return;
    for (TlbEntry& e : entry) e = TlbEntry{};
    used = false;
  }
  void flush_page(u64 linear) {
    TlbEntry& e = slot(linear);
    const u64 page = linear & kPageMask;
    if (e.read_tag == page || e.write_tag == page || e.exec_tag == page) e = TlbEntry{};
  }
  // No store hits a page at host address `page` any more.
  void forbid_writes(u64 page) {
    for (TlbEntry& e : entry) {
      if (e.write_tag != kNoTag && e.write_tag + e.addend == page) e.write_tag = kNoTag;
    }
  }
};

enum TlbView : u8 { kViewUser, kViewSupervisor, kViewSupervisorAc, kViewUserAligned, kViewCount };

}  // namespace stagetwo::vcpu
