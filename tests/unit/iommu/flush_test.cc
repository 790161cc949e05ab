// SPDX-License-Identifier: Apache-2.0
// Who is told what when tables change. What engines then do: dma_engine_test.cc.
#include <sys/mman.h>

#include <vector>

#include "tests/unit/iommu/engine_world.h"

namespace stagetwo::iommu {
namespace {

class Flush : public EngineWorld {
 protected:
  void SetUp() override {
    EngineWorld::SetUp();
    Locked locked(*context_);
    watcher_ = *locked.add_line();
  }
  void TearDown() override {
    {
      Locked locked(*context_);
      locked.remove_line(watcher_);
    }
    EngineWorld::TearDown();
  }
  // The types of what was posted since the last call.
  std::vector<unsigned> posted() {
    Locked locked(*context_);
    std::vector<unsigned> types;
    locked.root().queue.heed(*watcher_, [&](const Invalidation* one) {
      types.push_back(one == nullptr ? 0 : static_cast<unsigned>(one->type()));
    });
    return types;
  }
  DmaLine* watcher_ = nullptr;
};

TEST_F(Flush, AnAttachmentIsNoNewsForAnybody) {
  ASSERT_EQ(attach(device_, table_[0], 5), 0);
  EXPECT_EQ(posted(), std::vector<unsigned>{});
}

TEST_F(Flush, ADetachIsTheEntryTheUnitAndTheDeviceInThisOrder) {
  ASSERT_EQ(attach(device_, table_[0], 5), 0);
  detach(device_, 5);
  EXPECT_EQ(posted(), (std::vector<unsigned>{7, 6, 2, 8}));
  ASSERT_EQ(attach(device_, table_[0]), 0);
  detach(device_);
  EXPECT_EQ(posted(), (std::vector<unsigned>{7, 6, 2, 3}));
}

TEST_F(Flush, AnUnmapIsTheUnitAndEachDevice) {
  ASSERT_EQ(attach(device_, table_[0], 5), 0);
  ASSERT_EQ(attach(device_, table_[0], 6), 0);
  ASSERT_EQ(unmap(ioas_[0], kIova, kPageSize), 0);
  EXPECT_EQ(posted(), (std::vector<unsigned>{2, 8, 8}));
}

TEST_F(Flush, AnUnmapBelowAGuestsTablesIsAllOfThem) {
  const u32 parent = make_hwpt(ioas_[0], device_, {.nest_parent = true, .pasid = true});
  u32 nested = 0;
  {
    Locked locked(*context_);
    nested =
        (*locked.make_nested(**locked.find<Hwpt>(parent), {.levels = 4, .pasid = true}))->object.id;
  }
  ASSERT_EQ(attach(device_, nested, 5), 0);
  ASSERT_EQ(unmap(ioas_[0], kIova, kPageSize), 0);
  EXPECT_EQ(posted(), (std::vector<unsigned>{2, 2, 8})) << "of its plain table, and the parent";
  detach(device_, 5);
  EXPECT_EQ(destroy(nested), 0);
  EXPECT_EQ(destroy(parent), 0);
}

TEST_F(Flush, ReadingWhatWasWrittenMakesWritesBeMarkedAgain) {
  const u32 tracking = make_hwpt(ioas_[0], device_, {.dirty = true, .pasid = true});
  ASSERT_EQ(attach(device_, tracking, 5), 0);
  const u8 value = 1;
  const auto write = [&] { return engine_->access(5, kIova, 1, nullptr, &value).done; };
  const auto written = [&] {
    Locked locked(*context_);
    unsigned pages = 0;
    locked.read_dirty(
        **locked.find<Hwpt>(tracking), kIova, kIova + kPageSize - 1, true,
        [](void* out, u64, u64) { ++*static_cast<unsigned*>(out); }, &pages);
    return pages;
  };
  EXPECT_EQ(write(), 1u);
  {
    Locked locked(*context_);
    ASSERT_TRUE(locked.set_dirty_tracking(**locked.find<Hwpt>(tracking), true));
  }
  EXPECT_EQ(written(), 0u);
  for (unsigned round = 0; round < 3; ++round) {
    EXPECT_EQ(write(), 1u);
    EXPECT_EQ(written(), 1u) << round;
    EXPECT_EQ(written(), 0u) << round;
  }
  detach(device_, 5);
  EXPECT_EQ(destroy(tracking), 0);
}

}  // namespace
}  // namespace stagetwo::iommu
