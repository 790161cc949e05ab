// SPDX-License-Identifier: Apache-2.0
#include "vcpu/sse_functions.h"
#include "vcpu/sse_mxcsr.h"

// Conversions between floating point formats and integers: the host's own instructions. The
// truncating forms ignore the rounding mode, the others obey the guest's; what does not fit is the
// integer indefinite value, as the host gives it.

namespace stagetwo::vcpu::sse {

ST_SSE_ON_LANES(cvtps2pd, "cvtps2pd", kExact, kSingle)
ST_SSE_ON_LANES(cvtpd2ps, "cvtpd2ps", kNarrow, kDoubles)
ST_SSE_ON_LANES(cvtss2sd, "cvtss2sd", kExact, kSingle)
ST_SSE_ON_LANES(cvtsd2ss, "cvtsd2ss", kNarrow, kDouble)
ST_SSE_ON_LANES(cvtdq2ps, "cvtdq2ps", kExact, kSingle)
ST_SSE_ON_LANES(cvtps2dq, "cvtps2dq", kExact, kSingle)
ST_SSE_ON_LANES(cvttps2dq, "cvttps2dq", kExact, kSingle)
ST_SSE_ON_LANES(cvtdq2pd, "cvtdq2pd", kExact, kSingle)
ST_SSE_ON_LANES(cvtpd2dq, "cvtpd2dq", kExact, kSingle)
ST_SSE_ON_LANES(cvttpd2dq, "cvttpd2dq", kExact, kSingle)

// From a general register or memory integer of 4 or 8 bytes.
#define ST_SSE_FROM_INTEGER(name, text)                                                        \
  SseOutcome name(const Insn& insn, SseOperands& o) {                                          \
    u32 control = host_control(o.mxcsr);                                                       \
    __m128i dst = to_host(o.dst);                                                              \
    if (insn.operand[1].size == 8)                                                             \
      ST_UNDER_MXCSR(text "q %[src], %[dst]", control, [dst] "+x"(dst), [src] "r"(o.src.lo));  \
    else                                                                                       \
      ST_UNDER_MXCSR(text "l %k[src], %[dst]", control, [dst] "+x"(dst), [src] "r"(o.src.lo)); \
    const SseOutcome outcome = settle(o, control, Arithmetic::kExact, Lanes::kSingle);         \
    if (outcome == SseOutcome::kDone) o.dst = from_host(dst);                                  \
    return outcome;                                                                            \
  }

ST_SSE_FROM_INTEGER(cvtsi2ss, "cvtsi2ss")
ST_SSE_FROM_INTEGER(cvtsi2sd, "cvtsi2sd")

// To a general register of 4 or 8 bytes.
#define ST_SSE_TO_INTEGER(name, text)                                                      \
  SseOutcome name(const Insn& insn, SseOperands& o) {                                      \
    u32 control = host_control(o.mxcsr);                                                   \
    const __m128i src = to_host(o.src);                                                    \
    u64 value = 0;                                                                         \
    if (insn.operand[0].size == 8)                                                         \
      ST_UNDER_MXCSR(text " %[src], %[dst]", control, [dst] "=r"(value), [src] "x"(src));  \
    else                                                                                   \
      ST_UNDER_MXCSR(text " %[src], %k[dst]", control, [dst] "=r"(value), [src] "x"(src)); \
    const SseOutcome outcome = settle(o, control, Arithmetic::kExact, Lanes::kSingle);     \
    if (outcome == SseOutcome::kDone) o.dst = {value, 0};                                  \
    return outcome;                                                                        \
  }

ST_SSE_TO_INTEGER(cvtss2si, "cvtss2si")
ST_SSE_TO_INTEGER(cvttss2si, "cvttss2si")
ST_SSE_TO_INTEGER(cvtsd2si, "cvtsd2si")
ST_SSE_TO_INTEGER(cvttsd2si, "cvttsd2si")

}  // namespace stagetwo::vcpu::sse
