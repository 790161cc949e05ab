// SPDX-License-Identifier: Apache-2.0
#include <emmintrin.h>

#include <cstring>

#include "vcpu/sse_functions.h"
#include "vcpu/sse_host.h"

// Packed integer arithmetic. These instructions neither read nor write MXCSR, so the compiler is
// free to schedule them; each is the host's own instruction.

namespace stagetwo::vcpu::sse {

#define ST_SSE_BINARY(name, intrinsic)                            \
  SseOutcome name(const Insn&, SseOperands& o) {                  \
    o.dst = from_host(intrinsic(to_host(o.dst), to_host(o.src))); \
    return SseOutcome::kDone;                                     \
  }

ST_SSE_BINARY(paddb, _mm_add_epi8)
ST_SSE_BINARY(paddw, _mm_add_epi16)
ST_SSE_BINARY(paddd, _mm_add_epi32)
ST_SSE_BINARY(paddq, _mm_add_epi64)
ST_SSE_BINARY(paddsb, _mm_adds_epi8)
ST_SSE_BINARY(paddsw, _mm_adds_epi16)
ST_SSE_BINARY(paddusb, _mm_adds_epu8)
ST_SSE_BINARY(paddusw, _mm_adds_epu16)
ST_SSE_BINARY(psubb, _mm_sub_epi8)
ST_SSE_BINARY(psubw, _mm_sub_epi16)
ST_SSE_BINARY(psubd, _mm_sub_epi32)
ST_SSE_BINARY(psubq, _mm_sub_epi64)
ST_SSE_BINARY(psubsb, _mm_subs_epi8)
ST_SSE_BINARY(psubsw, _mm_subs_epi16)
ST_SSE_BINARY(psubusb, _mm_subs_epu8)
ST_SSE_BINARY(psubusw, _mm_subs_epu16)
ST_SSE_BINARY(pmullw, _mm_mullo_epi16)
ST_SSE_BINARY(pmulhw, _mm_mulhi_epi16)
ST_SSE_BINARY(pmulhuw, _mm_mulhi_epu16)
ST_SSE_BINARY(pmuludq, _mm_mul_epu32)
ST_SSE_BINARY(pmaddwd, _mm_madd_epi16)
ST_SSE_BINARY(psadbw, _mm_sad_epu8)
ST_SSE_BINARY(pavgb, _mm_avg_epu8)
ST_SSE_BINARY(pavgw, _mm_avg_epu16)
ST_SSE_BINARY(pminub, _mm_min_epu8)
ST_SSE_BINARY(pminsw, _mm_min_epi16)
ST_SSE_BINARY(pmaxub, _mm_max_epu8)
ST_SSE_BINARY(pmaxsw, _mm_max_epi16)
ST_SSE_BINARY(pcmpeqb, _mm_cmpeq_epi8)
ST_SSE_BINARY(pcmpeqw, _mm_cmpeq_epi16)
ST_SSE_BINARY(pcmpeqd, _mm_cmpeq_epi32)
ST_SSE_BINARY(pcmpgtb, _mm_cmpgt_epi8)
ST_SSE_BINARY(pcmpgtw, _mm_cmpgt_epi16)
ST_SSE_BINARY(pcmpgtd, _mm_cmpgt_epi32)
ST_SSE_BINARY(psllw, _mm_sll_epi16)
ST_SSE_BINARY(pslld, _mm_sll_epi32)
ST_SSE_BINARY(psllq, _mm_sll_epi64)
ST_SSE_BINARY(psrlw, _mm_srl_epi16)
ST_SSE_BINARY(psrld, _mm_srl_epi32)
ST_SSE_BINARY(psrlq, _mm_srl_epi64)
ST_SSE_BINARY(psraw, _mm_sra_epi16)
ST_SSE_BINARY(psrad, _mm_sra_epi32)
ST_SSE_BINARY(packsswb, _mm_packs_epi16)
ST_SSE_BINARY(packssdw, _mm_packs_epi32)
ST_SSE_BINARY(packuswb, _mm_packus_epi16)
ST_SSE_BINARY(punpcklbw, _mm_unpacklo_epi8)
ST_SSE_BINARY(punpcklwd, _mm_unpacklo_epi16)
ST_SSE_BINARY(punpckldq, _mm_unpacklo_epi32)
ST_SSE_BINARY(punpcklqdq, _mm_unpacklo_epi64)
ST_SSE_BINARY(punpckhbw, _mm_unpackhi_epi8)
ST_SSE_BINARY(punpckhwd, _mm_unpackhi_epi16)
ST_SSE_BINARY(punpckhdq, _mm_unpackhi_epi32)
ST_SSE_BINARY(punpckhqdq, _mm_unpackhi_epi64)
#undef ST_SSE_BINARY

// The byte shifts exist with an immediate only (in `src`), which the host wants at compile time.
SseOutcome pslldq(const Insn&, SseOperands& o) {
  u8 bytes[32] = {};
  std::memcpy(bytes + 16, &o.dst, 16);
  const std::size_t count = o.src.lo < 16 ? o.src.lo : 16;
  std::memcpy(&o.dst, bytes + 16 - count, 16);
  return SseOutcome::kDone;
}

SseOutcome psrldq(const Insn&, SseOperands& o) {
  u8 bytes[32] = {};
  std::memcpy(bytes, &o.dst, 16);
  const std::size_t count = o.src.lo < 16 ? o.src.lo : 16;
  std::memcpy(&o.dst, bytes + count, 16);
  return SseOutcome::kDone;
}

}  // namespace stagetwo::vcpu::sse
