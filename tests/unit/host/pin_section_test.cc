// SPDX-License-Identifier: Apache-2.0
// A device's section over many pages: as far as they stand behind one another, and no further.
#include <gtest/gtest.h>

#include <thread>

#include "host/access.h"
#include "host/backstop.h"
#include "host/change.h"
#include "host/pin.h"
#include "tests/support/pages.h"

namespace stagetwo {
namespace {

TEST(PinSection, ReachesPagesBehindOneAnotherAtOnce) {
  constexpr u64 kPages = 600;  // of more than one block
  ASSERT_TRUE(host::backstop::install());
  const test::GuardedPages memory(kPages);
  const auto hva = [&](u64 page) { return Hva(memory.address() + page * kPageSize); };
  host::FrameRun runs[8];
  const HvaRange all(hva(0), kPages * kPageSize);
  const auto pinned = host::pin_pages(all, {.write = true}, runs, 8);
  ASSERT_TRUE(pinned);
  ASSERT_EQ(pinned->pages, kPages);
  const auto reached = [&](u64 first, u64 pages, Access access = Access::kRead) {
    const host::FrameSection section;
    const auto at = section.at(*host::frame_at(hva(first)), access, &pages);
    if (at) {
      EXPECT_EQ(*at, hva(first));
    }
    return at ? pages : 0;
  };
  const u64 in_first = runs[0].pages;
  EXPECT_EQ(reached(0, in_first), in_first);
  EXPECT_EQ(reached(3, 1), 1u);
  const u64 a = in_first > 20 ? 3 : in_first + 3;  // ten pages of one run from here on
  EXPECT_EQ(reached(a, 10, Access::kWrite), 10u);
  const auto change = [&](u64 page, host::EventKind kind, auto&& how) {
    ASSERT_EQ(host::change(hva(page).raw(), kPageSize, kind, how), 0);
  };
  void* const fifth = reinterpret_cast<void*>(hva(a + 5).raw());
  void* const third = reinterpret_cast<void*>(hva(a + 3).raw());
  change(a + 5, host::EventKind::kProtection,
         [&] { return mprotect(fifth, kPageSize, PROT_READ); });
  EXPECT_EQ(reached(a, 10), 10u);
  EXPECT_EQ(reached(a, 10, Access::kWrite), 5u);
  EXPECT_EQ(reached(a + 5, 2, Access::kWrite), 0u);
  change(a + 3, host::EventKind::kUnmap, [&] { return munmap(third, kPageSize); });
  EXPECT_EQ(reached(a, 10), 3u) << "the next is in the store";
  for (unsigned i = 0; i < pinned->runs; ++i) host::unpin_pages(runs[i]);
  EXPECT_EQ(host::pin_use().pages, 0u);
}

// For who remembers where pages are, and for who stays long.
TEST(PinSection, CountsWhatMovesAndSaysSoToWhoIsInside) {
  ASSERT_TRUE(host::backstop::install());
  const test::GuardedPages memory(2);
  const Hva first(memory.address());
  const auto page = host::pin_page(first, {.write = true});
  ASSERT_TRUE(page);
  const auto moves = [] { return host::FrameSection().moves(); };
  const auto unmap = [](Hva at) {
    void* const mapped = reinterpret_cast<void*>(at.raw());
    EXPECT_EQ(host::change(at.raw(), kPageSize, host::EventKind::kUnmap,
                           [&] { return munmap(mapped, kPageSize); }),
              0);
  };
  const u64 before = moves();
  unmap(first + kPageSize);
  EXPECT_EQ(moves(), before) << "nobody has pinned that one";
  std::thread mover;
  {
    const host::FrameSection section;
    mover = std::thread([&] { unmap(first); });
    while (section.moves() == before) std::this_thread::yield();
    u8 byte = 0;
    EXPECT_TRUE(host::load(first, &byte)) << "it waits for the section";
  }
  mover.join();
  EXPECT_EQ(moves(), before + 1);
  host::unpin_pages({page->frame, 1});
}

}  // namespace
}  // namespace stagetwo
