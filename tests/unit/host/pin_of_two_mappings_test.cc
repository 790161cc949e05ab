// SPDX-License-Identifier: Apache-2.0
// Pinned pages in several mappings of the kernel's: a neighbour that went to a device, or was asked
// for, leaves its part of the client's one mapping watched.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cerrno>

#include "host/backstop.h"
#include "host/change.h"
#include "host/pin.h"
#include "host/userfault.h"
#include "tests/support/pages.h"

namespace stagetwo {
namespace {

class PinsOfTwoMappings : public testing::Test {
 protected:
  static constexpr size_t kPages = 3;
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    for (size_t i = 0; i < kPages; ++i) byte(i) = static_cast<u8>(i + 1);
    const auto done =
        host::pin_pages(range(0, kPages), {.write = true, .long_term = true}, run_, 4);
    ASSERT_TRUE(done && done->pages == kPages);
    runs_ = done->runs;
    ASSERT_TRUE(host::userfault::open());
    ASSERT_TRUE(host::userfault::watch(range(1, 1)));
  }
  void TearDown() override {
    for (unsigned i = 0; i < runs_; ++i) host::unpin_pages(run_[i]);
    EXPECT_EQ(0U, host::pin_use().pages);
  }
  HvaRange range(size_t first, size_t pages) const {
    return HvaRange(Hva(memory_.address()) + first * kPageSize, pages * kPageSize);
  }
  u8& byte(size_t i) const { return *static_cast<u8*>(memory_.bytes_at(i * kPageSize)); }
  // What the device finds in the page.
  int devices(size_t page) const {
    for (unsigned i = 0; i < runs_; page -= run_[i++].pages) {
      u8 value = 0;
      if (page >= run_[i].pages) continue;
      return host::read_frame(run_[i].first + page, 0, &value, 1) ? value : -1;
    }
    return -1;
  }
  // munmap, or one that fails.
  int unmap(bool fails) const {
    const HvaRange all = range(0, kPages);
    return host::change(all.start().raw(), all.size(), host::EventKind::kUnmap, [&] {
      errno = ENOMEM;
      return fails ? -1 : ::munmap(memory_.pointer(), kPages * kPageSize);
    });
  }

  test::GuardedPages memory_{kPages};
  host::FrameRun run_[4];
  unsigned runs_ = 0;
};

// Linux 6.17 and later move the first mapping and refuse the second.
TEST_F(PinsOfTwoMappings, SurviveMunmap) {
  ASSERT_EQ(0, unmap(false));
  for (size_t i = 0; i < kPages; ++i) EXPECT_EQ(static_cast<int>(i + 1), devices(i));
}
TEST_F(PinsOfTwoMappings, ComeBackWhenMunmapFails) {
  ASSERT_EQ(-1, unmap(true));
  for (size_t i = 0; i < kPages; ++i) {
    EXPECT_EQ(static_cast<int>(i + 1), devices(i));
    EXPECT_EQ(i + 1, byte(i));
    byte(i) = 99;
    EXPECT_EQ(99, devices(i)) << "they are one page";
  }
}

// Private memory of two mappings, and shared memory beside it.
TEST_F(PinsOfTwoMappings, AreCountedWhereTheClientHasThem) {
  EXPECT_EQ(host::pinned_in(range(0, kPages)).pages, kPages);
  const auto last = host::pinned_in(range(2, 1));
  EXPECT_EQ(last.pages, 1U);
  EXPECT_EQ(last.first.raw(), memory_.address() + 2 * kPageSize);
  EXPECT_EQ(unmap(false), 0);
  EXPECT_EQ(host::pinned_in(range(0, kPages)).pages, 0U);
  void* const shared =
      ::mmap(nullptr, 4 * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  const HvaRange all(Hva(reinterpret_cast<u64>(shared)), 4 * kPageSize);
  host::FrameRun run;
  const auto pinned =
      host::pin_pages(HvaRange(all.start() + kPageSize, 2 * kPageSize), {}, &run, 1);
  ASSERT_TRUE(pinned && pinned->pages == 2);
  EXPECT_EQ(host::pinned_in(all).pages, 2U);
  EXPECT_EQ(host::pinned_in(all).first, all.start() + kPageSize);
  host::unpin_pages(run);
  EXPECT_EQ(host::pinned_in(all).pages, 0U);
  ::munmap(shared, 4 * kPageSize);
}

}  // namespace
}  // namespace stagetwo
