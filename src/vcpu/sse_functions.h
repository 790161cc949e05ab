// SPDX-License-Identifier: Apache-2.0
#pragma once

// The functions behind execute_sse(), one per instruction, named by mnemonic. Internal to the room;
// sse.cc has the table that ties them to Op.

#include "vcpu/sse.h"

namespace stagetwo::vcpu::sse {

// sse_move.cc: data movement, logic, shuffles, general registers.
SseFunction copy128, movss, movsd, movlps, movhps, movhlps, movlhps, movq, movd;
SseFunction and_, andn, or_, xor_;
SseFunction unpcklps, unpckhps, unpcklpd, unpckhpd, shufps, shufpd, pshufd, pshufhw, pshuflw;
SseFunction movmskps, movmskpd, pmovmskb, pinsrw, pextrw;

// sse_integer.cc: packed integers.
SseFunction paddb, paddw, paddd, paddq, paddsb, paddsw, paddusb, paddusw;
SseFunction psubb, psubw, psubd, psubq, psubsb, psubsw, psubusb, psubusw;
SseFunction pmullw, pmulhw, pmulhuw, pmuludq, pmaddwd, psadbw, pavgb, pavgw;
SseFunction pminub, pminsw, pmaxub, pmaxsw;
SseFunction pcmpeqb, pcmpeqw, pcmpeqd, pcmpgtb, pcmpgtw, pcmpgtd;
SseFunction psllw, pslld, psllq, psrlw, psrld, psrlq, psraw, psrad, pslldq, psrldq;
SseFunction packsswb, packssdw, packuswb;
SseFunction punpcklbw, punpcklwd, punpckldq, punpcklqdq, punpckhbw, punpckhwd, punpckhdq,
    punpckhqdq;

// sse_float.cc: floating point, under the guest's MXCSR.
SseFunction addps, addpd, addss, addsd, subps, subpd, subss, subsd, mulps, mulpd, mulss, mulsd;
SseFunction divps, divpd, divss, divsd, minps, minpd, minss, minsd, maxps, maxpd, maxss, maxsd;
SseFunction sqrtps, sqrtpd, sqrtss, sqrtsd, rcpps, rcpss, rsqrtps, rsqrtss;
SseFunction cmpps, cmppd, cmpss, cmpsd, comiss, comisd, ucomiss, ucomisd;

// sse_convert.cc: conversions, under the guest's MXCSR.
SseFunction cvtps2pd, cvtpd2ps, cvtss2sd, cvtsd2ss, cvtdq2ps, cvtps2dq, cvttps2dq;
SseFunction cvtdq2pd, cvtpd2dq, cvttpd2dq;
SseFunction cvtsi2ss, cvtsi2sd, cvtss2si, cvttss2si, cvtsd2si, cvttsd2si;

}  // namespace stagetwo::vcpu::sse
