// SPDX-License-Identifier: Apache-2.0
#pragma once

// The operations: one function per Op, grouped into files by what they do. dispatch.cc has the
// table. Contract: see cpu.h, "How an instruction runs".

#include "vcpu/cpu.h"
#include "vcpu/insn.h"

namespace stagetwo::vcpu {

using ExecFn = Step (*)(Cpu& c, const Insn& insn);
using OpFn = Step(Cpu& c, const Insn& insn);

// The table. Never null: what this processor lacks raises #UD there.
[[nodiscard]] ExecFn exec_function(Op op);
// May the instructions behind it stay in one block? False for jumps and for what changes the mode.
[[nodiscard]] bool ends_block(Op op);

namespace ops {

// arithmetic_ops.cc
OpFn add, adc, sub, sbb, cmp, and_, or_, xor_, test, inc, dec, neg, not_, xadd, mul, imul,
    imul_wide, div, idiv, aaa, aad, aam, aas, daa, das, adcx, adox;
// bit_ops.cc
OpFn rol, ror, rcl, rcr, shl, shr, sar, shld, shrd, bt, bts, btr, btc, bsf, bsr, tzcnt, lzcnt,
    popcnt, bswap, crc32;
// move_ops.cc
OpFn mov, movzx, movsx, lea, xchg, cmpxchg, cmpxchg8b, cmpxchg16b, cmovcc, setcc, cbw, cwd, movbe,
    nop, clc, stc, cmc, cld, std_, lahf, sahf, salc, xlat, bound, pause;
// stack_ops.cc
OpFn push, pop, pusha, popa, pushf, popf, enter, leave, push_segment, pop_segment;
// branch_ops.cc
OpFn jcc, jmp, call, ret, jcxz, loop, loope, loopne, jmp_far, call_far, ret_far, iret, int_, int1,
    int3, into, syscall, sysret, sysenter, sysexit;
// string_ops.cc
OpFn movs, cmps, scas, lods, stos;
// port_ops.cc
OpFn in, out, ins, outs;
// segment_ops.cc
OpFn mov_to_segment, mov_from_segment, load_far_pointer, lar, lsl, verr, verw, arpl, lgdt, lidt,
    sgdt, sidt, lldt, ltr, sldt, str, swapgs, rdfsbase, wrfsbase;
// system_ops.cc
OpFn hlt, cli, sti, clts, lmsw, smsw, mov_to_cr, mov_from_cr, mov_to_dr, mov_from_dr, invlpg,
    invpcid, cpuid, rdtsc, rdtscp, rdpmc, rdpid, rdmsr, wrmsr, xgetbv, xsetbv, monitor, mwait,
    vmcall, invd, clac, stac, fence, clflush, prefetch, rdrand, rdpkru, ud, undefined;
// sse_ops.cc
OpFn sse, ldmxcsr, stmxcsr, fxsave, fxrstor, x87, fwait, fninit, fnclex, fldcw, fnstcw, fnstsw,
    maskmovdqu, movnti;

}  // namespace ops
}  // namespace stagetwo::vcpu
