// SPDX-License-Identifier: Apache-2.0
#include "vfio/sysfs_tree.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cstddef>
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
  EXPECT_EQ(text(device + "/uevent"), "DRIVER=serial");
  EXPECT_EQ(text(device + "/power/runtime_status"), "unsupported");
  EXPECT_TRUE(
      std::filesystem::equivalent(path(device + "/driver"), path("bus/mdev/drivers/serial")));
  EXPECT_TRUE(std::filesystem::exists(path(device + "/driver/" + kUuid0 + "/remove")));
  EXPECT_EQ(text(device + "/iommu_group/type"), "unknown");
  EXPECT_TRUE(std::filesystem::is_empty(path(device + "/iommu_group/reserved_regions")));
  EXPECT_EQ(text(device + "/vfio-dev/vfio0/uevent"), "MAJOR=510");
  EXPECT_TRUE(std::filesystem::exists(directory_ + "/dev/vfio/0"));
  EXPECT_TRUE(std::filesystem::exists(directory_ + "/dev/vfio/devices/vfio0"));
  ASSERT_EQ(remove(0), 0);
  EXPECT_FALSE(std::filesystem::exists(directory_ + "/dev/vfio/0"));
  EXPECT_TRUE(std::filesystem::is_empty(directory_ + "/dev/vfio/devices"));
  EXPECT_TRUE(std::filesystem::is_empty(path("bus/mdev/drivers/serial")));
  EXPECT_TRUE(std::filesystem::is_empty(path("bus/mdev/devices")));
  EXPECT_TRUE(std::filesystem::is_empty(path("kernel/iommu_groups")));
  EXPECT_FALSE(
      std::filesystem::exists(path(std::string("devices/virtual/serial/serial/") + kUuid0)));
}

// From here on the process dies where it would take a name away.
void die_at_unlink() {
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_unlinkat, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{.len = std::size(filter), .filter = filter};
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

TEST_F(Sysfs, ARemoverThatDiesInTheTreeLeavesTheRestToOthers) {
  ASSERT_EQ(create("serial-2", 0), 0);
  const pid_t child = fork();
  if (child == 0) {
    bus_after_fork_child();
    auto removal = begin_removal(uuid(0));
    die_at_unlink();
    finish_removal(std::move(*removal));
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status)) << status;
  EXPECT_FALSE(device_from(0)) << "whoever looks finishes it";
  EXPECT_TRUE(std::filesystem::is_empty(path("kernel/iommu_groups")));
  EXPECT_TRUE(std::filesystem::is_empty(path("bus/mdev/devices")));
  EXPECT_FALSE(
      std::filesystem::exists(path(std::string("devices/virtual/serial/serial/") + kUuid0)));
  EXPECT_EQ(text("class/mdev_bus/serial/mdev_supported_types/serial-2/available_instances"), "12");
}

// Files that a process was writing when it died are in nobody's way.
TEST_F(Sysfs, HalfAFileInADevicesFolderGoesWithIt) {
  ASSERT_EQ(create("serial-1", 0), 0);
  const std::string folder = path(std::string("devices/virtual/serial/serial/") + kUuid0);
  std::ofstream(folder + "/uevent.new") << "DRI";
  ASSERT_EQ(remove(0), 0);
  EXPECT_FALSE(std::filesystem::exists(folder));
}

TEST_F(Sysfs, IsMadeAgainFromTheRegistry) {
  ASSERT_EQ(create("serial-1", 0), 0);
  std::filesystem::remove_all(path(""));
  ASSERT_TRUE(start_bus());
  EXPECT_EQ(text(std::string("bus/mdev/devices/") + kUuid0 + "/mdev_type/available_instances"),
            "23");
}

// Who starts the bus again, or begins a removal that others finish, writes what has changed alone.
TEST_F(Sysfs, WhatIsRightIsNotWrittenAgain) {
  const auto inode = [this](const std::string& name) {
    struct ::stat found {};
    EXPECT_EQ(::stat(path(name).c_str(), &found), 0) << name;
    return found.st_ino;
  };
  ASSERT_EQ(create("serial-1", 0), 0);
  const std::string event = std::string("bus/mdev/devices/") + kUuid0 + "/uevent";
  const ino_t before = inode(event);
  ASSERT_TRUE(start_bus());
  EXPECT_EQ(inode(event), before);
  ASSERT_EQ(create("serial-1", 1), 0);
  ASSERT_TRUE(start_bus());
  EXPECT_EQ(inode(event), before);
  std::ofstream(path(event)) << "half";
  ASSERT_TRUE(start_bus());
  EXPECT_EQ(text(event), "half") << "nothing has changed, and nobody writes it but us";
  ASSERT_EQ(remove(1), 0);
  ASSERT_TRUE(start_bus());
  EXPECT_EQ(text(event), "DRIVER=serial");
}

TEST_F(Sysfs, ARemovalWhoseRemoverDiedEndsWithTheLastClose) {
  ASSERT_EQ(create("serial-1", 0), 0);
  const std::string folder = path(std::string("devices/virtual/serial/serial/") + kUuid0);
  sync::Ref<Device> opened = open(0);
  const pid_t child = fork();
  if (child == 0) {
    bus_after_fork_child();
    _exit(begin_removal(uuid(0)) ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_EQ(status, 0);
  ASSERT_TRUE(start_bus());
  EXPECT_TRUE(std::filesystem::exists(folder));
  EXPECT_FALSE(std::filesystem::exists(folder + "/remove")) << "brought back";
  EXPECT_FALSE(std::filesystem::exists(directory_ + "/dev/vfio/0"));
  opened.reset();
  EXPECT_FALSE(std::filesystem::exists(folder));
  EXPECT_TRUE(std::filesystem::is_empty(path("bus/mdev/devices")));
}

}  // namespace
}  // namespace stagetwo::vfio
