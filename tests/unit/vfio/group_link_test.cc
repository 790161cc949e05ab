// SPDX-License-Identifier: Apache-2.0
#include "vfio/group_link.h"

#include "tests/unit/vfio/bus_world.h"
#include "vfio/registry.h"

namespace stagetwo::vfio {
namespace {

using GroupLinks = BusWorld;

constexpr u32 kSlot = 3;
constexpr GroupLink kContainer{GroupLink::Kind::kContainer, 1, 2, 3};
constexpr GroupLink kIommufd{GroupLink::Kind::kIommufd, 1, 2, 4};

// I1: who still has an earlier opening sees and changes nothing of the next.
TEST_F(GroupLinks, ALinkIsOfOneOpening) {
  const u64 first = begin_opening(kSlot)->number;
  EXPECT_TRUE(set_link(kSlot, first, kContainer));
  EXPECT_EQ(error_of(set_link(kSlot, first, kIommufd)), EINVAL) << "there is one";
  EXPECT_EQ(link_of(kSlot, first), kContainer);
  EXPECT_EQ(link_of(kSlot + 1, first), GroupLink{}) << "another group's";

  const Opening second = *begin_opening(kSlot);
  EXPECT_EQ(second.before, kContainer) << "nobody has closed it";
  EXPECT_FALSE(is_opening(kSlot, first));
  EXPECT_TRUE(is_opening(kSlot, second.number));
  EXPECT_EQ(error_of(set_link(kSlot, first, kContainer)), EINVAL);
  EXPECT_TRUE(set_link(kSlot, second.number, kIommufd));
  EXPECT_EQ(take_link(kSlot, first), GroupLink{});
  EXPECT_EQ(take_link(kSlot, second.number), kIommufd);
  EXPECT_EQ(take_link(kSlot, second.number), GroupLink{});
  EXPECT_EQ(begin_opening(kSlot)->before, GroupLink{});
}

}  // namespace
}  // namespace stagetwo::vfio
