// SPDX-License-Identifier: Apache-2.0
// Goal: the pages of a guest_memfd are found by a process that knows where they are, as long as who
// made them is there, and nothing else is taken for them.
#include "host/guest_pages.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/sys.h"
#include "host/descriptor.h"

namespace stagetwo::host {
namespace {

constexpr u64 kSize = 4 * kPageSize;

class GuestPages : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(make_pages_file(kSize, &held_));
    pages_ = held_.number().peek();
    stand_in_ = memfd_create("stand-in", MFD_CLOEXEC);
  }
  void TearDown() override {
    held_.close();
    close(stand_in_);
  }
  HeldFd held_{HeldFd::Child::kHasIt};
  int pages_ = -1;
  int stand_in_ = -1;
};

TEST_F(GuestPages, HaveASizeForEverAndNoExecution) {
  struct ::stat now{};
  ASSERT_EQ(0, fstat(pages_, &now));
  EXPECT_EQ(kSize, static_cast<u64>(now.st_size));
  EXPECT_EQ(0u, now.st_mode & 0111);
  EXPECT_EQ(-1, ftruncate(pages_, 0));
  EXPECT_FALSE(is_named_as_ours(pages_));
}

TEST_F(GuestPages, AreFoundByAnotherProcess) {
  ASSERT_EQ(1, pwrite(pages_, "x", 1, kPageSize));
  const PagesPlace place = *place_of_pages(pages_);
  EXPECT_EQ(static_cast<u32>(getpid()), place.process);
  const pid_t child = fork();
  if (child == 0) {
    close(pages_);
    const auto found = find_pages_file(place, stand_in_);
    char byte = 0;
    _exit(found && pread(*found, &byte, 1, kPageSize) == 1 && byte == 'x' ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(child, waitpid(child, &status, 0));
  EXPECT_EQ(0, status);
}

TEST_F(GuestPages, AreGoneWithTheirFileAndWithTheProcess) {
  PagesPlace place = *place_of_pages(pages_);
  held_.close();
  EXPECT_EQ(ENOENT, to_int(find_pages_file(place, stand_in_).error()));
  const pid_t child = fork();
  if (child == 0) _exit(0);
  ASSERT_EQ(child, waitpid(child, nullptr, 0));
  place.process = static_cast<u32>(child);
  EXPECT_EQ(ENOENT, to_int(find_pages_file(place, stand_in_).error()));
}

}  // namespace
}  // namespace stagetwo::host
