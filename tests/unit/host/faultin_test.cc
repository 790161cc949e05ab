// SPDX-License-Identifier: Apache-2.0
// Goal: the answer for every situation a page can be in (the table in host/faultin.cc), with the
// kernel's MADV_POPULATE, without it, and with a touch before it.
#include "host/faultin.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "host/access.h"
#include "host/backstop.h"
#include "tests/support/pages.h"

#if !defined(UFFD_USER_MODE_ONLY)
#define UFFD_USER_MODE_ONLY 1
#endif

namespace stagetwo::host {
namespace {

int errno_of(const Result<void>& result) {
  return result ? 0 : to_int(result.error());
}

enum class Way : u8 { kPopulate, kTouchOnly, kTouchFirst };

class Faultin : public testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    ASSERT_TRUE(backstop::install());
    const bool without = GetParam() == Way::kTouchOnly;
    if (!without && !has_populate()) GTEST_SKIP() << "this kernel has no MADV_POPULATE";
    debug_without_populate(without);
  }
  void TearDown() override { debug_without_populate(false); }
  static Ask first() { return GetParam() == Way::kTouchFirst ? Ask::kTouch : Ask::kKernel; }
  static int read(u64 address) { return errno_of(faultin(Hva(address), Access::kRead, first())); }
  static int write(u64 address) { return errno_of(faultin(Hva(address), Access::kWrite, first())); }
};

bool resident(void* page) {
  unsigned char in_core = 0;
  return mincore(page, 4096, &in_core) == 0 && (in_core & 1) != 0;
}

TEST_P(Faultin, MakesAnAbsentPagePresent) {
  test::GuardedPages pages(2);
  EXPECT_FALSE(resident(pages.bytes_at(4096)));
  EXPECT_EQ(0, write(pages.address() + 4096));
  EXPECT_TRUE(resident(pages.bytes_at(4096)));
  EXPECT_EQ(0, read(pages.address()));
}

TEST_P(Faultin, ChangesNoByte) {
  test::GuardedPages pages(1);
  std::memset(pages.pointer(), 0xA5, 4096);
  EXPECT_EQ(0, read(pages.address()));
  EXPECT_EQ(0, write(pages.address()));
  for (unsigned i = 0; i < 4096; ++i) ASSERT_EQ(0xA5, *pages.bytes_at(i));
}

TEST_P(Faultin, RefusesByTheProtection) {
  test::GuardedPages none(1, PROT_NONE);
  EXPECT_EQ(EFAULT, read(none.address()));
  EXPECT_EQ(EFAULT, write(none.address()));
  test::GuardedPages readable(1, PROT_READ);
  EXPECT_EQ(0, read(readable.address()));
  EXPECT_EQ(EFAULT, write(readable.address()));
}

TEST_P(Faultin, RefusesWhereNothingIsMapped) {
  void* gone = mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  munmap(gone, 4096);
  EXPECT_EQ(EFAULT, read(reinterpret_cast<u64>(gone)));
  EXPECT_EQ(EFAULT, read(0));
  EXPECT_EQ(EFAULT, read(0xffff800000000000));
}

TEST_P(Faultin, RefusesBeyondTheEndOfTheFile) {
  const int fd = memfd_create("short", 0);
  ASSERT_EQ(0, ftruncate(fd, 4096));
  auto* map = static_cast<char*>(mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  EXPECT_EQ(0, write(reinterpret_cast<u64>(map)));
  EXPECT_EQ(EFAULT, read(reinterpret_cast<u64>(map) + 4096));
  EXPECT_EQ(EFAULT, write(reinterpret_cast<u64>(map) + 4096));
  munmap(map, 8192);
  close(fd);
}

TEST_P(Faultin, BreaksCopyOnWriteForAWrite) {
  const int fd = memfd_create("private", 0);
  ASSERT_EQ(0, ftruncate(fd, 4096));
  ASSERT_EQ(1, pwrite(fd, "x", 1, 0));
  auto* map = static_cast<char*>(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
  EXPECT_EQ(0, write(reinterpret_cast<u64>(map)));
  ASSERT_EQ(1, pwrite(fd, "y", 1, 0));
  EXPECT_EQ('x', *map);
  munmap(map, 4096);
  close(fd);
}

TEST_P(Faultin, AUserModeOnlyUserfaultfdIsServedByATouch) {
  const int uffd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY));
  if (uffd < 0) GTEST_SKIP() << "userfaultfd is denied here";
  uffdio_api api{};
  api.api = UFFD_API;
  ASSERT_EQ(0, ioctl(uffd, UFFDIO_API, &api));
  test::GuardedPages pages(1);
  uffdio_register reg{};
  reg.range = {pages.address(), 4096};
  reg.mode = UFFDIO_REGISTER_MODE_MISSING;
  ASSERT_EQ(0, ioctl(uffd, UFFDIO_REGISTER, &reg));
  std::thread resolver([&] {
    uffd_msg message{};
    ASSERT_EQ(static_cast<ssize_t>(sizeof(message)), ::read(uffd, &message, sizeof(message)));
    static char bytes[4096];
    std::memset(bytes, 0x77, sizeof(bytes));
    uffdio_copy copy{};
    copy.dst = pages.address();
    copy.src = reinterpret_cast<u64>(bytes);
    copy.len = 4096;
    ASSERT_EQ(0, ioctl(uffd, UFFDIO_COPY, &copy));
  });
  EXPECT_EQ(0, read(pages.address()));
  resolver.join();
  EXPECT_EQ(0x77, *pages.bytes_at(0));
  close(uffd);
}

// Neither way makes a page present that was not asked for: the client can see that (mincore).
TEST_P(Faultin, LeavesTheNeighboursAbsent) {
  test::GuardedPages pages(16);
  for (unsigned page = 0; page < 8; ++page) EXPECT_EQ(0, write(pages.address() + page * 4096));
  for (unsigned page = 8; page < 16; ++page) EXPECT_FALSE(resident(pages.bytes_at(page * 4096)));
}

TEST_P(Faultin, AReadOfMemoryNeverWrittenTakesNoPageOfItsOwn) {
  test::GuardedPages pages(1);
  EXPECT_EQ(0, read(pages.address()));
  const int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  u64 entry = 0;
  ASSERT_EQ(8, pread(fd, &entry, 8, static_cast<off_t>(pages.address() / 4096 * 8)));
  close(fd);
  EXPECT_NE(0U, entry >> 63);
  EXPECT_EQ(0U, entry >> 56 & 1);  // the page of zeros is nobody's alone
}

std::string name_of(const testing::TestParamInfo<Way>& way) {
  return way.param == Way::kPopulate    ? "WithPopulate"
         : way.param == Way::kTouchOnly ? "WithoutPopulate"
                                        : "TouchedFirst";
}
INSTANTIATE_TEST_SUITE_P(Kernel, Faultin,
                         testing::Values(Way::kPopulate, Way::kTouchOnly, Way::kTouchFirst),
                         name_of);

}  // namespace
}  // namespace stagetwo::host
