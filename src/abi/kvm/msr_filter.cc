// SPDX-License-Identifier: Apache-2.0
#include "abi/kvm/msr_filter.h"

#include "abi/kvm/client.h"

namespace stagetwo::abi_kvm {

MsrFilter::~MsrFilter() {
  destroy(rules_.load());
}

Result<void> MsrFilter::add_range(Rules& rules, const kvm_msr_filter_range& asked) {
  if (asked.nmsrs == 0) return {};
  if ((asked.flags & ~static_cast<u32>(KVM_MSR_FILTER_RANGE_VALID_MASK)) != 0 || asked.flags == 0)
    return refuse(EINVAL);
  const u64 bytes = (u64{asked.nmsrs} + 63) / 64 * 8;
  if (bytes > KVM_MSR_FILTER_MAX_BITMAP_SIZE) return refuse(EINVAL);
  Range& range = rules.ranges[rules.count];
  ST_TRY(range.bits.resize(bytes));
  ST_TRY(copy_in_bytes(range.bits.data(), reinterpret_cast<u64>(asked.bitmap), bytes));
  range.flags = asked.flags;
  range.base = asked.base;
  range.count = asked.nmsrs;
  ++rules.count;
  return {};
}

Result<void> MsrFilter::set(u64 argument) {
  const auto asked = ST_TRY(copy_in<kvm_msr_filter>(argument));
  if ((asked.flags & ~static_cast<u32>(KVM_MSR_FILTER_VALID_MASK)) != 0) return refuse(EINVAL);
  const bool default_allow = (asked.flags & KVM_MSR_FILTER_DEFAULT_DENY) == 0;
  bool empty = true;
  for (const auto& range : asked.ranges) empty = empty && range.nmsrs == 0;
  if (empty && !default_allow) return refuse(EINVAL);

  auto fresh = ST_TRY(make_box<Rules>("abi.msr_filter"));
  fresh->default_allow = default_allow;
  for (const auto& range : asked.ranges) ST_TRY(add_range(*fresh, range));

  Rules* old = rules_.exchange(fresh.release());
  readers_.wait();
  destroy(old);
  return {};
}

bool MsrFilter::allows(u32 index, bool write) const {
  // x2APIC registers are not filtered.
  if (index >= 0x800 && index <= 0x8ff) return true;
  const auto ticket = readers_.enter();
  const Rules* rules = rules_.load();
  bool allowed = true;
  if (rules != nullptr) {
    allowed = rules->default_allow;
    const u32 kind = write ? KVM_MSR_FILTER_WRITE : KVM_MSR_FILTER_READ;
    for (size_t i = 0; i < rules->count; ++i) {
      const Range& range = rules->ranges[i];
      const u32 at = index - range.base;
      if (index < range.base || at >= range.count || (range.flags & kind) == 0) continue;
      allowed = (range.bits[at / 8] >> (at % 8) & 1) != 0;
      break;
    }
  }
  readers_.leave(ticket);
  return allowed;
}

}  // namespace stagetwo::abi_kvm
