// SPDX-License-Identifier: Apache-2.0
// Devices at full speed while their client unmaps, maps again, detaches and replaces. What a client
// has taken back is poisoned at once, and stays poison: not one access lands after the call
// returned. Each PASID writes a mark of its own, and no page ever holds another's.
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "tests/support/seeds.h"
#include "tests/support/stress_time.h"
#include "tests/unit/iommu/engine_world.h"

namespace stagetwo::iommu {
namespace {

constexpr unsigned kEngines = 2, kPages = 8;
constexpr u64 kAccesses = 10'000'000;  // of all engines, at 60 s; while so often
constexpr u64 kRounds = 5'000;         // something was taken back
constexpr u64 kPoison = 0xdeadbeef'00000000, kMark = 0x3a9c'0000'0000'0000;

class IommuStress : public DeviceWorld {
 protected:
  struct Engine {
    u32 device = 0, ioas = 0, table = 0;
    Box<DmaEngine> engine;
    std::atomic<u64> done{0};
  };

  void SetUp() override {
    DeviceWorld::SetUp();
    for (unsigned e = 0; e < kEngines; ++e) {
      Engine& one = engines_[e];
      one.device = make_vtd(static_cast<u16>(0x70 + e));
      one.ioas = make_ioas();
      one.table = make_hwpt(one.ioas, one.device, {.pasid = true, .first_level = e % 2 != 0});
      ASSERT_EQ(attach(one.device, one.table, pasid(e)), 0);
      one.engine = std::move(*DmaEngine::make(*context_, one.device));
      for (unsigned p = 0; p < kPages; ++p)
        ASSERT_EQ(map_at(one.ioas, page(e, p), kPageSize, iova(p)), 0);
    }
  }
  void TearDown() override {
    for (unsigned e = 0; e < kEngines; ++e) {
      Engine& one = engines_[e];
      one.engine = {};
      EXPECT_EQ(unmap_all(one.ioas), 0);
      detach(one.device, pasid(e));
      for (const u32 id : {one.table, one.device, one.ioas}) EXPECT_EQ(destroy(id), 0);
    }
    DeviceWorld::TearDown();
  }

  static u32 pasid(unsigned e) { return 3 + e; }
  static u64 iova(unsigned p) { return kApertureStart + p * kPageSize; }
  [[nodiscard]] u64 page(unsigned e, unsigned p) const {
    return memory_.address() + (e * kPages + p) * kPageSize;
  }
  // Any word of the page, as the client sees it.
  [[nodiscard]] u64 word(unsigned e, unsigned p) const {
    return __atomic_load_n(reinterpret_cast<const u64*>(page(e, p)), __ATOMIC_RELAXED);
  }
  void set_word(unsigned e, unsigned p, u64 value) {
    __atomic_store_n(reinterpret_cast<u64*>(page(e, p)), value, __ATOMIC_RELAXED);
  }

  // Writes its mark wherever it may.
  void run(unsigned e) {
    test::RandomSource random(test::seed() + e);
    Engine& one = engines_[e];
    const u64 value = kMark + e;
    while (!stop_.load(std::memory_order_relaxed)) {
      const DmaAnswer answer =
          one.engine->access(pasid(e), iova(random.small(kPages)), sizeof(value), nullptr, &value);
      landed_.fetch_add(answer.done == sizeof(value), std::memory_order_relaxed);
      one.done.fetch_add(1, std::memory_order_relaxed);
    }
  }
  // Nobody may write it: poisons it, and looks for a while; now and then an engine that was
  // interrupted in the middle runs on meanwhile.
  void expect_untouched(test::RandomSource& random, unsigned e, unsigned p, unsigned looks) {
    set_word(e, p, kPoison + p);
    if (random.one_in(16)) std::this_thread::yield();
    for (unsigned i = 0; i < looks; ++i) {
      ASSERT_EQ(word(e, p), kPoison + p) << "an access landed after the call returned";
    }
  }
  void take_back_one(test::RandomSource& random, unsigned e) {
    const unsigned p = random.small(kPages);
    ASSERT_EQ(unmap(engines_[e].ioas, iova(p), kPageSize), 0);
    expect_untouched(random, e, p, 256);
    ASSERT_EQ(map_at(engines_[e].ioas, page(e, p), kPageSize, iova(p)), 0);
  }
  void take_back_the_pasid(test::RandomSource& random, unsigned e) {
    detach(engines_[e].device, pasid(e));
    for (unsigned p = 0; p < kPages; ++p) expect_untouched(random, e, p, 32);
    for (unsigned p = 0; p < kPages; ++p) ASSERT_EQ(word(e, p), kPoison + p);
    ASSERT_EQ(attach(engines_[e].device, engines_[e].table, pasid(e)), 0);
  }
  void expect_own_marks() {
    for (unsigned e = 0; e < kEngines; ++e) {
      for (unsigned p = 0; p < kPages; ++p) {
        const u64 found = word(e, p);
        ASSERT_TRUE(found == 0 || found == kMark + e || found == kPoison + p)
            << "page " << p << " of " << e << " holds " << std::hex << found;
      }
    }
  }

  test::GuardedPages memory_{kEngines * kPages};
  Engine engines_[kEngines];
  std::atomic<bool> stop_{false};
  std::atomic<u64> landed_{0};
};

TEST_F(IommuStress, NoAccessLandsAfterAnUnmapOrADetachReturned) {
  const u64 accesses = test::stress_rounds(kAccesses) / kEngines;
  const u64 least = test::stress_rounds(kRounds);
  test::RandomSource random(test::announced_seed("IommuStress"));
  std::vector<std::thread> threads;
  for (unsigned e = 0; e < kEngines; ++e) threads.emplace_back([this, e] { run(e); });
  u64 rounds = 0;
  const auto running = [&] {
    for (const Engine& one : engines_) {
      if (one.done.load(std::memory_order_relaxed) < accesses) return true;
    }
    return false;
  };
  for (; (running() || rounds < least) && !HasFatalFailure(); ++rounds) {
    const unsigned e = random.small(kEngines);
    if (random.one_in(8)) {
      take_back_the_pasid(random, e);
    } else {
      take_back_one(random, e);
    }
    if (rounds % 64 == 0 && !HasFatalFailure()) expect_own_marks();
  }
  stop_ = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(landed_.load(), 0u);
  u64 done = 0;
  for (const Engine& one : engines_) done += one.done.load();
  std::printf(
      "%llu accesses, %llu landed, %llu times taken back\n", static_cast<unsigned long long>(done),
      static_cast<unsigned long long>(landed_.load()), static_cast<unsigned long long>(rounds));
}

// Maps, unmaps, copies and attachments of one IOAS at once: no page is left pinned, and what one
// thread has is in the tables while it has it.
TEST_F(IommuStress, MapsAndAttachmentsOfManyThreads) {
  constexpr unsigned kThreads = 3, kEach = 4;
  const u64 rounds = test::stress_rounds(20'000);
  const test::GuardedPages own(kThreads * kEach);
  const u32 ioas = make_ioas(), other = make_ioas();
  const Attached stays = attach_device(ioas);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      test::RandomSource random(test::seed() + 100 + t);
      for (u64 i = 0; i < rounds; ++i) {
        const u64 at = kApertureStart + (u64{t} * 64 + 1) * kPageSize;
        const u64 pages = 1 + random.small(kEach);
        const u64 address = own.address() + u64{t} * kEach * kPageSize;
        ASSERT_EQ(map_at(ioas, address, pages * kPageSize, at), 0);
        for (u64 p = 0; p < pages; ++p) {
          ASSERT_EQ(walk(stays.hwpt, at + p * kPageSize), frame_address(address + p * kPageSize));
        }
        // Nobody's place: whoever comes first has it.
        const int error = map_at(ioas, address, kPageSize, kApertureStart);
        ASSERT_TRUE(error == 0 || error == EEXIST) << error;
        const int gone = unmap(ioas, kApertureStart, kPageSize);
        ASSERT_TRUE(gone == 0 || gone == EBUSY) << gone;
        ASSERT_EQ(unmap(ioas, at, pages * kPageSize), 0);
      }
    });
  }
  threads.emplace_back([&] {
    for (u64 i = 0; i < rounds / 8; ++i) {
      const Attached late = attach_device(ioas);
      ASSERT_EQ(late.error, 0);
      ASSERT_EQ(destroy(late.test_device), 0);
    }
  });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(unmap_all(ioas), 0);
  for (unsigned p = 0; p < kThreads * kEach; ++p) {
    EXPECT_EQ(pins_at(own.address() + p * kPageSize), 0u);
  }
  EXPECT_EQ(destroy(stays.test_device), 0);
  for (const u32 id : {ioas, other}) EXPECT_EQ(destroy(id), 0);
}

}  // namespace
}  // namespace stagetwo::iommu
