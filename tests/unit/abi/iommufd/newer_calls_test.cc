// SPDX-License-Identifier: Apache-2.0
// The requests that came after 6.12: not there before, and what they answer.
#include <sys/mman.h>

#include "tests/unit/abi/iommufd/iommufd_client.h"

namespace stagetwo {
namespace {

class NewerCalls : public IommufdClient {
 protected:
  void SetUp() override {
    IommufdClient::SetUp();
    abi_iommufd::set_newer_requests(true);
    file_ = ::memfd_create("newer", MFD_CLOEXEC);
    ASSERT_EQ(::ftruncate(file_, 4 * kPageSize), 0);
    bytes_ = static_cast<u8*>(
        ::mmap(nullptr, 4 * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0));
    for (u64 i = 0; i < 4; ++i) bytes_[i * kPageSize] = static_cast<u8>(i + 1);
  }
  void TearDown() override {
    abi_iommufd::set_newer_requests(false);
    ::munmap(bytes_, 4 * kPageSize);
    ::close(file_);
    IommufdClient::TearDown();
  }
  long map_file(u32 ioas, int fd, u64 start, u64 length, u64 iova, u32 flags = kMapFlags) {
    iommu_ioas_map_file cmd{.size = sizeof(cmd),
                            .flags = flags,
                            .ioas_id = ioas,
                            .fd = fd,
                            .start = start,
                            .length = length,
                            .iova = iova};
    return call(IOMMU_IOAS_MAP_FILE, &cmd);
  }
  long change_process() {
    iommu_ioas_change_process cmd{};
    return call(IOMMU_IOAS_CHANGE_PROCESS, &cmd);
  }
  // What an access without a device reads.
  u8 byte_at(u32 ioas, u64 iova) {
    auto cmd = test_cmd(IOMMU_TEST_OP_CREATE_ACCESS, ioas);
    EXPECT_EQ(call(IOMMU_TEST_CMD, &cmd), 0);
    const int access = static_cast<int>(cmd.create_access.out_access_fd);
    u8 byte = 0;
    cmd = test_cmd(IOMMU_TEST_OP_ACCESS_RW, static_cast<u32>(access));
    cmd.access_rw.iova = iova;
    cmd.access_rw.length = 1;
    cmd.access_rw.uptr = reinterpret_cast<u64>(&byte);
    EXPECT_EQ(call(IOMMU_TEST_CMD, &cmd), 0);
    close_fd(access);
    return byte;
  }
  int file_ = -1;
  u8* bytes_ = nullptr;
};

TEST_F(NewerCalls, AreNotThereBefore) {
  abi_iommufd::set_newer_requests(false);
  for (unsigned number = 0x8f; number <= 0x94; ++number) {
    u32 words[16] = {sizeof(words)};
    EXPECT_EQ(ask(fd_, _IO(IOMMUFD_TYPE, number), words), -ENOTTY) << number;
  }
}

TEST_F(NewerCalls, AFileIsMappedWithoutAnAddress) {
  const u32 ioas = ioas_alloc();
  const MockDevice device = mock_device(ioas);
  ASSERT_EQ(map_file(ioas, file_, kPageSize, 2 * kPageSize, kAperture), 0);
  EXPECT_EQ(host::pin_use().pages, 2u);
  EXPECT_EQ(byte_at(ioas, kAperture + kPageSize), 3);
  bytes_[2 * kPageSize] = 9;
  EXPECT_EQ(byte_at(ioas, kAperture + kPageSize), 9);
  EXPECT_EQ(unmap(ioas, kAperture, 2 * kPageSize), static_cast<long>(2 * kPageSize));
  EXPECT_EQ(host::pin_use().pages, 0u);
  EXPECT_EQ(destroy(device.test_device), 0);
}

TEST_F(NewerCalls, WhatIsNoSharedMemoryOrNotThereIsRefused) {
  const u32 ioas = ioas_alloc();
  EXPECT_EQ(map_file(ioas, 9999, 0, kPageSize, kAperture), -EBADF);
  EXPECT_EQ(map_file(ioas, file_, 0, 0, kAperture), -EINVAL);
  EXPECT_EQ(map_file(ioas, file_, 0, kPageSize, kAperture, 1 << 5), -EOPNOTSUPP);
  EXPECT_EQ(map_file(ioas, file_, 0, kPageSize, kAperture, IOMMU_IOAS_MAP_FIXED_IOVA), -EINVAL);
  EXPECT_EQ(map_file(ioas, file_, ~u64{0} - 10, kPageSize, kAperture), -EOVERFLOW);
  EXPECT_EQ(map_file(777, file_, 0, kPageSize, kAperture), -ENOENT);
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  EXPECT_EQ(map_file(ioas, ends[0], 0, kPageSize, kAperture), -EINVAL);
  ::close(ends[0]);
  ::close(ends[1]);
  const MockDevice device = mock_device(ioas);
  EXPECT_EQ(map_file(ioas, file_, 3 * kPageSize, 2 * kPageSize, kAperture), -EINVAL)
      << "beyond its end";
  EXPECT_EQ(host::pin_use().pages, 0u);
  EXPECT_EQ(destroy(device.test_device), 0);
}

TEST_F(NewerCalls, AProcessIsChangedOnlyOfFiles) {
  const u32 ioas = ioas_alloc();
  ASSERT_EQ(map_file(ioas, file_, 0, kPageSize, kAperture), 0);
  EXPECT_EQ(change_process(), 0) << "it is this process's already";
  ASSERT_EQ(map(ioas, reinterpret_cast<u64>(bytes_), kPageSize, kAperture + kPageSize), 0);
  EXPECT_EQ(change_process(), -EINVAL);
}

}  // namespace
}  // namespace stagetwo
