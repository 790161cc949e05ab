// SPDX-License-Identifier: Apache-2.0
// Hardware queues: what they pin and lock, and what is undone when one is refused.
#include "iommu/hardware_queue.h"

#include "base/failpoint.h"
#include "tests/unit/iommu/viommu_world.h"

namespace stagetwo::iommu {
namespace {

class HardwareQueues : public ViommuWorld {
 protected:
  u32 locks_at(u64 iova) {
    Locked locked(*context_);
    return locked.areas(**locked.find<Ioas>(ioas_)).first(iova, iova)->locks;
  }
  test::GuardedPages memory_{4};
};
constexpr u64 kStart = kApertureStart;

TEST_F(HardwareQueues, LockEachAreaTheyAreIn) {
  for (u64 i = 0; i < 4; i += 2) {
    ASSERT_EQ(
        map_at(ioas_, memory_.address() + i * kPageSize, 2 * kPageSize, kStart + i * kPageSize), 0);
  }
  u32 queue = 0;
  {
    Locked locked(*context_);
    const auto made = make_hardware_queue(locked, viommu(locked), 0, kStart + 100, 3 * kPageSize);
    // Frames follow each other where they are numbered so; else it is refused and nothing is held.
    if (!made) {
      EXPECT_EQ(error_of(made), EFAULT);
    } else {
      queue = (*made)->object.id;
    }
  }
  EXPECT_EQ(locks_at(kStart), queue != 0);
  EXPECT_EQ(locks_at(kStart + 2 * kPageSize), queue != 0);
  if (queue == 0) return;
  EXPECT_EQ(unmap(ioas_, kStart, 2 * kPageSize), EBUSY);
  EXPECT_EQ(unmap(ioas_, kStart + 2 * kPageSize, 2 * kPageSize), EBUSY);
  EXPECT_EQ(destroy(queue), 0);
  EXPECT_EQ(locks_at(kStart), 0u);
}

TEST_F(HardwareQueues, ARefusedOneHoldsNothing) {
  ASSERT_EQ(map_at(ioas_, memory_.address(), kPageSize, kStart), 0);
  const auto refused = [&](u32 place, u64 iova, u64 length) {
    Locked locked(*context_);
    const u32 objects = locked.root().objects;
    const int error = error_of(make_hardware_queue(locked, viommu(locked), place, iova, length));
    EXPECT_EQ(locked.root().objects, objects);
    EXPECT_EQ(viommu(locked).object.users, 0u);
    return error;
  };
  EXPECT_EQ(refused(0, kStart + kPageSize, 1), ENOENT);
  EXPECT_EQ(refused(0, kStart, kPageSize + 1), ENOENT) << "its end is not mapped";
  EXPECT_EQ(refused(1, kStart, 1), EIO);
  EXPECT_EQ(refused(kHardwareQueues, kStart, 1), EINVAL);
  EXPECT_EQ(refused(0, 4095, ~u64{0} - 4094), ERANGE);
  EXPECT_EQ(refused(0, 0, u64{1} << 50), ENOMEM);
  EXPECT_EQ(pins_at(memory_.address()), 1u) << "the page table's alone";
  EXPECT_EQ(locks_at(kStart), 0u);
  failpoint::sweep([&] {
    Locked locked(*context_);
    const auto made = make_hardware_queue(locked, viommu(locked), 0, kStart, kPageSize);
    if (made) destroy_hardware_queue(locked, *made);
    EXPECT_EQ(viommu(locked).object.users, 0u);
  });
}

}  // namespace
}  // namespace stagetwo::iommu
