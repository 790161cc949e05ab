// SPDX-License-Identifier: Apache-2.0
#include "vcpu/sse_functions.h"
#include "vcpu/sse_mxcsr.h"

// Arithmetic and comparisons on floating point lanes: each is the host's own instruction.

namespace stagetwo::vcpu::sse {

#define ST_SSE_FLOAT(name, text, where)                                               \
  SseOutcome name(const Insn&, SseOperands& o) {                                      \
    u32 control = host_control(o.mxcsr);                                              \
    __m128i dst = to_host(o.dst);                                                     \
    const __m128i src = to_host(o.src);                                               \
    ST_UNDER_MXCSR(text " %[src], %[dst]", control, [dst] "+x"(dst), [src] "x"(src)); \
    const Xmm result = from_host(dst);                                                \
    const SseOutcome outcome = settle(o, control, Tiny::where, result);               \
    if (outcome == SseOutcome::kDone) o.dst = result;                                 \
    return outcome;                                                                   \
  }

ST_SSE_FLOAT(addps, "addps", kSingles)
ST_SSE_FLOAT(addpd, "addpd", kDoubles)
ST_SSE_FLOAT(addss, "addss", kSingle)
ST_SSE_FLOAT(addsd, "addsd", kDouble)
ST_SSE_FLOAT(subps, "subps", kSingles)
ST_SSE_FLOAT(subpd, "subpd", kDoubles)
ST_SSE_FLOAT(subss, "subss", kSingle)
ST_SSE_FLOAT(subsd, "subsd", kDouble)
ST_SSE_FLOAT(mulps, "mulps", kSingles)
ST_SSE_FLOAT(mulpd, "mulpd", kDoubles)
ST_SSE_FLOAT(mulss, "mulss", kSingle)
ST_SSE_FLOAT(mulsd, "mulsd", kDouble)
ST_SSE_FLOAT(divps, "divps", kSingles)
ST_SSE_FLOAT(divpd, "divpd", kDoubles)
ST_SSE_FLOAT(divss, "divss", kSingle)
ST_SSE_FLOAT(divsd, "divsd", kDouble)
ST_SSE_FLOAT(minps, "minps", kNone)
ST_SSE_FLOAT(minpd, "minpd", kNone)
ST_SSE_FLOAT(minss, "minss", kNone)
ST_SSE_FLOAT(minsd, "minsd", kNone)
ST_SSE_FLOAT(maxps, "maxps", kNone)
ST_SSE_FLOAT(maxpd, "maxpd", kNone)
ST_SSE_FLOAT(maxss, "maxss", kNone)
ST_SSE_FLOAT(maxsd, "maxsd", kNone)
ST_SSE_FLOAT(sqrtps, "sqrtps", kNone)
ST_SSE_FLOAT(sqrtpd, "sqrtpd", kNone)
ST_SSE_FLOAT(sqrtss, "sqrtss", kNone)
ST_SSE_FLOAT(sqrtsd, "sqrtsd", kNone)
ST_SSE_FLOAT(rcpps, "rcpps", kNone)
ST_SSE_FLOAT(rcpss, "rcpss", kNone)
ST_SSE_FLOAT(rsqrtps, "rsqrtps", kNone)
ST_SSE_FLOAT(rsqrtss, "rsqrtss", kNone)

// The eight predicates are eight instructions to the host, because its immediate is part of them.
// Bits 3 to 7 of the immediate are ignored, as processors do for the legacy encoding.
#define ST_SSE_PREDICATE(text, number)                        \
  case number:                                                \
    ST_UNDER_MXCSR(text " $" #number ", %[src], %[dst]",      \
                   control, [dst] "+x"(dst), [src] "x"(src)); \
    break;

#define ST_SSE_COMPARE(name, text)                                      \
  SseOutcome name(const Insn& insn, SseOperands& o) {                   \
    u32 control = host_control(o.mxcsr);                                \
    __m128i dst = to_host(o.dst);                                       \
    const __m128i src = to_host(o.src);                                 \
    switch (insn.imm & 7) {                                             \
      ST_SSE_PREDICATE(text, 0)                                         \
      ST_SSE_PREDICATE(text, 1)                                         \
      ST_SSE_PREDICATE(text, 2)                                         \
      ST_SSE_PREDICATE(text, 3)                                         \
      ST_SSE_PREDICATE(text, 4)                                         \
      ST_SSE_PREDICATE(text, 5)                                         \
      ST_SSE_PREDICATE(text, 6)                                         \
      ST_SSE_PREDICATE(text, 7)                                         \
    }                                                                   \
    const Xmm result = from_host(dst);                                  \
    const SseOutcome outcome = settle(o, control, Tiny::kNone, result); \
    if (outcome == SseOutcome::kDone) o.dst = result;                   \
    return outcome;                                                     \
  }

ST_SSE_COMPARE(cmpps, "cmpps")
ST_SSE_COMPARE(cmppd, "cmppd")
ST_SSE_COMPARE(cmpss, "cmpss")
ST_SSE_COMPARE(cmpsd, "cmpsd")

// Ordered result in ZF, PF, CF; OF, SF and AF are cleared.
#define ST_SSE_COMI(name, text)                                                 \
  SseOutcome name(const Insn&, SseOperands& o) {                                \
    u32 control = host_control(o.mxcsr);                                        \
    const __m128i dst = to_host(o.dst), src = to_host(o.src);                   \
    bool zero = false, parity = false, carry = false;                           \
    ST_UNDER_MXCSR(text " %[src], %[dst]", control,                             \
                   ST_LIST("=@ccz"(zero), "=@ccp"(parity), "=@ccc"(carry)),     \
                   ST_LIST([dst] "x"(dst), [src] "x"(src)));                    \
    const SseOutcome outcome = settle(o, control, Tiny::kNone, o.dst);          \
    if (outcome == SseOutcome::kDone)                                           \
      o.rflags = (o.rflags & ~rflags::kArithmetic) | (zero ? rflags::kZf : 0) | \
                 (parity ? rflags::kPf : 0) | (carry ? rflags::kCf : 0);        \
    return outcome;                                                             \
  }
#define ST_LIST(...) __VA_ARGS__

ST_SSE_COMI(comiss, "comiss")
ST_SSE_COMI(comisd, "comisd")
ST_SSE_COMI(ucomiss, "ucomiss")
ST_SSE_COMI(ucomisd, "ucomisd")

}  // namespace stagetwo::vcpu::sse
