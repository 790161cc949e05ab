// SPDX-License-Identifier: Apache-2.0
// Without its guards a device keeps what was taken from it, by its tables or by one of its caches,
// or reaches by its own requests what was never meant for PASIDs.
#include <sys/mman.h>

#include <atomic>
#include <thread>

#include "host/change.h"
#include "iommu/process_space.h"
#include "iommu/sva.h"
#include "tests/mutation/broken_without.h"
#include "tests/sched/dma_line_scenarios.h"
#include "tests/unit/iommu/engine_world.h"

namespace stagetwo::iommu {
namespace {

// A process's own addresses, of which one page is used, changed and used again.
bool a_device_keeps_what_was_unmapped() {
  if (!host::backstop::install()) return false;
  auto space = *ProcessSpace::make();
  const test::GuardedPages memory(1);
  const Hva at(memory.address());
  u8 byte = 0;
  if (!space->bring(at, kMayRead)) return false;
  const host::InvalidateSection section({HvaRange(at, kPageSize), host::EventKind::kUnmap});
  return space->access(at, 1, &byte, nullptr);
}
bool a_page_is_entered_over_a_change() {
  if (!host::backstop::install()) return false;
  auto space = *ProcessSpace::make();
  const test::GuardedPages memory(1);
  const Hva at(memory.address());
  const auto before = space->look();
  {
    const host::InvalidateSection section({HvaRange(at, kPageSize), host::EventKind::kUnmap});
  }
  const auto entered = space->enter(before, at, kMayRead);
  return entered && *entered;
}
TEST(IommuSpaceZap, WithoutItADeviceKeepsWhatTheProcessUnmaps) {
  EXPECT_FALSE(test::broken_without({}, a_device_keeps_what_was_unmapped));
  EXPECT_TRUE(test::broken_without({"iommu_space_zap"}, a_device_keeps_what_was_unmapped));
}
TEST(IommuSpaceGate, WithoutItAPageIsEnteredThatHasChanged) {
  EXPECT_FALSE(test::broken_without({}, a_page_is_entered_over_a_change));
  EXPECT_TRUE(test::broken_without({"iommu_space_gate"}, a_page_is_entered_over_a_change));
}

using test::broken_without;

// Made in the child that looks: an iommufd's state is shared with children.
struct Scene : EngineWorld {
  Scene() { SetUp(); }
  void TestBody() override {}

  bool detached_reaches() {
    if (attach(device_, table_[0], 5) != 0) return false;
    detach(device_, 5);
    return write_byte(device_, 5, kIova, 1) == FaultReason::kNone;
  }
  bool finds_what_nobody_was_told_of() {
    Locked locked(*context_);
    Object& object = (*locked.make_ioas())->object;
    locked.hold_back(object);
    const bool found = locked.find(object.id).has_value();
    locked.take_back(object.id);
    return found;
  }
  bool pasid_beside_another_table() {
    const u32 plain = make_hwpt(ioas_[0], device_, {});
    return attach(device_, plain) == 0 && attach(device_, table_[0], 5) == 0;
  }
  // Is it another page than the one that is mapped in the place of the first?
  bool sees_the_old_page() {
    if (attach(device_, table_[0], 5) != 0 || seen(5) != mark(0)) return false;
    if (unmap(ioas_[0], kIova, kPageSize) != 0) return false;
    return map_at(ioas_[0], page(2), kPageSize, kIova) == 0 && seen(5) != mark(2);
  }
  bool sees_the_old_domain() {
    if (attach(device_, table_[0], 5) != 0 || seen(5) != mark(0)) return false;
    return replace(device_, table_[1], 5) == 0 && seen(5) != mark(1);
  }
  // A page of its own that the process takes back between two copies of its device.
  bool copies_over_what_went() {
    const auto pasid = bind_process(*context_, device_);
    if (!pasid || engine_->copy(*pasid, page(2), page(0), 64, true).answer.done != 64) return false;
    const host::InvalidateSection section(
        {HvaRange(Hva(page(2)), kPageSize), host::EventKind::kUnmap});
    return engine_->copy(*pasid, page(2), page(0), 64).answer.done != 0;
  }
  // Moves 64 bytes from one IOVA to another, with what is known of them.
  bool moves(u64 to, u64 from) {
    const u64 words[4] = {1, 2, 3, 4};
    const DmaEngine::Move move{to, from, 64, {to + 512, words}};
    engine_->copy(5, to, from, 64, false, &move.record);
    engine_->post(5, move.record);
    return engine_->move_known(5, {&move, 1}).moves == 1;
  }
  // A page that another mapping has taken the place of is the device's still.
  bool moves_what_is_not_its_own() {
    const u64 second = kIova + kPageSize;
    if (attach(device_, table_[0], 5) != 0) return false;
    if (map_at(ioas_[0], page(2), kPageSize, second) != 0 || !moves(second, kIova)) return false;
    host::change(page(0), kPageSize, host::EventKind::kUnmap, [&] {
      return mmap(memory_.bytes_at(0), kPageSize, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED;
    });
    *memory_.bytes_at(0) = 0xee;
    return moves(second, kIova) && *memory_.bytes_at(2 * kPageSize) == 0xee;
  }
  // A frame that means another page now: of two blocks of memory one after the other has it.
  bool moves_the_page_before() {
    constexpr u64 kBlock = 2 << 20;
    const test::GuardedPages two(3 * kBlock / kPageSize);
    const u64 first = (two.address() + kBlock - 1) & ~(kBlock - 1), other = first + kBlock;
    *reinterpret_cast<u8*>(first) = 0xaa;
    *reinterpret_cast<u8*>(other) = 0xbb;
    const u64 second = kIova + kPageSize, third = kIova + 8 * kPageSize;
    if (attach(device_, table_[0], 5) != 0) return false;
    if (map_at(ioas_[0], page(2), kPageSize, second) != 0) return false;
    bool before = false;
    for (const u64 block : {first, other}) {
      if (map_at(ioas_[0], block, kPageSize, third) != 0 || !moves(second, third)) return false;
      before = *memory_.bytes_at(2 * kPageSize) != *reinterpret_cast<u8*>(block);
      if (unmap(ioas_[0], third, kPageSize) != 0) return false;
    }
    return before;
  }
  // Long moves against unmaps of another page: do they all go on to their end?
  bool moves_keep_an_unmap_waiting() {
    constexpr u64 kBytes = 1 << 20;
    const test::GuardedPages both(2 * kBytes / kPageSize);
    const u64 from = kIova + 64 * kPageSize, to = from + kBytes, other = kIova + 8 * kPageSize;
    if (attach(device_, table_[0], 5) != 0) return false;
    if (map_at(ioas_[0], both.address(), 2 * kBytes, from) != 0) return false;
    const u64 words[4] = {1, 2, 3, 4};
    DmaEngine::Move list[DmaEngine::kMostMoves];
    for (auto& move : list) move = {to, from, kBytes - kPageSize, {to + kBytes - 32, words}};
    const auto fill_caches = [&] {
      engine_->copy(5, to, from, kBytes);
      engine_->post(5, list[0].record);
    };
    fill_caches();
    std::atomic<bool> over{false};
    std::thread unmapper([&] {
      while (!over) {
        static_cast<void>(map_at(ioas_[0], page(2), kPageSize, other));
        static_cast<void>(unmap(ioas_[0], other, kPageSize));
      }
    });
    bool ended = false;
    unsigned whole = 0;
    for (unsigned i = 0; i < 20'000 && whole < 300 && !ended; ++i) {
      const auto done = engine_->move_known(5, list);
      if (done.moves == DmaEngine::kMostMoves) ++whole;
      ended = done.moves != 0 && done.moves < DmaEngine::kMostMoves;
      if (done.moves == 0) fill_caches();  // an unmap has had them forget
    }
    over = true;
    unmapper.join();
    return !ended;
  }
  bool second_write_is_lost() {
    const u32 tracking = make_hwpt(ioas_[0], device_, {.dirty = true, .pasid = true});
    if (attach(device_, tracking, 5) != 0) return false;
    {
      Locked locked(*context_);
      if (!locked.set_dirty_tracking(**locked.find<Hwpt>(tracking), true)) return false;
    }
    for (unsigned round = 0; round < 2; ++round) {
      const u8 value = 1;
      if (engine_->access(5, kIova, 1, nullptr, &value).done != 1) return false;
      unsigned pages = 0;
      Locked locked(*context_);
      locked.read_dirty(
          **locked.find<Hwpt>(tracking), kIova, kIova + kPageSize - 1, true,
          [](void* out, u64, u64) { ++*static_cast<unsigned*>(out); }, &pages);
      if (pages == 0) return true;
    }
    return false;
  }
};

template <bool (Scene::*fn)()>
bool in_a_scene() {
  Scene scene;
  return (scene.*fn)();
}

TEST(IommuGuards, WithoutHidingItsEntryADetachedPasidReachesThePage) {
  EXPECT_FALSE(broken_without({}, in_a_scene<&Scene::detached_reaches>));
  EXPECT_TRUE(broken_without({"iommu_hide_entry"}, in_a_scene<&Scene::detached_reaches>));
}

TEST(IommuGuards, WithoutTheRuleAPasidStandsBesideATableThatIsNotForThem) {
  EXPECT_FALSE(broken_without({}, in_a_scene<&Scene::pasid_beside_another_table>));
  EXPECT_TRUE(broken_without({"iommu_pasid_fits"}, in_a_scene<&Scene::pasid_beside_another_table>));
}

TEST(IommuGuards, WithoutTheRuleAnObjectIsFoundBeforeItsClientWasTold) {
  EXPECT_FALSE(broken_without({}, in_a_scene<&Scene::finds_what_nobody_was_told_of>));
  EXPECT_TRUE(broken_without({"iommu_untold"}, in_a_scene<&Scene::finds_what_nobody_was_told_of>));
}

TEST(IommuGuards, I7WithoutItsInvalidationADevicesTlbKeepsThePage) {
  EXPECT_FALSE(broken_without({}, in_a_scene<&Scene::sees_the_old_page>));
  EXPECT_TRUE(broken_without({"iommu_device_tlb"}, in_a_scene<&Scene::sees_the_old_page>));
}

TEST(IommuGuards, WithoutItsInvalidationTheIotlbKeepsThePage) {
  EXPECT_TRUE(broken_without({"iommu_iotlb"}, in_a_scene<&Scene::sees_the_old_page>));
}

TEST(IommuGuards, WithoutItsInvalidationThePasidCacheKeepsTheDomain) {
  EXPECT_FALSE(broken_without({}, in_a_scene<&Scene::sees_the_old_domain>));
  EXPECT_TRUE(broken_without({"iommu_pasid_cache"}, in_a_scene<&Scene::sees_the_old_domain>));
}

TEST(IommuGuards, WithoutLookingWhetherPagesWentADeviceCopiesOverThem) {
  EXPECT_FALSE(broken_without({}, in_a_scene<&Scene::copies_over_what_went>));
  EXPECT_TRUE(broken_without({"iommu_own_run"}, in_a_scene<&Scene::copies_over_what_went>));
}

TEST(IommuGuards, WithoutLookingWhetherPagesMovedADeviceReadsWhatIsNotItsOwn) {
  EXPECT_FALSE(broken_without({}, in_a_scene<&Scene::moves_what_is_not_its_own>));
  EXPECT_TRUE(broken_without({"iommu_frame_moves"}, in_a_scene<&Scene::moves_what_is_not_its_own>));
}

TEST(IommuGuards, WithoutForgettingPlacesAFrameIsThePageThatHadItBefore) {
  EXPECT_FALSE(broken_without({}, in_a_scene<&Scene::moves_the_page_before>));
  EXPECT_TRUE(broken_without({"iommu_places"}, in_a_scene<&Scene::moves_the_page_before>));
}

TEST(IommuGuards, WithoutAnEndForWhoWaitsMovesKeepHimWaitingForAllOfThem) {
  EXPECT_FALSE(broken_without({}, in_a_scene<&Scene::moves_keep_an_unmap_waiting>));
  EXPECT_TRUE(broken_without({"iommu_moves_end"}, in_a_scene<&Scene::moves_keep_an_unmap_waiting>));
}

TEST(IommuGuards, WithoutTheFlushAWriteAfterAReadingIsNotTold) {
  EXPECT_FALSE(broken_without({}, in_a_scene<&Scene::second_write_is_lost>));
  EXPECT_TRUE(broken_without({"iommu_dirty_flush"}, in_a_scene<&Scene::second_write_is_lost>));
}

TEST(IommuGuards, WithoutTheWaitAnEngineUsesWhatIsGone) {
  EXPECT_TRUE(broken_without(
      {"iommu_wait"}, [] { return test::search<test::EngineAgainstUnmap<true>>(5000).found; }));
}

}  // namespace
}  // namespace stagetwo::iommu
