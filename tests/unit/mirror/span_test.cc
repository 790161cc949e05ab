// SPDX-License-Identifier: Apache-2.0
// Where a mirror listens, and what a span's number keeps apart.
#include "mirror/span.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "host/page_owner.h"
#include "tests/unit/mirror/mirror_fixture.h"

namespace stagetwo {
namespace {

class SpanTest : public test::MirrorTest {};

// A mirror hears the bell where it has looked, and nowhere else: in steps of a span.
TEST_F(SpanTest, ListensWhereItHasLooked) {
  EXPECT_EQ(0u, host::debug_interval_count());
  EXPECT_EQ(1, read_page(*one_, 0));
  EXPECT_EQ(1u, host::debug_interval_count());
  int error = 0;
  std::vector<u8> bytes(kPageSize);
  mirror::Transfer done;
  const auto nothing = one_->read(Hva(0x1000), 1, bytes.data(), &done);
  ASSERT_FALSE(nothing);
  EXPECT_EQ(EFAULT, to_int(nothing.error()));
  EXPECT_EQ(1u, host::debug_interval_count()) << "nothing is there to listen to";
  read_page(*two_, 0, nullptr, &error);
  EXPECT_EQ(2u, host::debug_interval_count());
  one_.reset();
  EXPECT_EQ(1u, host::debug_interval_count());
}

TEST_F(SpanTest, AReadAcrossSpansIsOneFault) {
  constexpr u64 kBytes = 2 * mirror::Span::kBytes;
  void* mine = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(MAP_FAILED, mine);
  const u64 start = reinterpret_cast<u64>(mine);
  const u64 border = (start / mirror::Span::kBytes + 1) * mirror::Span::kBytes;
  const Hva first(border - 3 * kPageSize);
  for (u64 i = 0; i < 6; ++i)
    *reinterpret_cast<u8*>(first.raw() + i * kPageSize) = static_cast<u8>(i + 1);
  std::vector<u8> bytes(6 * kPageSize);
  mirror::Transfer done;
  ASSERT_TRUE(one_->read(first, 6, bytes.data(), &done));
  EXPECT_EQ(1u, done.faults);
  for (size_t i = 0; i < 6; ++i) EXPECT_EQ(i + 1, bytes[i * kPageSize]);
  EXPECT_EQ(2u, mirror::MirrorTestAccess::spans(*one_));
  // A change of one side leaves the other's entries, and one of both ends both.
  for (const u64 gone : {u64{1}, u64{2}}) {
    host::change(first.raw(), gone * 3 * kPageSize, host::EventKind::kClear, [] { return 0; });
    mirror::Transfer again;
    static_cast<void>(one_->read_mapped(Hva(border), 3, bytes.data(), &again));
    EXPECT_EQ(gone == 1 ? 3u : 0u, again.pages);
  }
  host::change(start, kBytes, host::EventKind::kUnmap, [&] { return ::munmap(mine, kBytes); });
}

// An entry is suspended until the last of the device's own changes is over: whoever followed one of
// a page that moves would hold the lock that the move waits for.
TEST_F(SpanTest, TwoMigrationsOfOneRangeDoNotOpenEachOthersEntries) {
  std::atomic<bool> stop{false};
  std::vector<std::thread> movers;
  for (int i = 0; i < 2; ++i) {
    movers.emplace_back([&] {
      while (!stop) {
        EXPECT_TRUE(one_->migrate_to_device(range(0, 16)));
        EXPECT_TRUE(one_->migrate_to_system(range(0, 16)));
      }
    });
  }
  for (int round = 0; round < 300; ++round) {
    for (size_t i = 0; i < 16; ++i) ASSERT_EQ(static_cast<int>(i + 1), read_page(*one_, i));
  }
  stop = true;
  for (auto& mover : movers) mover.join();
  for (size_t i = 0; i < 16; ++i) EXPECT_EQ(i + 1, page(i)[0]);
}

// The events of a device are its own for every mirror of it.
TEST_F(SpanTest, AnotherOpenOfTheUnitForgetsOnlyWhatMoved) {
  auto again = std::move(*mirror::Mirror::open(0));
  for (size_t i = 0; i < 2; ++i) ASSERT_EQ(static_cast<int>(i + 1), read_page(*again, i));
  const auto mapped = [&](size_t i) {
    std::vector<u8> bytes(kPageSize);
    mirror::Transfer done;
    return again->read_mapped(at(i), 1, bytes.data(), &done).has_value();
  };
  {
    const host::InvalidateSection nothing_moves(
        {range(0, 2), host::EventKind::kMigrate, mirror::MirrorTestAccess::cookie(*one_)});
    EXPECT_FALSE(mapped(0));
  }
  EXPECT_TRUE(mapped(0));
  ASSERT_TRUE(one_->migrate_to_device(range(0, 1)));
  EXPECT_FALSE(mapped(0));
  EXPECT_TRUE(mapped(1));
}

}  // namespace
}  // namespace stagetwo
