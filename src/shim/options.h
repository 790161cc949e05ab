// SPDX-License-Identifier: Apache-2.0
#pragma once

// What `stagetwo run` passes on: STAGETWO_OPTIONS=name=value:name=value, names as on the command
// line. Read at the first open of a device; a program that opens none never looks.

#include <string_view>

namespace stagetwo::shim {

// Reads the environment once; of two settings of one name the later counts. An unknown name is one
// warning; so is a text of 4096 bytes or more, of which nothing is used.
void read_options();

// The value of an option, or empty. Post: valid for the life of the process.
std::string_view option(std::string_view name);

// One line for the user when --verbose was given, to --log-file or standard error.
void log_line(std::string_view text);

}  // namespace stagetwo::shim
