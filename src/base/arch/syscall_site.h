// SPDX-License-Identifier: Apache-2.0
#pragma once

// Where a function of somebody else's code makes a system call, found by reading its instructions.
// Used to put a jump in front of libc's own calls (shim/libc_calls.h), so that it answers only
// where nothing is left to guess:
//
//   mov $number, %eax     5 bytes, becomes jmp rel32 of the same length
//   syscall               stays: who stands between the two when the bytes change does it as before
//   ...                   where the jump's target comes back to
//
// I1: every instruction of the function was recognised, none of them keeps a vector register alive
//     over the call, the pair stands once, and no branch leads into the middle of it.
//
// Context: any; reads `code` only, allocates nothing.

#include <array>
#include <optional>

#include "base/types.h"

namespace stagetwo::arch {

struct SyscallSite {
  u32 jump;   // offset of the mov
  u32 after;  // offset of the instruction behind the syscall
};

inline constexpr u32 kJumpBytes = 5;

// The bytes of the pair.
[[nodiscard]] std::array<u8, 7> syscall_pair(u32 number);

// Failure: nullopt; something about the function is not known.
[[nodiscard]] std::optional<SyscallSite> find_syscall_site(const u8* code, size_t size, u32 number);

// The jump from `from` to `to`; nullopt when it is too far.
[[nodiscard]] std::optional<std::array<u8, kJumpBytes>> encode_jump(u64 from, u64 to);

}  // namespace stagetwo::arch
