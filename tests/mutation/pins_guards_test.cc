// SPDX-License-Identifier: Apache-2.0
// Without its guards a pinned page is taken away, a pin stands for an address instead of a page, or
// a slot is given back while a change has it in hand. Searches run in a child, since a failing
// schedule leaves locks held.
#include "host/access.h"
#include "host/backstop.h"
#include "host/piecewise.h"
#include "host/pin.h"
#include "tests/mutation/broken_without.h"
#include "tests/sched/pins_scenarios.h"
#include "tests/support/failing_calls.h"
#include "tests/support/one_place_owner.h"

namespace stagetwo::test {
namespace {

template <typename Scenario>
bool found_without(const char* guard) {
  return broken_without({guard}, [] { return search<Scenario>(5000).found; });
}

// How many of the pages a device has are taken from it.
u64 taken_of_pinned() {
  static OnePlaceOwner taker;
  static GuardedPages page(1);
  *page.bytes_at(0) = 1;
  if (!host::backstop::install()) return 0;
  const HvaRange range(Hva(page.address()), kPageSize);
  host::FrameRun run;
  if (!host::pin_pages(range, {.write = true}, &run, 1)) return 0;
  const auto taken = host::take_away(range, &taker, &taker, host::Which::kAnonymous);
  return taken ? *taken : 0;
}

TEST(PinsKeep, WithoutItAnOwnerTakesAPinnedPage) {
  EXPECT_FALSE(broken_without({}, [] { return taken_of_pinned() != 0; }));
  EXPECT_TRUE(broken_without({"pins_keep"}, [] { return taken_of_pinned() != 0; }));
}
TEST(PinsKeep, WithoutItThereIsAScheduleInWhichBothHaveThePage) {
  EXPECT_TRUE(found_without<PinAgainstTaker>("pins_keep"));
}
TEST(PinsDisturbed, WithoutItAPinMeansAnAddressInsteadOfAPage) {
  EXPECT_TRUE(found_without<PinAgainstChange>("pins_disturbed"));
}
TEST(PinsDevices, WithoutTheWaitForThemAStoreGoesToTheWrongPage) {
  EXPECT_TRUE(found_without<SlowDeviceAgainstChange>("pins_devices"));
  EXPECT_TRUE(found_without<RememberingDeviceAgainstChange>("pins_moves"));
}

// Does a pinned page come back over what was mapped when the call that unmapped it had failed?
bool covers_another_mapping() {
  if (!host::backstop::install()) return false;
  void* at = mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  *static_cast<u8*>(at) = 1;
  const HvaRange page(Hva(reinterpret_cast<u64>(at)), kPageSize);
  host::FrameRun run;
  if (!host::pin_pages(page, {.write = true}, &run, 1)) return false;
  host::change(page.start().raw(), kPageSize, host::EventKind::kUnmap, [&] {
    void* failed = map_socket_over(at, kPageSize);
    mmap(at, kPageSize, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    return failed;
  });
  return *static_cast<u8*>(at) != 0;
}
TEST(PinsFailed, WithoutTheLookAtWhatStandsAPageCoversAnotherMapping) {
  EXPECT_FALSE(broken_without({}, covers_another_mapping));
  EXPECT_TRUE(broken_without({"pins_failed"}, covers_another_mapping));
}

// Pages 0 to 15, the call's eight and their target, of which [first, first + pages) are pinned.
host::FrameRun pinned_run;
u8* pinned_area(u64 first, u64 pages) {
  auto* at = static_cast<u8*>(
      mmap(nullptr, 16 * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  for (u64 i = 0; i < 16; ++i) at[i * kPageSize] = static_cast<u8>(i + 1);
  const HvaRange pinned(Hva(reinterpret_cast<u64>(at) + first * kPageSize), pages * kPageSize);
  const bool done =
      host::backstop::install() && host::pin_pages(pinned, {.write = true}, &pinned_run, 1);
  return done ? at : nullptr;
}
// The kernel discards the first four pages and refuses the others.
bool a_pin_loses_what_is_discarded() {
  u8* const at = pinned_area(0, 4);
  if (at == nullptr || mlock(at + 4 * kPageSize, 4 * kPageSize) != 0) return false;
  host::discard(reinterpret_cast<u64>(at), 8 * kPageSize, MADV_DONTNEED, [](u64 start, u64 size) {
    return madvise(reinterpret_cast<void*>(start), size, MADV_DONTNEED);
  });
  u8 byte = 0;
  return at[0] != 0 || !host::read_frame(pinned_run.first, 0, &byte, 1) || byte != 1;
}
// Nothing is moved to the target of the gap.
bool what_stands_in_a_gap_is_lost() {
  u8* const at = pinned_area(8, 8);
  if (at == nullptr) return false;
  munmap(at + 4 * kPageSize, kPageSize);
  const u64 from = reinterpret_cast<u64>(at);
  const host::Remap call{from, 8 * kPageSize, 8 * kPageSize, MREMAP_MAYMOVE | MREMAP_FIXED,
                         from + 8 * kPageSize};
  host::remap(
      call,
      [](const host::Remap& one) {
        return mremap(reinterpret_cast<void*>(one.from), one.size, one.new_size, one.flags,
                      reinterpret_cast<void*>(one.to));
      },
      [](void* there, u64) { return there; });
  u8 byte = 0;
  return !host::load(Hva(from + 12 * kPageSize), &byte) || byte != 13;
}
TEST(ByMapping, WithoutItAPinLosesWhatARefusedCallHasDiscarded) {
  EXPECT_FALSE(broken_without({}, a_pin_loses_what_is_discarded));
  EXPECT_TRUE(broken_without({"by_mapping"}, a_pin_loses_what_is_discarded));
}
TEST(ByMapping, WithoutItWhatStandsInTheGapOfAMoveIsLost) {
  EXPECT_FALSE(broken_without({}, what_stands_in_a_gap_is_lost));
  EXPECT_TRUE(broken_without({"by_mapping"}, what_stands_in_a_gap_is_lost));
}

// Is memory pinned for writing that the client may only read by now?
bool pins_what_it_once_saw() {
  u8* at = pinned_area(0, 1);
  // Not over the border of what is looked at at once.
  if (reinterpret_cast<u64>(at) / kPageSize % 512 > 509) at = pinned_area(0, 1);
  if (at == nullptr) return false;
  const Hva start(reinterpret_cast<u64>(at));
  host::FrameRun run;
  if (!host::pin_pages(HvaRange(start + kPageSize, kPageSize), {.write = true}, &run, 1)) {
    return false;
  }
  host::change(start.raw() + 2 * kPageSize, kPageSize, host::EventKind::kProtection,
               [&] { return mprotect(at + 2 * kPageSize, kPageSize, PROT_READ); });
  const HvaRange third(start + 2 * kPageSize, kPageSize);
  return host::pin_pages(third, {.write = true}, &run, 1).has_value();
}
TEST(PinsKnown, WithoutItAPinBelievesWhatAChangeMadeUntrue) {
  EXPECT_FALSE(broken_without({}, pins_what_it_once_saw));
  EXPECT_TRUE(broken_without({"pins_known"}, pins_what_it_once_saw));
}

TEST(PinsUnpinHeld, WithoutItASlotIsGivenBackWhileAChangeHasIt) {
  EXPECT_TRUE(found_without<UnpinAgainstChange>("pins_unpin_held"));
}

}  // namespace
}  // namespace stagetwo::test
