// SPDX-License-Identifier: Apache-2.0
#include "shim/paths.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "shim/engine.h"
#include "shim/received.h"

namespace stagetwo::shim {
namespace {

PathKind kind(const char* path) {
  return target_of(AT_FDCWD, path).kind;
}

TEST(Paths, DeviceIsFoundHoweverItIsWritten) {
  for (const char* path : {"/dev/kvm", "//dev/kvm", "/dev//kvm", "/dev/./kvm", "/dev/../dev/kvm",
                           "/./dev/kvm", "/tmp/../dev/kvm", "/dev/shm/../kvm", "/dev/kvm/"}) {
    EXPECT_EQ(kind(path), PathKind::kDevice) << path;
  }
  EXPECT_TRUE(target_of(AT_FDCWD, "/dev/kvm/").trailing_slash);
  EXPECT_FALSE(target_of(AT_FDCWD, "/dev/kvm").trailing_slash);
  EXPECT_EQ(target_of(AT_FDCWD, "/dev/kvm").device->minor, 232u);
}

TEST(Paths, OthersAreForeign) {
  for (const char* path :
       {"", "/", "/dev", "/dev/kvmm", "/dev/kv", "/dev/kvm/x", "/dev/null", "/kvm", "kvm",
        "/devkvm", "/sys/module/kvm/parameters/no_such_parameter", "/sys/module/other",
        "/proc/self/task/1/fail-nth", "/sys/kernel/debug/failslab/ignore-gfp-wait", "/tmp/dev/kvm",
        "/../../etc/passwd", ".."}) {
    EXPECT_EQ(kind(path), PathKind::kForeign) << path;
  }
  EXPECT_EQ(kind(nullptr), PathKind::kForeign);
  EXPECT_EQ(kind(reinterpret_cast<const char*>(8)), PathKind::kForeign);
}

TEST(Paths, RelativeNamesStartWhereTheKernelStartsThem) {
  const int dev = open("/dev", O_RDONLY | O_DIRECTORY);
  EXPECT_EQ(target_of(dev, "kvm").kind, PathKind::kDevice);
  EXPECT_EQ(target_of(dev, "./kvm").kind, PathKind::kDevice);
  EXPECT_EQ(target_of(dev, "null").kind, PathKind::kForeign);
  close(dev);
  char before[4096];
  ASSERT_NE(getcwd(before, sizeof(before)), nullptr);
  ASSERT_EQ(chdir("/dev"), 0);
  EXPECT_EQ(kind("kvm"), PathKind::kDevice);
  EXPECT_EQ(kind("../dev/kvm"), PathKind::kDevice);
  ASSERT_EQ(chdir("/tmp"), 0);
  EXPECT_EQ(kind("kvm"), PathKind::kForeign);
  ASSERT_EQ(chdir(before), 0);
}

TEST(Paths, ParametersHaveTheirText) {
  const Target target = target_of(AT_FDCWD, "/sys/module/kvm/parameters/enable_pmu");
  EXPECT_EQ(target.kind, PathKind::kVirtual);
  FixedString<16> text;
  show(target.file, text);
  EXPECT_EQ(text.view(), "N\n");
  EXPECT_EQ(kind("/sys/module/kvm"), PathKind::kDirectory);
  EXPECT_EQ(kind("/sys/module/kvm/parameters"), PathKind::kDirectory);
}

TEST(Paths, FilesOfTheStandInAndOfFramesAreForeignWhileNobodyAsksForThem) {
  for (const char* path : {"/proc/meminfo", "/proc/self/pagemap", "/proc/sys/vm/nr_hugepages",
                           "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"}) {
    EXPECT_EQ(kind(path), PathKind::kForeign) << path;
  }
}

TEST(Paths, IdleBitmapIsThereBeforeADeviceIsOpened) {
  EXPECT_EQ(kind("/sys/kernel/mm/page_idle/bitmap"), PathKind::kVirtual);
  EXPECT_EQ(kind("/sys/kernel/mm/page_idle"), PathKind::kForeign);
}

TEST(Paths, NeverMoreThanOneVendorIsThere) {
  EXPECT_NE(kind("/sys/module/kvm_amd"), kind("/sys/module/kvm_intel"));
}

TEST(Received, ANumberAtTheEndMayBeADescriptorsName) {
  for (const char* path : {"/proc/self/fd/7", "/proc/1234/task/5/fd/0", "/dev/fd/63", "7"}) {
    EXPECT_TRUE(could_name_descriptor(path)) << path;
  }
  for (const char* path : {"", "/", "/proc/self/fd/", "/proc/self/fd/7x", "/tmp/a7", "/tmp/7",
                           "/proc/self/fdinfo/7", "x7"}) {
    EXPECT_FALSE(could_name_descriptor(path)) << path;
  }
  EXPECT_FALSE(could_name_descriptor(nullptr));
  EXPECT_FALSE(could_name_descriptor(reinterpret_cast<const char*>(8)));
}

TEST(Received, WhatIsNotOursWakesNobody) {
  const int file = memfd_create("stagetwo", 0);
  came_in(file);
  char name[32];
  snprintf(name, sizeof(name), "/proc/self/fd/%d", file);
  will_be_opened(AT_FDCWD, name);
  EXPECT_FALSE(awake());
  came_in(long{-1});
  will_be_opened(AT_FDCWD, "/proc/self/fd/12345");
  EXPECT_FALSE(awake());
  close(file);
}

}  // namespace
}  // namespace stagetwo::shim
