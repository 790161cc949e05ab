// SPDX-License-Identifier: Apache-2.0
#pragma once

// Decodes one x86 instruction. Room vcpu, floor 7; called when the executor builds a block.
//
// Analogue: the kernel's x86_decode_insn() with its opcode tables; differs in that one table
// (opcode_table.h) covers every map, and that what an instruction may do is not judged here:
// privilege, CPUID bits and CR4 bits are the executor's business.
//
// No state, no allocation, no lock; any thread, signal handlers included.

#include <cstdint>
#include <span>

#include "vcpu/insn.h"

namespace stagetwo::vcpu {

inline constexpr std::size_t kMaxInsnLength = 15;

enum class DecodeStatus : std::uint8_t {
  kOk,             // *insn is complete
  kInvalid,        // #UD: no such instruction, or LOCK where it is not allowed
  kTooLong,        // #GP(0): more than 15 bytes
  kNeedMoreBytes,  // the span ends inside the instruction; fetch more and call again
};

// Pre:     `insn` points to storage; its old contents do not matter.
// Post:    on kOk insn->length <= bytes.size(); otherwise *insn is unspecified.
// Never reads outside `bytes`. kNeedMoreBytes is never returned for 15 or more bytes.
[[nodiscard]] DecodeStatus decode(std::span<const std::uint8_t> bytes, Mode mode, Insn* insn);

}  // namespace stagetwo::vcpu
