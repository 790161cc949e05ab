// SPDX-License-Identifier: Apache-2.0
#pragma once

// Every request this room answers, by descriptor: the list docs/support-matrix.md shows, the fuzz
// test draws from, and a test holds against the dispatchers.

#include <span>

#include "base/types.h"

namespace stagetwo::abi_kvm {

enum class On : u8 { kDevice = 1, kVm = 2, kVcpu = 4 };

struct Request {
  u32 number;
  const char* name;
  On on;
  const char* remark;  // empty: as in Linux
};

[[nodiscard]] std::span<const Request> requests();

}  // namespace stagetwo::abi_kvm
