// SPDX-License-Identifier: Apache-2.0
#include "cli/engine.h"

#include <limits.h>
#include <unistd.h>

#include <string_view>

namespace stagetwo::cli {
namespace {

std::string own_directory() {
  char path[PATH_MAX];
  const ssize_t size = readlink("/proc/self/exe", path, sizeof(path));
  if (size <= 0) return {};
  const std::string_view self(path, static_cast<size_t>(size));
  return std::string(self.substr(0, self.rfind('/')));
}

}  // namespace

std::string find_engine() {
  const std::string bin = own_directory();
  if (bin.empty()) return {};
  const std::string prefix = bin.substr(0, bin.rfind('/'));
  for (const char* lib : {"/lib", "/lib/x86_64-linux-gnu", "/lib64"}) {
    const std::string candidate = prefix + lib + "/stagetwo/" + kEngineName;
    if (access(candidate.c_str(), R_OK) == 0) return candidate;
  }
  return {};
}

std::string preload_list(const std::string& engine, const char* users) {
  std::string list = engine;
  std::string_view rest = users == nullptr ? "" : users;
  while (!rest.empty()) {
    const size_t end = rest.find_first_of(": ");
    const std::string_view one = rest.substr(0, end);
    rest = end == std::string_view::npos ? std::string_view() : rest.substr(end + 1);
    if (one.empty() || one == engine) continue;
    list += ':';
    list += one;
  }
  return list;
}

}  // namespace stagetwo::cli
