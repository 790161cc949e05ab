// SPDX-License-Identifier: Apache-2.0
#include "host/pin_ledger.h"

#include "sync/futex.h"

namespace stagetwo::host {
namespace {

constexpr unsigned kHalf = 32;
// One that asks needs a few instructions, but may be without a processor for some turns of others.
constexpr int kTurns = 200;

constexpr u64 asked(u64 pages) {
  return pages << kHalf;
}

}  // namespace

unsigned PinLedger::claim(u64 name) {
  for (int turn = 0; turn < kTurns; ++turn) {
    bool any_taken = false;
    for (unsigned i = 0; i < words_.places; ++i) {
      if (words_.names[i].load() == name) return i;
    }
    for (unsigned i = 0; i < words_.places; ++i) {
      u64 found = words_.names[i].load();
      if (found == 0 && words_.names[i].compare_exchange(found, name)) return i;
      if (found == name) return i;  // by another thread
      any_taken = any_taken || (found & kTakes) != 0;
    }
    if (drop_dead(name)) continue;
    if (!any_taken) break;  // else one will be free in a moment
    sync::yield_thread();
  }
  return kCommon;
}

PinLedger::Sum PinLedger::collect() const {
  Sum sum;
  const auto add = [&sum](u64 now) {
    sum.asked += now >> kHalf;
    sum.charged += now & (asked(1) - 1);
  };
  for (unsigned i = 0; i < words_.places; ++i) add(words_.counts[i].load());
  add(words_.common->load());
  return sum;
}

bool PinLedger::charge(unsigned place, u64 pages, u64 limit, u64 name) {
  if (pages > limit || pages >= kMost) return false;
  Word& own = count(place);
  if (limit >= kMost) {
    own.fetch_add(pages);
    return true;
  }
  bool was_over = false;
  for (int turn = 0; turn < kTurns; ++turn) {
    own.fetch_add(asked(pages));
    const Sum sum = collect();
    if (sum.charged + sum.asked <= limit) {
      own.fetch_add(pages - asked(pages));
      return true;
    }
    own.fetch_sub(asked(pages));
    if (drop_dead(name)) continue;
    // The places are not read at one moment: twice, or what has moved meanwhile counts twice.
    const bool over = sum.charged + pages > limit;
    if (over && was_over) return false;
    was_over = over;
    sync::yield_thread();
  }
  return false;
}

bool PinLedger::take_away(unsigned place, u64 seen, u64 name) {
  if (!words_.names[place].compare_exchange(seen, name | kTakes)) return false;
  words_.counts[place].store(0);
  words_.names[place].store(0);
  return true;
}

bool PinLedger::drop_dead(u64 name) {
  if (name == 0) return false;
  bool any = false;
  for (unsigned i = 0; i < words_.places; ++i) {
    const u64 found = words_.names[i].load(), owner = found & ~kTakes;
    if (owner == 0 || owner == name || !is_dead_(owner)) continue;
    any = take_away(i, found, name) || any;
  }
  return any;
}

void PinLedger::drop(u64 name) {
  for (unsigned i = 0; i < words_.places; ++i) {
    const u64 found = words_.names[i].load();
    if ((found & ~kTakes) == name) take_away(i, found, name);
  }
}

}  // namespace stagetwo::host
