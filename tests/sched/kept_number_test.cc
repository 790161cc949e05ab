// SPDX-License-Identifier: Apache-2.0
// Numbers the engine keeps among the client's: no call is made on the client's file, whoever takes
// the number in the middle of it.

#include "sync/kept_number.h"

#include "tests/sched/kept_number_scenarios.h"

namespace stagetwo::test {
namespace {

TEST(KeptNumber, NoCallIsMadeOnTheFileOfWhoTakesIt) {
  expect_holds<NumbersTaken>(2500);
}

// The wait alone is not enough: the number is read in the section that is waited for.
struct ReadBeforeItIsCounted : NumbersTaken {
  void call() {
    const int number = engines.peek();
    const sync::KeptNumber::Use use = engines.use();
    sync::sched::expect(table[number].load() == kEngines, "a call on the client's file");
  }
  void thread(unsigned me) {
    if (me == 0) {
      take(0);
    } else {
      call();
    }
  }
};
TEST(KeptNumberTwin, AReadBeforeTheSectionIsFound) {
  expect_found<ReadBeforeItIsCounted>();
}

TEST(PassingNumber, IsNotTakenFromWhoMakesACallOnIt) {
  expect_holds<NumberPasses>(2500);
}

// That a number is taken does not say by whom.
struct DoesNotLook : NumberPasses {
  void thread(unsigned me) {
    if (me != 0) return call();
    if (number.load() != kNothing) number.store(kClients);
  }
};
TEST(PassingNumberTwin, WhoDoesNotLookIsFound) {
  expect_found<DoesNotLook>();
}

}  // namespace
}  // namespace stagetwo::test
