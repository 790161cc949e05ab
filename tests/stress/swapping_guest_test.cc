// SPDX-License-Identifier: Apache-2.0
// Goal: the client of tests/guest/swapping_vmm_test.py is whole also without the preload object, so
// that the sanitizers see it and the engine in one program: its calls to the kernel come here.
#include <cstdarg>
#include <filesystem>
#include <string>

#include "host/userfault.h"
#include "mem/swap_file.h"
#include "reclaim/reclaim.h"
#include "tests/abi/kvm_client.h"
#include "tests/support/random_source.h"
#include "tests/support/stress_time.h"

// tests/guest/swapping_vmm.c, in which these are called main, open and ioctl.
extern "C" {
int swapping_main(int count, char** arguments);
int swapping_open(const char*, int flags, ...) {
  const int fd = kvm_client::open_kvm(flags);
  if (fd < 0) errno = -fd;
  return fd < 0 ? -1 : fd;
}
int swapping_ioctl(int fd, unsigned long request, ...) {
  va_list more;
  va_start(more, request);
  const unsigned long argument = va_arg(more, unsigned long);
  va_end(more);
  const long done = kvm_client::call(fd, request, argument);
  if (done < 0) errno = static_cast<int>(-done);
  return done < 0 ? -1 : static_cast<int>(done);
}
}

namespace stagetwo {
namespace {

// What is wrong ends the program, after a line that says so.
TEST(SwappingGuest, IsWholeInAQuarterOfItsMemory) {
  if (!host::userfault::open() || !host::userfault::serves_kernel()) {
    GTEST_SKIP() << "userfaultfd does not serve system calls here, and no preload object does";
  }
  constexpr u64 kMegabytes = 8;
  const std::string folder = std::filesystem::temp_directory_path();
  const auto file = mem::SwapFile::create(folder.c_str());
  ASSERT_TRUE(file);
  const u64 limit = kMegabytes * (u64{1} << 20) / 4;
  ASSERT_TRUE(reclaim::start({.memory_limit = limit, .swap_fd = *file}));
  const std::string seed = std::to_string(test::announced_seed("swapping guest"));
  const auto ms = static_cast<u64>(test::test_seconds() * 150);
  std::string words[] = {"swapping_vmm", std::to_string(kMegabytes), std::to_string(ms), seed};
  char* arguments[] = {words[0].data(), words[1].data(), words[2].data(), words[3].data(), nullptr};
  EXPECT_EQ(0, swapping_main(4, arguments));
  const reclaim::Statistics now = reclaim::statistics();
  EXPECT_GT(now.refaults, 100U) << "seed " << seed;
  EXPECT_GT(now.private_refaults, 0U) << "seed " << seed;
  EXPECT_GT(now.on_disk, 0U) << "half of the pattern does not get smaller";
  EXPECT_EQ(0U, now.lost) << "seed " << seed;
}

}  // namespace
}  // namespace stagetwo
