// SPDX-License-Identifier: Apache-2.0
// Goal: the words are the session's, or the process's own without one. Method: processes that share
// a directory.
#include "host/session.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "host/process.h"

namespace stagetwo::host {
namespace {

class SessionPage : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/stagetwo_words_XXXXXX";
    directory_ = mkdtemp(name);
  }
  void TearDown() override {
    debug_leave_session();
    std::filesystem::remove_all(directory_);
  }
  std::string directory_;
};

// Runs `body` in a process that has joined nothing yet.
template <typename F>
int in_another_process(F&& body) {
  const pid_t child = fork();
  if (child == 0) {
    after_fork_child();
    debug_leave_session();
    _exit(body());
  }
  int status = -1;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST_F(SessionPage, IsSharedByItsProcesses) {
  ASSERT_TRUE(join_session(directory_));
  session_word(kParameterWords).store(5);
  EXPECT_EQ(5, in_another_process([&] {
              if (!join_session(directory_)) return 100;
              session_word(kParameterWords + 1).store(9);
              return static_cast<int>(session_word(kParameterWords).load());
            }));
  EXPECT_EQ(9U, session_word(kParameterWords + 1).load());
  struct stat info{};
  ASSERT_EQ(0, stat((directory_ + "/values").c_str(), &info));
  EXPECT_EQ(0600U, info.st_mode & 07777);
}

TEST_F(SessionPage, IsOnesOwnWithoutADirectory) {
  ASSERT_TRUE(join_session(""));
  session_word(0).store(1);
  EXPECT_EQ(0, in_another_process([] {
              static_cast<void>(join_session(""));
              return static_cast<int>(session_word(0).load());
            }));
  EXPECT_EQ(1U, session_word(0).load());
  EXPECT_EQ(ENOENT, to_int(open_in_session("x", O_RDWR).error()));
}

TEST_F(SessionPage, ThatCannotBeWrittenIsRefusedAndTheWordsAreOnesOwn) {
  EXPECT_EQ(ENOENT, to_int(join_session(directory_ + "/none").error()));
  session_word(3).store(4);
  EXPECT_EQ(4U, session_word(3).load());
  EXPECT_TRUE(join_session(directory_)) << "the first call decides";
  EXPECT_FALSE(std::filesystem::exists(directory_ + "/values"));
}

TEST_F(SessionPage, LockIsFreeWhenItsHolderIsKilled) {
  ASSERT_TRUE(join_session(directory_));
  EXPECT_EQ(-1, in_another_process([&]() -> int {
    static_cast<void>(join_session(directory_));
    const SessionLock held;
    raise(SIGKILL);
    return 0;
  }));
  const SessionLock mine;  // hangs if it is not
  SUCCEED();
}

TEST_F(SessionPage, LockKeepsOtherProcessesOut) {
  ASSERT_TRUE(join_session(directory_));
  constexpr int kRounds = 200;
  const auto count = [&] {
    static_cast<void>(join_session(directory_));
    for (int i = 0; i < kRounds; ++i) {
      const SessionLock lock;
      const u64 seen = session_word(7).load(sync::kRelaxed);
      sched_yield();
      session_word(7).store(seen + 1, sync::kRelaxed);
    }
    return 0;
  };
  const pid_t child = fork();
  if (child == 0) {
    after_fork_child();
    debug_leave_session();
    _exit(count());
  }
  count();
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(2U * kRounds, session_word(7).load());
}

}  // namespace
}  // namespace stagetwo::host
