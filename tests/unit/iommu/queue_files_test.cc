// SPDX-License-Identifier: Apache-2.0
#include "iommu/queue_files.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/description.h"

namespace stagetwo::iommu {
namespace {

bool readable(int fd) {
  pollfd one{fd, POLLIN, 0};
  return poll(&one, 1, 0) == 1;
}

TEST(QueueFiles, TellTheQueueTheyAreOf) {
  const auto first = host::Backing::create_ready("queue-test:1");
  const auto second = host::Backing::create_ready("queue-test:2");
  ASSERT_TRUE(first && second);
  QueueFiles files;
  QueueFile one, two;
  ASSERT_TRUE(files.hold(first->fd(), &one));
  ASSERT_TRUE(files.hold(second->fd(), &two));
  files.rise(two, false);
  EXPECT_FALSE(readable(second->fd())) << "not open";
  one.open = two.open = true;
  files.rise(two, false);
  EXPECT_TRUE(readable(second->fd()));
  EXPECT_FALSE(readable(first->fd()));
  files.let_go(one.device, one.inode);
  files.rise(two, true);
  files.fall(two);
  EXPECT_FALSE(readable(second->fd()));
}

TEST(QueueFiles, AreReachedThroughTheirMaker) {
  const auto backing = host::Backing::create_ready("queue-test:3");
  ASSERT_TRUE(backing);
  QueueFiles files, strangers;
  QueueFile file;
  ASSERT_TRUE(files.hold(backing->fd(), &file));
  file.open = true;
  strangers.rise(file, false);
  EXPECT_TRUE(readable(backing->fd()));
  strangers.fall(file);
  EXPECT_FALSE(readable(backing->fd()));
  file.maker = 0x7fffffff;  // gone
  strangers.rise(file, false);
  EXPECT_FALSE(readable(backing->fd()));
}

}  // namespace
}  // namespace stagetwo::iommu
