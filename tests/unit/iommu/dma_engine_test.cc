// SPDX-License-Identifier: Apache-2.0
// A device with caches: what it knows it does not ask again, and what is no longer so it forgets.
#include "iommu/dma_engine.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "base/failpoint.h"
#include "host/change.h"
#include "tests/unit/iommu/engine_world.h"

namespace stagetwo::iommu {
namespace {

class Engine : public EngineWorld, public testing::WithParamInterface<bool> {
 protected:
  HwptHow how() override { return {.pasid = true, .first_level = GetParam()}; }
};

TEST_P(Engine, AsksOnceAndThenKnows) {
  ASSERT_EQ(attach(device_, table_[0], 5), 0);
  for (unsigned i = 0; i < 10; ++i) EXPECT_EQ(seen(5), mark(0));
  EXPECT_EQ(engine_->counts().hits, 10u);
  EXPECT_EQ(engine_->counts().misses, 1u);
  EXPECT_EQ(engine_->counts().walks, 1u);
}

// One domain under two PASIDs: the unit knows it by the domain, if its tables are the domain's.
TEST_P(Engine, OneDomainIsWalkedOnceForSeveralPasids) {
  ASSERT_EQ(attach(device_, table_[0], 5), 0);
  ASSERT_EQ(attach(device_, table_[0], 6), 0);
  EXPECT_EQ(seen(5), mark(0));
  EXPECT_EQ(seen(6), mark(0));
  EXPECT_EQ(engine_->counts().walks, GetParam() ? 2u : 1u);
}

TEST_P(Engine, NothingIsReachedAfterAnUnmap) {
  ASSERT_EQ(attach(device_, table_[0], 5), 0);
  ASSERT_EQ(attach(device_, table_[0]), 0);
  EXPECT_EQ(seen(5), mark(0));
  EXPECT_EQ(seen(kNoPasid), mark(0));
  ASSERT_EQ(unmap(ioas_[0], kIova, kPageSize), 0);
  EXPECT_EQ(seen(5), 0);
  EXPECT_EQ(seen(kNoPasid), 0);
  ASSERT_EQ(map_at(ioas_[0], page(2), kPageSize, kIova), 0);
  EXPECT_EQ(seen(5), mark(2)) << "never the old page";
  EXPECT_EQ(seen(kNoPasid), mark(2));
}

TEST_P(Engine, ACopySaysWhichEndHadTheFaultAndHowFarItCame) {
  ASSERT_EQ(attach(device_, table_[0], 5), 0);
  const u64 second = kIova + kPageSize;
  ASSERT_EQ(map_at(ioas_[0], page(2), kPageSize, second), 0);
  u8* const from = memory_.bytes_at(0);
  u8* const to = memory_.bytes_at(2 * kPageSize);
  for (u64 i = 0; i < kPageSize; ++i) from[i] = static_cast<u8>(i * 7);
  for (const u64 bytes : {u64{1}, u64{100}, u64{3000}, kPageSize - 8}) {
    memset(to, 0, kPageSize);
    const auto copied = engine_->copy(5, second + 8, kIova, bytes);
    EXPECT_EQ(copied.answer.done, bytes);
    EXPECT_EQ(copied.answer.reason, FaultReason::kNone);
    EXPECT_EQ(memcmp(to + 8, from, bytes), 0);
    EXPECT_EQ(to[7], 0);
  }
  const auto write = engine_->copy(5, second + 96, kIova, kPageSize);
  EXPECT_EQ(write.answer.done, kPageSize - 96);
  EXPECT_EQ(write.answer.iova, second + kPageSize);
  EXPECT_TRUE(write.write);
  const auto read = engine_->copy(5, kIova, second + 96, kPageSize);
  EXPECT_EQ(read.answer.done, kPageSize - 96);
  EXPECT_EQ(read.answer.iova, second + kPageSize);
  EXPECT_FALSE(read.write);
  EXPECT_EQ(unmap(ioas_[0], second, kPageSize), 0);
}

TEST_P(Engine, ACopyReachesNothingAfterAnUnmapOrADetach) {
  const u64 second = kIova + kPageSize;
  for (unsigned round = 0; round < 4; ++round) {
    ASSERT_EQ(attach(device_, table_[0], 5), 0);
    ASSERT_EQ(map_at(ioas_[0], page(2), kPageSize, second), 0);
    ASSERT_EQ(engine_->copy(5, second, kIova, 64).answer.done, 64u);
    ASSERT_EQ(*memory_.bytes_at(2 * kPageSize), mark(0));
    *memory_.bytes_at(2 * kPageSize) = 0;
    if (round % 2 == 0) {
      ASSERT_EQ(unmap(ioas_[0], second, kPageSize), 0);
      EXPECT_TRUE(engine_->copy(5, second, kIova, 64).write);
    } else {
      detach(device_, 5);
      EXPECT_EQ(engine_->copy(5, second, kIova, 64).answer.done, 0u);
      ASSERT_EQ(unmap(ioas_[0], second, kPageSize), 0);
    }
    EXPECT_EQ(*memory_.bytes_at(2 * kPageSize), 0);
    detach(device_, 5);
  }
}

TEST_P(Engine, ARecordIsPostedWithTheCopyOrNotAtAll) {
  ASSERT_EQ(attach(device_, table_[0], 5), 0);
  const u64 second = kIova + kPageSize;
  ASSERT_EQ(map_at(ioas_[0], page(2), kPageSize, second), 0);
  const u64 words[4] = {0x0101, 2, 3, 4};
  auto* const there = reinterpret_cast<u64*>(memory_.bytes_at(2 * kPageSize + 96));
  const DmaEngine::Record record{second + 96, words};
  EXPECT_EQ(engine_->post(5, record).done, DmaEngine::kRecordBytes);
  for (unsigned round = 0; round < 2; ++round) {
    EXPECT_EQ(memcmp(there, words, sizeof(words)), 0);
    memset(there, 0, sizeof(words));
    EXPECT_TRUE(engine_->copy(5, kIova + 64, kIova, 64, false, &record).posted);
  }
  ASSERT_EQ(unmap(ioas_[0], second, kPageSize), 0);
  memset(there, 0, sizeof(words));
  EXPECT_FALSE(engine_->copy(5, kIova + 64, kIova, 64, false, &record).posted);
  EXPECT_EQ(engine_->post(5, record).iova, second + 104) << "the first word comes last";
  EXPECT_EQ(there[0], 0u);
}

// Moves of 8 bytes from the page to places behind 64 in the second, told of in front of those.
class Moves : public Engine {
 protected:
  static constexpr u64 kSecond = kIova + kPageSize;
  static constexpr unsigned kCount = 4;
  void SetUp() override {
    Engine::SetUp();
    ASSERT_EQ(attach(device_, table_[0], 5), 0);
    ASSERT_EQ(map_at(ioas_[0], page(2), kPageSize, kSecond), 0);
    for (unsigned i = 0; i < kPageSize; ++i) memory_.bytes_at(0)[i] = static_cast<u8>(i % 251);
    for (unsigned i = 0; i < kCount; ++i) {
      moves_[i] = {kSecond + 512 + 64 * i, kIova + 100 * i, 8, {kSecond + 32 * i, kWords}};
    }
  }
  // So that the caches know them all.
  void make_known() {
    EXPECT_EQ(engine_->copy(5, kSecond + 512, kIova, 8).answer.done, 8u);
    EXPECT_EQ(engine_->post(5, moves_[0].record).done, DmaEngine::kRecordBytes);
    wipe();
  }
  void wipe() { memset(memory_.bytes_at(2 * kPageSize), 0, kPageSize); }
  // How many of the first have come, with their records; of the others nothing.
  unsigned came() {
    unsigned count = 0;
    for (unsigned i = 0; i < kCount; ++i) {
      const u8* const to = memory_.bytes_at(2 * kPageSize + 512 + 64 * i);
      const u8* const told = memory_.bytes_at(2 * kPageSize + 32 * i);
      u8 nothing[DmaEngine::kRecordBytes] = {};
      const bool whole = memcmp(to, memory_.bytes_at(100 * i), 8) == 0 &&
                         memcmp(told, kWords, DmaEngine::kRecordBytes) == 0;
      if (whole && count == i) {
        ++count;
      } else {
        EXPECT_EQ(memcmp(told, nothing, sizeof(nothing)), 0) << i;
        EXPECT_EQ(memcmp(to, nothing, 8), 0) << i;
      }
    }
    return count;
  }
  static constexpr u64 kWords[4] = {0x0101, 2, 3, 4};
  DmaEngine::Move moves_[kCount];
};

TEST_P(Moves, GoAsFarAsTheCachesKnow) {
  EXPECT_EQ(engine_->move_known(5, moves_).moves, 0u);
  make_known();
  EXPECT_EQ(engine_->move_known(6, moves_).moves, 0u) << "another's";
  EXPECT_EQ(came(), 0u);
  EXPECT_EQ(engine_->move_known(5, moves_).moves, kCount);
  EXPECT_EQ(came(), kCount);
  wipe();
  moves_[2].to = kSecond + kPageSize - 4;  // not all of it is there
  EXPECT_EQ(engine_->move_known(5, moves_).moves, 2u);
  EXPECT_EQ(came(), 2u);
  wipe();
  moves_[1].record.iova = kSecond + kPageSize;
  EXPECT_EQ(engine_->move_known(5, moves_).moves, 1u);
  EXPECT_EQ(came(), 1u);
}

TEST_P(Moves, ReachNothingThatWasUnmappedOrDetached) {
  make_known();
  ASSERT_EQ(unmap(ioas_[0], kSecond, kPageSize), 0);
  EXPECT_EQ(engine_->move_known(5, moves_).moves, 0u);
  EXPECT_EQ(came(), 0u);
  ASSERT_EQ(map_at(ioas_[0], page(2), kPageSize, kSecond), 0);
  make_known();
  detach(device_, 5);
  EXPECT_EQ(engine_->move_known(5, moves_).moves, 0u);
  EXPECT_EQ(came(), 0u);
}

TEST_P(Moves, OfWhatMayBeReadOnlyAreNone) {
  ASSERT_EQ(unmap(ioas_[0], kSecond, kPageSize), 0);
  u64 iova = kSecond;
  ASSERT_EQ(map(ioas_[0], page(2), kPageSize, &iova, true, kMayRead), 0);
  EXPECT_EQ(engine_->copy(5, kIova + 8, kSecond, 8).answer.done, 8u);
  wipe();
  EXPECT_EQ(engine_->move_known(5, moves_).moves, 0u);
  EXPECT_EQ(came(), 0u);
}

TEST_P(Moves, FollowAPageThatIsMoved) {
  make_known();
  EXPECT_EQ(engine_->move_known(5, moves_).moves, kCount);
  wipe();
  void* const from = memory_.bytes_at(0);
  ASSERT_EQ(host::change(page(0), kPageSize, host::EventKind::kUnmap,
                         [&] {
                           const int both = PROT_READ | PROT_WRITE;
                           const int how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
                           return mmap(from, kPageSize, both, how, -1, 0) == from ? 0 : -1;
                         }),
            0);
  EXPECT_EQ(engine_->move_known(5, moves_).moves, kCount);
  for (unsigned i = 0; i < kPageSize; ++i) memory_.bytes_at(0)[i] = static_cast<u8>(i % 251);
  EXPECT_EQ(came(), kCount) << "the device has the page that was there";
}

TEST_P(Moves, EndWhereSomebodyCancels) {
  make_known();
  sync::Atomic<u32> cancel{1};
  engine_->set_cancel({{&cancel, nullptr}});
  EXPECT_EQ(engine_->move_known(5, moves_).moves, 0u);
  cancel.store(0);
  EXPECT_EQ(engine_->move_known(5, moves_).moves, kCount);
  engine_->set_cancel({});
}

INSTANTIATE_TEST_SUITE_P(OfEachFormat, Moves, testing::Values(false, true), [](const auto& first) {
  return first.param ? "FirstLevel" : "SecondLevel";
});

TEST_P(Engine, NothingIsReachedAfterADetach) {
  for (const u32 pasid : {0u, 5u}) {
    const s64 request = pasid == 0 ? kNoPasid : s64{pasid};
    ASSERT_EQ(attach(device_, table_[0], pasid), 0);
    EXPECT_EQ(seen(request), mark(0));
    detach(device_, pasid);
    EXPECT_EQ(seen(request), 0);
    EXPECT_EQ(reason_, FaultReason::kPasidNotPresent);
    ASSERT_EQ(attach(device_, table_[1], pasid), 0);
    EXPECT_EQ(seen(request), mark(1)) << "whoever has the number now";
  }
}

TEST_P(Engine, AReplacedPasidIsTheNewOneAtOnce) {
  ASSERT_EQ(attach(device_, table_[0], 5), 0);
  ASSERT_EQ(attach(device_, table_[1], 6), 0);
  EXPECT_EQ(seen(5), mark(0));
  EXPECT_EQ(seen(6), mark(1));
  ASSERT_EQ(replace(device_, table_[1], 5), 0);
  EXPECT_EQ(seen(5), mark(1));
  EXPECT_EQ(seen(6), mark(1));
}

TEST_P(Engine, ARightThatWasReadIsNoRightToWrite) {
  u64 iova = kIova + kPageSize;
  ASSERT_EQ(map(ioas_[0], page(2), kPageSize, &iova, true, kMayRead), 0);
  ASSERT_EQ(attach(device_, table_[0], 5), 0);
  u8 value = 0;
  EXPECT_EQ(engine_->access(5, iova, 1, &value, nullptr).done, 1u);
  EXPECT_EQ(engine_->access(5, iova, 1, nullptr, &value).reason,
            GetParam() ? FaultReason::kNoWrite : FaultReason::kSecondDenied);
}

TEST_P(Engine, ThatWasAwayForMoreThanTheQueueForgetsAll) {
  ASSERT_EQ(attach(device_, table_[0], 5), 0);
  ASSERT_EQ(attach(device_, table_[1], 6), 0);
  EXPECT_EQ(seen(5), mark(0));
  const u64 other = kIova + 8 * kPageSize;
  ASSERT_EQ(unmap(ioas_[0], kIova, kPageSize), 0);
  for (unsigned i = 0; i < 300; ++i) {
    ASSERT_EQ(map_at(ioas_[1], page(2), kPageSize, other), 0);
    ASSERT_EQ(unmap(ioas_[1], other, kPageSize), 0);
  }
  EXPECT_EQ(seen(5), 0);
  EXPECT_EQ(seen(6), mark(1));
}

TEST_P(Engine, IsForDevicesInTablesOnly) {
  u32 id = 0;
  {
    Locked locked(*context_);
    id = (*locked.make_device(false, false, 8))->object.id;
  }
  EXPECT_EQ(error_of(DmaEngine::make(*context_, id)), ENODEV);
  EXPECT_EQ(error_of(DmaEngine::make(*context_, 9999)), ENOENT);
  EXPECT_EQ(destroy(id), 0);
}

TEST_P(Engine, ThatIsRefusedMemoryLeavesNothing) {
  s64 blocks = 0;
  {
    const Locked locked(*context_);
    blocks = locked.arena().blocks_in_use();
  }
  const u64 runs = failpoint::sweep([&] {
    const auto made = DmaEngine::make(*context_, device_);
    EXPECT_TRUE(made || to_int(made.error()) == ENOMEM);
  });
  EXPECT_EQ(runs, 1u);
  const Locked locked(*context_);
  EXPECT_EQ(locked.arena().blocks_in_use(), blocks);
}

INSTANTIATE_TEST_SUITE_P(OfEachFormat, Engine, testing::Values(false, true), [](const auto& first) {
  return first.param ? "FirstLevel" : "SecondLevel";
});

using OneEngine = EngineWorld;

TEST_F(OneEngine, GoesWithItsProcess) {
  // A child of fork has its own; it ends without a word.
  for (unsigned i = 0; i < InvalidationQueue::kLines + 4; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      auto context = Context::attach(backing_->fd());
      auto engine = DmaEngine::make(**context, device_);
      _exit(engine ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_EQ(status, 0) << i;
  }
  Locked locked(*context_);
  locked.drop_dead_lines();
}

}  // namespace
}  // namespace stagetwo::iommu
