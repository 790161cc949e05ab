// SPDX-License-Identifier: Apache-2.0
#include "cli/run.h"

#include <fmt/core.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "cli/engine.h"
#include "cli/program.h"
#include "cli/session.h"
#include "cli/supervisor.h"
#include "host/session.h"
#include "vfio/bus.h"

extern char** environ;

namespace stagetwo::cli {
namespace {

// As many as shim/options.cc has room for.
constexpr size_t kLongestOptions = 4095;

bool is_setting_of(const std::string& setting, const char* name) {
  return setting.starts_with(std::string(name) + "=");
}

// The environment with the engine first in LD_PRELOAD (the user's own stays behind it) and the
// options in STAGETWO_OPTIONS.
std::vector<std::string> environment_of(const std::string& engine, const std::string& options) {
  std::vector<std::string> result;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string setting = *entry;
    if (is_setting_of(setting, "LD_PRELOAD") || is_setting_of(setting, "STAGETWO_OPTIONS")) {
      continue;
    }
    result.push_back(setting);
  }
  result.push_back("LD_PRELOAD=" + preload_list(engine, std::getenv("LD_PRELOAD")));
  result.push_back("STAGETWO_OPTIONS=" + options);
  return result;
}

// Is the caller itself in a session? A run inside a run stays in it.
bool has_session(const char* options) {
  if (options == nullptr) return false;
  return (std::string(":") + options).find(":session=") != std::string::npos;
}

// The program may go to another folder.
std::string absolute(const std::string& file) {
  return std::filesystem::absolute(file).string();
}

std::string memory_options(const RunOptions& options) {
  std::string text;
  const auto first = [](const std::string& value) { return value.substr(0, value.find(',')); };
  const auto behind = [](const std::string& value) {
    const size_t comma = value.find(',');
    return comma == std::string::npos ? std::string() : value.substr(value.find('=', comma) + 1);
  };
  if (!options.memory_limit.empty()) text += ":memory-limit=" + first(options.memory_limit);
  if (!behind(options.memory_limit).empty()) text += ":vm-limit=" + behind(options.memory_limit);
  if (!options.swap.empty()) text += ":swap=" + absolute(first(options.swap));
  if (!behind(options.swap).empty()) text += ":swap-size=" + behind(options.swap);
  if (!options.compressed.empty()) text += ":compressed=" + options.compressed;
  if (!options.wss.empty())
    text += ":wss=" + (first(options.wss).empty() ? "1s" : first(options.wss));
  if (!behind(options.wss).empty()) text += ":wss-file=" + absolute(behind(options.wss));
  if (options.stats == "1") text += ":stats=1";
  if (!options.stats.empty() && options.stats != "1") text += ":stats=" + absolute(options.stats);
  return text;
}

// What the command line asks for stands behind what the caller's environment asks for, so that it
// wins; the default of --abi does not.
std::string options_text(const RunOptions& options, const Session& session) {
  const char* const given = std::getenv("STAGETWO_OPTIONS");
  std::string text = "abi=" + options.abi;
  if (given != nullptr && *given != '\0') {
    text = options.abi_given ? std::string(given) + ":" + text : text + ":" + given;
  }
  if (!session.directory().empty()) text += ":session=" + session.directory();
  if (!options.log_file.empty()) text += ":log-file=" + options.log_file;
  if (!options.hugetlb.empty()) text += ":hugetlb=" + options.hugetlb;
  if (!options.libc.empty()) text += ":libc=" + options.libc;
  for (const std::string& param : options.params) {
    text += (&param == options.params.data() ? ":param=" : ",") + param;
  }
  if (options.iommufd_test) text += ":iommufd-test=1";
  for (const std::string& device : options.vfio_devices) {
    text += (&device == options.vfio_devices.data() ? ":vfio-device=" : ",") + device;
  }
  if (!options.secure.empty()) text += ":secure=" + options.secure;
  text += memory_options(options);
  if (options.verbose) text += ":verbose=1";
  return text;
}

// The engine opens the log where it has something to say, inside the program, and cannot complain
// there; so a log that cannot be made is said here. Empty: nothing is wrong.
std::string log_refusal(const std::string& log_file) {
  if (log_file.empty()) return {};
  const std::filesystem::path folder = std::filesystem::absolute(log_file).parent_path();
  const bool exists = access(log_file.c_str(), F_OK) == 0;
  if (exists ? access(log_file.c_str(), W_OK) == 0 : access(folder.c_str(), W_OK | X_OK) == 0) {
    return {};
  }
  return fmt::format("the log {} cannot be written: {}", log_file, std::strerror(errno));
}

// What is asked for is there from the beginning, for whoever else is in the session, too, not from
// when the program first looks. Empty: nothing is wrong.
std::string make_functions(const RunOptions& options, const Session& session) {
  if (options.vfio_devices.empty() || session.directory().empty()) return {};
  static std::string names;  // kept by the room
  for (const std::string& device : options.vfio_devices) {
    names += (names.empty() ? "" : ",") + device;
  }
  vfio::want_functions(names);
  auto ready = host::join_session(session.directory());
  if (ready) ready = vfio::start_bus();
  if (ready) return {};
  return fmt::format("{}: {}", session.directory(), std::strerror(to_int(ready.error())));
}

}  // namespace

int run(const RunOptions& options) {
  const std::string engine = find_engine();
  if (engine.empty()) {
    fmt::print(stderr, "stagetwo: the engine lib/stagetwo/{} was not found beside this tool\n",
               kEngineName);
    return kExitToolFailed;
  }
  if (engine.find_first_of(": ") != std::string::npos) {
    fmt::print(
        stderr,
        "stagetwo: {}: the dynamic loader takes no engine whose path has a colon or a space; "
        "move it\n",
        engine);
    return kExitToolFailed;
  }
  const Program program = find_program(options.program[0]);
  if (program.refusal != 0) {
    fmt::print(stderr, "stagetwo: {}\n", program.reason);
    return program.refusal;
  }
  if (!program.warning.empty()) fmt::print(stderr, "stagetwo: {}\n", program.warning);
  if (const std::string refusal = log_refusal(options.log_file); !refusal.empty()) {
    fmt::print(stderr, "stagetwo: {}\n", refusal);
    return kExitToolFailed;
  }
  Session session = options.session.empty() && has_session(std::getenv("STAGETWO_OPTIONS"))
                        ? Session::none()
                        : Session::open(options.session);
  if (!session.failure().empty()) {
    fmt::print(stderr, "stagetwo: {}\n", session.failure());
    return kExitToolFailed;
  }
  if (const std::string refusal = make_functions(options, session); !refusal.empty()) {
    fmt::print(stderr, "stagetwo: {}\n", refusal);
    return kExitToolFailed;
  }
  const std::string text = options_text(options, session);
  if (text.size() > kLongestOptions) {
    fmt::print(stderr, "stagetwo: STAGETWO_OPTIONS would be {} bytes long, the engine takes {}\n",
               text.size(), kLongestOptions);
    return kExitToolFailed;
  }
  if (options.verbose) {
    fmt::print(stderr, "stagetwo: engine {}\nstagetwo: program {}\n", engine, program.path);
    if (!session.directory().empty()) {
      fmt::print(stderr, "stagetwo: session {}\n", session.directory());
    }
  }
  return supervise(program.path, options.program, environment_of(engine, text));
}

}  // namespace stagetwo::cli
