// SPDX-License-Identifier: Apache-2.0
// Groups of a container, and which domain they get.
#include "vfio/container.h"

#include "tests/unit/vfio/container_world.h"
#include "vfio/serial.h"

namespace stagetwo::vfio {
namespace {

using ContainerTest = ContainerWorld;

TEST_F(ContainerTest, ATypeWantsAGroupAndIsSetOnce) {
  EXPECT_EQ(set_type(IommuType::kType1v2), EINVAL);
  ASSERT_EQ(add(0), 0);
  EXPECT_EQ(add(0), EINVAL);
  EXPECT_EQ(error_of(container_->set_type(2)), ENODEV);
  EXPECT_EQ(error_of(container_->set_type(7)), ENODEV);
  EXPECT_EQ(set_type(IommuType::kType1v2), 0);
  EXPECT_EQ(set_type(IommuType::kType1), EINVAL);
  EXPECT_EQ(container_->type(), IommuType::kType1v2);
}

TEST_F(ContainerTest, WithoutATypeNothingIsMapped) {
  ASSERT_EQ(add(0), 0);
  EXPECT_EQ(map(kIova), EINVAL);
  EXPECT_EQ(unmap(kIova, 1), -EINVAL);
}

TEST_F(ContainerTest, S4_04_AGroupWithoutAnIommuDeviceGetsNoDomainAndPinsNothing) {
  start(0);
  ASSERT_EQ(map(kIova, 4), 0);
  EXPECT_EQ(host::pin_use().pages, 0u);
  EXPECT_FALSE(container_->tag_of(group(0)));
  EXPECT_FALSE(container_->info()->has_ranges);
}

TEST_F(ContainerTest, S4_05_AGroupWithOneGetsADomainByPasid) {
  start(4);
  ASSERT_EQ(map(kIova, 4), 0);
  EXPECT_EQ(host::pin_use().pages, 4u);
  ASSERT_TRUE(container_->tag_of(group(4)));
  EXPECT_NE(container_->tag_of(group(4))->pasid, 0u);
  EXPECT_EQ(write(4, kIova, 0x5a), iommu::FaultReason::kNone);
  EXPECT_EQ(*memory_.bytes_at(0), 0x5a);
}

TEST_F(ContainerTest, S4_05_ExistingMapsAreReplayedIntoANewDomain) {
  start(0);
  ASSERT_EQ(map(kIova, 2), 0);
  ASSERT_EQ(map(kIova + 16 * kPageSize, 1, 5), 0);
  EXPECT_EQ(host::pin_use().pages, 0u);
  ASSERT_EQ(add(4), 0);
  EXPECT_EQ(host::pin_use().pages, 3u);
  EXPECT_EQ(write(4, kIova + 16 * kPageSize, 0x77), iommu::FaultReason::kNone);
  EXPECT_EQ(*memory_.bytes_at(5 * kPageSize), 0x77);
  container_->remove_group(group(4));
  EXPECT_EQ(host::pin_use().pages, 0u) << "the external domain pins nothing";
  EXPECT_EQ(unmap(kIova, 2), 2 * s64{kPageSize}) << "and the maps are still there";
}

TEST_F(ContainerTest, MapsThatADomainCannotHoldKeepItsGroupOut) {
  start(0);
  ASSERT_EQ(map(0xfee00000), 0);
  EXPECT_EQ(add(4), EINVAL);
  EXPECT_FALSE(container_->has_group(group(4)));
  EXPECT_EQ(host::pin_use().pages, 0u);
  ASSERT_EQ(unmap_all(), s64{kPageSize});
  ASSERT_EQ(map(u64{1} << 50), 0);
  EXPECT_EQ(add(4), EINVAL);
  ASSERT_EQ(unmap_all(), s64{kPageSize});
  EXPECT_EQ(add(4), 0);
}

TEST_F(ContainerTest, TwoGroupsOfOneParentShareTheDomainAndItsPasid) {
  start(4);
  ASSERT_EQ(add(5), 0);
  ASSERT_EQ(map(kIova), 0);
  EXPECT_EQ(container_->tag_of(group(4))->pasid, container_->tag_of(group(5))->pasid);
  container_->remove_group(group(4));
  EXPECT_EQ(write(5, kIova, 1), iommu::FaultReason::kNone);
}

TEST_F(ContainerTest, WithTheLastGroupGoTheTypeAndTheMaps) {
  start(4);
  ASSERT_EQ(map(kIova, 4), 0);
  container_->remove_group(group(4));
  EXPECT_EQ(host::pin_use().pages, 0u);
  EXPECT_EQ(container_->type(), IommuType::kNone);
  start(0, IommuType::kType1);
  EXPECT_EQ(map(kIova), 0);
}

TEST_F(ContainerTest, ARangeIsWhatTheDomainHolds) {
  start(4);
  ASSERT_TRUE(container_->info()->has_ranges);
  const auto first = *container_->range_from(0);
  ASSERT_TRUE(first);
  EXPECT_EQ(first->start, 0u);
  EXPECT_EQ(first->last, 0xfedfffffu);
  const auto second = *container_->range_from(first->last + 1);
  ASSERT_TRUE(second);
  EXPECT_EQ(second->start, 0xfef00000u);
  EXPECT_EQ(second->last, (u64{1} << 48) - 1);
  EXPECT_FALSE(*container_->range_from(second->last + 1));
}

}  // namespace
}  // namespace stagetwo::vfio
