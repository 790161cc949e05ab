// SPDX-License-Identifier: Apache-2.0
#pragma once

// The kernel's own swapping as a yardstick: a swap device of compressed memory for as long as an
// object lives, and a child process in a memory cgroup of its own. Both are root's; where they
// cannot be had, why() says why not.

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

#include "base/types.h"

namespace stagetwo::bench {

// Empty: it was written.
inline std::string write_file(const std::string& path, const std::string& text) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  const bool done = fd >= 0 && ::write(fd, text.data(), text.size()) >= 0;
  const int error = errno;
  if (fd >= 0) ::close(fd);
  return done ? "" : path + ": " + std::strerror(error);
}

// The machine's swap, if one is on; else 256 MiB of compressed memory (zram, lz4).
class KernelSwap {
 public:
  KernelSwap() {
    std::ifstream swaps("/proc/swaps");
    std::string line;
    std::getline(swaps, line);
    if (!std::getline(swaps, line)) why_ = make();
    if (!why_.empty()) why_ = "no swap is on, and none can be made here (" + why_ + ")";
  }
  ~KernelSwap() {
    if (on_) ::swapoff(device_.c_str());
    if (!number_.empty()) write_file("/sys/class/zram-control/hot_remove", number_);
  }
  KernelSwap(const KernelSwap&) = delete;
  KernelSwap& operator=(const KernelSwap&) = delete;
  // Empty: a swap is on.
  [[nodiscard]] const std::string& why() const { return why_; }

 private:
  static constexpr u32 kBytes = 256 << 20;

  std::string make() {
    errno = ENOENT;
    std::ifstream add("/sys/class/zram-control/hot_add");
    if (!(add >> number_)) return std::string("zram: ") + std::strerror(errno);
    device_ = "/dev/zram" + number_;
    const std::string settings = "/sys/block/zram" + number_ + "/";
    std::string failed = write_file(settings + "comp_algorithm", "lz4");
    if (failed.empty()) failed = write_file(settings + "disksize", std::to_string(kBytes));
    if (!failed.empty()) return failed;
    on_ = format() && ::swapon(device_.c_str(), 0) == 0;
    return on_ ? "" : device_ + ": " + std::strerror(errno);
  }
  // What mkswap writes.
  bool format() {
    char page[4096] = {};
    const u32 header[] = {1, kBytes / 4096 - 1};  // version, last page
    std::memcpy(page + 1024, header, sizeof(header));
    std::memcpy(page + sizeof(page) - 10, "SWAPSPACE2", 10);
    const int fd = ::open(device_.c_str(), O_WRONLY | O_CLOEXEC);
    const bool done = fd >= 0 && ::write(fd, page, sizeof(page)) == sizeof(page);
    if (fd >= 0) ::close(fd);
    return done;
  }

  std::string number_, device_, why_;
  bool on_ = false;
};

class MemoryCgroup {
 public:
  explicit MemoryCgroup(u64 limit) {
    // The first version's, and the second one's where the root gives the controller to its groups.
    try_at("/sys/fs/cgroup/memory", "memory.limit_in_bytes", limit);
    if (!why_.empty()) try_at("/sys/fs/cgroup", "memory.max", limit);
  }
  ~MemoryCgroup() {
    if (!path_.empty()) ::rmdir(path_.c_str());
  }
  MemoryCgroup(const MemoryCgroup&) = delete;
  MemoryCgroup& operator=(const MemoryCgroup&) = delete;
  // Empty: it is there.
  [[nodiscard]] const std::string& why() const { return why_; }

  // What `work` answers in a child of its own in the group; below zero: it did not get there.
  template <typename F>
  double run(F work) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) return -1;
    const pid_t child = ::fork();
    if (child == 0) {
      const double told = write_file(path_ + "/cgroup.procs", "0").empty() ? work() : -1;
      ::_exit(::write(ends[1], &told, sizeof(told)) == sizeof(told) ? 0 : 1);
    }
    ::close(ends[1]);
    double told = -1;
    if (::read(ends[0], &told, sizeof(told)) != sizeof(told)) told = -1;
    ::close(ends[0]);
    ::waitpid(child, nullptr, 0);
    return told;
  }

 private:
  void try_at(const std::string& root, const char* file, u64 limit) {
    path_ = root + "/stagetwo-bench-" + std::to_string(::getpid());
    if (::mkdir(path_.c_str(), 0755) != 0) {
      why_ = path_ + ": " + std::strerror(errno);
      path_.clear();
      return;
    }
    why_ = write_file(path_ + "/" + file, std::to_string(limit));
    if (why_.empty()) return;
    ::rmdir(path_.c_str());
    path_.clear();
  }

  std::string path_, why_;
};

}  // namespace stagetwo::bench
