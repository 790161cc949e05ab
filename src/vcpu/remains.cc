// SPDX-License-Identifier: Apache-2.0
#include "vcpu/remains.h"

#include <cstring>

#include "base/arch/forget.h"
#include "base/guard.h"
#include "stage2/address_space.h"
#include "vcpu/block_cache.h"

namespace stagetwo::vcpu {
namespace {

// Overwrites what frames that have returned left below the caller's.
[[gnu::noinline]] void wipe_stack() {
  u8 dead[kWipedStack];
  std::memset(dead, 0, sizeof(dead));
  asm volatile("" : : "r"(dead) : "memory");  // nobody else reads it
}

}  // namespace

void wipe_stale_code(Cpu& c) {
  const u64 given_up = c.memory->private_memory().times_given_up();
  if (c.private_given_up == given_up) [[likely]]
    return;
  c.private_given_up = given_up;
  if (!ST_GUARD(stale_code_is_wiped, c.blocks->holds_private())) return;
  c.blocks->wipe();
  c.blocks->wipe_scratch();
  wipe_stack();
  c.flush_tlb();
}

void wipe_remains(Cpu& c) {
  if (!c.memory->private_memory().has_secrets()) [[likely]]
    return;
  wipe_stale_code(c);
  if (!ST_GUARD(run_is_wiped, true)) return;
  // Code of a secure guest: nobody tells a vCPU that does not run that its page was sealed, or its
  // guest reset.
  if (c.memory->private_memory().is_kept() && c.blocks->holds_private()) {
    c.blocks->wipe();
    c.flush_tlb();
  }
  c.blocks->wipe_scratch();
  c.flags.res = c.flags.a = c.flags.b = 0;
  wipe_stack();
  arch::forget_registers();
}

}  // namespace stagetwo::vcpu
