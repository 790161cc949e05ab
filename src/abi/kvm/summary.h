// SPDX-License-Identifier: Apache-2.0
#pragma once

// What all vCPUs of this process did, for the line that `stagetwo run -v` ends with. Nothing is
// counted here: the line adds up the vCPUs' own statistics, of those that live and of those that
// are gone.
//
// Linux analogue: the sums under /sys/kernel/debug/kvm.
// Locking: a leaf lock around the list. Lifetime: an entry is a member of its vCPU.

#include "abi/kvm/stats.h"
#include "base/text.h"

namespace stagetwo::abi_kvm {

class SummaryEntry {
 public:
  explicit SummaryEntry(Stats<VcpuStat>& stats);
  SummaryEntry(const SummaryEntry&) = delete;
  SummaryEntry& operator=(const SummaryEntry&) = delete;
  ~SummaryEntry();  // what was counted stays in the sum

 private:
  friend void append_summary(TextWriter& to);
  Stats<VcpuStat>& stats_;
  SummaryEntry* next_ = nullptr;
  SummaryEntry** back_ = nullptr;  // what points here
};

}  // namespace stagetwo::abi_kvm
