// SPDX-License-Identifier: Apache-2.0
#pragma once

// `stagetwo doctor`: what this machine offers, which mechanism will be used for it, and what would
// make it better. The only command that opens a real /dev/kvm.

#include "cli/command_line.h"

namespace stagetwo::cli {

// 0: the engine can work here; 1: something it cannot do without is missing.
int doctor(const DoctorOptions& options);

}  // namespace stagetwo::cli
