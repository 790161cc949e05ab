// SPDX-License-Identifier: Apache-2.0
#pragma once

// Random encodings of one row of the opcode table: 15 bytes that start with an instruction of that
// row (or of an earlier row of the same opcode that also matches). Prefixes, REX, ModRM, SIB,
// displacement and immediates are random within what the row demands. Used to test decoding;
// twin/sequence.h makes of them what can also be executed.

#include <array>
#include <cstdint>

#include "tests/support/random_source.h"
#include "vcpu/opcode_table.h"

namespace stagetwo::test {

using InsnBytes = std::array<std::uint8_t, 15>;

// Pre: the row exists in `mode` (Row::modes).
[[nodiscard]] InsnBytes random_encoding(const vcpu::Row& row, vcpu::Mode mode,
                                        RandomSource& random);

}  // namespace stagetwo::test
