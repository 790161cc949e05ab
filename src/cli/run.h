// SPDX-License-Identifier: Apache-2.0
#pragma once

// `stagetwo run`: the program, with the engine preloaded, under a supervisor.

#include "cli/command_line.h"

namespace stagetwo::cli {

// The exit status of the whole command. Messages go to standard error, one sentence each.
int run(const RunOptions& options);

}  // namespace stagetwo::cli
