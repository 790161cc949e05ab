// SPDX-License-Identifier: Apache-2.0
#pragma once

// `stagetwo limit`: changes the memory limit of the programs of a session while they run. They see
// it within ten milliseconds. What a program that was started without --memory-limit had before it
// opened its first device is out of reach where it is shared. One that no limit reaches
// (userfaultfd is denied to it) is named, and that is a failure.

#include "cli/command_line.h"

namespace stagetwo::cli {

int limit(const LimitOptions& options);

}  // namespace stagetwo::cli
