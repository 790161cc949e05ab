// SPDX-License-Identifier: Apache-2.0
// Those cases of the isolation matrix (docs/support-matrix-vfio.md) that ask for a size, a count or
// a time: by clients of the dma-engine. In whole where a stress test has its time
// (STAGETWO_TEST_SECONDS from 20 on), else the same with less of it.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <random>
#include <thread>

#include "base/crc32c.h"
#include "sync/atomic.h"
#include "tests/support/random_source.h"
#include "tests/unit/vfio/engine_world.h"

namespace stagetwo::vfio {
namespace {

using LoadClock = std::chrono::steady_clock;

class EngineLoad : public EngineWorld {
 protected:
  static constexpr u64 kIova = EngineClient::kIova, kData = EngineClient::kData;
  static constexpr u64 kNowhere = kIova + EngineClient::kPages * kPageSize;

  static bool in_whole() { return test::test_seconds() >= 20; }
  static Descriptor move(u64 from, u64 to, u64 size, u32 flags = 0) {
    return EngineClient::make(Opcode::kMove, from, to, static_cast<u32>(size), flags);
  }
  static bool all_are(const u8* from, u64 bytes, u8 value) {
    return bytes == 0 || (from[0] == value && memcmp(from, from + 1, bytes - 1) == 0);
  }
  // How far the two are alike.
  static u64 alike(const u8* one, const u8* other, u64 bytes) {
    u64 at = 0;
    while (at < bytes && memcmp(one + at, other + at, kPageSize) == 0) at += kPageSize;
    while (at < bytes && one[at] == other[at]) ++at;
    return at;
  }
};

// ---- I5: 64 MiB, and in the middle of the move one of its ends is unmapped

class UnmapUnderMove : public EngineLoad {
 protected:
  static constexpr u64 kBytes = u64{64} << 20, kSource = u64{1} << 32, kTarget = u64{2} << 32;
  static constexpr u8 kCanary = 0x22, kLater = 0x33, kLateSource = 0x44;

  void SetUp() override {
    EngineLoad::SetUp();
    client_.emplace(make_device(1));
    write_source();
  }
  void TearDown() override {
    client_.reset();
    EngineLoad::TearDown();
  }
  // No byte of it is a canary, and no two pages are the same.
  void write_source() {
    auto* const words = static_cast<u64*>(source_.pointer());
    for (u64 i = 0; i < kBytes / 8; ++i) words[i] = (i * 0x9e3779b97f4a7c15) | 0x8080808080808080;
  }
  void map(u64 iova, const test::GuardedPages& memory) {
    ASSERT_TRUE(client_->container().map({iova, kBytes, memory.address(), 3}));
  }
  void unmap(u64 iova) {
    ASSERT_EQ(client_->unmap(iova, kBytes / kPageSize), static_cast<s64>(kBytes));
  }
  // Was it in the middle of the move?
  bool round(bool of_source, std::mt19937_64& random) {
    u8* const target = target_.bytes_at(0);
    memset(target, kCanary, kBytes);
    map(kSource, source_);
    map(kTarget, target_);
    Completion& record = *client_->record();
    record = {};
    client_->submit(move(kSource, kTarget, kBytes));
    const volatile u8* const reached = target + random() % (kBytes / 2);
    while (*reached == kCanary && const_cast<volatile u8&>(record.status) == 0) sync::spin_hint();
    unmap(of_source ? kSource : kTarget);
    const u64 landed = alike(target, source_.bytes_at(0), kBytes);
    EXPECT_TRUE(all_are(target + landed, kBytes - landed, kCanary)) << "a hole";
    if (of_source) memset(source_.pointer(), kLateSource, kBytes);
    if (!of_source) memset(target, kLater, kBytes);
    const Completion done = client_->wait();
    EXPECT_EQ(done.bytes, landed);
    if (landed != kBytes) {
      EXPECT_EQ(done.status, of_source ? 0x03 : 0x83);
      EXPECT_EQ(done.fault_address, (of_source ? kSource : kTarget) + landed);
    } else {
      EXPECT_EQ(done.status, 1);
    }
    // As long as the row says: nothing comes behind the unmap.
    usleep(in_whole() ? 1'000'000 : 10'000);
    if (of_source) {
      EXPECT_TRUE(all_are(target + landed, kBytes - landed, kCanary)) << "it was still read";
      write_source();
      unmap(kTarget);
    } else {
      EXPECT_TRUE(all_are(target, kBytes, kLater)) << "it was still written";
      unmap(kSource);
    }
    return landed != 0 && landed != kBytes;
  }

  test::GuardedPages source_{kBytes / kPageSize}, target_{kBytes / kPageSize};
  std::optional<EngineClient> client_;
};

TEST_F(UnmapUnderMove, I5NothingLandsBehindItAndTheCountIsExact) {
  std::mt19937_64 random(test::announced_seed("I5"));
  for (const bool of_source : {false, true}) {
    SCOPED_TRACE(of_source ? "the source goes" : "the target goes");
    unsigned cut = 0;
    const unsigned wanted = in_whole() ? 5 : 1;
    // A machine that is busy may let the move end first: then it is tried again.
    for (unsigned i = 0; i < 40 && cut < wanted && !HasFailure(); ++i) {
      if (round(of_source, random)) ++cut;
    }
    EXPECT_NE(cut, 0u) << "no unmap met the move";
  }
}

// ---- two clients

class TwoEngines : public EngineLoad {
 protected:
  void SetUp() override {
    EngineLoad::SetUp();
    a_.emplace(make_device(1));
    b_.emplace(make_device(2));
  }
  void TearDown() override {
    a_.reset();
    b_.reset();
    EngineLoad::TearDown();
  }
  std::optional<EngineClient> a_, b_;
};

TEST_F(TwoEngines, I6AMoveGoesToWhatIsMappedNow) {
  const unsigned rounds = in_whole() ? 10'000 : 200;
  const u64 iova = u64{1} << 32;
  *a_->bytes(kData) = 0x40;
  for (unsigned i = 0; i < rounds; ++i) {
    const u64 page = 4 + i % 2, other = 4 + (i + 1) % 2;
    ASSERT_EQ(a_->map(iova, 1, page), 0);
    ASSERT_EQ(a_->ask(move(kData, iova, 1)).status, 1) << "round " << i;
    ASSERT_EQ(*a_->bytes(kIova + page * kPageSize), 0x40) << "round " << i;
    ASSERT_EQ(*a_->bytes(kIova + other * kPageSize), 0) << "round " << i;
    *a_->bytes(kIova + page * kPageSize) = 0;
    ASSERT_EQ(a_->unmap(iova, 1), s64{kPageSize});
  }
}

// A client's ring, as it maps it.
class MappedRing {
 public:
  explicit MappedRing(EngineClient& client) : client_(client) {
    EXPECT_TRUE(
        client.device().show(4, 0, kRingBytes, PROT_READ | PROT_WRITE, Hva{memory_.address()}));
  }
  // One after the other, and waits for the last one's record.
  const Completion& ask(std::span<const Descriptor> list) {
    auto* const slots = reinterpret_cast<Descriptor*>(memory_.bytes_at(kRingAt));
    u32 at = word(&RingHead::tail).load();
    for (const Descriptor& d : list) slots[at++ % kRingSlots] = d;
    Completion& record = *client_.record(list.back().completion);
    record = {};
    word(&RingHead::tail).store(at);
    if (word(&RingHead::asleep).load() != 0) client_.set_reg(QueueDevice::kDoorbell, 1);
    for (unsigned i = 1; const_cast<volatile u8&>(record.status) == 0; ++i) {
      sync::spin_hint();
      if (i % 2000 == 0) usleep(20);
    }
    return record;
  }

 private:
  sync::Atomic<u32>& word(u32 RingHead::* which) {
    return reinterpret_cast<sync::Atomic<u32>&>(static_cast<RingHead*>(memory_.pointer())->*which);
  }
  EngineClient& client_;
  test::GuardedPages memory_{kRingBytes / kPageSize};
};

// A's queue is filled with a million descriptors that fail, every other one without a place for its
// record. What that takes from b is measured beside a neighbour whose descriptors are good and keep
// its device as busy: the share that is fair. By turns, so that whatever else the machine does
// meets both.
TEST_F(TwoEngines, I13AStormOfFaultsIsNobodyElses) {
  const u64 storm = in_whole() ? 1'000'000 : 20'000;
  enum Mode : u32 { kGood, kBad, kEnd };
  sync::Atomic<u32> mode{kGood};
  sync::Atomic<u64> failed{0};
  std::vector<Descriptor> good(kRingSlots - 1, move(kData, kData + kPageSize, 64));
  std::vector<Descriptor> busy(kRingSlots - 1, move(kData, kData + 7 * kPageSize, 7 * kPageSize));
  std::vector<Descriptor> bad(kRingSlots - 1, move(kNowhere, kData + 2 * kPageSize, 64));
  for (size_t i = 0; i + 1 < bad.size(); ++i) {  // the last one's record is its own
    good[i].completion = kIova + sizeof(Completion);
    busy[i].completion = good[i].completion;
    bad[i].completion = i % 2 == 0 ? kNowhere : good[i].completion;
  }
  std::thread neighbour([&] {
    MappedRing ring(*a_);
    for (u32 now; (now = mode.load()) != kEnd;) {
      ASSERT_EQ(ring.ask(now == kBad ? bad : busy).status, now == kBad ? 3 : 1);
      if (now == kBad) failed.fetch_add(bad.size());
    }
  });
  MappedRing ring(*b_);
  u64 done[2] = {};
  double seconds[2] = {};
  for (unsigned turn = 0; failed.load() < storm || turn % 2 != 0; ++turn) {
    const u32 now = turn % 2;
    mode.store(now);
    const auto begin = LoadClock::now(), until = begin + std::chrono::milliseconds(20);
    while (LoadClock::now() < until) {
      ASSERT_EQ(ring.ask(good).status, 1);
      done[now] += good.size();
    }
    seconds[now] += std::chrono::duration<double>(LoadClock::now() - begin).count();
  }
  mode.store(kEnd);
  neighbour.join();
  EXPECT_EQ(b_->error(), 0u);
  EXPECT_EQ(a_->error() & 3, 3u) << "the first is there, others were dropped";
  const double share = (static_cast<double>(done[kBad]) / seconds[kBad]) /
                       (static_cast<double>(done[kGood]) / seconds[kGood]);
  std::printf("I13: %llu faults, b at %.2f of its fair share\n",
              static_cast<unsigned long long>(failed.load()), share);
  if (in_whole()) {
    EXPECT_GE(share, 0.9);
  }
}

// ---- I21: queues that several clients share, each with its own part of the memory

class SharedQueues : public EngineLoad {
 protected:
  static constexpr unsigned kQueues = 8, kSharers = 8;  // 64 clients
  static constexpr u64 kArea = 14 * kPageSize / kSharers;
};

// One of them. Its slot of the portal, its record and its area are its own.
class Sharer {
 public:
  Sharer(EngineClient& queue, unsigned n, u64 area, u64 seed)
      : queue_(queue),
        slot_(n),
        record_(EngineClient::kIova + n * sizeof(Completion)),
        base_(EngineClient::kData + n * area),
        model_(area),
        random_(seed) {}

  [[nodiscard]] bool is_as_its_model() {
    return memcmp(queue_.bytes(base_), model_.data(), model_.size()) == 0;
  }
  // Answers what is wrong.
  const char* step() {
    const u64 size = 1 + random_() % 1500, from = random_() % (model_.size() - size);
    const u64 to = random_() % (model_.size() - size), pattern = random_();
    const bool apart = (from > to ? from - to : to - from) >= size;
    switch (random_() % 4) {
      case 0: {
        const auto done = ask(Opcode::kMove, base_ + from, base_ + to, size);
        if (done.status != (apart ? 1 : 0x16)) return "status of a move";
        if (apart) memcpy(&model_[to], &model_[from], size);
        break;
      }
      case 1: {
        if (ask(Opcode::kFill, pattern, base_ + to, size).status != 1) return "status of a fill";
        for (u64 i = 0; i < size; ++i) model_[to + i] = static_cast<u8>(pattern >> 8 * (i % 8));
        break;
      }
      case 2: {
        const auto done = ask(Opcode::kCompare, base_ + from, base_ + to, size);
        const auto differs = std::mismatch(&model_[from], &model_[from] + size, &model_[to]);
        const auto same = static_cast<u64>(differs.first - &model_[from]);
        if (done.status != 1 || done.result != (same != size)) return "a comparison";
        if (same != size && done.bytes != same) return "where they differ";
        break;
      }
      default: {
        const auto done = ask(Opcode::kSum, base_ + from, 0, size);
        if (done.status != 1) return "status of a sum";
        if (done.special[0] != u32{~crc32c(~u32{0}, &model_[from], size)}) return "a sum";
      }
    }
    return is_as_its_model() ? nullptr : "memory";
  }

 private:
  Completion ask(Opcode opcode, u64 source, u64 destination, u64 size) {
    Descriptor d = EngineClient::make(opcode, source, destination, static_cast<u32>(size));
    d.completion = record_;
    Completion& record = *queue_.record(record_);
    record = {};
    queue_.submit(d, slot_);
    return queue_.wait(record_);
  }

  EngineClient& queue_;
  const unsigned slot_;
  const u64 record_, base_;
  std::vector<u8> model_;
  std::mt19937_64 random_;
};

// Ten minutes of it: STAGETWO_TEST_SECONDS=600; under sanitizers by their presets.
TEST_F(SharedQueues, I21SixtyFourClientsWithRandomWorkAgreeWithTheirModels) {
  const u64 seed = test::announced_seed("I21");
  std::vector<std::unique_ptr<EngineClient>> queues;
  std::vector<std::unique_ptr<Sharer>> sharers;
  for (unsigned q = 0; q < kQueues; ++q) {
    queues.push_back(std::make_unique<EngineClient>(make_device(10 + q)));
    for (unsigned n = 0; n < kSharers; ++n) {
      sharers.push_back(std::make_unique<Sharer>(*queues[q], n, kArea, seed + q * kSharers + n));
    }
  }
  const double time = test::test_seconds() * (in_whole() ? 1 : 0.15);
  const auto until = LoadClock::now() + std::chrono::milliseconds(static_cast<u64>(time * 1000));
  sync::Atomic<u64> steps{0};
  std::vector<std::thread> threads;
  for (const auto& sharer : sharers) {
    threads.emplace_back([&, one = sharer.get()] {
      do {
        const char* const wrong = one->step();
        ASSERT_EQ(wrong, nullptr) << wrong << ", seed " << seed;
        steps.fetch_add(1);
      } while (LoadClock::now() < until);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& sharer : sharers) EXPECT_TRUE(sharer->is_as_its_model());
  std::printf("I21: %llu steps of %zu clients\n", static_cast<unsigned long long>(steps.load()),
              sharers.size());
}

}  // namespace
}  // namespace stagetwo::vfio
