// SPDX-License-Identifier: Apache-2.0
#include "base/sys.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <thread>

#include "base/directory_names.h"
#include "base/process_page.h"

namespace stagetwo {
namespace {

TEST(Sys, ARefusalIsThePositiveErrnoAndErrnoIsLeftAlone) {
  errno = 77;
  EXPECT_EQ(sys::close(-1).error(), Errno{EBADF});
  EXPECT_EQ(sys::openat(AT_FDCWD, "/nonexistent", O_RDONLY).error(), Errno{ENOENT});
  EXPECT_EQ(sys::mmap(nullptr, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0).error(),
            Errno{EINVAL});
  EXPECT_EQ(errno, 77);
}

TEST(Sys, SixArgumentsArriveInOrder) {
  const int fd = *sys::memfd_create("six", 0);
  ASSERT_TRUE(sys::ftruncate(fd, 3 * 4096));
  char byte = 'x';
  ASSERT_TRUE(sys::pwrite(fd, &byte, 1, 2 * 4096));
  auto mapped = sys::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd, 2 * 4096);
  ASSERT_TRUE(mapped);
  EXPECT_EQ(*static_cast<char*>(*mapped), 'x');
  EXPECT_TRUE(sys::munmap(*mapped, 4096));
  struct stat st{};
  ASSERT_TRUE(sys::fstat(fd, &st));
  EXPECT_EQ(st.st_size, 3 * 4096);
  EXPECT_TRUE(sys::close(fd));
}

TEST(Sys, TheInstructionLiesInTheRangeItNames) {
  const sys::CodeRange range = sys::code_range();
  EXPECT_EQ(range.start, reinterpret_cast<u64>(&stagetwo_syscall_begin));
  ASSERT_GT(range.size, 0u);
  EXPECT_LT(range.size, 128u);
  bool found = false;
  const auto* code = reinterpret_cast<const unsigned char*>(range.start);
  for (u64 i = 0; i + 1 < range.size; ++i) found |= code[i] == 0x0f && code[i + 1] == 0x05;
  EXPECT_TRUE(found);
}

TEST(Sys, EngineDescriptorsAreHighAndCloseOnExec) {
  const int low = *sys::memfd_create("engine", 0);
  const int fd = *sys::raise_engine_fd(low);
  EXPECT_GT(fd, 100);
  EXPECT_EQ(*sys::fcntl(fd, F_GETFD), FD_CLOEXEC);
  EXPECT_EQ(sys::fcntl(low, F_GETFD).error(), Errno{EBADF});
  const int again = *sys::reopen_engine_fd(fd, O_RDWR);
  EXPECT_GT(again, 100);
  EXPECT_TRUE(sys::close(again));
  EXPECT_TRUE(sys::close(fd));
}

TEST(Sys, ATidIsRightInThreadsAndChildren) {
  EXPECT_EQ(sys::current_tid(), gettid());
  std::thread([] { EXPECT_EQ(sys::current_tid(), gettid()); }).join();
  const pid_t child = fork();
  if (child == 0) _exit(sys::current_tid() == gettid() ? 0 : 1);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

TEST(Sys, KnowsWhetherAThreadLives) {
  EXPECT_TRUE(sys::thread_alive(gettid()));
  int gone = 0;
  std::thread([&] { gone = gettid(); }).join();
  EXPECT_FALSE(sys::thread_alive(gone));
}

// The thread that a process began with keeps its number when it ends before the others.
TEST(Sys, KnowsThatTheFirstThreadEndedBeforeTheOthers) {
  const pid_t child = fork();
  if (child == 0) {
    static pid_t leader;
    leader = gettid();
    if (!sys::thread_alive(leader) || sys::thread_gone(leader)) _exit(2);
    std::thread([] {
      for (int i = 0; i < 20'000 && sys::thread_alive(leader); ++i) usleep(500);
      _exit(sys::thread_alive(leader) || !sys::thread_gone(leader) ? 1 : 0);
    }).detach();
    syscall(SYS_exit, 0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

TEST(DirectoryNames, AreAllOfThemOnce) {
  char path[] = "/tmp/stagetwo-names-XXXXXX";
  ASSERT_NE(nullptr, mkdtemp(path));
  const int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  constexpr int kFiles = 300;  // more than one call of the kernel's tells
  for (int i = 0; i < kFiles; ++i) {
    close(openat(folder, std::to_string(i).c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  }
  std::set<std::string> found;
  DirectoryNames names(folder);
  while (const char* const name = names.next()) EXPECT_TRUE(found.insert(name).second) << name;
  EXPECT_EQ(0, names.error());
  EXPECT_EQ(kFiles + 2u, found.size());  // "." and ".." too
  for (int i = 0; i < kFiles; ++i) EXPECT_EQ(0, unlinkat(folder, std::to_string(i).c_str(), 0));
  close(folder);
  rmdir(path);
}

TEST(DirectoryNames, SayWhyThereAreNone) {
  DirectoryNames names(-1);
  EXPECT_EQ(nullptr, names.next());
  EXPECT_EQ(EBADF, names.error());
}

TEST(ProcessPage, IsEmptyInAChild) {
  u64* page = process_page();
  ASSERT_NE(page, nullptr);
  const u32 mine = process_stamp();
  EXPECT_NE(mine, 0u);
  EXPECT_EQ(process_stamp(), mine);
  page[kProcessPageWords - 1] = 42;
  const pid_t child = fork();
  if (child == 0) _exit(page[kProcessPageWords - 1] == 0 && process_stamp() != mine ? 0 : 1);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(page[kProcessPageWords - 1], 42u);
  page[kProcessPageWords - 1] = 0;
}

}  // namespace
}  // namespace stagetwo
