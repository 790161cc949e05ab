// SPDX-License-Identifier: Apache-2.0
#pragma once

// `stagetwo limit`: changes the memory limit of the programs of a session while they run. They see
// it within ten milliseconds; a program that was started without a limit, a swap file and --wss
// takes no notice.

#include "cli/command_line.h"

namespace stagetwo::cli {

int limit(const LimitOptions& options);

}  // namespace stagetwo::cli
