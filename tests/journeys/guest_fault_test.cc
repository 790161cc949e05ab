// SPDX-License-Identifier: Apache-2.0
// docs/journeys/guest_fault.md, asserted: the rooms a guest's fault enters and the steps it takes.
#include <gtest/gtest.h>

#include "host/change.h"
#include "tests/journeys/journey.h"
#include "tests/unit/vcpu/guest.h"

namespace stagetwo::vcpu::testing {
namespace {

using test::Journey;
using test::Step;
using trace::Room;

constexpr u64 kWindow = 0x200000;
// Of the window; its number is far from that of the code's page in any soft TLB.
constexpr u64 kPage = 11;

class GuestFault : public ::testing::Test {
 protected:
  void SetUp() override {
    // mov [rdi], rax; hlt — run again and again from the same place
    guest_.long_mode();
    guest_.code({0x48, 0x89, 0x07, 0xf4});
    // Beside the code and the tables: neighbours never share a place of the resident cache.
    window_ = guest_.ram(0x100000);
    guest_.add_slot(1, kWindow, 16 * kPageSize, window_);
    store_to(kPage + 1);  // the code and the tables are there now
    ASSERT_TRUE(trace::start());
  }
  void TearDown() override { trace::stop(); }
  void store_to(u64 page) {
    guest_.state().rip = kCode;
    guest_.reg(kRdi) = kWindow + page * kPageSize;
    guest_.run_to_hlt();
  }
  Guest guest_{kWindow};
  void* window_ = nullptr;
};

// The steps without those of the guest's own tables, which are as many as it has levels.
std::vector<Step> without_walk(const Journey& journey) {
  std::vector<Step> steps;
  for (const Step& step : journey.steps) {
    if (step != Step{Room::stage2, 2}) steps.push_back(step);
  }
  return steps;
}

TEST_F(GuestFault, OfAFreshPagePassesThreeRoomsInTheDocumentsOrder) {
  const Journey journey = test::journey_of([this] { store_to(kPage); });
  EXPECT_EQ((std::vector<Step>{{Room::vcpu, 3},
                               {Room::stage2, 4},
                               {Room::stage2, 5},
                               {Room::host, 7},
                               {Room::stage2, 9},
                               {Room::stage2, 4}}),
            without_walk(journey));
  EXPECT_LE(journey.rooms.size(), 4U);
  EXPECT_EQ(3U, journey.rooms.size());
  EXPECT_GE(journey.steps.size() - without_walk(journey).size(), 4U);  // levels of the guest's
}

TEST_F(GuestFault, OfAPageTheTableHasPassesTwoAndMakesNothing) {
  store_to(kPage);
  // The processor forgets every translation, the table does not.
  ASSERT_TRUE(guest_.cpu().set_system_state(SystemState(guest_.state().sys)));
  const u64 taken = guest_.cpu().mmu().counts.taken.get();
  const Journey journey = test::journey_of([this] { store_to(kPage); });
  EXPECT_EQ((std::set<Room>{Room::vcpu, Room::stage2}), journey.rooms);
  for (const Step& step : without_walk(journey)) {
    EXPECT_TRUE((step == Step{Room::vcpu, 3} || step == Step{Room::stage2, 4}));
  }
  EXPECT_EQ(taken, guest_.cpu().mmu().counts.taken.get());
}

TEST_F(GuestFault, OfAPageKnownResidentPassesTwo) {
  store_to(kPage);
  // Another slot moves, and with it goes every translation of the VM; the client's memory is as it
  // was.
  void* other = mmap(nullptr, kPageSize, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  guest_.add_slot(2, 0x400000, kPageSize, other);
  guest_.add_slot(2, 0x600000, kPageSize, other);
  const Journey journey = test::journey_of([this] { store_to(kPage); });
  EXPECT_EQ((std::set<Room>{Room::vcpu, Room::stage2}), journey.rooms);
  munmap(other, kPageSize);
}

TEST_F(GuestFault, AHitOfTheSoftTlbLeavesTheProcessorForNobody) {
  store_to(kPage);
  const Journey journey = test::journey_of([this] { store_to(kPage); });
  EXPECT_EQ((std::set<Room>{Room::vcpu}), journey.rooms);
  EXPECT_TRUE(journey.steps.empty());
}

TEST_F(GuestFault, OfNoSlotEndsInStage2AndIsRememberedThere) {
  const auto access = [this] {
    guest_.state().rip = kCode;
    guest_.reg(kRdi) = 0x300000;
    EXPECT_EQ(ExitKind::kMmio, guest_.run().kind);
  };
  const Journey first = test::journey_of(access);
  EXPECT_EQ(
      (std::vector<Step>{{Room::vcpu, 3}, {Room::stage2, 4}, {Room::stage2, 5}, {Room::stage2, 9}}),
      without_walk(first));
  const Journey second = test::journey_of(access);
  EXPECT_EQ((std::vector<Step>{{Room::vcpu, 3}, {Room::stage2, 4}}), without_walk(second));
}

}  // namespace
}  // namespace stagetwo::vcpu::testing
