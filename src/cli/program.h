// SPDX-License-Identifier: Apache-2.0
#pragma once

// The program as the kernel would find it, and whether the engine can enter it. The engine is
// preloaded by the dynamic loader, so a program without one is refused here, by name, instead of
// running with the machine's own devices or none.

#include <string>

namespace stagetwo::cli {

struct Program {
  std::string path;
  int refusal = 0;     // 0, or the exit status: 126 or 127
  std::string reason;  // one sentence
  // One sentence of a program that the engine enters but does not see all of; else empty.
  std::string warning;
};

// PATH is searched as execvp does. A script's interpreter is looked at in its place.
Program find_program(const std::string& name);

}  // namespace stagetwo::cli
