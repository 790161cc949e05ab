// SPDX-License-Identifier: Apache-2.0
#pragma once

// Every request this room answers, by file: the list docs/support-matrix-hmm.md shows and a test
// holds against the two descriptors.

#include <span>

#include "base/types.h"

namespace stagetwo::abi_hmm {

enum class On : u8 { kUnit, kGupTest };

struct Request {
  u32 number;
  const char* name;
  On on;
  const char* remark;  // empty: as in Linux
};

[[nodiscard]] std::span<const Request> requests();

}  // namespace stagetwo::abi_hmm
