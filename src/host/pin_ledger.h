// SPDX-License-Identifier: Apache-2.0
#pragma once

// Pages that processes have charged to one user, each process in a place of its own: what one that
// has ended had charged goes with its place, and no word says the sum of all. The places are words
// that the processes share (host/session.h).
//
//   name   which process a place is of: its number, and when it began; 0: nobody's
//   count  what it has charged (lower half), and what it asks for just now (upper half)
//
// I1: a place is given to its owner by one exchange of its name, 0 for the owner's. Its count is 0
//     then, and is the owner's alone until somebody finds the owner dead.
// I2: what is charged in all places together is within the limit of whoever charged last: it looks
//     at all of them when its own pages stand there already, as asked for.
// I3: a process is refused only when what others have charged leaves no room: who finds the room
//     merely asked for takes its own pages back and looks again.
//
//   A asks for 6 of 10                  | B asks for 6 of 10
//   own += 6 asked                      |
//                                       | own += 6 asked
//   sum: 12, charged 0: asked in the way| sum: 12: the same
//   own -= 6 asked                      |
//                                       | own -= 6 asked
//   yields                              | looks again: 6 of 10, own: 6 charged
//   looks again: 12, charged 6: refused |
//
//   R finds X dead            | S finds X dead, too             | C, new, wants a place
//   name: X -> R takes it     |                                 |
//                             | name is not X: not its business | name is not 0
//   count = 0                 |                                 |
//   name = 0                  |                                 | name: 0 -> C
//                             |                                 | the count is C's
//
// R killed at any instruction: before the exchange nothing has happened; behind it the place is of
// a dead process again, R, and the next one takes it from there. What a killed owner asked for goes
// with its place.
// More processes than places: the rest share one that nobody is the owner of (kCommon); what one
// of them has charged and not given back stays when it ends.
//
// names: 0 to an owner by who wants a place (seq_cst exchange), an owner or a taker to a taker by
// that one, to 0 by the taker (seq_cst store, behind the store of the count: who claims reads it).
// counts: added to by the owner (seq_cst, against everybody's reads: two who ask at once see each
// other), read by everybody, stored 0 by the taker.
// Locking: none. Analogue: user_struct::locked_vm with a charge in each mm that goes with it.

#include "base/types.h"
#include "sync/atomic.h"

namespace stagetwo::host {

class PinLedger {
 public:
  static constexpr unsigned kMostPlaces = 64, kCommon = kMostPlaces;
  // From here on a limit is none: a half must hold what several ask for at once.
  static constexpr u64 kMost = u64{1} << 28;
  // The lowest bit of a name: who takes the place away.
  static constexpr u64 kTakes = 1;

  using Word = sync::Atomic<u64>;
  using IsDead = bool (*)(u64 name);
  struct Words {
    Word* names;
    Word* counts;
    unsigned places;  // so many of both, at most kMostPlaces
    Word* common;     // the common place's count
  };
  PinLedger(Words words, IsDead is_dead) : words_(words), is_dead_(is_dead) {}

  // A place for the process of that name, or kCommon. A name is even and not 0.
  [[nodiscard]] unsigned claim(u64 name);
  // False: the limit; nothing is charged. `name`: as below; 0: has none, and finds nobody dead.
  [[nodiscard]] bool charge(unsigned place, u64 pages, u64 limit, u64 name);
  void uncharge(unsigned place, u64 pages) { count(place).fetch_sub(pages); }
  // The places of dead processes are nobody's again; `name` is who asks. True: there was one.
  bool drop_dead(u64 name);
  // So are those of that process itself, which has begun another program.
  void drop(u64 name);
  [[nodiscard]] u64 charged() const { return collect().charged; }

 private:
  struct Sum {
    u64 charged = 0, asked = 0;
  };
  [[nodiscard]] Word& count(unsigned place) const {
    return place == kCommon ? *words_.common : words_.counts[place];
  }
  [[nodiscard]] Sum collect() const;
  bool take_away(unsigned place, u64 seen, u64 name);

  Words words_;
  IsDead is_dead_;
};

}  // namespace stagetwo::host
