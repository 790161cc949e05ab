// SPDX-License-Identifier: Apache-2.0
// Goal: stores to a tracked frame are made by KVM and told to the tracker, whatever instruction
// makes them; all others go their way.
#include "tests/unit/vcpu/guest.h"

namespace stagetwo::vcpu::testing {
namespace {

class Recorder final : public stage2::WriteTracker {
 public:
  void on_write(Gpa to, const void* from, size_t bytes) override {
    u64 value = 0;
    std::memcpy(&value, from, std::min<size_t>(bytes, 8));
    told.push_back({to.raw(), value, bytes});
  }
  void on_slot_deleted(GfnRange frames) override { deleted.push_back(frames); }
  struct Store {
    u64 gpa;
    u64 value;
    size_t bytes;
    friend bool operator==(const Store&, const Store&) = default;
  };
  std::vector<Store> told;
  std::vector<GfnRange> deleted;
};

class WriteTracking : public ::testing::Test {
 protected:
  void SetUp() override {
    guest_.long_mode();
    ASSERT_TRUE(guest_.memory().attach_tracker(tracker_));
    guest_.reg(kRdi) = kData;
  }
  void TearDown() override { guest_.memory().detach_tracker(); }
  void run(const Bytes& code) {
    guest_.code(code);
    guest_.state().rip = kCode;
    guest_.run_to_hlt();
  }
  void track(u64 gpa) {
    ASSERT_TRUE(guest_.memory().slots().track_writes(0, gpa_to_gfn(Gpa(gpa))));
  }
  Recorder tracker_;
  Guest guest_;
};

using Store = Recorder::Store;
constexpr u8 kHlt = 0xf4;

TEST_F(WriteTracking, AStoreIsMadeByKvmAndTold) {
  guest_.reg(kRax) = 0x1122334455667788;
  const Bytes store = {0x48, 0x89, 0x07, kHlt};  // mov [rdi], rax
  run(store);                                    // the processor has a writable translation
  EXPECT_TRUE(tracker_.told.empty());
  track(kData);
  guest_.reg(kRax) = 5;
  run(store);
  EXPECT_EQ((std::vector<Store>{{kData, 5, 8}}), tracker_.told);
  EXPECT_EQ(5U, guest_.read<u64>(kData));
  guest_.reg(kRax) = 6;
  run(store);  // and again: no translation was left behind
  EXPECT_EQ(2U, tracker_.told.size());
  ASSERT_TRUE(guest_.memory().slots().untrack_writes(0, gpa_to_gfn(Gpa(kData))));
  guest_.reg(kRax) = 7;
  run(store);
  EXPECT_EQ(2U, tracker_.told.size());
  EXPECT_EQ(7U, guest_.read<u64>(kData));
}

TEST_F(WriteTracking, ALoadGivesNoRightToStore) {
  run({0x48, 0x89, 0x07, kHlt});  // the page is known to be writable in the host
  track(kData);
  guest_.write<u64>(kData, 3);
  run({0x48, 0x8b, 0x07, 0x48, 0x89, 0x47, 0x08, kHlt});  // mov rax, [rdi]; mov [rdi+8], rax
  EXPECT_EQ((std::vector<Store>{{kData + 8, 3, 8}}), tracker_.told);
}

TEST_F(WriteTracking, ALockedUpdateIsToldByItsResult) {
  track(kData);
  guest_.write<u32>(kData, 40);
  guest_.reg(kRax) = 2;
  run({0xf0, 0x0f, 0xc1, 0x07, kHlt});  // lock xadd [rdi], eax
  EXPECT_EQ(40U, guest_.reg(kRax));
  EXPECT_EQ(42U, guest_.read<u32>(kData));
  EXPECT_EQ((std::vector<Store>{{kData, 42, 4}}), tracker_.told);
}

TEST_F(WriteTracking, AStringOfStoresIsToldElementByElement) {
  track(kData);
  guest_.reg(kRax) = 9;
  guest_.reg(kRcx) = 3;
  guest_.reg(kRdi) = kData;
  run({0xf3, 0x48, 0xab, kHlt});  // rep stosq
  EXPECT_EQ(0U, guest_.reg(kRcx));
  EXPECT_EQ((std::vector<Store>{{kData, 9, 8}, {kData + 8, 9, 8}, {kData + 16, 9, 8}}),
            tracker_.told);
}

TEST_F(WriteTracking, AStoreAcrossTwoPagesIsToldOfTheTrackedOne) {
  track(kData + kPageSize);
  guest_.reg(kRdi) = kData + kPageSize - 4;
  guest_.reg(kRax) = 0x1111111122222222;
  run({0x48, 0x89, 0x07, kHlt});
  EXPECT_EQ((std::vector<Store>{{kData + kPageSize, 0x11111111, 4}}), tracker_.told);
  EXPECT_EQ(0x1111111122222222U, guest_.read<u64>(kData + kPageSize - 4));
}

TEST_F(WriteTracking, CodeThatChangesItselfInATrackedPageRunsTheNewBytes) {
  track(kCode);
  // mov byte [rip+1], 0x42 patches the immediate of: mov al, 0
  run({0xc6, 0x05, 0x01, 0x00, 0x00, 0x00, 0x42, 0xb0, 0x00, kHlt});
  EXPECT_EQ(0x42U, guest_.reg(kRax) & 0xff);
  EXPECT_EQ(1U, tracker_.told.size());
}

TEST_F(WriteTracking, AStoreToATrackedLoggingPageIsInTheDirtyLog) {
  void* map =
      mmap(nullptr, 2 * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  Guest guest(0x200000);
  guest.long_mode();
  guest.add_slot(1, 0x200000, kPageSize, map, stage2::kLogDirtyPages);
  ASSERT_TRUE(guest.memory().slots().track_writes(0, Gfn(0x200)));
  guest.code({0x48, 0x89, 0x07, kHlt});
  guest.reg(kRdi) = 0x200000;
  guest.run_to_hlt();
  auto* bitmap = static_cast<u64*>(map) + 512;
  ASSERT_TRUE(guest.memory().slots().get_dirty_log(1, Hva(reinterpret_cast<u64>(bitmap))));
  EXPECT_EQ(1U, *bitmap);
}

TEST_F(WriteTracking, ThereIsOneTrackerAndSlotsStayWhereTheyAreUnderIt) {
  Recorder another;
  EXPECT_EQ(EBUSY, to_int(guest_.memory().attach_tracker(another).error()));
  stage2::Region region;
  region.size = kMemory;
  region.gpa = 0x10000000;
  region.hva = reinterpret_cast<u64>(guest_.ram(0));
  EXPECT_EQ(EINVAL, to_int(guest_.memory().slots().set_region(region).error()));
  track(kData);
  region.size = 0;
  ASSERT_TRUE(guest_.memory().slots().set_region(region));
  EXPECT_EQ((std::vector<GfnRange>{{Gfn(0), kMemory >> kPageShift}}), tracker_.deleted);
  EXPECT_FALSE(guest_.memory().slots().tracks_writes());
}

}  // namespace
}  // namespace stagetwo::vcpu::testing
