// SPDX-License-Identifier: Apache-2.0
// stagetwo: the command line.

#include <fmt/core.h>

#include <cstdio>
#include <exception>

#include "cli/command_line.h"
#include "cli/doctor.h"
#include "cli/limit.h"
#include "cli/mdev.h"
#include "cli/run.h"

int main(int argc, char** argv) {
  namespace cli = stagetwo::cli;
  try {
    const cli::CommandLine line = cli::parse_command_line(argc, argv);
    switch (line.command) {
      case cli::Command::kRun:
        return cli::run(line.run);
      case cli::Command::kDoctor:
        return cli::doctor(line.doctor);
      case cli::Command::kLimit:
        return cli::limit(line.limit);
      case cli::Command::kMdev:
        return cli::mdev(line.mdev);
      case cli::Command::kDone:
        return line.exit_status;
    }
  } catch (const std::exception& error) {
    fmt::print(stderr, "stagetwo: {}\n", error.what());
  }
  return cli::kExitToolFailed;
}
