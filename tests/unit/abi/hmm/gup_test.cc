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
#include "host/descriptor.h"
#include "host/page_owner.h"
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

TEST_F(GupTest, TheCommandIsCheckedBeforeTheStruct) {
  EXPECT_EQ(-EINVAL, call(0, nullptr));
  EXPECT_EQ(-EFAULT, call(GUP_BASIC_TEST, nullptr));
}

}  // namespace
}  // namespace stagetwo
