// SPDX-License-Identifier: Apache-2.0
#include "shim/options.h"

#include <fcntl.h>
#include <stdlib.h>

#include <array>
#include <cstring>

#include "base/sys.h"
#include "base/text.h"
#include "base/types.h"
#include "sync/mutex.h"

namespace stagetwo::shim {
namespace {

constexpr std::array kNames = {std::string_view("abi"),      std::string_view("session"),
                               std::string_view("log-file"), std::string_view("verbose"),
                               std::string_view("hugetlb"),  std::string_view("param"),
                               std::string_view("libc"),     std::string_view("memory-limit"),
                               std::string_view("swap"),     std::string_view("swap-size"),
                               std::string_view("wss"),      std::string_view("wss-file"),
                               std::string_view("stats"),    std::string_view("compressed"),
                               std::string_view("vm-limit"), std::string_view("iommufd-test"),
                               std::string_view("secure"),   std::string_view("vfio-device")};
constexpr size_t kLongest = 4096;
constexpr size_t kLongestLine = 2560;

// A copy: the client may change its environment. Written once, before `were_read` is released.
char text[kLongest];
std::array<std::string_view, kNames.size()> values;
bool too_long = false;
constinit sync::Atomic<bool> were_read{false};
constinit sync::Mutex read_lock{sync::Rank::kLeaf};

void write_line(std::string_view line) {
  const std::string_view pattern = option("log-file");
  if (pattern.empty()) return sys::write_stderr(line.data(), line.size());
  FixedString<kLongest> path;
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] == '%' && i + 1 < pattern.size() && pattern[i + 1] == 'p') {
      path.append_int(sys::getpid());
      ++i;
    } else {
      path.append_char(pattern[i]);
    }
  }
  const auto fd =
      sys::openat(AT_FDCWD, path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (!fd) return;
  static_cast<void>(sys::write(*fd, line.data(), line.size()));
  static_cast<void>(sys::close(*fd));
}

void say(std::string_view what, std::string_view name) {
  FixedString<kLongestLine> line;
  line.append("stagetwo[").append_int(sys::getpid()).append("]: ").append(what).append(name);
  line.append_char('\n');
  write_line(line.view());
}

// False: an unknown name.
bool take(std::string_view setting) {
  const size_t equals = setting.find('=');
  const std::string_view name = setting.substr(0, equals);
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] != name) continue;
    values[i] = equals == std::string_view::npos ? "1" : setting.substr(equals + 1);
    return true;
  }
  return false;
}

template <typename F>
void for_each_setting(F&& fn) {
  std::string_view rest = text;
  while (!rest.empty()) {
    const size_t colon = rest.find(':');
    if (const std::string_view one = rest.substr(0, colon); !one.empty()) fn(one);
    rest = colon == std::string_view::npos ? std::string_view() : rest.substr(colon + 1);
  }
}

}  // namespace

void read_options() {
  if (were_read.load(sync::kAcquire)) [[likely]]
    return;
  const sync::MutexGuard guard(read_lock);
  if (were_read.load(sync::kRelaxed)) return;
  if (const char* const given = getenv("STAGETWO_OPTIONS"); given != nullptr) {
    const size_t length = strlen(given);
    too_long = length >= sizeof(text);  // half a setting would be another setting
    if (!too_long) memcpy(text, given, length + 1);
    for_each_setting([](std::string_view setting) { static_cast<void>(take(setting)); });
  }
  were_read.store(true, sync::kRelease);
}

void warn_of_options() {
  if (too_long) say("STAGETWO_OPTIONS is longer than 4095 bytes: none of it is used", {});
  for_each_setting([](std::string_view setting) {
    if (!take(setting)) {
      say("STAGETWO_OPTIONS: unknown option, ignored: ", setting.substr(0, setting.find('=')));
    }
  });
}

std::string_view option(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name) return values[i];
  }
  return {};
}

void warn(std::string_view what, std::string_view name) {
  say(what, name);
}

void log_line(std::string_view line) {
  if (!option("verbose").empty()) say(line, {});
}

}  // namespace stagetwo::shim
