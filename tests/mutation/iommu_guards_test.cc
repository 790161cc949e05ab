// SPDX-License-Identifier: Apache-2.0
// Without its guards a device keeps what was taken from it, or reaches by its own requests what was
// never meant for PASIDs.
#include "tests/mutation/broken_without.h"
#include "tests/unit/iommu/device_world.h"

namespace stagetwo::iommu {
namespace {

using test::broken_without;

// Made in the child that looks: an iommufd's state is shared with children.
struct Scene : DeviceWorld {
  Scene() {
    SetUp();
    ioas = make_ioas();
    device = make_vtd(0x40);
    table = make_hwpt(ioas, device);
    plain = make_hwpt(ioas, device, {});
    ok = map_at(ioas, memory.address(), kPageSize, kApertureStart) == 0;
  }
  void TestBody() override {}

  bool detached_reaches() {
    if (!ok || attach(device, table, 5) != 0) return false;
    detach(device, 5);
    return write_byte(device, 5, kApertureStart, 1) == FaultReason::kNone;
  }
  bool pasid_beside_another_table() {
    return ok && attach(device, plain) == 0 && attach(device, table, 5) == 0;
  }

  test::GuardedPages memory{1};
  u32 ioas = 0, device = 0, table = 0, plain = 0;
  bool ok = false;
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

}  // namespace
}  // namespace stagetwo::iommu
