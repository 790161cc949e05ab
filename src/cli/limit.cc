// SPDX-License-Identifier: Apache-2.0
#include "cli/limit.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "base/size_text.h"
#include "cli/session.h"
#include "host/session.h"

namespace stagetwo::cli {
namespace {

// Readers see the old number or the new one: eight bytes at a multiple of eight.
bool write_limit(int fd, unsigned word, const std::string& size) {
  const u64 bytes = size == "none" ? host::kUnlimited : *parse_size(size);
  const auto at = static_cast<off_t>(word * sizeof(bytes));
  return ::pwrite(fd, &bytes, sizeof(bytes), at) == sizeof(bytes);
}

// A process of the session that runs, though no limit reaches it; 0: none is known.
pid_t not_limited(int fd) {
  u64 pid = 0;
  const auto at = static_cast<off_t>(host::kNotLimitedWord * sizeof(pid));
  if (::pread(fd, &pid, sizeof(pid), at) != sizeof(pid) || pid == 0) return 0;
  const auto process = static_cast<pid_t>(pid);
  return ::kill(process, 0) == 0 || errno == EPERM ? process : 0;
}

}  // namespace

int limit(const LimitOptions& options) {
  const std::string directory = Session::directory_of(options.session);
  const std::string values = directory + "/" + host::kSessionValues;
  const int fd = ::open(values.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) {
    fmt::print(stderr, "stagetwo: no program of session {} runs: {}: {}\n", options.session, values,
               std::strerror(errno));
    return kExitToolFailed;
  }
  const size_t comma = options.size.find(',');
  const std::string all = options.size.substr(0, comma);
  const std::string each =
      comma == std::string::npos ? "" : options.size.substr(options.size.find('=', comma) + 1);
  bool written = write_limit(fd, host::kLimitWord, all);
  if (written && !each.empty()) written = write_limit(fd, host::kGuestLimitWord, each);
  if (!written) fmt::print(stderr, "stagetwo: {}: {}\n", values, std::strerror(errno));
  const bool limits = all != "none" || (!each.empty() && each != "none");
  const pid_t process = written && limits ? not_limited(fd) : 0;
  if (process != 0) {
    fmt::print(stderr,
               "stagetwo: program {} of session {} runs without a limit: userfaultfd is denied to "
               "it, or it had no memory for what a limit needs (see 'stagetwo doctor')\n",
               process, options.session);
  }
  ::close(fd);
  return written && process == 0 ? 0 : kExitToolFailed;
}

}  // namespace stagetwo::cli
