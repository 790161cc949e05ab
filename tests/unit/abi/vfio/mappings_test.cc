// SPDX-License-Identifier: Apache-2.0
// Regions that are mapped: what may be, what loads and stores see, and how long it keeps the
// device.
#include <signal.h>

#include "host/device_registers.h"
#include "tests/unit/abi/vfio/mapped_region.h"

namespace stagetwo {
namespace {

using Mapping = MappedRegion;

TEST_F(Mapping, OnlyAreasAreMappedAndOnlyShared) {
  EXPECT_EQ(mmap_errno(0, kPageSize), 0);
  EXPECT_EQ(mmap_errno(2 * kPageSize, kPageSize), 0);
  EXPECT_EQ(mmap_errno(0, 3 * kPageSize), EINVAL) << "a page of it is not mapped";
  EXPECT_EQ(mmap_errno(kPageSize, kPageSize), EINVAL);
  EXPECT_EQ(mmap_errno(2 * kPageSize, 2 * kPageSize), EINVAL) << "beyond its end";
  EXPECT_EQ(mmap_errno(0, kPageSize, MAP_PRIVATE), EINVAL);
  EXPECT_EQ(mmap_errno(u64{1} << 40, kPageSize), EINVAL) << "no such region";
  EXPECT_EQ(mmap_errno(u64{VFIO_PCI_NUM_REGIONS} << 40, kPageSize), EINVAL);
}

TEST_F(Mapping, RegionInfoSaysWhichParts) {
  struct {
    vfio_region_info info;
    u8 room[64];
  } asked{};
  asked.info.argsz = sizeof(asked.info);
  ASSERT_EQ(ask(device_, VFIO_DEVICE_GET_REGION_INFO, &asked), 0);
  EXPECT_EQ(asked.info.flags, 3u | VFIO_REGION_INFO_FLAG_MMAP | VFIO_REGION_INFO_FLAG_CAPS);
  EXPECT_EQ(asked.info.cap_offset, 0u) << "there was no room";
  EXPECT_EQ(asked.info.argsz, sizeof(vfio_region_info) + 16 + 2 * 16);
  ASSERT_EQ(ask(device_, VFIO_DEVICE_GET_REGION_INFO, &asked), 0);
  ASSERT_EQ(asked.info.cap_offset, sizeof(vfio_region_info));
  u64 words[6];
  std::memcpy(words, asked.room, sizeof(words));
  EXPECT_EQ(words[0], u64{VFIO_REGION_INFO_CAP_SPARSE_MMAP} | 1 << 16);
  EXPECT_EQ(words[1], 2u);
  EXPECT_EQ(words[2], 0u);
  EXPECT_EQ(words[3], kPageSize);
  EXPECT_EQ(words[4], 2 * kPageSize);
  EXPECT_EQ(words[5], kPageSize);
  asked.info = {};
  asked.info.argsz = sizeof(asked.info);
  asked.info.index = 2;
  ASSERT_EQ(ask(device_, VFIO_DEVICE_GET_REGION_INFO, &asked), 0);
  EXPECT_EQ(asked.info.flags, 3u | VFIO_REGION_INFO_FLAG_MMAP) << "all of it is";
}

TEST_F(Mapping, MemoryOfTheDeviceIsNobodysBusiness) {
  u8* const at = map_region(2 * kPageSize, kPageSize);
  put<u32>(at, 77);
  EXPECT_EQ(get<u32>(at), 77u);
  EXPECT_EQ(seen().count, 0u);
}

TEST_F(Mapping, AStoreWithoutARightToItIsTheClientsFault) {
  u8* const at = map_region(2 * kPageSize, kPageSize, PROT_READ);
  EXPECT_EXIT(put<u8>(at, 1), testing::KilledBySignal(SIGSEGV), "");
  u8* const read_only = map_region(0, kPageSize, PROT_READ);
  EXPECT_EXIT(put<u8>(read_only, 1), testing::KilledBySignal(SIGSEGV), "");
  EXPECT_EQ(seen().count, 0u);
  // Nor where the instruction is none that is known.
  u8* const registers = map_region(0, kPageSize);
  EXPECT_EXIT(asm volatile("fstps (%0)" ::"r"(registers)
                           : "memory"),
              testing::KilledBySignal(SIGSEGV), "");
}

TEST_F(Mapping, KeepsItsDeviceOpenUntilItIsUnmapped) {
  u8* const at = map_region(0, kPageSize);
  close_fd(device_);
  device_ = -1;
  EXPECT_EQ(ask(group_, VFIO_GROUP_UNSET_CONTAINER), -EBUSY);
  put<u32>(at, 3);
  expect_last(0, 3, 4);
  unmap(at);
  EXPECT_EQ(abi_vfio::debug_mappings(), 0u);
  EXPECT_EQ(ask(group_, VFIO_GROUP_UNSET_CONTAINER), 0);
}

// What KVM's processors store to.
TEST_F(Mapping, AProcessorOfAGuestStoresToWhatIsTrapped) {
  u8* const at = map_region(0, kPageSize);
  const Hva registers(reinterpret_cast<u64>(at));
  EXPECT_EQ(host::device_bytes_at(registers + 16), kPageSize - 16);
  const u8 bytes[6] = {1, 2, 3, 4, 5, 6};
  EXPECT_EQ(host::put_to_device(registers + 16, bytes), 6u);
  EXPECT_EQ(seen().count, 2u);
  EXPECT_EQ(seen().stored[0].value, 0x04030201u);
  expect_last(20, 0x0605, 2);
  EXPECT_EQ(host::put_to_device(registers + (kPageSize - 4), bytes), 4u) << "as far as they go";
  const Hva plain(reinterpret_cast<u64>(map_region(2 * kPageSize, kPageSize)));
  EXPECT_EQ(host::device_bytes_at(plain), 0u);
  const Hva read_only(reinterpret_cast<u64>(map_region(0, kPageSize, PROT_READ)));
  EXPECT_EQ(host::device_bytes_at(read_only), 0u);
  EXPECT_EQ(host::put_to_device(read_only, bytes), 0u);
  unmap(at);
  EXPECT_EQ(host::device_bytes_at(registers), 0u);
  EXPECT_EQ(host::put_to_device(registers, bytes), 0u);
}

// It has its processor's lock, which comes behind those of closing: the device ends elsewhere.
TEST_F(Mapping, ADeviceThatIsUnmappedUnderAStoreEndsWithoutTheProcessor) {
  static decltype(this) test;
  static u8* at;
  test = this;
  at = map_region(0, kPageSize);
  for (int* const fd : {&device_, &group_}) {
    close_fd(*fd);
    *fd = -1;
  }
  const auto is_open = [] { return abi_vfio::open_group(0, O_RDWR | O_CLOEXEC); };
  ASSERT_EQ(to_int(is_open().error()), EBUSY);
  test::RegisterDevice::on_write = [] { test->unmap(at); };
  sync::Mutex processor{sync::Rank::kVcpu};
  {
    const sync::MutexGuard guard(processor);
    const u8 byte = 1;
    EXPECT_EQ(host::put_to_device(Hva(reinterpret_cast<u64>(at)), {&byte, 1}), 1u);
  }
  test::RegisterDevice::on_write = nullptr;
  EXPECT_EQ(abi_vfio::debug_mappings(), 0u);
  for (int i = 0; i < 5000 && group_ < 0; ++i) {
    if (const auto opened = is_open()) group_ = *opened;
    usleep(1000);
  }
  EXPECT_GE(group_, 0);
}

TEST_F(Mapping, WhatIsLeftOfOneStillWorks) {
  u8* const at = map_region(0, kPageSize);
  u8* const other = map_region(0, kPageSize);
  unmap(at);
  put<u32>(other, 4);
  expect_last(0, 4, 4);
  EXPECT_EQ(abi_vfio::debug_mappings(), 1u);
}

}  // namespace
}  // namespace stagetwo
