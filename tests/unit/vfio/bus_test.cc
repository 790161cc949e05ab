// SPDX-License-Identifier: Apache-2.0
#include "vfio/bus.h"

#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "tests/unit/vfio/bus_world.h"

namespace stagetwo::vfio {
namespace {

class Bus : public BusWorld {
 protected:
  static u32 left(std::string_view type) { return available_instances(find_type(type)); }
};

TEST_F(Bus, TypesOfOneParentShareWhatItHas) {
  EXPECT_EQ(left("serial-1"), 24u);
  EXPECT_EQ(left("serial-2"), 12u);
  ASSERT_EQ(create("serial-1", 0), 0);
  EXPECT_EQ(left("serial-1"), 23u);
  EXPECT_EQ(left("serial-2"), 11u);
  ASSERT_EQ(remove(0), 0);
  EXPECT_EQ(left("serial-1"), 24u);
  EXPECT_EQ(left("serial-2"), 12u);
}

TEST_F(Bus, AUuidIsADeviceOfWhateverParentOnce) {
  ASSERT_EQ(create("serial-1", 7), 0);
  EXPECT_EQ(create("serial-2", 7), EEXIST);
  EXPECT_EQ(left("serial-1"), 23u);
}

TEST_F(Bus, WhatTheParentHasNotIsRefused) {
  for (unsigned i = 0; i < 12; ++i) ASSERT_EQ(create("serial-2", i), 0);
  EXPECT_EQ(create("serial-1", 12), ENOSPC);
  EXPECT_EQ(create("serial-2", 3), EEXIST);  // said first
  ASSERT_EQ(remove(3), 0);
  EXPECT_EQ(create("serial-1", 12), 0);
}

TEST_F(Bus, AnUnknownDeviceIsNotRemoved) {
  EXPECT_EQ(remove(0), ENODEV);
  ASSERT_EQ(create("serial-1", 0), 0);
  ASSERT_EQ(remove(0), 0);
  EXPECT_EQ(remove(0), ENODEV);
}

TEST_F(Bus, I19ARemovalWaitsForTheLastClose) {
  ASSERT_EQ(create("serial-1", 0), 0);
  auto device = open(0);
  sync::Atomic<u32> removed{0};
  std::thread remover([&] {
    EXPECT_EQ(remove(0), 0);
    removed.store(1, sync::kRelease);
  });
  while (!find_device(uuid(0))->removing) std::this_thread::yield();
  EXPECT_EQ(remove(0), EAGAIN);
  EXPECT_FALSE(device_at(0));
  EXPECT_EQ(error_of(Device::open(*find_device(uuid(0)))), 0) << "it is open here: the same one";
  EXPECT_EQ(removed.load(sync::kAcquire), 0u);
  device.reset();
  remover.join();
  EXPECT_FALSE(find_device(uuid(0)));
}

TEST_F(Bus, ANewDeviceInAnOldPlaceIsNotTheOldOne) {
  ASSERT_EQ(create("serial-1", 0), 0);
  const Listed old = *find_device(uuid(0));
  ASSERT_EQ(remove(0), 0);
  ASSERT_EQ(create("serial-1", 0), 0);
  const Listed fresh = *find_device(uuid(0));
  EXPECT_EQ(fresh.slot, old.slot);
  EXPECT_NE(fresh.born, old.born);
  EXPECT_EQ(error_of(Device::open(old)), ENODEV);
}

TEST_F(Bus, ARemovalWhoseRemoverDiedIsFinishedByTheNext) {
  ASSERT_EQ(create("serial-1", 0), 0);
  const pid_t child = fork();
  if (child == 0) {
    auto removal = begin_removal(uuid(0));
    _exit(removal ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_EQ(status, 0);
  EXPECT_EQ(create("serial-1", 0), 0);
  EXPECT_EQ(left("serial-1"), 23u);
}

}  // namespace
}  // namespace stagetwo::vfio
