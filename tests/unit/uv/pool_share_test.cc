// SPDX-License-Identifier: Apache-2.0
// Goal: A10.7: several guests in one pool. Each has a reserve that the others leave it, and comes
// to; so what an instruction uses is there at once, however much another wants.
#include <gtest/gtest.h>

#include <deque>

#include "tests/unit/uv/secure_guest_check.h"

namespace stagetwo::uv {
namespace {

// Guests 20, 21, … beside the machine's own.
class PoolShare : public SecureGuestCheck {
 protected:
  static constexpr u32 kFirst = 20;
  static constexpr u64 kReserve = 16;

  struct Beside {
    Beside(SecureMachine* machine, u32 number)
        : m(*machine),
          lpid(number),
          normal(&m.memory),
          guest(number, m.page_bytes, &normal, &m.to_uv) {
      EXPECT_TRUE(m.hypervisor.add(&guest).has_value());
      guest.enable();
    }
    ~Beside() {
      EXPECT_TRUE(guest.svm_off().has_value());
      m.hypervisor.remove(&guest);
    }
    void secure(u64 pages) {
      EXPECT_TRUE(guest.add_slot(0, Gpa(0), pages * m.page_bytes).has_value());
      EXPECT_EQ(m.ultravisor.call({Call::kUvEsm, lpid, {1, 1}}, Caller::kGuest), Status::kSuccess);
    }
    // The guest stores there, and so its page is in the pool.
    GuestAccess use(u64 page) {
      u64 word = page;
      return m.ultravisor.access(lpid, m.gpa(page), &word, sizeof(word), true);
    }
    bool is_in(u64 page) {
      u8* at = nullptr;
      return m.ultravisor.translate(lpid, m.gpa(page), &at) == Where::kSecure;
    }
    u64 has() { return m.ultravisor.use(lpid).pool_pages; }

    SecureMachine& m;
    u32 lpid;
    test::PlainNormalMemory normal;
    SecureGuest guest;
  };

  static std::unique_ptr<SecureMachine> machine(u32 pool) {
    return std::make_unique<SecureMachine>(GetParam(), pool);
  }
};

TEST_P(PoolShare, WhatAnInstructionUsesIsThereAtOnceThoughAnotherHasThePool) {
  constexpr u32 kPool = 64;
  const auto m = machine(kPool);
  Beside large(m.get(), kFirst), small(m.get(), kFirst + 1);
  large.secure(2 * kPool);
  small.secure(40);
  for (u64 page = 0; page < 2 * kPool; ++page) ASSERT_EQ(large.use(page), GuestAccess::kDone);
  EXPECT_EQ(large.has(), kPool);
  EXPECT_EQ(m->ultravisor.pool_free(), 0u);
  for (u64 page = 0; page < kReserve; ++page) ASSERT_EQ(small.use(page), GuestAccess::kDone);
  for (u64 page = 0; page < kReserve; ++page) EXPECT_TRUE(small.is_in(page)) << page;
  // From then on it lives by its own.
  for (u64 page = kReserve; page < 40; ++page) ASSERT_EQ(small.use(page), GuestAccess::kDone);
  EXPECT_EQ(small.has(), kReserve);
  EXPECT_EQ(large.has(), kPool - kReserve);
}

TEST_P(PoolShare, NobodyTakesOfWhoHasNoMoreThanTheReserve) {
  constexpr u32 kPool = 64;
  const auto m = machine(kPool);
  Beside large(m.get(), kFirst), small(m.get(), kFirst + 1);
  large.secure(2 * kPool);
  small.secure(kReserve);
  for (u64 page = 0; page < kReserve; ++page) ASSERT_EQ(small.use(page), GuestAccess::kDone);
  for (int walk = 0; walk < 3; ++walk) {
    for (u64 page = 0; page < 2 * kPool; ++page) ASSERT_EQ(large.use(page), GuestAccess::kDone);
  }
  EXPECT_EQ(m->ultravisor.use(small.lpid).evictions, 0u);
  for (u64 page = 0; page < kReserve; ++page) EXPECT_TRUE(small.is_in(page)) << page;
  EXPECT_EQ(large.has(), kPool - kReserve);
  // What is beyond the reserve is anybody's: there is no cap where there is room.
  Beside third(m.get(), kFirst + 2);
  third.secure(kReserve);
  for (u64 page = 0; page < kReserve; ++page) ASSERT_EQ(third.use(page), GuestAccess::kDone);
  EXPECT_EQ(large.has(), kPool - 2 * kReserve);
  EXPECT_EQ(m->ultravisor.use(small.lpid).evictions, 0u);
  EXPECT_EQ(m->ultravisor.use(third.lpid).evictions, 0u);
}

// A pool that is too small for every reserve: an even share, and somebody who waits for ever is
// none of them.
TEST_P(PoolShare, OfASmallPoolEachHasAnEvenShare) {
  constexpr u32 kPool = 12;
  constexpr u64 kGuests = 3, kShare = kPool / kGuests;
  const auto m = machine(kPool);
  std::deque<Beside> guests;
  for (u32 i = 0; i < kGuests; ++i) guests.emplace_back(m.get(), kFirst + i).secure(20);
  for (int walk = 0; walk < 4; ++walk) {
    for (Beside& guest : guests) {
      for (u64 page = 0; page < 20; ++page) ASSERT_EQ(guest.use(page), GuestAccess::kDone);
      for (u64 page = 20 - kShare; page < 20; ++page) EXPECT_TRUE(guest.is_in(page)) << page;
    }
  }
  for (Beside& guest : guests) EXPECT_EQ(guest.has(), kShare);
  // Who leaves makes the shares of the others larger.
  guests.pop_back();
  for (Beside& guest : guests) {
    for (u64 page = 0; page < kPool / 2; ++page) ASSERT_EQ(guest.use(page), GuestAccess::kDone);
  }
  for (Beside& guest : guests) EXPECT_EQ(guest.has(), kPool / 2);
}

// More guests than pages: everybody still comes to an end.
TEST_P(PoolShare, WithFewerPagesThanGuestsAnybodysAreAnybodys) {
  const auto m = machine(2);
  std::deque<Beside> guests;
  for (u32 i = 0; i < 4; ++i) guests.emplace_back(m.get(), kFirst + i).secure(3);
  for (int walk = 0; walk < 3; ++walk) {
    for (u64 page = 0; page < 3; ++page) {
      for (Beside& guest : guests) ASSERT_EQ(guest.use(page), GuestAccess::kDone);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(PageSizes, PoolShare, testing::Values(4096, 65536));

}  // namespace
}  // namespace stagetwo::uv
