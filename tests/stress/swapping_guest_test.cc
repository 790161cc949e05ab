// SPDX-License-Identifier: Apache-2.0
// Goal: the client of tests/guest/swapping_vmm_test.py is whole also without the preload object, so
// that the sanitizers see it and the engine in one program: its calls to the kernel come here.
// STAGETWO_TEST_SECONDS of it.
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <string>

#include "host/userfault.h"
#include "mem/swap_file.h"
#include "reclaim/reclaim.h"
#include "tests/abi/kvm_client.h"
#include "tests/support/random_source.h"

// tests/guest/swapping_vmm.c, in which these are called main and open; ioctl: compiled_in_vmm.cc.
extern "C" {
int swapping_main(int count, char** arguments);
int swapping_open(const char*, int flags, ...) {
  const int fd = kvm_client::open_kvm(flags);
  if (fd < 0) errno = -fd;
  return fd < 0 ? -1 : fd;
}
}

namespace stagetwo {
namespace {

u64 blocks_of(int fd) {
  struct stat file{};
  return ::fstat(fd, &file) == 0 ? static_cast<u64>(file.st_blocks) : 0;
}

// What is wrong ends the program, after a line that says so.
TEST(SwappingGuest, IsWholeInAQuarterOfItsMemory) {
  using Clock = std::chrono::steady_clock;
  if (!host::userfault::open() || !host::userfault::serves_kernel()) {
    GTEST_SKIP() << "userfaultfd does not serve system calls here, and no preload object does";
  }
  constexpr u64 kMegabytes = 8;
  const std::string folder = std::filesystem::temp_directory_path();
  const auto file = mem::SwapFile::create(folder.c_str());
  ASSERT_TRUE(file);
  const int seen = ::dup(*file);
  const u64 limit = kMegabytes * (u64{1} << 20) / 4;
  ASSERT_TRUE(reclaim::start({.memory_limit = limit, .swap_fd = *file}));
  const std::string seed = std::to_string(test::announced_seed("swapping guest"));
  const auto ms = static_cast<u64>(test::test_seconds() * 1000);
  std::string words[] = {"swapping_vmm", std::to_string(kMegabytes), std::to_string(ms), seed};
  char* arguments[] = {words[0].data(), words[1].data(), words[2].data(), words[3].data(), nullptr};
  const auto begun = Clock::now();
  EXPECT_EQ(0, swapping_main(4, arguments));
  EXPECT_GE(Clock::now() - begun, std::chrono::milliseconds(ms)) << "of a guest at work";
  const reclaim::Statistics now = reclaim::statistics();
  std::printf("%lu refaults, %lu of them private, %lu KiB on disk\n", now.refaults,
              now.private_refaults, now.on_disk >> 10);
  EXPECT_GT(now.refaults, 100U) << "seed " << seed;
  EXPECT_GT(now.private_refaults, 0U) << "seed " << seed;
  EXPECT_GT(now.on_disk, 0U) << "half of the pattern does not get smaller";
  EXPECT_GT(blocks_of(seen), 0U);
  EXPECT_EQ(0U, now.lost) << "seed " << seed;
  ::close(seen);
}

}  // namespace
}  // namespace stagetwo
