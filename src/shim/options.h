// SPDX-License-Identifier: Apache-2.0
#pragma once

// What `stagetwo run` passes on: STAGETWO_OPTIONS=name=value:name=value, names as on the command
// line. Read at the first open of a device, or when a name or a flag is met
// whose answer depends on one; a program that does neither never looks.

#include <string_view>

namespace stagetwo::shim {

// Reads the environment once, whoever comes first; of two settings of one name the later counts.
// Says nothing.
void read_options();
// An unknown name is one warning; so is a text of 4096 bytes or more, of which nothing is used.
// Pre: read_options().
void warn_of_options();

// The value of an option, or empty. Post: valid for the life of the process.
std::string_view option(std::string_view name);

// One line for the user, to --log-file or standard error.
void warn(std::string_view what, std::string_view name);
// One line for the user when --verbose was given, to --log-file or standard error.
void log_line(std::string_view text);

}  // namespace stagetwo::shim
