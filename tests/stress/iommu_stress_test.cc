// SPDX-License-Identifier: Apache-2.0
// Devices at full speed while their client unmaps, maps again, detaches and replaces. What a client
// has taken back is poisoned at once, and stays poison: not one access lands after the call
// returned. Each PASID writes a mark of its own, anywhere in its pages and over their bounds, and
// no byte of a page is ever another's.
#include <algorithm>
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
// Bytes: a copy may be interrupted anywhere.
constexpr u8 kMark = 0x40, kPoison = 0x80;
constexpr u64 kMostAtOnce = kPageSize, kEachByte = 0x0101'0101'0101'0101;
constexpr unsigned kWords = kPageSize / sizeof(u64);

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
  [[nodiscard]] static u8 poison(unsigned e, unsigned p) {
    return static_cast<u8>(kPoison + e * kPages + p);
  }
  void fill_page(unsigned e, unsigned p, u8 value) {
    auto* const words = reinterpret_cast<u64*>(page(e, p));
    for (unsigned i = 0; i < kWords; ++i) {
      __atomic_store_n(words + i, kEachByte * value, __ATOMIC_RELAXED);
    }
  }
  // Is the whole page so, as the client sees it?
  [[nodiscard]] bool is_all(unsigned e, unsigned p, u8 value) const {
    const auto* const words = reinterpret_cast<const u64*>(page(e, p));
    u64 other = 0;
    for (unsigned i = 0; i < kWords; ++i) {
      other |= __atomic_load_n(words + i, __ATOMIC_RELAXED) ^ (kEachByte * value);
    }
    return other == 0;
  }

  // Writes its mark wherever it may: mostly some bytes, now and then over several pages.
  void run(unsigned e) {
    test::RandomSource random(test::seed() + e);
    Engine& one = engines_[e];
    u8 marks[kMostAtOnce];
    memset(marks, kMark + static_cast<int>(e), sizeof(marks));
    while (!stop_.load(std::memory_order_relaxed)) {
      const u64 at = random.small(kPages * kPageSize);
      const u64 most = std::min(random.one_in(64) ? kMostAtOnce : 8, kPages * kPageSize - at);
      const DmaAnswer answer =
          one.engine->access(pasid(e), iova(0) + at, 1 + random.below(most), nullptr, marks);
      landed_.fetch_add(answer.done != 0, std::memory_order_relaxed);
      one.done.fetch_add(1, std::memory_order_relaxed);
    }
  }
  // Nobody may write it: poisons it, and looks for a while; now and then an engine that was
  // interrupted in the middle runs on meanwhile.
  void expect_untouched(test::RandomSource& random, unsigned e, unsigned p, unsigned looks) {
    fill_page(e, p, poison(e, p));
    if (random.one_in(16)) std::this_thread::yield();
    for (unsigned i = 0; i < looks; ++i) {
      ASSERT_TRUE(is_all(e, p, poison(e, p))) << "an access landed after the call returned";
    }
  }
  void take_back_one(test::RandomSource& random, unsigned e) {
    const unsigned p = random.small(kPages);
    ASSERT_EQ(unmap(engines_[e].ioas, iova(p), kPageSize), 0);
    expect_untouched(random, e, p, 16);
    ASSERT_EQ(map_at(engines_[e].ioas, page(e, p), kPageSize, iova(p)), 0);
  }
  void take_back_the_pasid(test::RandomSource& random, unsigned e) {
    detach(engines_[e].device, pasid(e));
    for (unsigned p = 0; p < kPages; ++p) expect_untouched(random, e, p, 4);
    for (unsigned p = 0; p < kPages; ++p) ASSERT_TRUE(is_all(e, p, poison(e, p)));
    ASSERT_EQ(attach(engines_[e].device, engines_[e].table, pasid(e)), 0);
  }
  void expect_own_marks() {
    for (unsigned e = 0; e < kEngines; ++e) {
      for (unsigned p = 0; p < kPages; ++p) {
        const auto* const bytes = reinterpret_cast<const u8*>(page(e, p));
        for (u64 i = 0; i < kPageSize; ++i) {
          const unsigned found = __atomic_load_n(bytes + i, __ATOMIC_RELAXED);
          ASSERT_TRUE(found == 0 || found == kMark + e || found == poison(e, p))
              << "byte " << i << " of page " << p << " of " << e << " is " << found;
        }
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

// Who pins by an access, and lets go when asked.
class Pinner final : public AccessClient {
 public:
  Pinner(Context& context, u32 ioas) : context_(context) {
    Locked locked(context_);
    id_ = (*locked.make_access(*locked.find<Ioas>(ioas), true, this))->object.id;
  }
  [[nodiscard]] u32 id() const { return id_; }
  // Answers the errno.
  int pin(u64 iova, u64 pages) {
    const sync::MutexGuard guard(lock_);
    Locked locked(context_);
    u64 frames[kPages];
    const auto done = locked.pin(**locked.find<Access>(id_), iova, pages * kPageSize, true, frames);
    if (done) pins_.push_back({iova, iova + pages * kPageSize - 1});
    return error_of(done);
  }
  void unpin_one() {
    const sync::MutexGuard guard(lock_);
    if (!pins_.empty()) let_go(pins_.size() / 2);
  }
  void unmap(u64 iova, u64 last) override {
    const sync::MutexGuard guard(lock_);
    for (size_t i = pins_.size(); i-- > 0;) {
      if (pins_[i].start <= last && pins_[i].last >= iova) let_go(i);
    }
  }

 private:
  void let_go(size_t i) TA_REQ(lock_) {
    Locked locked(context_);
    locked.unpin(**locked.find<Access>(id_), pins_[i].start, pins_[i].last - pins_[i].start + 1);
    pins_.erase(pins_.begin() + static_cast<std::ptrdiff_t>(i));
  }
  Context& context_;
  u32 id_ = 0;
  sync::Mutex lock_{sync::Rank::kDevice};
  std::vector<IovaRanges> pins_ TA_GUARDED(lock_);
};

// An access goes from one IOAS to another and back while threads pin by it and unmap what they
// pinned: each pin is let go of where it was made.
TEST_F(IommuStress, PinsOfAnAccessThatChangesItsIoas) {
  const test::GuardedPages own(kPages);
  const u32 both[] = {make_ioas(), make_ioas()};
  const auto map_all = [&](u32 ioas) { return map_at(ioas, own.address(), kPages * kPageSize, 0); };
  for (const u32 ioas : both) ASSERT_EQ(map_all(ioas), 0);
  Pinner pinner(*context_, both[0]);
  const u64 rounds = test::stress_rounds(1'000'000);
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (u64 t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] {
      test::RandomSource random(test::seed() + 200 + t);
      while (!stop) {
        const u64 pages = 1 + random.below(kPages - 1);
        const int error = pinner.pin(random.below(kPages - pages + 1) * kPageSize, pages);
        // ENOENT: it changes, or nothing is mapped; EINVAL: what is mapped is going.
        ASSERT_TRUE(error == 0 || error == ENOENT || error == EINVAL) << error;
        if (random.one_in(2)) pinner.unpin_one();
        if (!random.one_in(64)) continue;
        const u32 ioas = both[random.small(2)];
        const int gone = unmap_all(ioas);
        ASSERT_TRUE(gone == 0 || gone == EDEADLK) << gone;
        const int again = map_all(ioas);
        ASSERT_TRUE(again == 0 || again == EEXIST) << again;
      }
    });
  }
  for (u64 i = 0; i < rounds; ++i) {
    ASSERT_EQ(error_of(context_->change_ioas(pinner.id(), both[(i + 1) % 2])), 0);
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  context_->destroy_access(pinner.id());
  for (unsigned p = 0; p < kPages; ++p) EXPECT_EQ(pins_at(own.address() + p * kPageSize), 0u);
  for (const u32 ioas : both) {
    EXPECT_EQ(unmap_all(ioas), 0);
    EXPECT_EQ(destroy(ioas), 0);
  }
}

}  // namespace
}  // namespace stagetwo::iommu
