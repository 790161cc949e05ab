// SPDX-License-Identifier: Apache-2.0
#pragma once

// What rt_sigaction(2) takes on x86-64, of which libc's struct sigaction is another form.

#include "base/types.h"

namespace stagetwo::host {

struct KernelAction {
  u64 handler;
  u64 flags;
  u64 restorer;
  u64 mask;
};
inline constexpr u64 kRestorerFlag = 0x04000000;  // SA_RESTORER

}  // namespace stagetwo::host
