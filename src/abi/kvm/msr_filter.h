// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which MSRs a guest may touch (KVM_X86_SET_MSR_FILTER). A filter is immutable; setting one
// replaces the whole. Linux analogue: struct kvm_x86_msr_filter (kernel file: arch/x86/kvm/x86.c).
//
// Locking: readers take none (a passage keeps the filter alive); set() is called under the VM's
// lock.

#include <array>

#include "abi/kvm/uapi.h"
#include "base/alloc.h"
#include "base/result.h"
#include "base/vec.h"
#include "sync/atomic.h"
#include "sync/passage.h"

namespace stagetwo::abi_kvm {

class MsrFilter {
 public:
  MsrFilter() = default;
  MsrFilter(const MsrFilter&) = delete;
  MsrFilter& operator=(const MsrFilter&) = delete;
  ~MsrFilter();

  // `argument` is the client's address. Failure: EFAULT, EINVAL (unknown flags, a bitmap of no or
  // too many bytes, default-deny without a range), ENOMEM; the filter in force stays.
  [[nodiscard]] Result<void> set(u64 argument);
  [[nodiscard]] bool allows(u32 index, bool write) const;

 private:
  struct Range {
    u32 flags = 0;
    u32 base = 0;
    u32 count = 0;
    Vec<u8> bits{"abi.msr_filter"};
  };
  struct Rules {
    bool default_allow = true;
    size_t count = 0;
    std::array<Range, KVM_MSR_FILTER_MAX_RANGES> ranges;
  };
  static Result<void> add_range(Rules& rules, const kvm_msr_filter_range& asked);

  mutable sync::Passage readers_;
  // Written by set(), read inside a passage; both sequentially consistent, as the passage asks.
  sync::Atomic<Rules*> rules_{nullptr};
};

}  // namespace stagetwo::abi_kvm
