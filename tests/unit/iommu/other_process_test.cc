// SPDX-License-Identifier: Apache-2.0
#include "iommu/other_process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/support/pages.h"

namespace stagetwo::iommu {
namespace {

TEST(OtherProcess, IsNamedByItsStart) {
  const auto self = name_of_process(static_cast<u32>(::getpid()));
  EXPECT_TRUE(self.alive);
  EXPECT_NE(self.start_time, 0u);
  EXPECT_EQ(self.start_time, name_of_process(static_cast<u32>(::getpid())).start_time);
}

TEST(OtherProcess, IsGoneAlsoBeforeItIsReaped) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  siginfo_t info{};
  ASSERT_EQ(0, ::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT));
  EXPECT_FALSE(name_of_process(static_cast<u32>(child)).alive);
  ASSERT_EQ(child, ::waitpid(child, nullptr, 0));
  EXPECT_FALSE(name_of_process(static_cast<u32>(child)).alive);
}

TEST(OtherProcess, SharedMemoryIsFoundInBoth) {
  auto* const shared = static_cast<u8*>(
      ::mmap(nullptr, 4 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  const test::GuardedPages own(1);
  int ends[2];
  ASSERT_EQ(0, ::pipe(ends));
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(ends[1]);
    char c = 0;
    ::_exit(::read(ends[0], &c, 1) == 0 ? 0 : 1);
  }
  const Hva at(reinterpret_cast<u64>(shared) + 2 * 4096);
  const auto page = shared_page_of(static_cast<u32>(child), at);
  ASSERT_TRUE(page);
  EXPECT_EQ(page->page, 2u);
  EXPECT_EQ(own_address_of(*page), at);
  EXPECT_FALSE(shared_page_of(static_cast<u32>(child), Hva(own.address()))) << "private memory";
  EXPECT_FALSE(shared_page_of(static_cast<u32>(child), Hva(4096))) << "nothing there";
  ::munmap(shared, 4 * 4096);
  EXPECT_FALSE(own_address_of(*page)) << "not mapped here any more";
  ::close(ends[1]);
  ASSERT_EQ(child, ::waitpid(child, nullptr, 0));
  ::close(ends[0]);
}

TEST(OtherProcess, IsReadAndWrittenAtItsAddresses) {
  u8 bytes[] = {1, 2, 3, 4};
  u8 out[4] = {};
  const auto self = static_cast<u32>(::getpid());
  const Hva at(reinterpret_cast<u64>(bytes));
  EXPECT_TRUE(copy_of_process(self, at, 4, out, nullptr));
  EXPECT_EQ(out[3], 4);
  EXPECT_TRUE(copy_of_process(self, at + 1, 1, nullptr, &out[3]));
  EXPECT_EQ(bytes[1], 4);
  EXPECT_FALSE(copy_of_process(self, Hva(8), 4, out, nullptr));
  EXPECT_FALSE(copy_of_process(0x7fffffff, at, 4, out, nullptr));
}

TEST(OtherProcess, AFileOfItsIsOpenedByWhatIsBehind) {
  int pair[2];
  ASSERT_EQ(::pipe(pair), 0);
  struct ::stat behind{};
  ASSERT_EQ(::fstat(pair[0], &behind), 0);
  const auto self = static_cast<u32>(::getpid());
  const auto fd = open_of_process(self, behind.st_dev, behind.st_ino, O_WRONLY);
  ASSERT_TRUE(fd);
  EXPECT_EQ(::write(*fd, "x", 1), 1);
  char byte = 0;
  EXPECT_EQ(::read(pair[0], &byte, 1), 1);
  for (const int one : {pair[0], pair[1], *fd}) ::close(one);
  EXPECT_EQ(to_int(open_of_process(self, behind.st_dev, behind.st_ino, 0).error()), ENOENT);
  EXPECT_EQ(to_int(open_of_process(0x7fffffff, 1, 1, 0).error()), ENOENT);
}

// Numbers of another PID namespace, with a /proc that shows ours: nobody is asked for by them.
TEST(OtherProcess, OfAnotherPidNamespaceHasNoNumberHere) {
  const u32 ours = pid_space();
  EXPECT_NE(ours, 0u);
  EXPECT_TRUE(proc_is_ours());
  const auto self = name_of_this_process();
  EXPECT_EQ(self.start_time, name_of_process(static_cast<u32>(::getpid())).start_time);
  const pid_t between = ::fork();
  if (between == 0) {
    if (::unshare(CLONE_NEWPID) != 0) ::_exit(77);
    const pid_t child = ::fork();
    if (child == 0) {
      const auto first = name_of_this_process();
      const bool right = pid_space() != ours && !proc_is_ours() && first.pid == 1 && first.alive &&
                         first.start_time >= self.start_time;
      ::_exit(right ? 0 : 1);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    ::_exit(WEXITSTATUS(status));
  }
  int status = 0;
  ASSERT_EQ(::waitpid(between, &status, 0), between);
  if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "no PID namespace may be made here";
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace stagetwo::iommu
