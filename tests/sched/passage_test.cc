// SPDX-License-Identifier: Apache-2.0
// Passages: what was taken away before a wait is not used after it.

#include "tests/sched/passage_scenarios.h"

namespace stagetwo::test {
namespace {

TEST(Passage, NothingIsUsedAfterTheWait) {
  expect_holds<OrderedSections<1>>(1500);
}
TEST(Passage, NothingIsUsedAfterTheWaitInAnyCell) {
  expect_holds<OrderedSections<3>>(1000);
}
TEST(Passage, WhatIsReadByAcquiringIsNotUsedAfterItsWait) {
  expect_holds<AcquiringSections<1>>(1500);
}
TEST(Passage, WhatIsReadByAcquiringIsNotUsedAfterItsWaitInAnyCell) {
  expect_holds<AcquiringSections<3>>(1000);
}
TEST(PassageTwin, AnAcquiringReadOfWhatWasPublishedIsFound) {
  expect_found<SectionsAgainstWaiters<1, sync::kAcquire, PassageWait::kAny>>();
}

}  // namespace
}  // namespace stagetwo::test
