// SPDX-License-Identifier: Apache-2.0
#include "abi/kvm/summary.h"

#include <array>

#include "abi/kvm/kvm.h"

namespace stagetwo::abi_kvm {
namespace {

constexpr std::array kShown = {
    VcpuStat::kExits,      VcpuStat::kIoExits,          VcpuStat::kMmioExits, VcpuStat::kHaltExits,
    VcpuStat::kHypercalls, VcpuStat::kSignalExits,      VcpuStat::kPfTaken,   VcpuStat::kPfFixed,
    VcpuStat::kPfFast,     VcpuStat::kPfSpurious,       VcpuStat::kPfEmulate, VcpuStat::kTlbFlush,
    VcpuStat::kInvlpg,     VcpuStat::kInsnEmulationFail};

sync::Mutex lock{sync::Rank::kStats};
SummaryEntry* first TA_GUARDED(lock) = nullptr;
u64 vcpus TA_GUARDED(lock) = 0;
std::array<u64, kShown.size()> gone TA_GUARDED(lock) = {};

// The name of the statistic, whose values may be several words long.
const char* name_of(VcpuStat stat) {
  for (const StatDescriptor& row : vcpu_stat_descriptors()) {
    if (row.offset == static_cast<u32>(stat)) return row.name;
  }
  return "";
}

}  // namespace

SummaryEntry::SummaryEntry(Stats<VcpuStat>& stats) : stats_(stats) {
  const sync::MutexGuard guard(lock);
  ++vcpus;
  next_ = first;
  back_ = &first;
  if (next_ != nullptr) next_->back_ = &next_;
  first = this;
}

SummaryEntry::~SummaryEntry() {
  const sync::MutexGuard guard(lock);
  for (size_t i = 0; i < kShown.size(); ++i) gone[i] += stats_.get(kShown[i]);
  *back_ = next_;
  if (next_ != nullptr) next_->back_ = back_;
}

void append_summary(TextWriter& to) {
  const sync::MutexGuard guard(lock);
  to.append_int(vcpus).append(" vCPUs");
  for (size_t i = 0; i < kShown.size(); ++i) {
    u64 sum = gone[i];
    for (SummaryEntry* e = first; e != nullptr; e = e->next_) sum += e->stats_.get(kShown[i]);
    if (sum == 0 && kShown[i] != VcpuStat::kExits) continue;
    to.append(", ").append(name_of(kShown[i])).append(" ").append_int(sum);
  }
}

}  // namespace stagetwo::abi_kvm
