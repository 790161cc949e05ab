// SPDX-License-Identifier: Apache-2.0
// Goal: pages of a guest_memfd are zero until somebody has them and after they were given up; who
// is bound hears of it, in time and once, and nobody else does.
#include "mem/guest_memfd.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "base/failpoint.h"
#include "base/sys.h"

namespace stagetwo::mem {
namespace {

constexpr u64 kPages = 8;
constexpr int kKeep = FALLOC_FL_KEEP_SIZE;
constexpr int kPunch = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;

// Writes down what it hears.
class Listener final : public ObjectObserver {
 public:
  void going(PageRange pages) override { say("going", pages); }
  void gone(PageRange pages) override { say("gone", pages); }
  std::vector<std::string> heard;

 private:
  void say(const char* what, PageRange pages) {
    heard.push_back(std::string(what) + " " + std::to_string(pages.first) + "-" +
                    std::to_string(pages.end));
  }
};
using Heard = std::vector<std::string>;

class GuestMemfdTest : public testing::Test {
 protected:
  void SetUp() override {
    fd_ = *sys::memfd_create("test", MFD_CLOEXEC);
    number_.exchange(fd_);
    ASSERT_TRUE(sys::ftruncate(fd_, kPages * kPageSize));
  }
  void TearDown() override {
    object_.release();
    static_cast<void>(sys::close(fd_));
  }
  int fallocate(int mode, u64 offset, u64 size) {
    const auto done = object_.fallocate(mode, offset, size);
    return done ? 0 : to_int(done.error());
  }
  int bind(u64 offset, u64 size, Binding* binding) {
    const auto done = object_.bind(offset, size, listener_, binding);
    return done ? 0 : to_int(done.error());
  }
  u64 resident() const {
    struct ::stat now{};
    EXPECT_TRUE(sys::fstat(fd_, &now));
    return static_cast<u64>(now.st_blocks) * 512 / kPageSize;
  }
  static u64& word(const Binding& binding, u64 page) {
    return *reinterpret_cast<u64*>(binding.at().raw() + page * kPageSize);
  }

  int fd_ = -1;
  sync::KeptNumber number_;
  GuestMemfd object_{kPages * kPageSize, number_};
  Listener listener_;
};

TEST(GuestMemfdSize, IsPositiveAndOfPages) {
  for (const s64 size : {s64{0}, s64{1}, s64{4097}, s64{-4096}}) {
    EXPECT_FALSE(GuestMemfd::check_size(static_cast<u64>(size))) << size;
  }
  EXPECT_TRUE(GuestMemfd::check_size(4096));
  EXPECT_TRUE(GuestMemfd::check_size(u64{1} << 62));
  EXPECT_TRUE(GuestMemfd::check_size((u64{1} << 63) - 4096));
}

TEST_F(GuestMemfdTest, AnswersFallocateAsTheKernelsDoes) {
  EXPECT_EQ(EOPNOTSUPP, fallocate(0, 0, 4096));
  EXPECT_EQ(EOPNOTSUPP, fallocate(FALLOC_FL_PUNCH_HOLE, 0, 4096));
  EXPECT_EQ(EOPNOTSUPP, fallocate(kKeep | FALLOC_FL_ZERO_RANGE, 0, 4096));
  EXPECT_EQ(EINVAL, fallocate(kKeep, 1, 4096));
  EXPECT_EQ(EINVAL, fallocate(kPunch, 0, 4095));
  EXPECT_EQ(EINVAL, fallocate(kKeep, kPages * kPageSize, kPageSize));
  EXPECT_EQ(EINVAL, fallocate(kKeep, (kPages - 1) * kPageSize, 2 * kPageSize));
  EXPECT_EQ(0, fallocate(kPunch, kPages * kPageSize, kPageSize));
  EXPECT_EQ(0, fallocate(kPunch, (kPages + 5) * kPageSize, kPageSize));
  EXPECT_EQ(0, fallocate(kPunch, 0, u64{1} << 40));
  EXPECT_EQ(0U, resident());
  EXPECT_EQ(0, fallocate(kKeep, 0, kPages * kPageSize));
  EXPECT_EQ(kPages, resident());
  EXPECT_EQ(0, fallocate(kPunch, kPageSize, kPageSize));
  EXPECT_EQ(kPages - 1, resident());
}

TEST_F(GuestMemfdTest, SaysThatThereIsNoMemory) {
  failpoint::arm("mem.guest_memfd_pages", 1);
  EXPECT_EQ(ENOMEM, fallocate(kKeep, 0, kPageSize));
  failpoint::disarm();
  EXPECT_EQ(0U, resident());
}

TEST_F(GuestMemfdTest, BindsAPageOnce) {
  Binding first, second, third;
  ASSERT_EQ(0, bind(0, 4 * kPageSize, &first));
  EXPECT_EQ(EINVAL, bind(0, kPageSize, &second));
  EXPECT_EQ(EINVAL, bind(3 * kPageSize, 2 * kPageSize, &second));
  EXPECT_EQ(0, bind(4 * kPageSize, 4 * kPageSize, &second));
  EXPECT_EQ(EINVAL, bind(8 * kPageSize, kPageSize, &third));  // beyond the end
  EXPECT_EQ(EINVAL, bind(1, kPageSize, &third));
  EXPECT_EQ(EINVAL, bind(~kPageMask ^ ~u64{0}, 2 * kPageSize, &third));  // wraps
  GuestMemfd::unbind(&first);
  EXPECT_EQ(0, bind(2 * kPageSize, kPageSize, &third));
  EXPECT_EQ(2U, object_.binding_count());
  for (Binding* binding : {&second, &third}) GuestMemfd::unbind(binding);
  EXPECT_TRUE(listener_.heard.empty());
}

TEST_F(GuestMemfdTest, APunchIsHeardByThoseOfTheRangeEachOfItsPart) {
  Binding low, high;
  ASSERT_EQ(0, bind(0, 4 * kPageSize, &low));
  ASSERT_EQ(0, bind(4 * kPageSize, 2 * kPageSize, &high));
  word(low, 3) = word(high, 0) = 1;
  ASSERT_EQ(0, fallocate(kPunch, 3 * kPageSize, 2 * kPageSize));
  EXPECT_EQ((Heard{"going 3-4", "going 4-5", "gone 3-4", "gone 4-5"}), listener_.heard);
  EXPECT_EQ(0U, word(low, 3));
  EXPECT_EQ(0U, word(high, 0));
  listener_.heard.clear();
  ASSERT_EQ(0, fallocate(kPunch, 6 * kPageSize, 2 * kPageSize));
  ASSERT_EQ(0, fallocate(kKeep, 0, kPages * kPageSize));
  EXPECT_TRUE(listener_.heard.empty());
  for (Binding* binding : {&low, &high}) GuestMemfd::unbind(binding);
}

TEST_F(GuestMemfdTest, TheLastReleaseClosesTellsAndFrees) {
  Binding binding;
  ASSERT_EQ(0, bind(0, kPages * kPageSize, &binding));
  word(binding, 2) = 7;
  EXPECT_TRUE(binding.is_open());
  object_.release();
  EXPECT_FALSE(binding.is_open());
  EXPECT_EQ((Heard{"going 0-8", "gone 0-8"}), listener_.heard);
  EXPECT_NE(0U, binding.at().raw());  // its addresses stay taken
  EXPECT_FALSE(sys::madvise(reinterpret_cast<void*>(binding.at().raw()), kPageSize,
                            23 /* MADV_POPULATE_WRITE */));
  GuestMemfd::unbind(&binding);  // in whichever order they go
  EXPECT_EQ(0U, binding.at().raw());
}

TEST_F(GuestMemfdTest, TheEnginesMappingIsNotDumpedAndNotInherited) {
  Binding binding;
  ASSERT_EQ(0, bind(0, kPages * kPageSize, &binding));
  char start[32];
  std::snprintf(start, sizeof(start), "%llx-", static_cast<unsigned long long>(binding.at().raw()));
  std::ifstream maps("/proc/self/smaps");
  std::string line;
  bool inside = false;
  std::string flags;
  while (std::getline(maps, line)) {
    if (line.find("VmFlags:") != 0) {
      if (line.find(start) == 0) inside = true;
    } else if (inside) {
      flags = line;
      break;
    }
  }
  EXPECT_NE(flags.find(" dd"), std::string::npos) << flags;  // MADV_DONTDUMP
  EXPECT_NE(flags.find(" dc"), std::string::npos) << flags;  // MADV_DONTFORK
  GuestMemfd::unbind(&binding);
}

TEST_F(GuestMemfdTest, AChildHasNoMappingAndMayAllocateAndPunch) {
  Binding binding;
  ASSERT_EQ(0, bind(0, kPages * kPageSize, &binding));
  word(binding, 0) = 7;
  const pid_t child = fork();
  if (child == 0) {
    const bool mapped =
        sys::madvise(reinterpret_cast<void*>(binding.at().raw()), kPageSize, MADV_NORMAL)
            .has_value();
    const auto punched =
        GuestMemfd::fallocate_unbound(fd_, kPages * kPageSize, kPunch, 0, kPageSize);
    const auto grown =
        GuestMemfd::fallocate_unbound(fd_, kPages * kPageSize, kKeep, kPageSize, kPageSize);
    _exit(mapped || !punched || !grown ? 1 : 0);
  }
  int status = -1;
  ASSERT_EQ(child, waitpid(child, &status, 0));
  EXPECT_EQ(0, status);
  EXPECT_EQ(0U, word(binding, 0));
  GuestMemfd::unbind(&binding);
}

}  // namespace
}  // namespace stagetwo::mem
