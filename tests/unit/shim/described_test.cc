// SPDX-License-Identifier: Apache-2.0
// A description that reads and writes by itself, as libc's calls come to it.
#include "shim/described.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <limits.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "host/access.h"
#include "shim/engine.h"

namespace stagetwo::shim {
namespace {

// Reads no more than three letters at a time; takes what is written.
class Letters final : public host::Description {
 public:
  explicit Letters(std::string* text) : text_(text) {}
  long ioctl(int, unsigned long, unsigned long) override { return -ENOTTY; }
  [[nodiscard]] bool moves_bytes() const override { return true; }
  Result<long> read_bytes(u64 to, u64 size) override {
    const size_t some = std::min<size_t>({size, 3, text_->size()});
    if (host::copy_to(Hva(to), text_->data(), some) != some) return refuse(EFAULT);
    text_->erase(0, some);
    return static_cast<long>(some);
  }
  Result<long> write_bytes(u64 from, u64 size) override {
    std::string more(size, ' ');
    if (host::copy_from(more.data(), Hva(from), size) != size) return refuse(EFAULT);
    *text_ += more;
    return static_cast<long>(size);
  }

 private:
  std::string* text_;
};

class Described : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(wake());
    fd_ = publish(false);
  }
  void TearDown() override { close_fd(fd_); }
  int publish(bool reads_alone) {
    return *host::publish(*make_box<Letters>("test", &text_),
                          *host::Backing::create_ready("described-test"),
                          {.reads_alone = reads_alone});
  }
  ssize_t parts(Io io, std::initializer_list<iovec> list, int count) {
    ssize_t done = -2;
    EXPECT_TRUE(parts_described(fd_, io, list.begin(), count, nullptr, &done));
    return done;
  }
  std::string text_ = "abcdefgh";
  int fd_ = -1;
};

TEST_F(Described, ReadsAndWritesByItself) {
  char bytes[8] = {};
  ssize_t done = -2;
  ASSERT_TRUE(io_described(fd_, Io::kRead, bytes, 8, nullptr, &done));
  EXPECT_EQ(done, 3);
  EXPECT_STREQ(bytes, "abc");
  ASSERT_TRUE(io_described(fd_, Io::kWrite, "xy", 2, nullptr, &done));
  EXPECT_EQ(text_, "defghxy");
  const off_t at = 0;
  EXPECT_FALSE(io_described(fd_, Io::kRead, bytes, 8, &at, &done)) << "it has no places";
}

TEST_F(Described, OfPartsEachIsACallUntilOneIsShort) {
  char first[4] = {}, second[5] = {}, third[4] = {};
  EXPECT_EQ(parts(Io::kRead, {{first, 3}, {second, 4}, {third, 3}}, 3), 6);
  EXPECT_STREQ(first, "abc");
  EXPECT_STREQ(second, "def");
  EXPECT_STREQ(third, "") << "the second was not done in full";
  EXPECT_EQ(parts(Io::kRead, {{reinterpret_cast<void*>(8), 3}}, 1), -1);
  EXPECT_EQ(errno, EFAULT);
  EXPECT_EQ(parts(Io::kRead, {{first, 1}, {reinterpret_cast<void*>(8), 3}}, 2), 1);
  EXPECT_EQ(parts(Io::kRead, {}, -1), -1);
  EXPECT_EQ(errno, EINVAL);
  EXPECT_EQ(parts(Io::kRead, {{first, 1}}, IOV_MAX + 1), -1);
  EXPECT_EQ(errno, EINVAL);
  EXPECT_EQ(parts(Io::kRead, {{first, size_t{1} << 63}}, 1), -1);
  EXPECT_EQ(errno, EINVAL);
  ssize_t done = 0;
  ASSERT_TRUE(parts_described(fd_, Io::kRead, reinterpret_cast<iovec*>(8), 1, nullptr, &done));
  EXPECT_EQ(done, -1);
  EXPECT_EQ(errno, EFAULT);
}

TEST_F(Described, SaysTheAccessModeOfTheKernelsFile) {
  EXPECT_EQ(control_fd(fd_, F_GETFL, 0) & O_ACCMODE, O_RDWR);
  const int alone = publish(true);
  EXPECT_EQ(::fcntl(alone, F_GETFL) & O_ACCMODE, O_RDONLY);
  EXPECT_EQ(control_fd(alone, F_GETFL, 0) & O_ACCMODE, O_RDWR);
  EXPECT_EQ(control_fd(alone, F_SETFL, O_NONBLOCK), 0);
  EXPECT_NE(control_fd(alone, F_GETFL, 0) & O_NONBLOCK, 0);
  ssize_t done = 0;
  EXPECT_TRUE(io_described(alone, Io::kWrite, "z", 1, nullptr, &done)) << "not EBADF";
  close_fd(alone);
  int pair[2];
  ASSERT_EQ(::pipe(pair), 0);
  EXPECT_EQ(control_fd(pair[0], F_GETFL, 0) & O_ACCMODE, O_RDONLY) << "the client's own";
  EXPECT_FALSE(parts_described(pair[0], Io::kRead, nullptr, 0, nullptr, &done));
  ::close(pair[0]);
  ::close(pair[1]);
}

}  // namespace
}  // namespace stagetwo::shim
