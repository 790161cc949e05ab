// SPDX-License-Identifier: Apache-2.0
#pragma once

// Runs a program as a user would and says what came of it.

#include <string>
#include <vector>

namespace stagetwo::test {

struct Outcome {
  int status = -1;  // exit status, or 128 + N
  std::string out;
  std::string err;
};

// `settings` are NAME=value, in front of the environment. A program that hangs is ended after a
// minute.
Outcome run_program(const std::vector<std::string>& command,
                    const std::vector<std::string>& settings = {});

// Of this build.
std::string tool();
std::string engine();
std::string program(const std::string& name);

// `stagetwo run -- program arguments…`.
Outcome run_under(const std::string& name, const std::vector<std::string>& arguments = {});

}  // namespace stagetwo::test
