// SPDX-License-Identifier: Apache-2.0
// Goal: who keeps what he has read of private pages is told of each frame that was given up, and of
// all where the list does not go back that far.
#include "stage2/given_up.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "sync/futex.h"

namespace stagetwo::stage2 {
namespace {

constexpr auto keeps(u64 mine) {
  return [mine](Gfn gfn) { return gfn == Gfn(mine); };
}
GfnRange frame(u64 gfn) {
  return {Gfn(gfn), 1};
}

TEST(GivenUp, NamesWhatCameSince) {
  GivenUp given_up;
  given_up.frames(frame(7));
  const u64 seen = given_up.count();
  EXPECT_FALSE(given_up.any_since(seen, keeps(7)));
  given_up.frames(frame(8));
  given_up.frames(frame(9));
  EXPECT_FALSE(given_up.any_since(seen, keeps(7)));
  EXPECT_TRUE(given_up.any_since(seen, keeps(8)));
  EXPECT_TRUE(given_up.any_since(seen, keeps(9)));
}

TEST(GivenUp, IsAllWhereItIsNotKnownWhich) {
  GivenUp given_up;
  const u64 seen = given_up.count();
  given_up.frames({Gfn(3), 2});
  EXPECT_TRUE(given_up.any_since(seen, keeps(100)));
  const u64 later = given_up.count();
  given_up.all();
  EXPECT_TRUE(given_up.any_since(later, keeps(100)));
  EXPECT_FALSE(given_up.any_since(given_up.count(), keeps(100)));
}

TEST(GivenUp, IsAllBehindTheEndOfTheList) {
  GivenUp given_up;
  const u64 seen = given_up.count();
  for (u64 i = 0; i < GivenUp::kNames - 1; ++i) given_up.frames(frame(1));
  EXPECT_FALSE(given_up.any_since(seen, keeps(100)));
  given_up.frames(frame(1));
  EXPECT_TRUE(given_up.any_since(seen, keeps(100))) << "the next one is being written, it may be";
  EXPECT_FALSE(given_up.any_since(seen + 1, keeps(100)));
}

// A frame is named before its count is seen: who looks from then on never misses it.
TEST(GivenUp, IsMissedByNobody) {
  GivenUp given_up;
  std::atomic<u64> named{0};  // frames up to this one
  std::atomic<bool> is_over{false};
  std::thread writer([&] {
    for (u64 i = 1; i <= 20'000; ++i) {
      given_up.frames(frame(i));
      named.store(i);
    }
    is_over = true;
  });
  u64 missed = 0;
  while (!is_over) {
    const u64 seen = given_up.count();
    const u64 next = seen + 1;  // one a frame
    while (named.load() < next && !is_over) sync::yield_thread();
    if (named.load() >= next) missed += !given_up.any_since(seen, keeps(next));
  }
  writer.join();
  EXPECT_EQ(missed, 0U);
}

}  // namespace
}  // namespace stagetwo::stage2
