// SPDX-License-Identifier: Apache-2.0
#include "vfio/open_files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/descriptor_file.h"
#include "tests/unit/vfio/bus_world.h"

namespace stagetwo::vfio {
namespace {

class OpenFilesTest : public BusWorld {
 protected:
  void SetUp() override {
    BusWorld::SetUp();
    ASSERT_EQ(create("serial-1", 1), 0);
  }
  // A client's descriptor, noted in these roles.
  int opened(std::initializer_list<FileRole> roles) {
    const int file = memfd_create("stagetwo:1:toy", MFD_CLOEXEC);
    struct ::stat behind {};
    EXPECT_EQ(fstat(file, &behind), 0);
    const auto clients = host::open_for_client(file, O_RDWR | O_CLOEXEC, true);
    EXPECT_TRUE(clients.has_value());
    close(file);
    for (const FileRole role : roles) note_file(*find_device(uuid(1)), role, behind.st_ino);
    return clients.value_or(-1);
  }
  bool goes_on(ClaimKind kind) { return Settling(*find_device(uuid(1))).goes_on(kind); }
};

TEST_F(OpenFilesTest, AClaimThatNoOpenFileHasIsAboutToGo) {
  EXPECT_TRUE(goes_on(ClaimKind::kGroup));
  const int group = opened({FileRole::kGroup});
  EXPECT_FALSE(goes_on(ClaimKind::kGroup));
  EXPECT_TRUE(goes_on(ClaimKind::kDevice));
  const int device = opened({FileRole::kDevice});
  EXPECT_FALSE(goes_on(ClaimKind::kDevice));
  close(group);
  EXPECT_FALSE(goes_on(ClaimKind::kGroup)) << "its device is open";
  EXPECT_TRUE(goes_on(ClaimKind::kBound) && goes_on(ClaimKind::kOwnNode));
  close(device);
  EXPECT_TRUE(goes_on(ClaimKind::kGroup) && goes_on(ClaimKind::kDevice));
  const int node = opened({FileRole::kBound, FileRole::kBound});
  EXPECT_FALSE(goes_on(ClaimKind::kBound) || goes_on(ClaimKind::kOwnNode));
  EXPECT_FALSE(goes_on(ClaimKind::kDevice));
  EXPECT_TRUE(goes_on(ClaimKind::kGroup));
  close(node);
}

TEST_F(OpenFilesTest, WhatIsClosedMakesRoomAndWithoutAnyAllIsSaidToBeOpen) {
  int open[kMostFiles + 1];
  for (unsigned i = 0; i < 2 * kMostFiles; ++i) close(opened({FileRole::kDevice}));
  EXPECT_TRUE(goes_on(ClaimKind::kDevice));
  for (int& file : open) file = opened({FileRole::kDevice});
  EXPECT_FALSE(goes_on(ClaimKind::kBound));
  for (const int file : open) close(file);
  EXPECT_FALSE(goes_on(ClaimKind::kDevice)) << "nobody knows of the last one";
  ASSERT_EQ(remove(1), 0);
  ASSERT_EQ(create("serial-1", 1), 0);
  EXPECT_TRUE(goes_on(ClaimKind::kDevice)) << "another device";
}

TEST_F(OpenFilesTest, WhatThisProcessHasOpenItselfIsOpen) {
  auto device = open(1);
  EXPECT_FALSE(goes_on(ClaimKind::kDevice));
  device.reset();
  EXPECT_TRUE(goes_on(ClaimKind::kDevice));
}

}  // namespace
}  // namespace stagetwo::vfio
