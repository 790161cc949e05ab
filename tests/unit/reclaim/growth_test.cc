// SPDX-License-Identifier: Apache-2.0
// Goal: memory that a guest gets by its process's own first touches is paid for, as a guest's own
// is, from the first page on.
#include <sys/syscall.h>
#include <unistd.h>

#include "reclaim/reclaim.h"
#include "tests/support/reclaimed_guest.h"

namespace stagetwo {
namespace {

using test::kMiB;

// Of an image that the process reads into its guest in one call as soon as it has one.
class Growth : public test::ReclaimedGuest {
 protected:
  static constexpr size_t kImage = 4096;  // 16 MiB
  void reads_an_image(int flags) {
    const int image = static_cast<int>(::syscall(SYS_memfd_create, "image", 0));
    ASSERT_EQ(0, ::ftruncate(image, kImage << kPageShift));
    u8 page[kPageSize];
    for (size_t i = 0; i < kImage; ++i) {
      fill(page, i);
      ASSERT_EQ(kPageSize, ::pwrite(image, page, kPageSize, static_cast<off_t>(i << kPageShift)));
    }
    start(4 * kMiB);
    u8* const memory = map(kImage, flags);
    ASSERT_TRUE(guest_->use(0, range_of(memory, kImage)));
    ASSERT_TRUE(soon([&] { return host::userfault::is_watched(range_of(memory, 1).start()); }));
    std::atomic<bool> stop{false};
    u64 most = 0;
    std::thread sampler([&] {
      u64 bits[kImage / 64];
      while (!stop) {
        const bool shared = flags == MAP_SHARED;
        most = std::max(most, *host::resident_pages(range_of(memory, kImage), shared, bits));
        std::this_thread::sleep_for(std::chrono::microseconds(500));
      }
    });
    const ssize_t got = ::read(image, memory, kImage << kPageShift);
    stop = true;
    sampler.join();
    ::close(image);
    EXPECT_EQ(static_cast<ssize_t>(kImage << kPageShift), got);
    EXPECT_LE(most << kPageShift, 4 * kMiB * 105 / 100 + kMiB);
    size_t wrong = 0;
    for (size_t i = 0; i < kImage; ++i) wrong += is_filled(memory + (i << kPageShift), i) ? 0U : 1U;
    EXPECT_EQ(0U, wrong);
  }
};

TEST_F(Growth, IsKnownWhenWhoMadeTheSlotHasItsAnswer) {
  start(4 * kMiB);
  for (int slot = 0; slot < 20; ++slot) {
    u8* const memory = map(kImage, MAP_PRIVATE);
    ASSERT_TRUE(guest_->use(static_cast<u32>(slot), range_of(memory, kImage)));
    reclaim::wait_for_turn();
    EXPECT_TRUE(host::userfault::is_watched(range_of(memory, 1).start())) << slot;
  }
}
TEST_F(Growth, OfPrivateMemoryIsPaidFor) {
  if (!host::userfault::serves_kernel()) GTEST_SKIP() << "userfaultfd serves user mode only here";
  reads_an_image(MAP_PRIVATE);
}
TEST_F(Growth, OfSharedMemoryIsPaidFor) {
  if (!host::userfault::serves_kernel()) GTEST_SKIP() << "userfaultfd serves user mode only here";
  reads_an_image(MAP_SHARED);
}

}  // namespace
}  // namespace stagetwo
