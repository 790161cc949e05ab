// SPDX-License-Identifier: Apache-2.0
#include "vcpu/sse.h"

#include <gtest/gtest.h>
#include <xmmintrin.h>

#include <array>
#include <bit>
#include <cstring>

#include "vcpu/fx_image.h"
#include "vcpu/sse_functions.h"
#include "vcpu/sse_mxcsr.h"

namespace stagetwo::vcpu {
namespace {

Xmm singles(float a, float b = 0, float c = 0, float d = 0) {
  return std::bit_cast<Xmm>(std::array<float, 4>{a, b, c, d});
}
Xmm doubles(double a, double b = 0) {
  return std::bit_cast<Xmm>(std::array<double, 2>{a, b});
}

Insn registers(Op op, u64 imm = 0) {
  Insn insn;
  insn.op = op;
  insn.operand_count = 2;
  insn.operand[0] = {OperandKind::kXmm, 0, 16};
  insn.operand[1] = {OperandKind::kXmm, 1, 16};
  insn.imm = imm;
  return insn;
}

constexpr u32 kDefault = 0x1f80;
constexpr u32 kInvalid = 1, kZeroDivide = 4, kOverflow = 8, kUnderflow = 16, kPrecision = 32;
constexpr u32 unmask(u32 mxcsr, u32 flags) {
  return mxcsr & ~(flags << 7);
}

TEST(Sse, ComputesUnderTheGuestsRoundingMode) {
  for (const u32 rounding : {0u, 1u, 2u, 3u}) {
    SseOperands o{.dst = doubles(1), .src = doubles(3), .mxcsr = kDefault | rounding << 13};
    ASSERT_EQ(execute_sse(registers(Op::kDivsd), o), SseOutcome::kDone);
    const u64 nearest = 0x3fd5555555555555;
    EXPECT_EQ(o.dst.lo, rounding == 2 ? nearest + 1 : nearest);
    EXPECT_EQ(o.mxcsr, (kDefault | rounding << 13 | kPrecision));
  }
}

TEST(Sse, LeavesTheHostsMxcsrAlone) {
  const u32 before = _mm_getcsr();
  _mm_setcsr((before & ~0x6000u) | 0x2000u);
  const u32 marked = _mm_getcsr();
  SseOperands o{.dst = singles(1), .src = singles(0), .mxcsr = kDefault};
  EXPECT_EQ(execute_sse(registers(Op::kDivps), o), SseOutcome::kDone);
  EXPECT_EQ(_mm_getcsr(), marked);
  EXPECT_EQ(o.mxcsr & 0x3f, kInvalid | kZeroDivide);  // the idle lanes divide 0 by 0
  _mm_setcsr(before);
}

TEST(Sse, AnUnmaskedExceptionKeepsTheDestination) {
  SseOperands o{.dst = doubles(1), .src = doubles(0), .mxcsr = unmask(kDefault, kZeroDivide)};
  EXPECT_EQ(execute_sse(registers(Op::kDivsd), o), SseOutcome::kSimdException);
  EXPECT_EQ(o.dst, doubles(1));
  EXPECT_EQ(o.mxcsr & 0x3f, kZeroDivide);
}

TEST(Sse, AnUnmaskedPreComputationExceptionHidesPrecision) {
  SseOperands o{.dst = doubles(1, 1), .src = doubles(0, 3), .mxcsr = unmask(kDefault, kZeroDivide)};
  EXPECT_EQ(execute_sse(registers(Op::kDivpd), o), SseOutcome::kSimdException);
  EXPECT_EQ(o.mxcsr & 0x3f, kZeroDivide);
}

TEST(Sse, AnExactTinyResultUnderflowsOnlyIfUnmasked) {
  const double smallest_normal = std::bit_cast<double>(u64{1} << 52);
  SseOperands masked{.dst = doubles(smallest_normal), .src = doubles(0.5), .mxcsr = kDefault};
  EXPECT_EQ(execute_sse(registers(Op::kMulsd), masked), SseOutcome::kDone);
  EXPECT_EQ(masked.mxcsr & 0x3f, 0u);
  SseOperands o{
      .dst = doubles(smallest_normal), .src = doubles(0.5), .mxcsr = unmask(kDefault, kUnderflow)};
  EXPECT_EQ(execute_sse(registers(Op::kMulsd), o), SseOutcome::kSimdException);
  EXPECT_EQ(o.mxcsr & 0x3f, kUnderflow);
}

// Terms just above and just below the bound of what could be scaled down without a loss.
TEST(Sse, ATinySumIsExact) {
  const double a = std::bit_cast<double>(u64{0x0080'0000'7f80'0001});
  const double b = std::bit_cast<double>(u64{0x807f'ffff'7f7f'ffff});
  SseOperands o{.dst = doubles(a), .src = doubles(b), .mxcsr = unmask(kDefault, kUnderflow)};
  EXPECT_EQ(execute_sse(registers(Op::kAddsd), o), SseOutcome::kSimdException);
  EXPECT_EQ(o.mxcsr & 0x3f, kUnderflow);
  o = {.dst = doubles(a), .src = doubles(-b), .mxcsr = unmask(kDefault, kUnderflow)};
  EXPECT_EQ(execute_sse(registers(Op::kSubsd), o), SseOutcome::kSimdException);
  EXPECT_EQ(o.mxcsr & 0x3f, kUnderflow);
}

// IEEE 754, trapped overflow: the result is only out of the exponent's bounds, its significand
// fits.
TEST(Sse, AnUnmaskedOverflowIsPreciseIfTheSignificandFits) {
  const double huge = 0x1p1000;
  SseOperands o{.dst = doubles(huge), .src = doubles(huge), .mxcsr = unmask(kDefault, kOverflow)};
  EXPECT_EQ(execute_sse(registers(Op::kMulsd), o), SseOutcome::kSimdException);
  EXPECT_EQ(o.mxcsr & 0x3f, kOverflow);
  o = {.dst = doubles(huge / 3), .src = doubles(huge / 7), .mxcsr = unmask(kDefault, kOverflow)};
  EXPECT_EQ(execute_sse(registers(Op::kMulsd), o), SseOutcome::kSimdException);
  EXPECT_EQ(o.mxcsr & 0x3f, kOverflow | kPrecision);
}

TEST(Sse, EachLaneRaisesItsOwnFlagsOnceUnderflowIsUnmasked) {
  const SseOperands o{
      .dst = doubles(1, 0x1p-1022), .src = doubles(3, 2), .mxcsr = unmask(kDefault, kUnderflow)};
  const u32 control = sse::host_control(o.mxcsr);
  EXPECT_EQ(sse::unmasked_flags(o, control, sse::Arithmetic::kDiv, sse::Lanes::kDouble),
            kPrecision);
  EXPECT_EQ(sse::unmasked_flags(o, control, sse::Arithmetic::kDiv, sse::Lanes::kDoubles),
            kPrecision | kUnderflow);
}

TEST(Sse, TheTableNamesTheFunctionOfAnOp) {
  EXPECT_EQ(sse_function(Op::kPaddb), &sse::paddb);
  EXPECT_EQ(sse_function(Op::kMovntdq), &sse::copy128);
  EXPECT_EQ(sse_function(Op::kCvtsd2si), &sse::cvtsd2si);
  EXPECT_EQ(sse_function(Op::kMaxpd), &sse::maxpd);
}

TEST(Sse, ComparesIntoTheArithmeticFlags) {
  SseOperands o{.dst = singles(1), .src = singles(2), .rflags = 0x8d5 | 0x202, .mxcsr = kDefault};
  EXPECT_EQ(execute_sse(registers(Op::kUcomiss), o), SseOutcome::kDone);
  EXPECT_EQ(o.rflags, 0x203u);
  o.src = singles(__builtin_nanf(""));
  EXPECT_EQ(execute_sse(registers(Op::kUcomiss), o), SseOutcome::kDone);
  EXPECT_EQ(o.rflags, 0x247u);
  EXPECT_EQ(o.mxcsr & 0x3f, 0u);
  EXPECT_EQ(execute_sse(registers(Op::kComiss), o), SseOutcome::kDone);
  EXPECT_EQ(o.mxcsr & 0x3f, kInvalid);
}

TEST(Sse, AScalarLoadClearsWhatACopyKeeps) {
  Insn insn = registers(Op::kMovss);
  SseOperands o{.dst = {~u64{0}, ~u64{0}}, .src = {0x1'2222'3333, 0}};
  EXPECT_EQ(execute_sse(insn, o), SseOutcome::kDone);
  EXPECT_EQ(o.dst, (Xmm{0xffffffff'22223333, ~u64{0}}));
  insn.has_mem = true;
  insn.operand[1] = {OperandKind::kMem, 0, 4};
  EXPECT_EQ(execute_sse(insn, o), SseOutcome::kDone);
  EXPECT_EQ(o.dst, (Xmm{0x22223333, 0}));
}

TEST(Sse, ShiftsByARegisterOrAnImmediateAlike) {
  SseOperands o{.dst = {0x8000000000000001, 2}, .src = {65, 0}};
  EXPECT_EQ(execute_sse(registers(Op::kPsrlq), o), SseOutcome::kDone);
  EXPECT_EQ(o.dst, Xmm{});
  o = {.dst = {0x1122334455667788, 0x99}, .src = {3, 0}};
  EXPECT_EQ(execute_sse(registers(Op::kPslldq), o), SseOutcome::kDone);
  EXPECT_EQ(o.dst, (Xmm{0x4455667788000000, 0x99112233}));
}

TEST(Sse, DemandsAlignmentOfWholeRegisterOperandsExceptUnalignedMoves) {
  EXPECT_TRUE(sse_aligned(Op::kMovaps) && sse_aligned(Op::kPaddb) && sse_aligned(Op::kMovntdq));
  EXPECT_FALSE(sse_aligned(Op::kMovups) || sse_aligned(Op::kMovdqu) || sse_aligned(Op::kAddsd));
}

TEST(Sse, KnowsEveryOpOfTheSseSectionsButMaskmovdqu) {
  for (auto op = static_cast<u16>(Op::kAddps); op <= static_cast<u16>(Op::kPxor); ++op)
    EXPECT_EQ(is_sse(static_cast<Op>(op)), static_cast<Op>(op) != Op::kMaskmovdqu) << op;
  EXPECT_FALSE(is_sse(Op::kAdd) || is_sse(Op::kFxsave) || is_sse(Op::kMmxPand));
}

TEST(Sse, IsUndefinedWithoutOsfxsrAndUnavailableWhenTasksSwitch) {
  EXPECT_EQ(sse_availability(0, 0), SseAvailability::kUndefined);
  EXPECT_EQ(sse_availability(cr0::kEm, cr4::kOsfxsr), SseAvailability::kUndefined);
  EXPECT_EQ(sse_availability(cr0::kTs, cr4::kOsfxsr), SseAvailability::kDeviceNotAvailable);
  EXPECT_EQ(sse_availability(cr0::kMp, cr4::kOsfxsr), SseAvailability::kAvailable);
}

TEST(FxImage, RoundTripsTheStateItCarries) {
  CpuState state;
  state.mxcsr = 0x7fa1;
  state.x87.ftw = 0x5a;
  state.x87.fip = 0x1234'5678'9abc;
  state.x87.st[3][9] = 0x40;
  for (u64 i = 0; i < 16; ++i) state.xmm[i] = {i, ~i};
  u8 image[kFxImageBytes] = {};
  const FxFormat format{.wide = true, .xmm = true, .sixteen = true};
  EXPECT_EQ(fx_save(state, format, image), 416u);
  CpuState other;
  ASSERT_TRUE(fx_restore(&other, format, image));
  EXPECT_EQ(other.mxcsr, state.mxcsr);
  EXPECT_EQ(std::memcmp(other.xmm, state.xmm, sizeof state.xmm), 0);
  EXPECT_EQ(other.x87.fip, state.x87.fip);
  EXPECT_EQ(std::memcmp(other.x87.st, state.x87.st, sizeof state.x87.st), 0);
}

TEST(FxImage, RefusesReservedMxcsrBitsAndChangesNothing) {
  CpuState state;
  u8 image[kFxImageBytes] = {};
  image[26] = 1;  // MXCSR bit 16
  EXPECT_FALSE(fx_restore(&state, {}, image));
  EXPECT_EQ(state.mxcsr, kMxcsrReset);
  EXPECT_EQ(state.x87.fcw, 0x37f);
}

TEST(FxImage, NarrowFormWritesEightRegisters) {
  CpuState state;
  u8 image[kFxImageBytes] = {};
  EXPECT_EQ(fx_save(state, {}, image), 160u + 8 * 16);
  EXPECT_EQ(fx_save(state, {.xmm = false}, image), 160u);
}

}  // namespace
}  // namespace stagetwo::vcpu
