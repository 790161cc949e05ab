// SPDX-License-Identifier: Apache-2.0
// Without a session every name is the machine's. With one: tests/shim/vfio_test.cc.
#include "shim/bus_names.h"

#include <errno.h>
#include <gtest/gtest.h>
#include <unistd.h>

namespace stagetwo::shim {
namespace {

TEST(BusNames, WithoutASessionNothingIsRefused) {
  const char* const name = "/sys/class/mdev_bus/serial/mdev_supported_types/serial-1/name";
  errno = 7;
  for (const Naming what : {Naming::kMakes, Naming::kRemovesFile, Naming::kRemovesFolder}) {
    for (const char* path : {name, "name", "/dev/vfio/0", ""}) {
      EXPECT_FALSE(naming_refused(AT_FDCWD, path, what)) << path;
    }
    EXPECT_FALSE(naming_refused(AT_FDCWD, nullptr, what));
  }
  EXPECT_FALSE(renaming_refused(AT_FDCWD, name, AT_FDCWD, "x"));
  EXPECT_FALSE(linking_refused(AT_FDCWD, "x", AT_FDCWD, name));
  EXPECT_FALSE(making_refused(AT_FDCWD, MovedName(name), O_CREAT));
  EXPECT_EQ(errno, 7);
  EXPECT_STREQ(ChangedName("/dev/vfio/0").path(), "/dev/vfio/0");
  EXPECT_EQ(ChangedName(nullptr).path(), nullptr);
  struct ::stat said{};
  said.st_mode = S_IFREG | 0444;
  EXPECT_EQ(show_attribute(MovedName(name), 0, &said), 0);
  EXPECT_EQ(said.st_size, 0);
  EXPECT_FALSE(node_refusal(511, 0, W_OK, true));
}

TEST(BusNames, UnlinkatSaysWhichItMeans) {
  EXPECT_EQ(removal_of(AT_REMOVEDIR), Naming::kRemovesFolder);
  EXPECT_EQ(removal_of(0), Naming::kRemovesFile);
}

}  // namespace
}  // namespace stagetwo::shim
