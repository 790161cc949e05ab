// SPDX-License-Identifier: Apache-2.0
#pragma once

// The steps of a fault and of an own access one by one, so that a test can do something in between.

#include "stage2/address_space.h"

namespace stagetwo::stage2 {

struct GuestMemoryTestAccess {
  // An own write with `access` in place of the store.
  template <typename F>
  static FaultOutcome own_write(GuestMemory& memory, Gpa gpa, F&& access) {
    Fault fault{};
    fault.gpa = gpa;
    fault.access = Access::kWrite;
    return memory.with_page(fault, GuestMemory::Mode::kMayBlock, [&](Hva) { return access(); });
  }
  // A fault up to where it asks for the lock: snapshot, slot, page.
  static FaultOutcome find(GuestMemory& memory, MmuContext& context, Fault& fault) {
    if (!memory.tdp_.load_root(context, fault.address_space) || !context.top_up()) {
      return FaultOutcome::kNoMemory;
    }
    return memory.find_resident(fault, GuestMemory::Mode::kMayBlock, true);
  }
};

}  // namespace stagetwo::stage2
