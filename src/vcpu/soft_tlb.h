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
// I4  An access that crosses a page never hits: its last byte's page has another slot; where
//     the entry is not found by its slot (find_hit of mem.h), both pages are compared.
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

  [[nodiscard]] bool is_empty() const {
    return read_tag == kNoTag && write_tag == kNoTag && exec_tag == kNoTag;
  }
};

inline constexpr u64 kTlbEntries = 512;

struct SoftTlb {
  TlbEntry entry[kTlbEntries];

  [[nodiscard]] TlbEntry& slot(u64 linear) { return entry[index(linear)]; }
  // The page tag an access of `size` bytes must find; differs from the slot's if it crosses.
  [[nodiscard]] static constexpr u64 tag(u64 linear, u64 size) {
    return (linear + size - 1) & kPageMask;
  }

  // The slot, for whoever is about to set a tag of it.
  [[nodiscard]] TlbEntry& slot_to_fill(u64 linear, bool for_writes) {
    TlbEntry& e = slot(linear);
    if (e.is_empty()) note_filled(static_cast<u16>(index(linear)));
    writable_ = writable_ || for_writes;
    return e;
  }
  void flush() {
    for_each_filled([](TlbEntry& e) { e = TlbEntry{}; });
    filled_ = 0;
    writable_ = false;
  }
  void flush_page(u64 linear) {
    TlbEntry& e = slot(linear);
    const u64 page = linear & kPageMask;
    if (e.read_tag == page || e.write_tag == page || e.exec_tag == page) e = TlbEntry{};
  }
  // No store hits a page at host address `page` any more.
  void forbid_writes(u64 page) {
    if (!writable_) return;
    for_each_filled([page](TlbEntry& e) {
      if (e.write_tag != kNoTag && e.write_tag + e.addend == page) e.write_tag = kNoTag;
    });
  }

 private:
  static u64 index(u64 linear) { return linear >> kPageShift & (kTlbEntries - 1); }
  void note_filled(u16 index) {
    if (filled_ < kFew) few_[filled_] = index;
    if (filled_ <= kFew) ++filled_;
  }
  template <typename F>
  void for_each_filled(F&& fn) {
    if (filled_ > kFew) {
      for (TlbEntry& e : entry) fn(e);
    } else {
      for (u32 i = 0; i < filled_; ++i) fn(entry[few_[i]]);
    }
  }

  // The slots that have been filled since the last flush, while they are few: a run that is short
  // pays for what it used.
  static constexpr u32 kFew = 24;
  u32 filled_ = 0;  // kFew + 1: more than few
  u16 few_[kFew] = {};
  bool writable_ = false;  // may any slot have a write tag?
};

enum TlbView : u8 { kViewUser, kViewSupervisor, kViewSupervisorAc, kViewUserAligned, kViewCount };

}  // namespace stagetwo::vcpu
