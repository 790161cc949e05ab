// SPDX-License-Identifier: Apache-2.0
#pragma once

// The executable contract of a subscriber of the bell: any implementer of host::MmuNotifier runs
// it.
//
//   struct MySubscriber {
//     host::MmuNotifier& notifier();
//     HvaRange mine();           a range it holds translations of
//     HvaRange foreign();        one it does not
//     bool may_use(Hva);         would it use this page now? asks for a translation if it has none
//   };
//   INSTANTIATE_TYPED_TEST_SUITE_P(Mine, NotifierContract, MySubscriber);

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "host/mmu_notifier.h"

namespace stagetwo::test {

template <typename Subscriber>
class NotifierContract : public testing::Test {
 protected:
  Subscriber subscriber_;
  host::InvalidateEvent event(HvaRange range) { return {range, host::EventKind::kUnmap}; }
};
TYPED_TEST_SUITE_P(NotifierContract);

// A subscriber that may hold any page of the process says `static constexpr bool kHoldsAnything`.
TYPED_TEST_P(NotifierContract, IsNotEngagedByAForeignRange) {
  if constexpr (requires { TypeParam::kHoldsAnything; }) {
    GTEST_SKIP() << "no range is foreign to a mirror of the whole address space";
  }
  EXPECT_FALSE(this->subscriber_.notifier().invalidate_range_start(
      this->event(this->subscriber_.foreign())));
}

TYPED_TEST_P(NotifierContract, UsesNothingOfTheRangeBetweenStartAndEnd) {
  auto& s = this->subscriber_;
  ASSERT_TRUE(s.may_use(s.mine().start()));
  const auto event = this->event(s.mine());
  ASSERT_TRUE(s.notifier().invalidate_range_start(event));
  EXPECT_FALSE(s.may_use(s.mine().start()));
  s.notifier().invalidate_range_end(event);
  EXPECT_TRUE(s.may_use(s.mine().start()));
}

TYPED_TEST_P(NotifierContract, StaysClosedUntilTheLastOfNestedEnds) {
  auto& s = this->subscriber_;
  const auto event = this->event(s.mine());
  ASSERT_TRUE(s.notifier().invalidate_range_start(event));
  ASSERT_TRUE(s.notifier().invalidate_range_start(event));
  s.notifier().invalidate_range_end(event);
  EXPECT_FALSE(s.may_use(s.mine().start()));
  s.notifier().invalidate_range_end(event);
  EXPECT_TRUE(s.may_use(s.mine().start()));
}

TYPED_TEST_P(NotifierContract, AStartOfAnotherThreadIsNotHeldUpByAnOpenOne) {
  auto& s = this->subscriber_;
  const auto event = this->event(s.mine());
  ASSERT_TRUE(s.notifier().invalidate_range_start(event));
  std::thread other([&] {
    ASSERT_TRUE(s.notifier().invalidate_range_start(event));
    s.notifier().invalidate_range_end(event);
  });
  other.join();
  s.notifier().invalidate_range_end(event);
}

REGISTER_TYPED_TEST_SUITE_P(NotifierContract, IsNotEngagedByAForeignRange,
                            UsesNothingOfTheRangeBetweenStartAndEnd,
                            StaysClosedUntilTheLastOfNestedEnds,
                            AStartOfAnotherThreadIsNotHeldUpByAnOpenOne);

}  // namespace stagetwo::test
