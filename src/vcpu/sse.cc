// SPDX-License-Identifier: Apache-2.0
#include "vcpu/sse.h"

#include <array>

#include "vcpu/sse_functions.h"
#include "vcpu/sse_host.h"

// The table: which function an Op is and what it asks of a memory operand. It is indexed by Op,
// built by the compiler, and constant.

namespace stagetwo::vcpu {
namespace {

struct Row {
  SseFunction* function = nullptr;
  bool aligned = false;
};

using Table = std::array<Row, kOpCount>;

// clang-format off
#define ST_SSE(op, function, aligned) \
  table[static_cast<std::size_t>(Op::k##op)] = {&sse::function, aligned};
// Memory operands of 16 bytes on a 16-byte border.
consteval void add_aligned(Table& table) {
    ST_SSE(Addps, addps, true) ST_SSE(Andnps, andn, true) ST_SSE(Andps, and_, true)
    ST_SSE(Cmpps, cmpps, true) ST_SSE(Divps, divps, true) ST_SSE(Maxps, maxps, true)
    ST_SSE(Minps, minps, true) ST_SSE(Movaps, copy128, true) ST_SSE(Movntps, copy128, true)
    ST_SSE(Mulps, mulps, true) ST_SSE(Orps, or_, true) ST_SSE(Rcpps, rcpps, true)
    ST_SSE(Rsqrtps, rsqrtps, true) ST_SSE(Shufps, shufps, true) ST_SSE(Sqrtps, sqrtps, true)
    ST_SSE(Subps, subps, true) ST_SSE(Unpckhps, unpckhps, true) ST_SSE(Unpcklps, unpcklps, true)
    ST_SSE(Xorps, xor_, true) ST_SSE(Addpd, addpd, true) ST_SSE(Andnpd, andn, true)
    ST_SSE(Andpd, and_, true) ST_SSE(Cmppd, cmppd, true) ST_SSE(Cvtdq2ps, cvtdq2ps, true)
    ST_SSE(Cvtpd2dq, cvtpd2dq, true) ST_SSE(Cvtpd2ps, cvtpd2ps, true)
    ST_SSE(Cvtps2dq, cvtps2dq, true) ST_SSE(Cvttpd2dq, cvttpd2dq, true)
    ST_SSE(Cvttps2dq, cvttps2dq, true) ST_SSE(Divpd, divpd, true) ST_SSE(Maxpd, maxpd, true)
    ST_SSE(Minpd, minpd, true) ST_SSE(Movapd, copy128, true) ST_SSE(Movdqa, copy128, true)
    ST_SSE(Movntdq, copy128, true) ST_SSE(Movntpd, copy128, true) ST_SSE(Mulpd, mulpd, true)
    ST_SSE(Orpd, or_, true) ST_SSE(Shufpd, shufpd, true) ST_SSE(Sqrtpd, sqrtpd, true)
    ST_SSE(Subpd, subpd, true) ST_SSE(Unpckhpd, unpckhpd, true) ST_SSE(Unpcklpd, unpcklpd, true)
    ST_SSE(Xorpd, xor_, true) ST_SSE(Pand, and_, true) ST_SSE(Pandn, andn, true)
    ST_SSE(Por, or_, true) ST_SSE(Pxor, xor_, true) ST_SSE(Pshufd, pshufd, true)
    ST_SSE(Pshufhw, pshufhw, true) ST_SSE(Pshuflw, pshuflw, true) ST_SSE(Packssdw, packssdw, true)
    ST_SSE(Packsswb, packsswb, true) ST_SSE(Packuswb, packuswb, true) ST_SSE(Paddb, paddb, true)
    ST_SSE(Paddd, paddd, true) ST_SSE(Paddq, paddq, true) ST_SSE(Paddsb, paddsb, true)
    ST_SSE(Paddsw, paddsw, true) ST_SSE(Paddusb, paddusb, true) ST_SSE(Paddusw, paddusw, true)
    ST_SSE(Paddw, paddw, true) ST_SSE(Pavgb, pavgb, true) ST_SSE(Pavgw, pavgw, true)
    ST_SSE(Pcmpeqb, pcmpeqb, true) ST_SSE(Pcmpeqd, pcmpeqd, true) ST_SSE(Pcmpeqw, pcmpeqw, true)
    ST_SSE(Pcmpgtb, pcmpgtb, true) ST_SSE(Pcmpgtd, pcmpgtd, true) ST_SSE(Pcmpgtw, pcmpgtw, true)
    ST_SSE(Pmaddwd, pmaddwd, true) ST_SSE(Pmaxsw, pmaxsw, true) ST_SSE(Pmaxub, pmaxub, true)
    ST_SSE(Pminsw, pminsw, true) ST_SSE(Pminub, pminub, true) ST_SSE(Pmulhuw, pmulhuw, true)
    ST_SSE(Pmulhw, pmulhw, true) ST_SSE(Pmullw, pmullw, true) ST_SSE(Pmuludq, pmuludq, true)
    ST_SSE(Psadbw, psadbw, true) ST_SSE(Pslld, pslld, true) ST_SSE(Psllq, psllq, true)
    ST_SSE(Psllw, psllw, true) ST_SSE(Psrad, psrad, true) ST_SSE(Psraw, psraw, true)
    ST_SSE(Psrld, psrld, true) ST_SSE(Psrlq, psrlq, true) ST_SSE(Psrlw, psrlw, true)
    ST_SSE(Psubb, psubb, true) ST_SSE(Psubd, psubd, true) ST_SSE(Psubq, psubq, true)
    ST_SSE(Psubsb, psubsb, true) ST_SSE(Psubsw, psubsw, true) ST_SSE(Psubusb, psubusb, true)
    ST_SSE(Psubusw, psubusw, true) ST_SSE(Psubw, psubw, true) ST_SSE(Punpckhbw, punpckhbw, true)
    ST_SSE(Punpckhdq, punpckhdq, true) ST_SSE(Punpckhqdq, punpckhqdq, true)
    ST_SSE(Punpckhwd, punpckhwd, true) ST_SSE(Punpcklbw, punpcklbw, true)
    ST_SSE(Punpckldq, punpckldq, true) ST_SSE(Punpcklqdq, punpcklqdq, true)
    ST_SSE(Punpcklwd, punpcklwd, true)
}
// Memory operands of fewer bytes or on any border, or none.
consteval void add_others(Table& table) {
    ST_SSE(Addss, addss, false) ST_SSE(Cmpss, cmpss, false) ST_SSE(Comiss, comiss, false)
    ST_SSE(Cvtsi2ss, cvtsi2ss, false) ST_SSE(Cvtss2si, cvtss2si, false)
    ST_SSE(Cvttss2si, cvttss2si, false) ST_SSE(Divss, divss, false) ST_SSE(Maxss, maxss, false)
    ST_SSE(Minss, minss, false) ST_SSE(Movhlps, movhlps, false) ST_SSE(Movhps, movhps, false)
    ST_SSE(Movlhps, movlhps, false) ST_SSE(Movlps, movlps, false)
    ST_SSE(Movmskps, movmskps, false) ST_SSE(Movss, movss, false) ST_SSE(Movups, copy128, false)
    ST_SSE(Mulss, mulss, false) ST_SSE(Rcpss, rcpss, false) ST_SSE(Rsqrtss, rsqrtss, false)
    ST_SSE(Sqrtss, sqrtss, false) ST_SSE(Subss, subss, false) ST_SSE(Ucomiss, ucomiss, false)
    ST_SSE(Addsd, addsd, false) ST_SSE(Cmpsd, cmpsd, false) ST_SSE(Comisd, comisd, false)
    ST_SSE(Cvtdq2pd, cvtdq2pd, false) ST_SSE(Cvtps2pd, cvtps2pd, false)
    ST_SSE(Cvtsd2si, cvtsd2si, false) ST_SSE(Cvtsd2ss, cvtsd2ss, false)
    ST_SSE(Cvtsi2sd, cvtsi2sd, false) ST_SSE(Cvtss2sd, cvtss2sd, false)
    ST_SSE(Cvttsd2si, cvttsd2si, false) ST_SSE(Divsd, divsd, false) ST_SSE(Maxsd, maxsd, false)
    ST_SSE(Minsd, minsd, false) ST_SSE(Movd, movd, false) ST_SSE(Movdqu, copy128, false)
    ST_SSE(Movhpd, movhps, false) ST_SSE(Movlpd, movlps, false) ST_SSE(Movmskpd, movmskpd, false)
    ST_SSE(Movq, movq, false) ST_SSE(Movsd, movsd, false) ST_SSE(Movupd, copy128, false)
    ST_SSE(Mulsd, mulsd, false) ST_SSE(Sqrtsd, sqrtsd, false) ST_SSE(Subsd, subsd, false)
    ST_SSE(Ucomisd, ucomisd, false) ST_SSE(Pextrw, pextrw, false) ST_SSE(Pinsrw, pinsrw, false)
    ST_SSE(Pmovmskb, pmovmskb, false) ST_SSE(Pslldq, pslldq, false) ST_SSE(Psrldq, psrldq, false)
}
#undef ST_SSE
// clang-format on

consteval Table build_table() {
  Table table{};
  add_aligned(table);
  add_others(table);
  return table;
}

constexpr Table kTable = build_table();

constexpr const Row& row(Op op) {
  return kTable[static_cast<std::size_t>(op)];
}

}  // namespace

SseFunction* sse_function(Op op) {
  return row(op).function;
}

bool sse_aligned(Op op) {
  return row(op).aligned;
}

u16 sse_mask(const Xmm& mask) {
  return static_cast<u16>(_mm_movemask_epi8(sse::to_host(mask)));
}

}  // namespace stagetwo::vcpu
