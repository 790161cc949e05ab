// SPDX-License-Identifier: Apache-2.0
// Without its guards a pinned page is taken away, a pin stands for an address instead of a page, or
// a slot is given back while a change has it in hand. Searches run in a child, since a failing
// schedule leaves locks held.
#include "host/backstop.h"
#include "host/change.h"
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
TEST(PinsUnpinHeld, WithoutItASlotIsGivenBackWhileAChangeHasIt) {
  EXPECT_TRUE(found_without<UnpinAgainstChange>("pins_unpin_held"));
}

}  // namespace
}  // namespace stagetwo::test
