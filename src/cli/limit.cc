// SPDX-License-Identifier: Apache-2.0
#include "cli/limit.h"

#include <fcntl.h>
#include <fmt/core.h>
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
  bool written = write_limit(fd, host::kLimitWord, options.size.substr(0, comma));
  if (written && comma != std::string::npos) {
    const size_t behind = options.size.find('=', comma) + 1;
    written = write_limit(fd, host::kGuestLimitWord, options.size.substr(behind));
  }
  if (!written) fmt::print(stderr, "stagetwo: {}: {}\n", values, std::strerror(errno));
  ::close(fd);
  return written ? 0 : kExitToolFailed;
}

}  // namespace stagetwo::cli
