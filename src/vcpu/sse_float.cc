// SPDX-License-Identifier: Apache-2.0
#include "vcpu/sse_functions.h"
#include "vcpu/sse_mxcsr.h"

// Arithmetic and comparisons on floating point lanes: each is the host's own instruction.

namespace stagetwo::vcpu::sse {

ST_SSE_ON_LANES(addps, "addps", kAdd, kSingles)
ST_SSE_ON_LANES(addpd, "addpd", kAdd, kDoubles)
ST_SSE_ON_LANES(addss, "addss", kAdd, kSingle)
ST_SSE_ON_LANES(addsd, "addsd", kAdd, kDouble)
ST_SSE_ON_LANES(subps, "subps", kSub, kSingles)
ST_SSE_ON_LANES(subpd, "subpd", kSub, kDoubles)
ST_SSE_ON_LANES(subss, "subss", kSub, kSingle)
ST_SSE_ON_LANES(subsd, "subsd", kSub, kDouble)
ST_SSE_ON_LANES(mulps, "mulps", kMul, kSingles)
ST_SSE_ON_LANES(mulpd, "mulpd", kMul, kDoubles)
ST_SSE_ON_LANES(mulss, "mulss", kMul, kSingle)
ST_SSE_ON_LANES(mulsd, "mulsd", kMul, kDouble)
ST_SSE_ON_LANES(divps, "divps", kDiv, kSingles)
ST_SSE_ON_LANES(divpd, "divpd", kDiv, kDoubles)
ST_SSE_ON_LANES(divss, "divss", kDiv, kSingle)
ST_SSE_ON_LANES(divsd, "divsd", kDiv, kDouble)
ST_SSE_ON_LANES(minps, "minps", kExact, kSingles)
ST_SSE_ON_LANES(minpd, "minpd", kExact, kDoubles)
ST_SSE_ON_LANES(minss, "minss", kExact, kSingle)
ST_SSE_ON_LANES(minsd, "minsd", kExact, kDouble)
ST_SSE_ON_LANES(maxps, "maxps", kExact, kSingles)
ST_SSE_ON_LANES(maxpd, "maxpd", kExact, kDoubles)
ST_SSE_ON_LANES(maxss, "maxss", kExact, kSingle)
ST_SSE_ON_LANES(maxsd, "maxsd", kExact, kDouble)
ST_SSE_ON_LANES(sqrtps, "sqrtps", kExact, kSingles)
ST_SSE_ON_LANES(sqrtpd, "sqrtpd", kExact, kDoubles)
ST_SSE_ON_LANES(sqrtss, "sqrtss", kExact, kSingle)
ST_SSE_ON_LANES(sqrtsd, "sqrtsd", kExact, kDouble)
ST_SSE_ON_LANES(rcpps, "rcpps", kExact, kSingles)
ST_SSE_ON_LANES(rcpss, "rcpss", kExact, kSingle)
ST_SSE_ON_LANES(rsqrtps, "rsqrtps", kExact, kSingles)
ST_SSE_ON_LANES(rsqrtss, "rsqrtss", kExact, kSingle)

// The eight predicates are eight instructions to the host, because its immediate is part of them.
// Bits 3 to 7 of the immediate are ignored, as processors do for the legacy encoding.
#define ST_SSE_PREDICATE(text, number)                        \
  case number:                                                \
    ST_UNDER_MXCSR(text " $" #number ", %[src], %[dst]",      \
                   control, [dst] "+x"(dst), [src] "x"(src)); \
    break;

#define ST_SSE_COMPARE(name, text)                                                     \
  SseOutcome name(const Insn& insn, SseOperands& o) {                                  \
    u32 control = host_control(o.mxcsr);                                               \
    __m128i dst = to_host(o.dst);                                                      \
    const __m128i src = to_host(o.src);                                                \
    switch (insn.imm & 7) {                                                            \
      ST_SSE_PREDICATE(text, 0)                                                        \
      ST_SSE_PREDICATE(text, 1)                                                        \
      ST_SSE_PREDICATE(text, 2)                                                        \
      ST_SSE_PREDICATE(text, 3)                                                        \
      ST_SSE_PREDICATE(text, 4)                                                        \
      ST_SSE_PREDICATE(text, 5)                                                        \
      ST_SSE_PREDICATE(text, 6)                                                        \
      ST_SSE_PREDICATE(text, 7)                                                        \
    }                                                                                  \
    const Xmm result = from_host(dst);                                                 \
    const SseOutcome outcome = settle(o, control, Arithmetic::kExact, Lanes::kSingle); \
    if (outcome == SseOutcome::kDone) o.dst = result;                                  \
    return outcome;                                                                    \
  }

ST_SSE_COMPARE(cmpps, "cmpps")
ST_SSE_COMPARE(cmppd, "cmppd")
ST_SSE_COMPARE(cmpss, "cmpss")
ST_SSE_COMPARE(cmpsd, "cmpsd")

// Ordered result in ZF, PF, CF; OF, SF and AF are cleared.
#define ST_SSE_COMI(name, text)                                                        \
  SseOutcome name(const Insn&, SseOperands& o) {                                       \
    u32 control = host_control(o.mxcsr);                                               \
    const __m128i dst = to_host(o.dst), src = to_host(o.src);                          \
    bool zero = false, parity = false, carry = false;                                  \
    ST_UNDER_MXCSR(text " %[src], %[dst]", control,                                    \
                   ST_LIST("=@ccz"(zero), "=@ccp"(parity), "=@ccc"(carry)),            \
                   ST_LIST([dst] "x"(dst), [src] "x"(src)));                           \
    const SseOutcome outcome = settle(o, control, Arithmetic::kExact, Lanes::kSingle); \
    if (outcome == SseOutcome::kDone)                                                  \
      o.rflags = (o.rflags & ~rflags::kArithmetic) | (zero ? rflags::kZf : 0) |        \
                 (parity ? rflags::kPf : 0) | (carry ? rflags::kCf : 0);               \
    return outcome;                                                                    \
  }
#define ST_LIST(...) __VA_ARGS__

ST_SSE_COMI(comiss, "comiss")
ST_SSE_COMI(comisd, "comisd")
ST_SSE_COMI(ucomiss, "ucomiss")
ST_SSE_COMI(ucomisd, "ucomisd")

}  // namespace stagetwo::vcpu::sse
