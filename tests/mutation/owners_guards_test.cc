// SPDX-License-Identifier: Apache-2.0
// Without its guards an absent page comes back twice, or with bytes the client has given up. The
// search runs in a child, since a failing schedule leaves locks held.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "base/guard.h"
#include "host/backstop.h"
#include "host/change.h"
#include "host/piecewise.h"
#include "host/process_map.h"
#include "host/shared_objects.h"
#include "host/userfault.h"
#include "tests/mutation/broken_without.h"
#include "tests/sched/owners_scenarios.h"
#include "tests/support/failing_calls.h"
#include "tests/support/one_place_owner.h"
#include "tests/support/registered_buffer.h"

namespace stagetwo::test {
namespace {

template <typename Scenario>
bool found_without(const char* guard) {
  return broken_without({guard}, [] { return search<Scenario>(20000).found; });
}

TEST(OwnersFilling, WithoutTheStageTwoTouchersBringThePageBack) {
  EXPECT_TRUE(found_without<ManyTouchers>("owners_filling"));
}
TEST(OwnersChange, WithoutTheRefusalOldBytesComeBack) {
  EXPECT_TRUE(found_without<ChangeAgainstTouchAndTake>("owners_change"));
}
TEST(OwnersSettle, WithoutTheClaimTwoChangesDiscardThePage) {
  EXPECT_TRUE(found_without<ChangeAgainstChange>("owners_settle"));
}
TEST(OwnersClosing, WithoutTheLookAtTheOtherBytesComeBackThatItGaveUp) {
  EXPECT_TRUE(found_without<ChangeAgainstFailure>("owners_closing"));
}
TEST(OwnersHold, WithoutTheRefusalAPageLeavesUnderASystemCall) {
  EXPECT_TRUE(found_without<HoldAgainstTaker>("owners_hold"));
}

TEST(FootingStands, WithoutTheRefusalAThreadsOwnStackGoes) {
  EXPECT_TRUE(found_without<FootingAgainstFirstTaker>("footing_stands"));
}
TEST(FootingWaits, WithoutTheWaitATakerThatHadLookedTakesIt) {
  EXPECT_TRUE(found_without<FootingAgainstTaker>("footing_waits"));
}
TEST(FootingCounts, WithoutTheCountItIsBelievedToBeThereStill) {
  EXPECT_TRUE(found_without<FootingAgainstTaker>("footing_counts"));
}

// A taker that looked before a change must not take after it.
struct StaleLook : OwnersWorld {
  static bool takes() {
    StaleLook world;
    return world.takes_after_a_change();
  }

 private:
  bool takes_after_a_change() {
    touch();
    const u32 looked = table_.layout();
    give_up();
    return take_once(looked);
  }
};
TEST(OwnersLayout, WithoutTheSecondLookAPageOfAnotherMappingIsTaken) {
  EXPECT_FALSE(StaleLook::takes());
  mutation::remove("owners_layout");
  EXPECT_TRUE(StaleLook::takes());
  mutation::restore_all();
}

// Is memory watched that a thread in the engine stands on, and that it may touch first of all with
// a lock held?
bool watches_what_is_stood_on() {
  constexpr u64 kMany = 32;
  GuardedPages memory(kMany);
  *memory.bytes_at(0) = 1;
  const HvaRange all(Hva(memory.address()), kMany * kPageSize);
  const HvaRange stack(all.start() + 8 * kPageSize, 8 * kPageSize);
  host::Footings footings;
  host::OwnerTable table(footings);
  const auto mapping = host::mapping_at(all.start());
  u32 hint = 0;
  static_cast<void>(footings.enter({host::packed(stack), 0, 0}, &hint));
  table.begin_take();
  const bool watched = table.watch(all, host::kPrivateMemory, *mapping).has_value();
  table.end_take();
  return watched;
}
TEST(FootingWatch, WithoutTheLookAFirstTouchUnderALockAsksUs) {
  if (!host::userfault::open()) GTEST_SKIP() << "userfaultfd is denied here";
  EXPECT_FALSE(watches_what_is_stood_on());
  mutation::remove("footing_watch");
  EXPECT_TRUE(watches_what_is_stood_on());
  mutation::restore_all();
}

// The first byte of memory that was mapped where a call had failed and unmapped absent pages, after
// it was taken and touched in its turn.
int byte_after_a_failed_change() {
  void* at = mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  *static_cast<u8*>(at) = 8;
  OnePlaceOwner owner;
  const HvaRange page(Hva(reinterpret_cast<u64>(at)), kPageSize);
  host::userfault::debug_deny(true);
  EXPECT_EQ(1u, *host::take_away(page, &owner, &owner, host::Which::kAnonymous));
  host::change(page.start().raw(), kPageSize, host::EventKind::kUnmap,
               [&] { return map_socket_over(at, kPageSize); });
  EXPECT_EQ(at, mmap(at, kPageSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
  host::bring_back_range(page);
  mprotect(at, kPageSize, PROT_READ);
  const int byte = *static_cast<u8*>(at);
  host::userfault::debug_deny(false);
  munmap(at, kPageSize);
  return byte;
}

TEST(OwnersFailed, WithoutTheLookAtWhatStandsOldBytesComeBackAfterAFailedChange) {
  EXPECT_EQ(0, byte_after_a_failed_change());
  mutation::remove("owners_failed");
  EXPECT_EQ(8, byte_after_a_failed_change());
  mutation::restore_all();
}

// Pages of one mapping.
struct OneMapping {
  static constexpr u64 kPages = 8;
  OneMapping() {
    // A border of its own on both sides.
    mprotect(at, kPageSize, PROT_NONE);
    mprotect(page(kPages - 1), kPageSize, PROT_NONE);
    for (u64 i = 1; i < kPages - 1; ++i) *page(i) = 8;
  }
  ~OneMapping() { munmap(at, kPages * kPageSize); }
  OneMapping(const OneMapping&) = delete;
  OneMapping& operator=(const OneMapping&) = delete;
  [[nodiscard]] u8* page(u64 i) const { return at + i * kPageSize; }
  [[nodiscard]] HvaRange range(u64 first, u64 pages) const {
    return HvaRange(Hva(reinterpret_cast<u64>(page(first))), pages * kPageSize);
  }
  u8* at = static_cast<u8*>(
      mmap(nullptr, kPages* kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
};

// Does mremap take pages of one mapping, of which some are watched?
bool moves_over_a_border() {
  OneMapping memory;
  OnePlaceOwner owner;
  const HvaRange watched = memory.range(1, 3);
  static_cast<void>(
      host::take_away(memory.range(1, 1), &owner, &owner, host::Which::kPresent, &watched));
  const u64 from = memory.range(3, 1).start().raw();
  void* const there = host::remap(
      {from, 2 * kPageSize, 3 * kPageSize, MREMAP_MAYMOVE, 0},
      [](const host::Remap& one) {
        return mremap(reinterpret_cast<void*>(one.from), one.size, one.new_size, one.flags);
      },
      [](void* made, u64) { return made; });
  if (there != MAP_FAILED) munmap(there, 3 * kPageSize);
  host::bring_back_range(watched);
  return there != MAP_FAILED;
}

TEST(OwnersUndivided, WithoutTheEndOfWatchingMremapMeetsABorderOfOurs) {
  if (!host::userfault::open()) GTEST_SKIP() << "userfaultfd is denied here";
  EXPECT_TRUE(moves_over_a_border());
  mutation::remove("owners_undivided");
  EXPECT_FALSE(moves_over_a_border());
  mutation::restore_all();
}

// Between two pieces touched apart a hole is filled while a page of the first is away: has that
// become one mapping with the first?
bool fills_a_hole_as_untaken() {
  constexpr int kBoth = PROT_READ | PROT_WRITE;
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
  OneMapping memory;
  // What was beside them would be what they have in common.
  munmap(memory.at, OneMapping::kPages * kPageSize);
  for (const u64 first : {u64{1}, u64{5}}) {
    mmap(memory.page(first), 2 * kPageSize, kBoth, kFlags, -1, 0);
    *memory.page(first) = *memory.page(first + 1) = 8;
  }
  OnePlaceOwner owner;
  static_cast<void>(host::take_away(memory.range(2, 1), &owner, &owner, host::Which::kPresent));
  host::replace(memory.range(3, 2).start().raw(), 2 * kPageSize,
                [&] { return mmap(memory.page(3), 2 * kPageSize, kBoth, kFlags, -1, 0); });
  host::join_watched(memory.range(3, 2), true);
  host::bring_back_range(memory.range(2, 1));
  const auto shown = host::shown_mapping_at(memory.range(3, 1).start());
  return shown && shown->range == memory.range(1, 4);
}

TEST(OwnersEvenSides, WithoutThemAFilledHoleBecomesOneWithTheWrongSide) {
  EXPECT_TRUE(fills_a_hole_as_untaken());
  mutation::remove("owners_even_sides");
  EXPECT_FALSE(fills_a_hole_as_untaken());
  mutation::restore_all();
}

// Looks at the mapping while pages of it are taken, and takes none.
class LookingOwner final : public host::PageOwner {
 public:
  bool take(const host::AbsentPage& page, host::PageExit&) override {
    const auto shown = host::shown_mapping_at(page.at);
    border = border || (shown && shown->range.size() != 6 * kPageSize);
    return false;
  }
  host::BringBack bring_back(const host::AbsentPage&, host::PageEntry&) override {
    return host::BringBack::kLost;
  }
  void discard(const host::AbsentPage&) override {}
  bool border = false;
};

bool border_under_an_open_change() {
  OneMapping memory;
  LookingOwner owner;
  const host::OwnedChange change(memory.range(3, 2), host::Announced::kMoves);
  static_cast<void>(host::take_away(memory.range(2, 3), &owner, &owner, host::Which::kPresent));
  return owner.border;
}

TEST(OwnersWatch, WithoutTheRefusalABorderComesUnderAnMremap) {
  if (!host::userfault::open()) GTEST_SKIP() << "userfaultfd is denied here";
  EXPECT_FALSE(border_under_an_open_change());
  mutation::remove("owners_watch");
  EXPECT_TRUE(border_under_an_open_change());
  mutation::restore_all();
}

// What the kernel says it has read into a page, and what the page has then.
int byte_that_the_kernel_wrote() {
  void* at = mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  *static_cast<u8*>(at) = 8;
  RegisteredBuffer buffer(at, kPageSize);
  if (!buffer.usable()) return -1;
  OnePlaceOwner owner;
  const HvaRange page(Hva(reinterpret_cast<u64>(at)), kPageSize);
  host::userfault::debug_deny(true);
  static_cast<void>(host::take_away(page, &owner, &owner, host::Which::kAnonymous));
  const int file = file_of(0x77, kPageSize);
  EXPECT_EQ(static_cast<int>(kPageSize), buffer.read(file, kPageSize));
  close(file);
  host::bring_back_range(page);
  const int byte = *static_cast<u8*>(at);
  host::userfault::debug_deny(false);
  munmap(at, kPageSize);
  return byte;
}

TEST(OwnersKernelPins, WithoutTheLookWhatTheKernelReadsIntoAPageIsLost) {
  if (byte_that_the_kernel_wrote() < 0) GTEST_SKIP() << "io_uring is not to be had here";
  EXPECT_EQ(0x77, byte_that_the_kernel_wrote());
  mutation::remove("owners_kernel_pins");
  EXPECT_EQ(8, byte_that_the_kernel_wrote());
  mutation::restore_all();
}

// Increments of three writers that are lost while their page of shared memory is taken and touched.
u64 lost_increments() {
  const int file = memfd_create("writers", MFD_CLOEXEC);
  EXPECT_EQ(0, ftruncate(file, kPageSize));
  host::shared_file_made(file);
  void* at = mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  auto* words = static_cast<std::atomic<u64>*>(at);
  OnePlaceOwner owner;
  std::atomic<bool> stop{false};
  u64 sums[3] = {};
  std::vector<std::thread> writers;
  for (int t = 0; t < 3; ++t) {
    writers.emplace_back([&, t] {
      for (; !stop; ++sums[t]) words[t * 16].fetch_add(1);
    });
  }
  const Deadline deadline(0.25);
  const HvaRange page(Hva(reinterpret_cast<u64>(at)), kPageSize);
  while (deadline.running()) {
    static_cast<void>(host::take_away(page, &owner, &owner, host::Which::kAll));
    std::this_thread::yield();
  }
  stop = true;
  for (auto& writer : writers) writer.join();
  u64 lost = 0;
  for (int t = 0; t < 3; ++t) lost += sums[t] - words[t * 16].load();
  munmap(at, kPageSize);
  close(file);
  return lost;
}

// A busy machine may need more than one try.
bool loses_increments() {
  for (int round = 0; round < 20; ++round) {
    if (lost_increments() != 0) return true;
  }
  return false;
}

// The three orders of taking by a copy: protect, copy, drop; copy, drop; copy, protect, drop.
TEST(OwnersWriteProtect, WithoutItStoresAreLost) {
  if (!host::userfault::open()) GTEST_SKIP() << "userfaultfd is denied here";
  EXPECT_EQ(0u, lost_increments());
  mutation::remove("owners_write_protect");
  EXPECT_TRUE(loses_increments());
  mutation::restore_all();
}
TEST(OwnersProtectFirst, AfterTheCopyItIsTooLateAndStoresAreLost) {
  if (!host::userfault::open()) GTEST_SKIP() << "userfaultfd is denied here";
  mutation::remove("owners_protect_first");
  EXPECT_TRUE(loses_increments());
  mutation::restore_all();
}

}  // namespace
}  // namespace stagetwo::test
