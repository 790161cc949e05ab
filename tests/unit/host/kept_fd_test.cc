// SPDX-License-Identifier: Apache-2.0
// Goal: a kept file is one of the engine's descriptors, and a child's own in a child.
#include "host/kept_fd.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/sys.h"
#include "host/descriptor.h"
#include "host/process.h"

namespace stagetwo::host {
namespace {

KeptFd status_file("/proc/self/status");
KeptFd missing("/proc/self/no_such_file");

TEST(KeptFd, IsOpenedOnceAndHigh) {
  const auto fd = status_file.get();
  ASSERT_TRUE(fd);
  EXPECT_GE(*fd, 64);
  EXPECT_EQ(*fd, *status_file.get());
  EXPECT_EQ(ENOENT, to_int(missing.get().error()));
}

TEST(KeptFd, IsTheEnginesAndMovesOutOfTheClientsWay) {
  const int fd = *status_file.get();
  EXPECT_TRUE(is_engine_fd(fd));
  EXPECT_EQ(fd, next_engine_fd(fd));
  vacate_engine_fd(fd);
  EXPECT_FALSE(is_engine_fd(fd));
  EXPECT_EQ(-1, fcntl(fd, F_GETFD));
  EXPECT_NE(fd, *status_file.get());
}

TEST(KeptFd, OfAChildSaysWhatTheChildIs) {
  const int parents = *status_file.get();
  const pid_t child = fork();
  if (child == 0) {
    after_fork_child();
    if (fcntl(parents, F_GETFD) != -1) _exit(1);
    char text[256] = {};
    const auto fd = status_file.get();
    if (!fd || pread(*fd, text, sizeof(text) - 1, 0) <= 0) _exit(2);
    _exit(0);
  }
  int status = -1;
  ASSERT_EQ(child, waitpid(child, &status, 0));
  EXPECT_EQ(0, status);
  EXPECT_EQ(parents, *status_file.get());
}

}  // namespace
}  // namespace stagetwo::host
