// SPDX-License-Identifier: Apache-2.0
#include "stage2/nx_recovery.h"

#include <algorithm>

#include "sync/futex.h"

namespace stagetwo::stage2 {
namespace {

constexpr u64 kMillisecond = 1'000'000;
constexpr u64 kSecond = 1'000 * kMillisecond;
constexpr u64 kHourMs = 3'600'000;
constexpr u64 kMaxRatio = 3600;  // the period is not less than a second then

}  // namespace

void NxRecovery::add() {
  if (added_.exchange(true, sync::kRelaxed)) return;
  last_.store(sync::now_ns(), sync::kRelaxed);
  host::add_work(this);
}

void NxRecovery::stop() {
  if (added_.exchange(false, sync::kRelaxed)) host::remove_work(this);
}

u64 NxRecovery::until_due() const {
  const u64 ratio = enabled() ? policy_.recovery_ratio() : 0;
  if (ratio == 0) return sync::kNoTimeout;
  u64 period = policy_.recovery_period_ms();
  if (period == 0) period = kHourMs / std::min(ratio, kMaxRatio);
  const u64 passed = sync::now_ns() - last_.load(sync::kRelaxed);
  return passed >= period * kMillisecond ? 0 : period * kMillisecond - passed;
}

void NxRecovery::turn() {
  if (until_due() != 0) return;
  mmu_.recover_nx(policy_.recovery_ratio());
  last_.store(sync::now_ns(), sync::kRelaxed);
}

u64 NxRecovery::period_ns() {
  // The worker measures from the last turn or addition, we from now: never longer than asked.
  return std::min(until_due(), kSecond);
}

}  // namespace stagetwo::stage2
