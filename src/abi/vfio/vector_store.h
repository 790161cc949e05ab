// SPDX-License-Identifier: Apache-2.0
#pragma once

// What an AVX or AVX-512 instruction stores: its bytes, out of the registers of a signal frame, and
// which of them its mask lets through. Not for other rooms.
//
// Known: moves of whole registers and of their elements, VEX and EVEX, with a mask of AVX-512;
// PEXTR of SSE4.1. Not known: VMASKMOV, scatters, stores that convert or compress.
// Specification: Intel SDM volume 1, 13.4 (the standard form of the XSAVE area, which a signal
// frame has), volume 2, 2.3 and 2.7 (prefixes; displacements of EVEX count operands). Context: as
// trapped_store.h. No state.

#include <ucontext.h>

#include <span>

#include "base/types.h"
#include "vcpu/insn.h"

namespace stagetwo::abi_vfio {

struct VectorStore {
  static constexpr unsigned kMost = 64;
  u8 value[kMost] = {};
  unsigned bytes = 0;
  u64 kept = ~u64{0};  // a bit each byte that is stored
  [[nodiscard]] bool keeps(unsigned byte) const { return (kept >> byte & 1) != 0; }
};

// `code`: the bytes that `insn` was decoded from; a short displacement becomes what it means.
// False: no store that is known here.
[[nodiscard]] bool read_vector_store(std::span<const u8> code, const ucontext_t& context,
                                     vcpu::Insn* insn, VectorStore* store);

}  // namespace stagetwo::abi_vfio
