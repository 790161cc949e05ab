// SPDX-License-Identifier: Apache-2.0
#include "vcpu/block_cache.h"
#include "vcpu/ops.h"

namespace stagetwo::vcpu {
namespace {

// Off the fast path: the loop executes the instruction by its operation.
const Uop* run_slow(Cpu&, const Uop* uop) { return uop; }

const Uop* run_end(Cpu& c, const Uop* uop) {
  c.s.rip = uop->imm;
  return nullptr;
}

}  // namespace

Uop ending_uop(u64 rip) {
  Uop uop{};
  uop.run = run_end;
  uop.imm = rip;
  return uop;
}

void prepare_uop(const Insn&, Mode, u64, u64, Uop* uop) {
  *uop = Uop{};
  uop->run = run_slow;
}

void fuse_uops(const Insn*, Uop*, unsigned) {}

}  // namespace stagetwo::vcpu
