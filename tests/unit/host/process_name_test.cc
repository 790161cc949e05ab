// SPDX-License-Identifier: Apache-2.0
// Which process it is and whether it is still there, asked while it is in each of its states.
#include "host/process_name.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <thread>

namespace stagetwo::host {
namespace {

u32 pid_of_child(pid_t child) {
  return static_cast<u32>(child);
}

TEST(ProcessName, LivesUntilItIsKilledAndIsNotThereWhenItIsReaped) {
  const ProcessName self = name_of_this_process();
  EXPECT_TRUE(self.alive);
  EXPECT_NE(self.start_time, 0u);
  EXPECT_EQ(name_of_process(self.pid).start_time, self.start_time);
  const pid_t child = ::fork();
  if (child == 0) {
    for (;;) ::pause();
  }
  const ProcessName living = name_of_process(pid_of_child(child));
  EXPECT_TRUE(living.alive);
  EXPECT_GE(living.start_time, self.start_time);
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  siginfo_t info{};
  ASSERT_EQ(::waitid(P_PID, pid_of_child(child), &info, WEXITED | WNOWAIT), 0);
  EXPECT_FALSE(name_of_process(pid_of_child(child)).alive) << "nobody has waited for it";
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_FALSE(name_of_process(pid_of_child(child)).alive);
  EXPECT_EQ(name_of_process(pid_of_child(child)).start_time, 0u);
}

TEST(ProcessName, LivesWhileAThreadDoesThoughItsFirstHasEnded) {
  int up[2];
  ASSERT_EQ(::pipe(up), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const pid_t first = ::getpid();
    std::thread([first, out = up[1]] {
      char state = 0;
      for (int i = 0; i < 5000 && state != 'Z'; ++i) {
        char path[64], text[256] = {};
        snprintf(path, sizeof(path), "/proc/self/task/%d/stat", first);
        FILE* const file = fopen(path, "r");
        if (file == nullptr || fgets(text, sizeof(text), file) == nullptr) ::_exit(2);
        fclose(file);
        state = strrchr(text, ')')[2];
        ::usleep(1000);
      }
      if (::write(out, &state, 1) != 1) ::_exit(3);
      for (;;) ::pause();
    }).detach();
    ::syscall(SYS_exit, 0);
  }
  char state = 0;
  ASSERT_EQ(::read(up[0], &state, 1), 1);
  EXPECT_EQ(state, 'Z');
  EXPECT_TRUE(name_of_process(pid_of_child(child)).alive);
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  ::close(up[0]);
  ::close(up[1]);
}

}  // namespace
}  // namespace stagetwo::host
