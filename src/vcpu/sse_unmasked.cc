// SPDX-License-Identifier: Apache-2.0
#include <bit>
#include <type_traits>

#include "vcpu/sse_mxcsr.h"

// Overflow and underflow when the guest wants to be told: the rare path behind settle(). Each lane
// is computed again on its own, which gives its flags; a lane that overflows or underflows is
// computed a third time with operands whose exponents keep the result in range, which gives its
// precision flag. Spec: SDM vol. 1, 4.9.1.4 to 4.9.1.6; IEEE 754, trapped overflow and underflow.

namespace stagetwo::vcpu::sse {
namespace {

// One scalar instruction under `control`; returns its flags.
#define ST_SSE_LANE(text)                                                        \
  ST_UNDER_MXCSR(text " %[src], %[dst]", control, [dst] "+x"(*a), [src] "x"(b)); \
  break;

u32 run_lane(Arithmetic what, double* a, double b, u32 control) {
  switch (what) {
    case Arithmetic::kAdd:
      ST_SSE_LANE("addsd")
    case Arithmetic::kSub:
      ST_SSE_LANE("subsd")
    case Arithmetic::kMul:
      ST_SSE_LANE("mulsd")
    case Arithmetic::kDiv:
      ST_SSE_LANE("divsd")
    case Arithmetic::kNarrow:
      ST_SSE_LANE("cvtsd2ss")
    case Arithmetic::kExact:
      return 0;
  }
  return control & kFlags;
}
u32 run_lane(Arithmetic what, float* a, float b, u32 control) {
  switch (what) {
    case Arithmetic::kAdd:
      ST_SSE_LANE("addss")
    case Arithmetic::kSub:
      ST_SSE_LANE("subss")
    case Arithmetic::kMul:
      ST_SSE_LANE("mulss")
    case Arithmetic::kDiv:
      ST_SSE_LANE("divss")
    case Arithmetic::kNarrow:
    case Arithmetic::kExact:
      return 0;
  }
  return control & kFlags;
}
#undef ST_SSE_LANE

// Bits only: the host's MXCSR shall not see these values.
template <typename F>
struct Format {
  using Bits = std::conditional_t<sizeof(F) == 4, u32, u64>;
  static constexpr unsigned kFraction = sizeof(F) == 4 ? 23 : 52;
  static constexpr Bits kOne = Bits{1} << kFraction;  // of the exponent field
  static constexpr Bits kExponent =
      sizeof(F) == 4 ? Bits{0xff} << 23 : static_cast<Bits>(u64{0x7ff} << 52);
  static constexpr Bits kSign = Bits{1} << (sizeof(F) * 8 - 1);
  static constexpr Bits kHalf = (sizeof(F) == 4 ? Bits{126} : Bits{1022}) << kFraction;
};

template <typename F>
bool is_tiny(F v) {
  using T = Format<F>;
  const auto bits = std::bit_cast<typename T::Bits>(v);
  return (bits & T::kExponent) == 0 && (bits & (T::kOne - 1)) != 0;
}

// A quarter of a term of a sum that overflows, unless that would lose bits: what is that small is
// far below such a sum's last bit.
template <typename F>
F shrink(F v) {
  using T = Format<F>;
  const auto bits = std::bit_cast<typename T::Bits>(v);
  const auto exponent = bits & T::kExponent;
  if (exponent < 8 * T::kOne || exponent == T::kExponent) return v;
  return std::bit_cast<F>(bits - 2 * T::kOne);
}

// The significand alone, with its sign: [0.5, 1).
template <typename F>
F significand(F v) {
  using T = Format<F>;
  const auto bits = std::bit_cast<typename T::Bits>(v);
  auto fraction = bits & (T::kOne - 1);
  const auto exponent = bits & T::kExponent;
  if (exponent == T::kExponent || (exponent == 0 && fraction == 0)) return v;
  if (exponent == 0) {
    while ((fraction & T::kOne) == 0) fraction <<= 1;
    fraction &= T::kOne - 1;
  }
  return std::bit_cast<F>(static_cast<typename T::Bits>((bits & T::kSign) | T::kHalf | fraction));
}

// Does rounding lose something even if the exponent had no bounds? A sum that is tiny does not: its
// terms are multiples of the smallest denormal, and so is it.
template <typename F>
bool inexact_unbounded(Arithmetic what, F a, F b, u32 control, bool tiny) {
  const bool sum = what == Arithmetic::kAdd || what == Arithmetic::kSub;
  if (sum && tiny) return false;
  F left = sum ? shrink(a) : significand(a);
  const F right = sum ? shrink(b) : significand(b);
  return (run_lane(what, &left, right, control) & kPrecision) != 0;
}

template <typename F>
u32 lane_flags(Arithmetic what, F a, F b, u32 control, u32 unmasked) {
  F result = a;
  u32 raised = run_lane(what, &result, b, control);
  const bool tiny = what == Arithmetic::kNarrow
                        ? is_tiny(std::bit_cast<float>(
                              static_cast<u32>(std::bit_cast<u64>(static_cast<double>(result)))))
                        : is_tiny(result);
  if ((unmasked & kUnderflow) != 0 && tiny) raised |= kUnderflow;
  if ((raised & unmasked & (kOverflow | kUnderflow)) == 0) return raised;
  raised &= ~kPrecision;
  return inexact_unbounded(what, a, b, control, tiny) ? raised | kPrecision : raised;
}

float single(u64 half, unsigned which) {
  return std::bit_cast<float>(static_cast<u32>(half >> (32 * which)));
}
double wide(u64 half) {
  return std::bit_cast<double>(half);
}

}  // namespace

u32 unmasked_flags(const SseOperands& o, u32 control, Arithmetic what, Lanes lanes) {
  const u32 unmasked = ~(o.mxcsr >> kMaskShift) & kFlags;
  u32 raised = 0;
  switch (lanes) {
    case Lanes::kSingles:
      raised |= lane_flags(what, single(o.dst.lo, 1), single(o.src.lo, 1), control, unmasked);
      raised |= lane_flags(what, single(o.dst.hi, 0), single(o.src.hi, 0), control, unmasked);
      raised |= lane_flags(what, single(o.dst.hi, 1), single(o.src.hi, 1), control, unmasked);
      [[fallthrough]];
    case Lanes::kSingle:
      return raised | lane_flags(what, single(o.dst.lo, 0), single(o.src.lo, 0), control, unmasked);
    case Lanes::kDoubles:
      raised |= lane_flags(what, wide(o.dst.hi), wide(o.src.hi), control, unmasked);
      [[fallthrough]];
    case Lanes::kDouble:
      return raised | lane_flags(what, wide(o.dst.lo), wide(o.src.lo), control, unmasked);
  }
  return raised;
}

}  // namespace stagetwo::vcpu::sse
