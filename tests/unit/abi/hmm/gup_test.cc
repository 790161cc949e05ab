// SPDX-License-Identifier: Apache-2.0
// The driver for page references: it brings pages back, and its size says how far it came.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "abi/hmm/gup_uapi.h"
#include "abi/hmm/hmm.h"
#include "host/backstop.h"
#include "host/change.h"
#include "host/descriptor.h"
#include "host/page_owner.h"
#include "host/pin.h"
#include "mirror/mirror.h"
#include "tests/support/pages.h"

namespace stagetwo {
namespace {

class GupTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    fd_ = *abi_hmm::open_gup_test(O_RDWR);
    std::memset(memory_.pointer(), 7, memory_.bytes());
  }
  void TearDown() override { ::close(fd_); }
  long call(unsigned long request, gup_test* test) {
    return host::find(fd_)->ioctl(fd_, request, reinterpret_cast<unsigned long>(test));
  }
  gup_test all(u32 per_call = 1, u32 flags = 1) {
    gup_test test{};
    test.addr = memory_.address();
    test.size = memory_.bytes();
    test.nr_pages_per_call = per_call;
    test.gup_flags = flags;
    return test;
  }
  test::GuardedPages memory_{4};
  int fd_ = -1;
};

TEST_F(GupTest, EveryWayOfReferencingBringsPagesBack) {
  auto mirror = std::move(*mirror::Mirror::open(0));
  const HvaRange range(Hva(memory_.address()), memory_.bytes());
  for (const unsigned long request : {GUP_FAST_BENCHMARK, PIN_FAST_BENCHMARK, GUP_BASIC_TEST,
                                      PIN_BASIC_TEST, PIN_LONGTERM_BENCHMARK}) {
    ASSERT_TRUE(mirror->migrate_to_device(range));
    auto test = all();
    EXPECT_EQ(0, call(request, &test));
    EXPECT_EQ(memory_.bytes(), test.size);
    EXPECT_FALSE(host::is_absent(range.start()));
    EXPECT_EQ(7, *memory_.bytes_at(0));
  }
}

TEST_F(GupTest, AHoleEndsTheCallAndIsNoError) {
  auto test = all();
  test.size += 2 * 4096;
  EXPECT_EQ(0, call(GUP_BASIC_TEST, &test));
  EXPECT_EQ(memory_.bytes(), test.size);
}

TEST_F(GupTest, ForWritingWantsTheRight) {
  ASSERT_EQ(0, ::mprotect(memory_.pointer(), memory_.bytes(), PROT_READ));
  auto test = all();
  EXPECT_EQ(0, call(GUP_BASIC_TEST, &test));
  EXPECT_EQ(0u, test.size);
  test = all(1, 0);
  EXPECT_EQ(0, call(GUP_BASIC_TEST, &test));
  EXPECT_EQ(memory_.bytes(), test.size);
}

TEST_F(GupTest, ALongTermReferenceIsAPin) {
  auto test = all(1, 0x101);
  EXPECT_EQ(0, call(GUP_FAST_BENCHMARK, &test));
  EXPECT_EQ(0u, test.size);
  test = all(1, 0x101);
  EXPECT_EQ(0, call(PIN_FAST_BENCHMARK, &test));
  EXPECT_EQ(memory_.bytes(), test.size);
}

// ---- dumps ----------------------------------------------------------------------------------

TEST_F(GupTest, ADumpClearsTheNumbersOfPagesThatWereNotHad) {
  for (const u32 flags : {0u, u32{GUP_TEST_FLAG_DUMP_PAGES_USE_PIN}}) {
    auto test = all();
    test.test_flags = flags;
    test.which_pages[0] = 4;
    test.which_pages[1] = 5;
    test.which_pages[7] = 1;
    EXPECT_EQ(0, call(DUMP_USER_PAGES_TEST, &test));
    EXPECT_EQ(memory_.bytes(), test.size);
    EXPECT_EQ(4u, test.which_pages[0]);
    EXPECT_EQ(0u, test.which_pages[1]);
    EXPECT_EQ(1u, test.which_pages[7]);
  }
  EXPECT_EQ(0u, host::pin_use().pages);
}

// ---- pins that outlive a call ----------------------------------------------------------------

class LongTermTest : public GupTest {
 protected:
  long start(u32 flags = PIN_LONGTERM_TEST_FLAG_USE_WRITE) {
    pin_longterm_test args{memory_.address(), memory_.bytes(), flags};
    return ioctl(PIN_LONGTERM_TEST_START, &args);
  }
  long ioctl(unsigned long request, void* arg = nullptr) {
    return host::find(fd_)->ioctl(fd_, request, reinterpret_cast<unsigned long>(arg));
  }
  long read(u8* to) {
    u64 place = reinterpret_cast<u64>(to);
    return ioctl(PIN_LONGTERM_TEST_READ, &place);
  }
};

TEST_F(LongTermTest, WhatIsPinnedIsReadWhateverTheClientHasThere) {
  ASSERT_EQ(0, start());
  u8 seen[4 * 4096];
  *memory_.bytes_at(4096) = 9;
  ASSERT_EQ(0, read(seen));
  EXPECT_EQ(7, seen[0]);
  EXPECT_EQ(9, seen[4096]);
  host::change(memory_.address(), memory_.bytes(), host::EventKind::kClear,
               [&] { return ::madvise(memory_.pointer(), memory_.bytes(), MADV_DONTNEED); });
  EXPECT_EQ(0, *memory_.bytes_at(4096));
  ASSERT_EQ(0, read(seen));
  EXPECT_EQ(9, seen[4096]);
  EXPECT_EQ(-EFAULT, read(nullptr));
  EXPECT_EQ(0, ioctl(PIN_LONGTERM_TEST_STOP));
  EXPECT_EQ(0u, host::pin_use().pages);
}
TEST_F(LongTermTest, OneAtATime) {
  u8 seen[4096];
  EXPECT_EQ(-EINVAL, read(seen));
  EXPECT_EQ(0, ioctl(PIN_LONGTERM_TEST_STOP));
  ASSERT_EQ(0, start());
  EXPECT_EQ(-EINVAL, start());
  EXPECT_EQ(-EINVAL, ioctl(PIN_LONGTERM_TEST_START));
  EXPECT_EQ(-EFAULT, ioctl(PIN_LONGTERM_TEST_READ));
  EXPECT_EQ(0, ioctl(PIN_LONGTERM_TEST_STOP));
  EXPECT_EQ(-EFAULT, ioctl(PIN_LONGTERM_TEST_START));
}
TEST_F(LongTermTest, ArgumentsInTheKernelsOrder) {
  EXPECT_EQ(-EINVAL, start(4));
  pin_longterm_test args{memory_.address() + 1, 4096, 0};
  EXPECT_EQ(-EINVAL, ioctl(PIN_LONGTERM_TEST_START, &args));
  args = {memory_.address(), 0, 0};
  EXPECT_EQ(-EINVAL, ioctl(PIN_LONGTERM_TEST_START, &args));
  args = {memory_.address(), u64{1} << 63, 0};
  EXPECT_EQ(-EINVAL, ioctl(PIN_LONGTERM_TEST_START, &args));
  args = {memory_.address(), 5 * 4096, 0};  // the last page is not there
  EXPECT_EQ(-EFAULT, ioctl(PIN_LONGTERM_TEST_START, &args));
  EXPECT_EQ(0u, host::pin_use().pages);
}
TEST_F(LongTermTest, APinnedPageDoesNotMigrate) {
  auto mirror = std::move(*mirror::Mirror::open(0));
  ASSERT_EQ(0, start());
  const HvaRange range(Hva(memory_.address()), memory_.bytes());
  ASSERT_TRUE(mirror->migrate_to_device(range));
  u8 bytes[4096];
  mirror::Transfer done;
  const auto there = mirror->read_mapped(range.start(), 1, bytes, &done);
  ASSERT_FALSE(there);
  EXPECT_EQ(ENOENT, to_int(there.error()));
  EXPECT_FALSE(host::is_absent(range.start()));
  EXPECT_EQ(0, ioctl(PIN_LONGTERM_TEST_STOP));
  ASSERT_TRUE(mirror->migrate_to_device(range));
  EXPECT_TRUE(host::is_absent(range.start()));
  host::bring_back_range(range);
}

TEST_F(GupTest, TheCommandIsCheckedBeforeTheStruct) {
  EXPECT_EQ(-EINVAL, call(0, nullptr));
  EXPECT_EQ(-EFAULT, call(GUP_BASIC_TEST, nullptr));
}

}  // namespace
}  // namespace stagetwo
