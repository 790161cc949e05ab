// SPDX-License-Identifier: Apache-2.0
#include "host/descriptor_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/descriptor.h"

namespace stagetwo::host {
namespace {

class DescriptorFile : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_GE(file_, 0);
    ASSERT_EQ(0, ::ftruncate(file_, 4096));
  }
  void TearDown() override { ::close(file_); }

  int file_ = ::memfd_create("stagetwo:1:toy", MFD_CLOEXEC);
};

TEST_F(DescriptorFile, SaysItsKind) {
  char link[kMaxLink];
  EXPECT_EQ("toy", kind_behind(file_, link, sizeof(link)));
  const int other = ::memfd_create("toy", MFD_CLOEXEC);
  EXPECT_EQ("", kind_behind(other, link, sizeof(link)));
  ::close(other);
  EXPECT_EQ("", kind_behind(other, link, sizeof(link))) << "a number that is not open";
}

TEST_F(DescriptorFile, IsHeldUntilTheLastDupIsClosed) {
  EXPECT_FALSE(is_held(file_)) << "the engine's own open does not count";
  for (const int mode : {O_RDWR, O_RDONLY, O_WRONLY}) {
    const auto clients = open_for_client(file_, mode | O_CLOEXEC, true);
    ASSERT_TRUE(clients.has_value());
    EXPECT_EQ(mode, ::fcntl(*clients, F_GETFL) & O_ACCMODE);
    const int again = ::dup(*clients);
    ::close(*clients);
    EXPECT_TRUE(is_held(file_)) << mode;
    ::close(again);
    EXPECT_FALSE(is_held(file_)) << mode;
  }
}

TEST_F(DescriptorFile, IsHeldByWhomeverElse) {
  struct ::stat behind{};
  ASSERT_EQ(0, ::fstat(file_, &behind));
  const auto held = [&] { return is_held_anywhere(behind.st_ino); };
  ASSERT_TRUE(held()) << "/proc/locks is to be read";
  EXPECT_FALSE(*held());
  const auto clients = open_for_client(file_, O_RDONLY | O_CLOEXEC, true);
  ASSERT_TRUE(clients.has_value());
  // Many others: what is looked for is in the midst of them.
  int others[100];
  for (int& one : others) {
    const int file = ::memfd_create("stagetwo:1:other", MFD_CLOEXEC);
    one = *open_for_client(file, O_RDWR | O_CLOEXEC, true);
    ::close(file);
  }
  EXPECT_TRUE(*held());
  int ends[2];
  ASSERT_EQ(0, ::pipe(ends));
  const pid_t child = ::fork();
  if (child == 0) {
    char byte = 0;
    ::close(ends[1]);
    ::_exit(::read(ends[0], &byte, 1) == 0 ? 0 : 1);
  }
  ::close(*clients);
  for (const int one : others) ::close(one);
  EXPECT_TRUE(*held()) << "a child has it";
  ::close(ends[1]);
  ASSERT_EQ(child, ::waitpid(child, nullptr, 0));
  ::close(ends[0]);
  EXPECT_FALSE(*held());
  EXPECT_FALSE(*is_held_anywhere(behind.st_ino / 10)) << "a number within the other's";
}

TEST_F(DescriptorFile, HasNoPositionToReadFromUnlessTheKernelsHas) {
  for (const bool has_position : {true, false}) {
    char byte = 0;
    const auto clients = open_for_client(file_, O_RDWR | O_CLOEXEC, has_position);
    ASSERT_TRUE(clients.has_value());
    EXPECT_EQ(has_position ? 1 : -1, ::read(*clients, &byte, 1));
    ::close(*clients);
  }
}

}  // namespace
}  // namespace stagetwo::host
