// SPDX-License-Identifier: Apache-2.0
// Which names lead into the session's tree. What is written there:
// tests/shim/virtual_files_test.cc.
#include "shim/mdev_files.h"

#include <gtest/gtest.h>

namespace stagetwo::shim {
namespace {

TEST(MovedName, WithoutASessionEveryNameStays) {
  for (const char* name : {"/sys/bus/mdev/devices", "/sys/class/mdev_bus", "/etc/passwd", "sys"}) {
    const MovedName moved(name);
    EXPECT_EQ(moved.path(), name);
    EXPECT_FALSE(moved.moved());
  }
  EXPECT_EQ(MovedName(nullptr).path(), nullptr);
}

TEST(BusFile, NumbersAreOfTypesAndThenOfDevices) {
  EXPECT_EQ(bus_file(0).source, Source::kMdevCreate);
  EXPECT_EQ(bus_file(1).number(), bus_file(0).number() + 1);
  EXPECT_EQ(bus_file(kMostTypes - 1).source, Source::kNone) << "there are fewer types";
  const VirtualFile last = bus_file(kMostTypes + kMostDevices - 1);
  EXPECT_EQ(last.source, Source::kMdevRemove);
  EXPECT_LT(last.number(), kMaxVirtualFiles - 1 - static_cast<unsigned>(Source::kPciConfig));
  EXPECT_EQ(written_file(last.number()).number(), last.number());
}

}  // namespace
}  // namespace stagetwo::shim
