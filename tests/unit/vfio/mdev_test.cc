// SPDX-License-Identifier: Apache-2.0
#include "vfio/mdev.h"

#include <gtest/gtest.h>

namespace stagetwo::vfio {
namespace {

TEST(Mdev, TypesAreNamedAfterTheirParent) {
  EXPECT_TRUE(find_type("serial-1"));
  EXPECT_EQ(find_type("serial-2").get().units, 2u);
  for (const char* name : {"", "serial", "serial-", "serial-3", "parallel-1"}) {
    EXPECT_FALSE(find_type(name)) << name;
  }
}

TEST(Mdev, AFolderIsParentAndType) {
  FixedString<32> name;
  append_folder(find_type("serial-2"), name);
  EXPECT_EQ(name.view(), "serial-2");
}

TEST(Mdev, TheRoomsOwnParentsAreThereFirst) {
  ASSERT_NE(parent_at(0), nullptr);
  EXPECT_EQ(parent_at(0)->name, "serial");
  EXPECT_EQ(find_parent("serial"), parent_at(0));
  EXPECT_EQ(find_parent("parallel"), nullptr);
}

}  // namespace
}  // namespace stagetwo::vfio
