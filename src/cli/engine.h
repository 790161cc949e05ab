// SPDX-License-Identifier: Apache-2.0
#pragma once

// Where the preload library is: beside the tool, in the build tree and where it is installed.

#include <string>

namespace stagetwo::cli {

inline constexpr const char* kEngineName = "libstagetwo_preload.so";

// Absolute path, or empty.
std::string find_engine();

// The value of LD_PRELOAD: the engine, then what the user had without another copy of it.
std::string preload_list(const std::string& engine, const char* users);

}  // namespace stagetwo::cli
