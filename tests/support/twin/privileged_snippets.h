// SPDX-License-Identifier: Apache-2.0
#pragma once

// A few instructions each that only a kernel may execute, with what they need around them: written
// in assembly, started at CPL 0 in the guest of guest_world.h, ended by running off their end.

#include <span>
#include <string>
#include <vector>

#include "tests/support/twin/sequence.h"

namespace stagetwo::twin {

struct Snippet {
  std::string name;
  std::span<const u8> code;
};

[[nodiscard]] const std::vector<Snippet>& privileged_snippets();

// The snippet as a sequence of one unit.
[[nodiscard]] Sequence sequence_of(const Snippet& snippet, RandomSource& random);

}  // namespace stagetwo::twin
