// SPDX-License-Identifier: Apache-2.0
#include "host/ready_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/sys.h"
#include "host/descriptor.h"

namespace stagetwo::host {
namespace {

class Nothing final : public Description {
 public:
  long ioctl(int, unsigned long, unsigned long) override { return -ENOTTY; }
};

class ReadyFileTest : public testing::Test {
 protected:
  void publish_one(bool reads_alone) {
    auto backing = *Backing::create_ready("ready-test:1");
    ASSERT_TRUE(end_.hold(backing.fd()));
    fd_ = *publish(
        *make_box<Nothing>("test"), std::move(backing),
        {.home = StateHome::kDescription, .wants_last_close = true, .reads_alone = reads_alone});
  }
  void TearDown() override {
    if (fd_ < 0) return;
    CloseWatch watch(fd_);
    ::close(fd_);
    watch.closed();
  }
  [[nodiscard]] short ready() const {
    pollfd one{fd_, POLLIN | POLLOUT | POLLRDNORM, 0};
    EXPECT_GE(poll(&one, 1, 0), 0);
    return one.revents;
  }
  static constexpr short kIn = POLLIN | POLLRDNORM;

  ReadyFile end_;
  int fd_ = -1;
};

TEST_F(ReadyFileTest, IsReadableBetweenARiseAndAFall) {
  publish_one(false);
  EXPECT_EQ(ready(), POLLOUT);
  end_.rise(false);
  end_.rise(true);
  EXPECT_EQ(ready(), POLLOUT | kIn);
  end_.fall();
  EXPECT_EQ(ready(), POLLOUT);
  for (int i = 0; i < 100'000; ++i) end_.rise(i != 0);  // more than any pipe holds
  EXPECT_EQ(ready(), POLLOUT | kIn);
  end_.fall();
  EXPECT_EQ(ready(), POLLOUT);
}

TEST_F(ReadyFileTest, IsNeverWritableWhereItReadsAlone) {
  publish_one(true);
  EXPECT_EQ(ready(), 0);
  end_.rise(false);
  EXPECT_EQ(ready(), kIn);
  end_.fall();
  EXPECT_EQ(ready(), 0) << "nor hung up";
}

TEST_F(ReadyFileTest, EveryRiseIsAnEdge) {
  publish_one(false);
  const int epoll = epoll_create1(EPOLL_CLOEXEC);
  epoll_event event{.events = EPOLLIN | EPOLLET, .data = {}};
  ASSERT_EQ(epoll_ctl(epoll, EPOLL_CTL_ADD, fd_, &event), 0);
  EXPECT_EQ(epoll_wait(epoll, &event, 1, 0), 0);
  for (int i = 0; i < 3; ++i) {
    end_.rise(i != 0);
    EXPECT_EQ(epoll_wait(epoll, &event, 1, 0), 1);
    EXPECT_EQ(epoll_wait(epoll, &event, 1, 0), 0);
  }
  ::close(epoll);
}

TEST_F(ReadyFileTest, IsKnownByItsNameAndHeldByItsLock) {
  publish_one(false);
  EXPECT_TRUE(is_named_as_ours(fd_, "ready-test:1"));
  EXPECT_TRUE(find(fd_));
  struct ::stat said{};
  ASSERT_EQ(::fstat(fd_, &said), 0);
  EXPECT_TRUE(could_be_ours(said));
  int pair[2];
  ASSERT_EQ(::pipe(pair), 0);
  ASSERT_EQ(::fstat(pair[0], &said), 0);
  EXPECT_FALSE(could_be_ours(said)) << "a client's own";
  ::close(pair[0]);
  ::close(pair[1]);
}

TEST_F(ReadyFileTest, AChildHasTheEnd) {
  publish_one(false);
  const pid_t child = fork();
  if (child == 0) {
    kept_fds_after_fork_child();
    end_.rise(false);
    _exit(0);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(ready(), POLLOUT | kIn);
}

}  // namespace
}  // namespace stagetwo::host
