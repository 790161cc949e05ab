// SPDX-License-Identifier: Apache-2.0
#include "host/descriptor_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
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
