// SPDX-License-Identifier: Apache-2.0
// Accesses: who pins holds the page through an unmap of the client's, and is told to let go.
#include <sys/mman.h>

#include <cstring>

#include "host/change.h"
#include "tests/unit/iommu/access_world.h"

namespace stagetwo::iommu {
namespace {

class AccessTest : public AccessWorld {};

TEST_F(AccessTest, ReadsAndWritesByteForByte) {
  make_access(false);
  ASSERT_EQ(map_at(ioas_, memory_.address() + 100, 2 * 4096, kIova + 5), 0);
  u8 bytes[64];
  for (u64 length = 1; length < 64; ++length) {
    ASSERT_EQ(transfer(kIova + 5 + 4096 - 130, length, bytes, nullptr), 0);
    ASSERT_EQ(memcmp(bytes, memory_.bytes_at(100 + 4096 - 130), length), 0);
  }
  const u8 fresh[3] = {1, 2, 3};
  ASSERT_EQ(transfer(kIova + 5, 3, nullptr, fresh), 0);
  EXPECT_EQ(memcmp(memory_.bytes_at(100), fresh, 3), 0);
  EXPECT_EQ(transfer(kIova + 4, 3, bytes, nullptr), ENOENT);
  EXPECT_EQ(transfer(kIova + 5 + 2 * 4096 - 1, 2, bytes, nullptr), ENOENT);
  EXPECT_EQ(transfer(kIova, 0, bytes, nullptr), EINVAL);
  EXPECT_EQ(transfer(~u64{0}, 2, bytes, nullptr), EOVERFLOW);
}

TEST_F(AccessTest, ObeysTheRightsOfAreas) {
  make_access(true);
  ASSERT_EQ(map_at(ioas_, memory_.address(), 4096, kIova, kMayRead), 0);
  ASSERT_EQ(map_at(ioas_, memory_.address(), 4096, kIova + 4096, kMayWrite), 0);
  u8 byte = 0;
  EXPECT_EQ(transfer(kIova, 1, nullptr, &byte), EPERM);
  EXPECT_EQ(transfer(kIova + 4096, 1, &byte, nullptr), EPERM);
  EXPECT_EQ(pin(kIova, 4096, true), EPERM);
  EXPECT_EQ(pin(kIova, 8192, false), EPERM);
  EXPECT_EQ(pins_at(memory_.address()), 0u) << "what was pinned of the first area is given back";
  EXPECT_EQ(pin(kIova, 4096, false), 0);
}

TEST_F(AccessTest, PinsAreExactAndShared) {
  make_access(true);
  ASSERT_EQ(map_at(ioas_, memory_.address(), 4 * 4096, kIova), 0);
  EXPECT_EQ(pin(kIova + 1, 4096), EINVAL) << "not at a page";
  EXPECT_EQ(pin(kIova + 3 * 4096, 2 * 4096), ENOENT);
  ASSERT_EQ(pin(kIova, 2 * 4096), 0);
  ASSERT_EQ(pin(kIova + 4096, 2 * 4096), 0);
  for (u64 page = 0; page < 4; ++page) {
    EXPECT_EQ(pins_at(memory_.address() + page * 4096), page < 3 ? 1u : 0u);
  }
}

TEST_F(AccessTest, AnUnmapAsksForThePages) {
  make_access(true);
  ASSERT_EQ(map_at(ioas_, memory_.address(), 4 * 4096, kIova), 0);
  ASSERT_EQ(pin(kIova, 4096), 0);
  EXPECT_EQ(unmap(ioas_, kIova, 4 * 4096), 0);
  EXPECT_EQ(holder_.calls, 1);
  EXPECT_TRUE(holder_.pins.empty());
  EXPECT_EQ(pins_at(memory_.address()), 0u);
}

TEST_F(AccessTest, WhoNeverLetsGoIsADeadlock) {
  make_access(true);
  ASSERT_EQ(map_at(ioas_, memory_.address(), 4 * 4096, kIova), 0);
  ASSERT_EQ(pin(kIova, 4096), 0);
  holder_.context = nullptr;
  EXPECT_EQ(unmap(ioas_, kIova, 4 * 4096), EDEADLK);
  EXPECT_EQ(holder_.calls, 101);
  EXPECT_EQ(pin(kIova + 4096, 4096), EINVAL) << "the area is going";
  holder_.context = context_.get();
}

TEST_F(AccessTest, ADeviceTakesAndLeavesPinnedPages) {
  make_access(true);
  ASSERT_EQ(map_at(ioas_, memory_.address(), 4 * 4096, kApertureStart), 0);
  ASSERT_EQ(pin(kApertureStart, 4096), 0);
  const Attached a = attach_device(ioas_);
  ASSERT_EQ(a.error, 0);
  EXPECT_EQ(walk(a.hwpt, kApertureStart), frame_address(memory_.address()));
  EXPECT_EQ(pins_at(memory_.address()), 1u);
  EXPECT_EQ(destroy(a.test_device), 0);
  EXPECT_EQ(pins_at(memory_.address()), 1u) << "the access has it still";
  EXPECT_EQ(pins_at(memory_.address() + 4096), 0u);
}

TEST_F(AccessTest, AnotherIoasDropsThePins) {
  make_access(true);
  const u32 other = make_ioas();
  ASSERT_EQ(map_at(ioas_, memory_.address(), 4 * 4096, kIova), 0);
  ASSERT_EQ(pin(kIova, 4096), 0);
  EXPECT_EQ(error_of(context_->change_ioas(holder_.id, 9999)), ENOENT);
  EXPECT_EQ(holder_.pins.size(), 1u);
  EXPECT_EQ(error_of(context_->change_ioas(holder_.id, other)), 0);
  EXPECT_EQ(pins_at(memory_.address()), 0u);
  EXPECT_EQ(pin(kIova, 4096), ENOENT);
  EXPECT_EQ(error_of(context_->change_ioas(holder_.id, ioas_)), 0);
  EXPECT_EQ(destroy(other), 0);
}

// While its maker lets go the access is in neither: what it asks for is refused as in the kernel.
TEST_F(AccessTest, NothingIsPinnedWhileItChangesIoas) {
  make_access(true);
  const u32 other = make_ioas();
  ASSERT_EQ(map_at(ioas_, memory_.address(), 4096, kIova), 0);
  ASSERT_EQ(map_at(other, memory_.address() + 4096, 4096, kIova), 0);
  ASSERT_EQ(pin(kIova, 4096), 0);
  holder_.meanwhile = [&] {
    u8 byte = 0;
    EXPECT_EQ(pin(kIova, 4096), ENOENT);
    EXPECT_EQ(transfer(kIova, 1, &byte, nullptr), ENOENT);
    EXPECT_EQ(error_of(context_->change_ioas(holder_.id, ioas_)), ENOENT);
    EXPECT_EQ(error_of(context_->set_ioas(holder_.id, ioas_)), EBUSY);
    EXPECT_EQ(error_of(context_->set_ioas(holder_.id, 0)), EBUSY);
    EXPECT_EQ(destroy(ioas_), EBUSY) << "it has pins there";
    EXPECT_EQ(destroy(other), EBUSY) << "it goes there";
    EXPECT_EQ(map_at(other, memory_.address(), 77, kIova + 4 * 4096), EINVAL) << "its alignment";
  };
  EXPECT_EQ(error_of(context_->change_ioas(holder_.id, other)), 0);
  holder_.meanwhile = {};
  EXPECT_EQ(holder_.calls, 1);
  EXPECT_EQ(pins_at(memory_.address()), 0u);
  ASSERT_EQ(pin(kIova, 4096), 0);
  EXPECT_EQ(pins_at(memory_.address() + 4096), 1u) << "it is in the other now";
  EXPECT_EQ(error_of(context_->set_ioas(holder_.id, 0)), 0);
  EXPECT_EQ(pins_at(memory_.address() + 4096), 0u);
  EXPECT_EQ(unmap_all(other), 0);
  EXPECT_EQ(destroy(other), 0);
  EXPECT_EQ(error_of(context_->set_ioas(holder_.id, ioas_)), 0);
}

// An unmap of the IOAS it leaves meets its pins, and waits for them.
TEST_F(AccessTest, AnUnmapBesideAChangeOfIoasIsAnswered) {
  make_access(true);
  const u32 other = make_ioas();
  ASSERT_EQ(map_at(ioas_, memory_.address(), 4096, kIova), 0);
  ASSERT_EQ(pin(kIova, 4096), 0);
  holder_.meanwhile = [&] {
    holder_.meanwhile = {};
    EXPECT_EQ(unmap(ioas_, kIova, 4096), 0);
  };
  EXPECT_EQ(error_of(context_->change_ioas(holder_.id, other)), 0);
  EXPECT_EQ(holder_.calls, 2);
  EXPECT_EQ(error_of(context_->set_ioas(holder_.id, 0)), 0);
  EXPECT_EQ(destroy(other), 0);
}

TEST_F(AccessTest, WhatCannotBeJoinedChangesNothing) {
  make_access(true);
  const u32 other = make_ioas();
  ASSERT_EQ(map_at(ioas_, memory_.address(), 4096, kIova), 0);
  ASSERT_EQ(map_at(other, memory_.address(), 77, kIova), 0);
  ASSERT_EQ(pin(kIova, 4096), 0);
  EXPECT_EQ(error_of(context_->change_ioas(holder_.id, other)), EADDRINUSE);
  EXPECT_EQ(holder_.pins.size(), 1u);
  EXPECT_EQ(pin(kIova, 4096), 0);
  EXPECT_EQ(unmap_all(other), 0);
  EXPECT_EQ(destroy(other), 0);
}

TEST_F(AccessTest, PinningAccessesWantWholePages) {
  ASSERT_EQ(map_at(ioas_, memory_.address(), 77, kIova), 0);
  {
    Locked locked(*context_);
    EXPECT_EQ(error_of(locked.make_access(*locked.find<Ioas>(ioas_), true, &holder_)), EADDRINUSE);
  }
  ASSERT_EQ(unmap_all(ioas_), 0);
  make_access(true);
  EXPECT_EQ(map_at(ioas_, memory_.address(), 77, kIova), EINVAL);
  EXPECT_EQ(destroy(holder_.id), EBUSY) << "its maker has it";
}

// The page stays the device's whatever the client does to its address.
TEST_F(AccessTest, APinnedPageOutlivesTheClientsMapping) {
  make_access(true);
  ASSERT_EQ(map_at(ioas_, memory_.address(), 4096, kIova), 0);
  ASSERT_EQ(pin(kIova, 4096), 0);
  *memory_.bytes_at(0) = 99;
  ASSERT_EQ(0, host::change(memory_.address(), 4096, host::EventKind::kUnmap,
                            [&] { return ::munmap(memory_.pointer(), 4096); }));
  u8 byte = 0;
  EXPECT_EQ(transfer(kIova, 1, &byte, nullptr), 0);
  EXPECT_EQ(byte, 99);
}

}  // namespace
}  // namespace stagetwo::iommu
