// SPDX-License-Identifier: Apache-2.0
#pragma once

// The guest's MXCSR around one floating point instruction of the host. Internal to the SSE
// functions.
//
// The host instruction always runs with every exception masked: an unmasked one would be a signal
// in the client's process. What the guest asked for is then derived:
//   - a pre-computation exception (invalid, denormal, zero divide) that the guest has unmasked
//   stops
//     the instruction before its result exists: overflow, underflow and precision are not reported;
//   - a tiny result is an underflow even if exact once underflow is unmasked, and flush-to-zero
//     does not act then;
//   - beside an unmasked overflow or underflow, precision is what rounding with an unbounded
//     exponent would lose, not what the exponent's bounds cost.
// Spec: SDM vol. 1, 11.5.2 to 11.5.4, and 4.9.1.5.

#include "vcpu/sse.h"
#include "vcpu/sse_host.h"

namespace stagetwo::vcpu::sse {

inline constexpr u32 kFlags = 0x3f, kPreComputation = 0x07, kOverflow = 0x08, kUnderflow = 0x10,
                     kPrecision = 0x20;
inline constexpr unsigned kMaskShift = 7;
inline constexpr u32 kAllMasked = kFlags << kMaskShift, kUnderflowMask = kUnderflow << kMaskShift;
inline constexpr u32 kFlushToZero = 0x8000;

// What the host runs under: no flags, all masked, the guest's rounding and denormal treatment.
inline u32 host_control(u32 guest) {
  u32 control = (guest & ~kFlags & 0xffff) | kAllMasked;
  if ((guest & kUnderflowMask) == 0) control &= ~kFlushToZero;
  return control;
}

// What an instruction computes, as far as its result can overflow or underflow. kExact: it cannot.
enum class Arithmetic : u8 { kExact, kAdd, kSub, kMul, kDiv, kNarrow };
enum class Lanes : u8 { kSingle, kSingles, kDouble, kDoubles };

// The flags of the arithmetic once overflow or underflow is unmasked: lane by lane. `control` as
// from host_control(); o.dst and o.src are the operands.
[[nodiscard]] u32 unmasked_flags(const SseOperands& o, u32 control, Arithmetic what, Lanes lanes);

// Accounts for the flags the host raised: o.mxcsr is updated; on kDone the caller stores its
// result. Pre: o.dst and o.src are still the operands.
inline SseOutcome settle(SseOperands& o, u32 host_mxcsr, Arithmetic what, Lanes lanes) {
  u32 raised = host_mxcsr & kFlags;
  const u32 unmasked = ~(o.mxcsr >> kMaskShift) & kFlags;
  if (unmasked != 0) [[unlikely]] {
    if ((raised & unmasked & kPreComputation) != 0)
      raised &= kPreComputation;
    else if (what != Arithmetic::kExact && (unmasked & (kOverflow | kUnderflow)) != 0)
      raised = unmasked_flags(o, host_control(o.mxcsr), what, lanes);
  }
  o.mxcsr |= raised;
  return (raised & unmasked) == 0 ? SseOutcome::kDone : SseOutcome::kSimdException;
}

}  // namespace stagetwo::vcpu::sse

// One host instruction `text` (AT&T, using %[dst] and %[src]) between the guest's control and the
// host's own. The three are one asm statement, so the compiler can move nothing in between.
#define ST_UNDER_MXCSR(text, control, outputs, inputs)                \
  do {                                                                \
    ::stagetwo::vcpu::u32 st_host = 0;                                \
    asm volatile("stmxcsr %[host]\n\tldmxcsr %[csr]\n\t" text         \
                 "\n\tstmxcsr %[csr]\n\tldmxcsr %[host]"              \
                 : [csr] "+m"(control), [host] "=m"(st_host), outputs \
                 : inputs);                                           \
  } while (false)

// A function of the table that is one host instruction from src and dst to dst.
#define ST_SSE_ON_LANES(name, text, what, lanes)                                      \
  SseOutcome name(const Insn&, SseOperands& o) {                                      \
    u32 control = host_control(o.mxcsr);                                              \
    __m128i dst = to_host(o.dst);                                                     \
    const __m128i src = to_host(o.src);                                               \
    ST_UNDER_MXCSR(text " %[src], %[dst]", control, [dst] "+x"(dst), [src] "x"(src)); \
    const Xmm result = from_host(dst);                                                \
    const SseOutcome outcome = settle(o, control, Arithmetic::what, Lanes::lanes);    \
    if (outcome == SseOutcome::kDone) o.dst = result;                                 \
    return outcome;                                                                   \
  }
