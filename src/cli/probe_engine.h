// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the engine says of itself once it is awake in a program of this machine: a shell that opens
// a device and ends. So doctor reports what happens, and not what ought to.

#include <string>
#include <vector>

#include "cli/probes.h"

namespace stagetwo::cli {

// Which of libc's own changes of memory are seen.
Finding probe_libc(const std::string& engine);

// What nobody sees here, and what then happens. `others`: what was found so far.
Finding describe_unseen(const std::vector<Finding>& others);

}  // namespace stagetwo::cli
