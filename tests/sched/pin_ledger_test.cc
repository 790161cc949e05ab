// SPDX-License-Identifier: Apache-2.0
// The ledger of charged pages: in every order of two processes and a dead one's place, one of two
// gets what only one may have, and nobody's charge is taken away with a dead one's.

#include "host/pin_ledger.h"

#include "tests/sched/sched_support.h"

namespace stagetwo::test {
namespace {

using host::PinLedger;

constexpr u64 kLimit = 10, kDead = 2;

// Two that want six each; `kPlaces` places, the first of which a dead process had.
template <unsigned kPlaces>
struct TwoWantMost {
  static constexpr unsigned kThreads = 2;
  sync::Atomic<u64> names[kPlaces], counts[kPlaces], common;
  PinLedger ledger{{names, counts, kPlaces, &common}, [](u64 name) { return name == kDead; }};
  sync::Atomic<u64> winners{0}, done{0};

  TwoWantMost() {
    names[0].store(kDead);
    counts[0].store(u64{5} << 32 | 5);
  }
  static u64 name(unsigned me) { return 4 + 2 * me; }

  bool charge(unsigned me) { return ledger.charge(ledger.claim(name(me)), 6, kLimit, name(me)); }
  void end(bool won) {
    if (won) winners.fetch_add(1);
    if (done.fetch_add(1) + 1 != kThreads) return;
    sync::sched::expect(winners.load() == 1, "one of both, and not the other");
    sync::sched::expect(ledger.charged() == 6, "what is charged is the winner's");
  }
  void thread(unsigned me) { end(charge(me)); }
};

using WithAPlaceEach = TwoWantMost<3>;
using WithOnePlace = TwoWantMost<1>;

TEST(PinLedger, OneOfTwoGetsWhatOnlyOneMayHave) {
  expect_holds<WithAPlaceEach>(1000);
}
TEST(PinLedger, ADeadOnesPlaceIsTakenOnce) {
  expect_holds<WithOnePlace>(1000);
}

// The sum first, its own pages behind it.
struct LooksFirst : WithAPlaceEach {
  void thread(unsigned me) {
    const unsigned place = ledger.claim(name(me));
    ledger.drop_dead(name(me));
    const bool room = ledger.charged() + 6 <= kLimit;
    if (room) counts[place].fetch_add(6);
    end(room);
  }
};
TEST(PinLedgerTwin, ALookBeforeTheAskingIsFound) {
  expect_found<LooksFirst>();
}

// Takes the place away without the exchange.
struct TakesAtOnce : WithOnePlace {
  void thread(unsigned me) {
    if (names[0].load() == kDead) {
      counts[0].store(0);
      names[0].store(0);
    }
    end(charge(me));
  }
};
TEST(PinLedgerTwin, WhoTakesAPlaceWithoutAnExchangeIsFound) {
  expect_found<TakesAtOnce>();
}

}  // namespace
}  // namespace stagetwo::test
