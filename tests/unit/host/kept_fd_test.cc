// SPDX-License-Identifier: Apache-2.0
// Goal: a kept file is one of the engine's descriptors, and a child's own in a child.
#include "host/kept_fd.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "base/sys.h"
#include "host/descriptor.h"
#include "host/process.h"
#include "tests/support/stress_time.h"

namespace stagetwo::host {
namespace {

KeptFd status_file("/proc/self/status");
KeptFd missing("/proc/self/no_such_file");

int number_of(KeptFd& file) {
  const auto use = file.use();
  return use ? use->get() : -1;
}

TEST(KeptFd, IsOpenedOnceAndHigh) {
  const auto fd = status_file.use();
  ASSERT_TRUE(fd);
  EXPECT_GE(fd->get(), 64);
  EXPECT_EQ(fd->get(), number_of(status_file));
  EXPECT_EQ(ENOENT, to_int(missing.use().error()));
}

TEST(KeptFd, IsTheEnginesAndMovesOutOfTheClientsWay) {
  const int fd = number_of(status_file);
  EXPECT_TRUE(is_engine_fd(fd));
  EXPECT_EQ(fd, next_engine_fd(fd));
  EXPECT_TRUE(vacate_engine_fd(fd));
  EXPECT_FALSE(is_engine_fd(fd));
  EXPECT_FALSE(vacate_engine_fd(fd));
  EXPECT_EQ(0, close(fd));  // taken until then
  EXPECT_NE(fd, number_of(status_file));
}

TEST(KeptFd, OfAChildSaysWhatTheChildIs) {
  const int parents = number_of(status_file);
  const pid_t child = fork();
  if (child == 0) {
    after_fork_child();
    if (fcntl(parents, F_GETFD) != -1) _exit(1);
    char text[256] = {};
    const auto fd = status_file.use();
    if (!fd || pread(fd->get(), text, sizeof(text) - 1, 0) <= 0) _exit(2);
    _exit(0);
  }
  int status = -1;
  ASSERT_EQ(child, waitpid(child, &status, 0));
  EXPECT_EQ(0, status);
  EXPECT_EQ(parents, number_of(status_file));
}

// Of a table without a free number in its upper half they take those below, to the last one.
TEST(KeptFd, FillsATableToItsLastNumber) {
  const pid_t child = fork();
  if (child == 0) {
    const struct rlimit limit{64, 64};
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) _exit(1);
    static HeldFd files[64];
    size_t held = 0;
    for (int fd = memfd_create("engine", 0); fd >= 0; fd = memfd_create("engine", 0)) {
      if (!files[held].hold(fd)) _exit(2);
      if (fcntl(files[held++].number().peek(), F_GETFD) != FD_CLOEXEC) _exit(3);
    }
    for (int fd = 0; fd < 64; ++fd) {
      if (fcntl(fd, F_GETFD) < 0) _exit(4);
    }
    _exit(files[0].number().peek() >= 32 && files[held - 1].number().peek() < 32 ? 0 : 5);
  }
  int status = -1;
  ASSERT_EQ(child, waitpid(child, &status, 0));
  EXPECT_EQ(0, status);
}

// Threads punch the engine's file while the client puts its own on every number that file has.
TEST(KeptFdStress, NoPunchGoesIntoTheFileOfWhoTakesTheNumber) {
  constexpr int kSize = 65536;
  constexpr unsigned kPunchers = 2;
  const std::string full(kSize, 'V');
  HeldFd engines;
  ASSERT_TRUE(engines.hold(*sys::memfd_create("engine", MFD_CLOEXEC)));
  ASSERT_TRUE(sys::ftruncate(engines.number().use().get(), kSize));
  const int clients = memfd_create("client", MFD_CLOEXEC);
  ASSERT_EQ(kSize, pwrite(clients, full.data(), kSize, 0));
  std::atomic<bool> stop{false};
  std::vector<std::thread> punchers;
  for (unsigned i = 0; i < kPunchers; ++i) {
    punchers.emplace_back([&] {
      constexpr int kPunch = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;
      while (!stop) {
        EXPECT_TRUE(sys::fallocate(engines.number().use().get(), kPunch, 0, kSize));
      }
    });
  }
  // A round takes 10 ms beside the punchers.
  const u64 rounds = test::stress_rounds(4'000);
  for (u64 i = 0; i < rounds; ++i) {
    const int number = engines.number().peek();
    EXPECT_TRUE(vacate_engine_fd(number));
    EXPECT_EQ(number, dup2(clients, number));
    EXPECT_EQ(0, close(number));
  }
  stop = true;
  for (std::thread& puncher : punchers) puncher.join();
  std::string now(kSize, 0);
  ASSERT_EQ(kSize, pread(clients, now.data(), kSize, 0));
  EXPECT_TRUE(full == now);
  close(clients);
}

}  // namespace
}  // namespace stagetwo::host
