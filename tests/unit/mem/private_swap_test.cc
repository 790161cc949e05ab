// SPDX-License-Identifier: Apache-2.0
// Goal: private pages leave their file sealed and come back with their bytes, whatever happens to
// the file, the slot and the disk meanwhile; nothing of them is readable where they wait.
#include "mem/private_swap.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "base/sys.h"
#include "mem/guest_memfd.h"
#include "tests/support/private_swap.h"
#include "tests/support/random_source.h"

namespace stagetwo::mem {
namespace {

constexpr u64 kPages = 64;

class Observer final : public ObjectObserver {
 public:
  void going(PageRange) override { ++given_up; }
  void gone(PageRange) override {}
  void leaving(PageRange pages) override {
    EXPECT_FALSE(closed);
    closed = true;
    left_pages += pages.count();
  }
  void left(PageRange) override { closed = false; }
  bool closed = false;
  u64 given_up = 0, left_pages = 0;
};

class PrivatePages : public testing::Test {
 protected:
  void SetUp() override {
    fd_ = *sys::memfd_create("private", MFD_CLOEXEC);
    number_.exchange(fd_);
    ASSERT_TRUE(sys::ftruncate(fd_, kPages << kPageShift));
    ASSERT_TRUE(private_pages::open(&swap_));
    bind();
  }
  void TearDown() override {
    unbind();
    object_.release();
    private_pages::close();
    EXPECT_EQ(0U, private_pages::away());
    const StoreUse use = store_.use();
    EXPECT_EQ(0U, use.same_filled + use.in_memory + use.on_disk) << "all was given back";
    ::close(fd_);
  }
  void bind() {
    ASSERT_TRUE(object_.bind(0, kPages << kPageShift, observer_, &binding_));
    at_ = reinterpret_cast<u8*>(binding_.at().raw());
  }
  void unbind() { GuestMemfd::unbind(&binding_); }
  void use_file() { swap_.use_file(); }
  [[nodiscard]] u8* page(u64 number) const { return at_ + (number << kPageShift); }
  [[nodiscard]] Hva hva(u64 number) const { return Hva(reinterpret_cast<u64>(page(number))); }
  // Every second one does not get smaller.
  static void make(u8* to, u64 number) {
    test::RandomSource random(number + 1);
    for (u64 i = 0; i < kPageSize; i += 8) {
      const u64 word = number % 2 == 0 || i < kPageSize / 4 ? random.next() : number;
      std::memcpy(to + i, &word, 8);
    }
  }
  void fill(u64 first, u64 count) {
    for (u64 i = first; i < first + count; ++i) make(page(i), i);
  }
  private_pages::Taken take(u64 first, u64 count) {
    return swap_.take(HvaRange(hva(first), count << kPageShift));
  }
  // As a fault does it.
  testing::AssertionResult is_right(u64 number) {
    if (const auto done = private_pages::fetch(hva(number)); !done) {
      return testing::AssertionFailure() << "errno " << to_int(done.error());
    }
    u8 wanted[kPageSize];
    make(wanted, number);
    if (std::memcmp(wanted, page(number), kPageSize) == 0) return testing::AssertionSuccess();
    return testing::AssertionFailure() << "page " << number << " has other bytes";
  }
  [[nodiscard]] u64 in_file() const {
    struct ::stat now{};
    EXPECT_EQ(0, ::fstat(fd_, &now));
    return static_cast<u64>(now.st_blocks) * 512 / kPageSize;
  }
  int errno_of(u64 number) {
    const auto done = private_pages::fetch(hva(number));
    return done ? 0 : to_int(done.error());
  }
  int change(int mode, u64 first, u64 count) {
    const auto done = object_.fallocate(mode, first << kPageShift, count << kPageShift);
    return done ? 0 : to_int(done.error());
  }

  PageStore store_;
  test::TestSwap swap_{store_};
  sync::KeptNumber number_;
  GuestMemfd object_{kPages << kPageShift, number_};
  Observer observer_;
  Binding binding_;
  int fd_ = -1;
  u8* at_ = nullptr;
};

constexpr int kAllocate = FALLOC_FL_KEEP_SIZE;
constexpr int kPunch = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;

// A page that nobody has written is what goes first, and nothing is kept of it.
TEST_F(PrivatePages, UnderALimitPagesAreMadeByWhoWritesThem) {
  EXPECT_EQ(0, change(kAllocate, 0, kPages));
  EXPECT_EQ(0U, in_file()) << "more memory than any limit may allow, in one call";
  EXPECT_EQ(EINVAL, change(kAllocate, 1, kPages)) << "it ends before that";
  EXPECT_EQ(0, *page(3));
  fill(0, 2);
  EXPECT_EQ(0, change(kAllocate, 0, kPages));
  EXPECT_TRUE(is_right(1));
}

TEST_F(PrivatePages, GoAndComeBackWithTheirBytes) {
  use_file();
  fill(0, 32);
  EXPECT_EQ(32U, take(0, 32).pages);
  EXPECT_EQ(0U, in_file());
  EXPECT_EQ(32U, private_pages::away());
  EXPECT_EQ(32U, observer_.left_pages);
  EXPECT_EQ(0U, observer_.given_up) << "nothing was";
  const StoreUse use = store_.use();
  EXPECT_EQ(16U, use.in_memory);
  EXPECT_EQ(16U, use.on_disk);
  for (u64 i = 32; i-- > 0;) EXPECT_TRUE(is_right(i)) << i;
  EXPECT_EQ(32U, swap_.back);
  EXPECT_EQ(32U, in_file());
  EXPECT_TRUE(is_right(3)) << "and stay";
  EXPECT_EQ(32U, swap_.back);
}

TEST_F(PrivatePages, BringTheirNeighboursAlongAsFarAsThoseAreAway) {
  use_file();
  fill(0, 32);
  ASSERT_EQ(30U, take(0, 5).pages + take(7, 25).pages);
  swap_.ahead = 4;
  EXPECT_TRUE(is_right(2));
  EXPECT_EQ(2U, swap_.along) << "the two behind it are away, and then one is here";
  EXPECT_TRUE(is_right(10));
  EXPECT_EQ(6U, swap_.along);
  swap_.ahead = 1000;
  EXPECT_TRUE(is_right(15));
  EXPECT_EQ(6U + 16U, swap_.along) << "others wait for the lock";
  EXPECT_EQ(3U, swap_.back);
  swap_.ahead = 0;
  for (u64 i = 0; i < 32; ++i) EXPECT_TRUE(is_right(i)) << i;
}

TEST_F(PrivatePages, AreNotReadableWhereTheyWait) {
  use_file();
  std::memset(page(0), 'S', kPageSize);
  make(page(2), 2);
  u8 clear[kPageSize];
  make(clear, 2);
  ASSERT_EQ(2U, take(0, 1).pages + take(2, 1).pages);
  struct ::stat now{};
  ASSERT_EQ(0, ::fstat(swap_.fd, &now));
  std::vector<u8> file(static_cast<size_t>(now.st_size));
  ASSERT_EQ(now.st_size, ::pread(swap_.fd, file.data(), file.size(), 0));
  EXPECT_EQ(nullptr, ::memmem(file.data(), file.size(), clear, 32)) << "a page on the disk";
  for (u64 i = 0; i < kPageSize; ++i) EXPECT_NE('S', swap_.clear()[i]) << "what was sealed";
  EXPECT_TRUE(is_right(2));
}

TEST_F(PrivatePages, OfZerosCostNothing) {
  ASSERT_EQ(0, ::fallocate(fd_, kAllocate, 0, 8 << kPageShift));
  EXPECT_EQ(8U, take(0, 8).pages);
  EXPECT_EQ(0U, in_file());
  EXPECT_EQ(8U, store_.use().same_filled);
  EXPECT_EQ(0U, store_.use().in_memory);
  EXPECT_EQ(0, errno_of(0));
  EXPECT_EQ(0, page(0)[100]);
}

TEST_F(PrivatePages, ArePunchedWhereTheyWait) {
  use_file();
  fill(0, 4);
  ASSERT_EQ(4U, take(0, 4).pages);
  ASSERT_EQ(0, change(kPunch, 1, 2));
  EXPECT_EQ(2U, swap_.discarded);
  EXPECT_EQ(0, errno_of(1));
  EXPECT_EQ(0, page(1)[0]);
  EXPECT_TRUE(is_right(0));
  EXPECT_TRUE(is_right(3));
}

TEST_F(PrivatePages, ThatAreAllocatedMeanwhileKeepTheirBytes) {
  use_file();
  fill(0, 4);
  ASSERT_EQ(4U, take(0, 4).pages);
  ASSERT_EQ(0, ::fallocate(fd_, kAllocate, 0, 4 << kPageShift));
  EXPECT_EQ(4U, in_file()) << "pages of zeros, of no meaning";
  EXPECT_EQ(0U, take(0, 2).pages);
  EXPECT_EQ(2U, in_file()) << "and no longer there when memory is short";
  for (u64 i = 0; i < 4; ++i) EXPECT_TRUE(is_right(i)) << i;
}

TEST_F(PrivatePages, OutliveTheirSlot) {
  use_file();
  fill(0, 8);
  ASSERT_EQ(8U, take(0, 8).pages);
  unbind();
  EXPECT_EQ(8U, private_pages::away());
  bind();
  for (u64 i = 0; i < 8; ++i) EXPECT_TRUE(is_right(i)) << i;
}

TEST_F(PrivatePages, DieWithTheirFile) {
  use_file();
  fill(0, 8);
  ASSERT_EQ(8U, take(0, 8).pages);
  object_.release();
  EXPECT_EQ(0U, private_pages::away());
  EXPECT_EQ(0U, store_.use().in_memory + store_.use().on_disk);
  EXPECT_EQ(0, errno_of(0)) << "who asks late finds nobody bound";
}

TEST_F(PrivatePages, StayWhereTheStoreIsFull) {
  fill(0, 4);
  const private_pages::Taken taken = take(0, 4);
  EXPECT_EQ(0U, taken.pages) << "the first one does not get smaller, and there is no disk";
  EXPECT_EQ(ENOSPC, taken.refusal);
  EXPECT_FALSE(observer_.closed);
  for (u64 i = 0; i < 4; ++i) EXPECT_TRUE(is_right(i)) << i;
}

TEST_F(PrivatePages, ThatTheDiskHasChangedAreLostAndNoOtherOnes) {
  use_file();
  fill(0, 4);
  ASSERT_EQ(4U, take(0, 4).pages);
  swap_.damage(17);  // of the first that went to the disk: page 0
  EXPECT_EQ(EBADMSG, errno_of(0));
  EXPECT_EQ(EIO, errno_of(0)) << "for good";
  EXPECT_EQ(std::vector<int>{EBADMSG}, swap_.lost) << "and said so once";
  for (u64 i = 1; i < 4; ++i) EXPECT_TRUE(is_right(i)) << i;
  ASSERT_EQ(0, change(kPunch, 0, 1));
  EXPECT_EQ(0, errno_of(0)) << "until they are given up";
}

TEST_F(PrivatePages, AreAllBackBeforeAForkAndStayUntilItIsOver) {
  use_file();
  fill(0, 8);
  ASSERT_EQ(8U, take(0, 8).pages);
  private_pages::before_fork();
  EXPECT_EQ(0U, private_pages::away());
  EXPECT_EQ(0U, take(0, 8).pages);
  private_pages::after_fork_parent();
  EXPECT_EQ(8U, take(0, 8).pages);
  for (u64 i = 0; i < 8; ++i) EXPECT_TRUE(is_right(i)) << i;
}

TEST_F(PrivatePages, ThatTheClientMayMapStay) {
  unbind();
  ASSERT_TRUE(
      object_.bind(0, kPages << kPageShift, observer_, &binding_, GuestMemfd::Pages::kStay));
  at_ = reinterpret_cast<u8*>(binding_.at().raw());
  fill(0, 2);
  EXPECT_FALSE(private_pages::are_bound(HvaRange(hva(0), kPageSize)));
  EXPECT_EQ(0U, take(0, 2).pages);
}

}  // namespace
}  // namespace stagetwo::mem
