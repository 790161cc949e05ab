// SPDX-License-Identifier: Apache-2.0
// Without its guards a pinned page is taken away, a pin stands for an address instead of a page, or
// a slot is given back while a change has it in hand. Searches run in a child, since a failing
// schedule leaves locks held.
#include <sys/wait.h>
#include <unistd.h>

#include "base/guard.h"
#include "host/backstop.h"
#include "host/pin.h"
#include "tests/sched/pins_scenarios.h"

namespace stagetwo::test {
namespace {

template <typename F>
bool broken_without(const char* guard, F&& is_broken) {
  const pid_t child = fork();
  if (child == 0) {
    mutation::remove(guard);
    _exit(is_broken() ? 1 : 2);
  }
  int status = 0;
  waitpid(child, &status, 0);
  // A broken world may also end by one of its own checks.
  return WIFSIGNALED(status) || WEXITSTATUS(status) == 1;
}
template <typename Scenario>
bool found_without(const char* guard) {
  return broken_without(guard, [] { return search<Scenario>(5000).found; });
}

// Takes whatever it is offered.
class Taker final : public host::PageOwner {
 public:
  bool take(const host::AbsentPage&, host::PageExit& exit) override {
    return exit.to(Hva(place_.address()));
  }
  host::BringBack bring_back(const host::AbsentPage&, host::PageEntry& entry) override {
    return entry.from(Hva(place_.address())) ? host::BringBack::kBack : host::BringBack::kRetry;
  }
  void discard(const host::AbsentPage&) override {}

 private:
  GuardedPages place_{1};
};

// How many of the pages a device has are taken from it.
u64 taken_of_pinned() {
  static Taker taker;
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
  EXPECT_FALSE(broken_without("none", [] { return taken_of_pinned() != 0; }));
  EXPECT_TRUE(broken_without("pins_keep", [] { return taken_of_pinned() != 0; }));
}
TEST(PinsDisturbed, WithoutItAPinMeansAnAddressInsteadOfAPage) {
  EXPECT_TRUE(found_without<PinAgainstChange>("pins_disturbed"));
}
TEST(PinsUnpinHeld, WithoutItASlotIsGivenBackWhileAChangeHasIt) {
  EXPECT_TRUE(found_without<UnpinAgainstChange>("pins_unpin_held"));
}

}  // namespace
}  // namespace stagetwo::test
