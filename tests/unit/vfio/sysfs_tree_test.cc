// SPDX-License-Identifier: Apache-2.0
#include "vfio/sysfs_tree.h"

#include <fstream>

#include "tests/unit/vfio/bus_world.h"

namespace stagetwo::vfio {
namespace {

class Sysfs : public BusWorld {
 protected:
  static constexpr const char* kUuid0 = "00112200-0000-0000-0000-000000000000";
  std::string path(const std::string& name) { return directory_ + "/sys/" + name; }
  std::string text(const std::string& name) {
    std::ifstream in(path(name));
    std::string line;
    std::getline(in, line);
    return line;
  }
};

TEST_F(Sysfs, ShowsParentsTypesAndDevices) {
  EXPECT_EQ(text("class/mdev_bus/serial/mdev_supported_types/serial-2/available_instances"), "12");
  EXPECT_EQ(text("class/mdev_bus/serial/mdev_supported_types/serial-1/device_api"), "vfio-pci");
  EXPECT_EQ(text("class/mdev_bus/serial/mdev_supported_types/serial-1/name"), "Single port serial");
  ASSERT_EQ(create("serial-1", 0), 0);
  EXPECT_EQ(text("class/mdev_bus/serial/mdev_supported_types/serial-2/available_instances"), "11");
  const std::string device = std::string("bus/mdev/devices/") + kUuid0;
  EXPECT_EQ(text(device + "/mdev_type/name"), "Single port serial");
  EXPECT_TRUE(std::filesystem::exists(path(device + "/iommu_group/devices/" + kUuid0)));
  EXPECT_TRUE(std::filesystem::exists(path(device + "/vfio-dev/vfio0")));
  EXPECT_TRUE(std::filesystem::exists(path(device + "/subsystem/devices")));
  EXPECT_EQ(std::filesystem::read_symlink(path(device + "/iommu_group")).filename(), "0");
  EXPECT_TRUE(std::filesystem::exists(path(device + "/mdev_type/devices/" + kUuid0 + "/remove")));
  ASSERT_EQ(remove(0), 0);
  EXPECT_TRUE(std::filesystem::is_empty(path("bus/mdev/devices")));
  EXPECT_TRUE(std::filesystem::is_empty(path("kernel/iommu_groups")));
  EXPECT_FALSE(
      std::filesystem::exists(path(std::string("devices/virtual/serial/serial/") + kUuid0)));
}

TEST_F(Sysfs, IsMadeAgainFromTheRegistry) {
  ASSERT_EQ(create("serial-1", 0), 0);
  std::filesystem::remove_all(path(""));
  ASSERT_TRUE(start_bus());
  EXPECT_EQ(text(std::string("bus/mdev/devices/") + kUuid0 + "/mdev_type/available_instances"),
            "23");
}

}  // namespace
}  // namespace stagetwo::vfio
