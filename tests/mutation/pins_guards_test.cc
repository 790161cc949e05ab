// SPDX-License-Identifier: Apache-2.0
// Without its guards a pinned page is taken away, a pin stands for an address instead of a page, or
// a slot is given back while a change has it in hand. Searches run in a child, since a failing
// schedule leaves locks held.
#include "host/backstop.h"
#include "host/pin.h"
#include "tests/mutation/broken_without.h"
#include "tests/sched/pins_scenarios.h"
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
TEST(PinsDisturbed, WithoutItAPinMeansAnAddressInsteadOfAPage) {
  EXPECT_TRUE(found_without<PinAgainstChange>("pins_disturbed"));
}
TEST(PinsUnpinHeld, WithoutItASlotIsGivenBackWhileAChangeHasIt) {
  EXPECT_TRUE(found_without<UnpinAgainstChange>("pins_unpin_held"));
}

}  // namespace
}  // namespace stagetwo::test
