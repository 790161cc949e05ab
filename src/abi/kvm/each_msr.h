// SPDX-License-Identifier: Apache-2.0
#pragma once

// The MSRs a client names in one call: KVM_GET_MSRS and KVM_SET_MSRS of a vCPU, and the device's.
// kernel file: arch/x86/kvm/x86.c (msr_io).

#include <array>

#include "abi/kvm/capabilities.h"
#include "abi/kvm/client.h"

namespace stagetwo::abi_kvm {

// Entries in, each(entry) one by one until one is refused; all of them out again where they were
// asked for. Answers how many were done.
template <typename Each>
Result<long> each_msr(u64 arg, bool write_back, Each&& each) {
  const auto header = ST_TRY(copy_in<CountedHeader>(arg));
  if (header.count >= kMaxIoMsrs) return refuse(E2BIG);
  std::array<kvm_msr_entry, kMaxIoMsrs> entries;
  const u64 at = arg + sizeof(kvm_msrs);
  const u64 bytes = u64{header.count} * sizeof(kvm_msr_entry);
  ST_TRY(copy_in_bytes(entries.data(), at, bytes));
  u32 done = 0;
  while (done < header.count && each(entries[done])) ++done;
  if (write_back) ST_TRY(copy_out_bytes(at, entries.data(), bytes));
  return done;
}

}  // namespace stagetwo::abi_kvm
