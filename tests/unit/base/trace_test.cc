// SPDX-License-Identifier: Apache-2.0
#include "base/trace.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/failpoint.h"

namespace stagetwo {
namespace {

using trace::Event;
using trace::Room;

class Trace : public ::testing::Test {
 protected:
  void TearDown() override {
    trace::stop();
    trace::release();
  }
};

TEST_F(Trace, WritesNothingUntilStarted) {
  trace::emit(Event::kvm_exit, Room::vcpu);
  EXPECT_EQ(trace::count(Event::kvm_exit), 0u);
}

TEST_F(Trace, ARecordCarriesWhatWasSaid) {
  ASSERT_TRUE(trace::start());
  trace::emit(Event::kvm_page_fault, Room::stage2, 1, 2, 3, 4);
  std::vector<trace::Record> records;
  trace::for_each([&](const trace::Record& r) { records.push_back(r); });
  ASSERT_EQ(records.size(), 1u);
  EXPECT_EQ(records[0].event, Event::kvm_page_fault);
  EXPECT_EQ(records[0].room, Room::stage2);
  EXPECT_EQ(records[0].tid, static_cast<u32>(gettid()));
  EXPECT_GT(records[0].ns, 0u);
  for (u64 i = 0; i < 4; ++i) EXPECT_EQ(records[0].arg[i], i + 1);
}

TEST_F(Trace, TheRoomsOfARequestCanBeCounted) {
  ASSERT_TRUE(trace::start());
  trace::enter_room(Room::shim);
  const u64 since = trace::written();
  trace::enter_room(Room::vcpu, 1);
  trace::enter_room(Room::stage2, 2);
  trace::emit(Event::kvm_page_fault, Room::stage2);
  const u64 rooms = trace::rooms_since(since);
  EXPECT_EQ(rooms,
            u64{1} << static_cast<int>(Room::vcpu) | u64{1} << static_cast<int>(Room::stage2));
  EXPECT_EQ(std::popcount(rooms), 2);
}

TEST_F(Trace, TheRingKeepsTheNewest) {
  ASSERT_TRUE(trace::start(64));
  for (u64 i = 0; i < 200; ++i) trace::emit(Event::kvm_exit, Room::vcpu, i);
  std::vector<u64> seen;
  trace::for_each([&](const trace::Record& r) { seen.push_back(r.arg[0]); });
  ASSERT_EQ(seen.size(), 64u);
  EXPECT_EQ(seen.front(), 136u);
  EXPECT_EQ(seen.back(), 199u);
  EXPECT_EQ(trace::written(), 200u);
}

TEST_F(Trace, RecordsOfManyThreadsAreWhole) {
  ASSERT_TRUE(trace::start(1 << 12));
  std::vector<std::thread> threads;
  for (u64 t = 0; t < 4; ++t) {
    threads.emplace_back([t] {
      for (u64 i = 0; i < 1000; ++i) trace::emit(Event::kvm_exit, Room::vcpu, t, i, t ^ i, t + i);
    });
  }
  for (std::thread& thread : threads) thread.join();
  u64 whole = 0;
  trace::for_each([&](const trace::Record& r) {
    EXPECT_EQ(r.arg[2], r.arg[0] ^ r.arg[1]);
    EXPECT_EQ(r.arg[3], r.arg[0] + r.arg[1]);
    ++whole;
  });
  EXPECT_EQ(whole, 4000u);
}

TEST_F(Trace, ARefusedStartLeavesItOff) {
  failpoint::arm("base.trace", 1);
  EXPECT_EQ(trace::start().error(), Errno{ENOMEM});
  failpoint::disarm();
  EXPECT_FALSE(trace::enabled());
}

TEST_F(Trace, EveryNameIsItsOwn) {
  std::set<std::string> names;
  for (u16 e = 0; e < static_cast<u16>(Event::count_); ++e) {
    names.emplace(trace::name_of(static_cast<Event>(e)));
  }
  EXPECT_EQ(names.size(), static_cast<size_t>(Event::count_));
  EXPECT_EQ(trace::name_of(Event::kvm_unmap_hva_range), "kvm_unmap_hva_range");
  EXPECT_EQ(trace::name_of(Room::abi_kvm), "abi_kvm");
}

TEST_F(Trace, TheEnginesOwnEventsAreASectionOfTheirOwn) {
  for (u16 e = 1; e < static_cast<u16>(Event::count_); ++e) {
    const auto event = static_cast<Event>(e);
    EXPECT_EQ(trace::is_kernel_event(event), !trace::name_of(event).starts_with("st_"));
  }
}

TEST_F(Trace, DumpsOneLineARecord) {
  ASSERT_TRUE(trace::start());
  trace::emit(Event::kvm_pio, Room::vcpu, 1, 0x3f8);
  const int fd = memfd_create("dump", 0);
  trace::dump(fd);
  char text[256] = {};
  ASSERT_GT(pread(fd, text, sizeof(text) - 1, 0), 0);
  EXPECT_NE(std::string(text).find("vcpu kvm_pio 0x1 0x3f8"), std::string::npos) << text;
  close(fd);
}

void odd_branch() {
  ST_MARK(odd_branch_taken);
}

TEST(Mark, SaysThatATestWasThere) {
  trace::reset_marks();
  EXPECT_EQ(trace::mark_count("odd_branch_taken"), 0u);
  odd_branch();
  odd_branch();
  EXPECT_EQ(trace::mark_count("odd_branch_taken"), 2u);
  EXPECT_EQ(trace::mark_count("never_taken"), 0u);
}

}  // namespace
}  // namespace stagetwo
