// SPDX-License-Identifier: Apache-2.0
#pragma once

// `stagetwo mdev`: the mediated devices of a session that runs, for people.

#include "cli/command_line.h"

namespace stagetwo::cli {

// Returns the exit status.
int mdev(const MdevOptions& options);

}  // namespace stagetwo::cli
