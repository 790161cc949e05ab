// SPDX-License-Identifier: Apache-2.0
// docs/journeys/munmap.md, asserted: the rooms a change of the client's addresses enters. The first
// room, shim, is one line in front of what is called here.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "host/change.h"
#include "tests/journeys/journey.h"
#include "tests/unit/vcpu/guest.h"

namespace stagetwo::vcpu::testing {
namespace {

using test::Journey;
using test::Step;
using trace::Room;

constexpr u64 kWindow = 0x200000;
constexpr size_t kBytes = 4 * kPageSize;

class Munmap : public ::testing::Test {
 protected:
  void SetUp() override {
    guest_.long_mode();
    // mov edi, 0x200000; l: add qword [rdi], 1; jmp l
    guest_.code({0xbf, 0x00, 0x00, 0x20, 0x00, 0x48, 0x83, 0x07, 0x01, 0xeb, 0xfa});
    window_ = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    guest_.add_slot(1, kWindow, kBytes, window_);
    ASSERT_TRUE(trace::start());
  }
  void TearDown() override {
    trace::stop();
    munmap(window_, kBytes);
  }
  Journey discard(void* at) {
    return test::journey_of([at] {
      host::change(reinterpret_cast<u64>(at), kPageSize, host::EventKind::kClear,
                   [at] { return madvise(at, kPageSize, MADV_DONTNEED); });
    });
  }
  Guest guest_{kWindow};
  void* window_ = nullptr;
};

TEST_F(Munmap, OfGuestMemoryPassesHostAndStage2AndComesBack) {
  const Journey journey = discard(window_);
  EXPECT_EQ(
      (std::vector<Step>{{Room::host, 4}, {Room::stage2, 5}, {Room::host, 10}, {Room::stage2, 11}}),
      journey.steps);
}

TEST_F(Munmap, UnderARunningProcessorPassesFourRoomsWithTheShim) {
  std::atomic<bool> stop{false};
  std::thread vcpu([&] {
    while (!stop) static_cast<void>(guest_.run());
  });
  const auto* counter = static_cast<volatile u64*>(window_);
  for (const u64 before = *counter; *counter == before;) std::this_thread::yield();
  // The processor may be passed before it answers; it has, when it goes on.
  const Journey journey = test::journey_of([&] {
    discard(window_);
    for (const u64 before = *counter; *counter == before;) std::this_thread::yield();
  });
  stop = true;
  guest_.cpu().request_exit();
  vcpu.join();
  EXPECT_NE(std::ranges::find(journey.steps, Step{Room::vcpu, 8}), journey.steps.end());
  EXPECT_LE(journey.rooms.size() + 1, 4U);  // and shim
}

TEST_F(Munmap, OfForeignMemoryStopsAtTheBell) {
  void* foreign = mmap(nullptr, kPageSize, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const Journey journey = discard(foreign);
  EXPECT_EQ((std::set<Room>{Room::host}), journey.rooms);
  munmap(foreign, kPageSize);
}

}  // namespace
}  // namespace stagetwo::vcpu::testing
