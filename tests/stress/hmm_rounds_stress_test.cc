// SPDX-License-Identifier: Apache-2.0
// Goal: no wrong byte in 1,000 rounds of what the kernel's cases anon_teardown and migrate_multiple
// do, at 60 seconds; hmm_rounds_test.py runs the unmodified cases. Method: the device's ioctls in
// this process, so that a sanitizer sees them.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <thread>
#include <vector>

#include "abi/hmm/hmm.h"
#include "abi/hmm/uapi.h"
#include "host/backstop.h"
#include "host/change.h"
#include "host/descriptor.h"
#include "tests/support/random_source.h"
#include "tests/support/stress_time.h"

namespace stagetwo {
namespace {

constexpr u64 kPages = 256;
constexpr u64 kBytes = kPages * kPageSize;
constexpr u64 kRounds = 1000;

class HmmRounds : public testing::TestWithParam<u32> {
 protected:
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    fd_ = *abi_hmm::open_device(GetParam(), O_RDWR);
    random_ = test::RandomSource(test::announced_seed("HmmRounds"));
  }
  void TearDown() override {
    host::CloseWatch watch(fd_);
    ::close(fd_);
    watch.closed();
  }
  // A buffer of the client, mapped anew each round, mostly at the same address.
  int* map(int round) {
    void* at = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    buffer_ = static_cast<int*>(at);
    for (size_t i = 0; i < kBytes / sizeof(int); ++i) buffer_[i] = static_cast<int>(i) + round;
    return buffer_;
  }
  static void unmap(void* at, u64 bytes) {
    host::change(reinterpret_cast<u64>(at), bytes, host::EventKind::kUnmap,
                 [&] { return ::munmap(at, bytes); });
  }
  long call(unsigned long request) {
    cmd_ = {reinterpret_cast<u64>(buffer_), reinterpret_cast<u64>(mirror_.data()), kPages, 0, 0};
    return host::find(fd_)->ioctl(fd_, request, reinterpret_cast<unsigned long>(&cmd_));
  }
  template <typename Words>
  static void expect_round(const Words& words, int round) {
    for (size_t i = 0; i < kBytes / sizeof(int); ++i) {
      ASSERT_EQ(static_cast<int>(i) + round, words[i]) << "round " << round << ", word " << i;
    }
  }

  int fd_ = -1;
  int* buffer_ = nullptr;
  hmm_dmirror_cmd cmd_{};
  std::vector<int> mirror_ = std::vector<int>(kBytes / sizeof(int));
  test::RandomSource random_{0};
};
std::string unit_name(const testing::TestParamInfo<u32>& unit) {
  return unit.param < 2 ? "Private" : "Coherent";
}
INSTANTIATE_TEST_SUITE_P(Units, HmmRounds, testing::Values(0U, 2U), unit_name);

TEST_P(HmmRounds, HalfOfWhatADeviceReadsIsUnmappedMeanwhile) {
  const auto rounds = static_cast<int>(test::stress_rounds(kRounds));
  int whole = 0;
  for (int round = 0; round < rounds && !HasFatalFailure(); ++round) {
    map(round);
    std::thread unmapper([this, wait = random_.small(32)] {
      if (wait != 0) ::usleep(wait);
      unmap(buffer_ + kBytes / 2 / sizeof(int), kBytes / 2);
    });
    // Any errno, but no other bytes.
    if (call(HMM_DMIRROR_READ) == 0) {
      ++whole;
      expect_round(mirror_, round);
    }
    unmapper.join();
    unmap(buffer_, kBytes / 2);
  }
  std::printf("%d rounds, %d reads came before the unmap\n", rounds, whole);
}

TEST_P(HmmRounds, MemoryGoesToTheDeviceAndBack) {
  const auto rounds = static_cast<int>(test::stress_rounds(kRounds));
  for (int round = 0; round < rounds && !HasFatalFailure(); ++round) {
    map(round);
    ASSERT_EQ(0, call(HMM_DMIRROR_MIGRATE_TO_DEV)) << "round " << round;
    ASSERT_EQ(kPages, cmd_.cpages);
    expect_round(mirror_, round);
    if (GetParam() >= 2) {
      ASSERT_EQ(0, call(HMM_DMIRROR_MIGRATE_TO_SYS)) << "round " << round;
      ASSERT_EQ(kPages, cmd_.cpages);
    }
    expect_round(buffer_, round);
    unmap(buffer_, kBytes);
  }
}

}  // namespace
}  // namespace stagetwo
