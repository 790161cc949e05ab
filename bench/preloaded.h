// SPDX-License-Identifier: Apache-2.0
#pragma once

// A benchmark that is a client: it starts itself again with the engine preloaded, before main, so
// that benchmark's own main runs there. Its yardsticks are system calls made past libc.

#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>

namespace stagetwo::bench {

[[gnu::constructor]] inline void start_preloaded() {
  if (std::getenv("STAGETWO_BENCH_PRELOADED") != nullptr) return;
  char self[4096] = {};
  if (readlink("/proc/self/exe", self, sizeof(self) - 1) <= 0) return;
  const std::string path = self;
  const std::string build = path.substr(0, path.rfind("/benchmarks/"));
  setenv("LD_PRELOAD", (build + "/lib/stagetwo/libstagetwo_preload.so").c_str(), 1);
  setenv("STAGETWO_BENCH_PRELOADED", "1", 1);
  // The arguments as the kernel has them.
  static char line[65536];
  const int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
  const ssize_t size = read(fd, line, sizeof(line) - 1);
  char* arguments[64] = {};
  size_t count = 0;
  for (ssize_t at = 0; at < size && count < 63; at += static_cast<ssize_t>(strlen(line + at)) + 1) {
    arguments[count++] = line + at;
  }
  execv(self, arguments);
}

}  // namespace stagetwo::bench
