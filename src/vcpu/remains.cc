// SPDX-License-Identifier: Apache-2.0
#include "vcpu/remains.h"

#include <cstring>
#include <utility>

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

// Most pages are no code: those leave what is decoded alone, which is much to decode again.
void wipe_stale_code(Cpu& c) {
  const stage2::GivenUp& given_up = c.memory->private_memory().given_up();
  const u64 now = given_up.count();
  if (c.private_given_up == now) [[likely]]
    return;
  const u64 seen = std::exchange(c.private_given_up, now);
  if (!ST_GUARD(stale_code_is_wiped, c.blocks->holds_private())) return;
  c.blocks->wipe_scratch();
  wipe_stack();
  if (!given_up.any_since(seen, [&](Gfn frame) { return c.blocks->holds_private(frame); })) return;
  c.blocks->wipe();
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
