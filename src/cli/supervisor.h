// SPDX-License-Identifier: Apache-2.0
#pragma once

// Starts the program and stays alive beside it. Catchable signals sent to the supervisor go on to
// the program; it stops when the program stops and continues it when it is continued itself. The
// program is not tied to it: if the supervisor is killed, the program keeps running.

#include <string>
#include <vector>

namespace stagetwo::cli {

// Returns the exit status: the program's own, 128 + N for signal N, or 126/127 with a message when
// the kernel refuses to execute it.
int supervise(const std::string& path, const std::vector<std::string>& arguments,
              const std::vector<std::string>& environment);

}  // namespace stagetwo::cli
