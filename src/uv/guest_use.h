// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a guest's half at the hypervisor tells of itself: numbers for tests and reports.

#include "base/types.h"

namespace stagetwo::uv {

// So far.
struct GuestUse {
  u64 page_ins = 0;   // pages that UV_PAGE_IN took out of normal memory
  u64 page_outs = 0;  // pages that came back sealed, asked for by the ultravisor
  u64 touches = 0;    // the same, because the process touched them
  u64 shares = 0;
  u64 unshares = 0;
  u64 forgotten = 0;  // UV_PAGE_INVAL sent
  u64 slow = 0;       // touches that had to wait for longer than kSlowNs
};

// Who has the guest's life, and what it waits for: for tests that do not end.
struct GuestLife {
  bool changing = false;
  u32 wanted = 0, messages = 0, running = 0;
};

}  // namespace stagetwo::uv
