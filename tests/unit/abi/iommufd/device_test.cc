// SPDX-License-Identifier: Apache-2.0
// The front: numbers, sizes, and who holds the state.
#include <sys/stat.h>
#include <sys/wait.h>

#include "tests/unit/abi/iommufd/iommufd_client.h"

namespace stagetwo {
namespace {

class IommufdDevice : public IommufdClient {};

TEST_F(IommufdDevice, IsACharacterDevice) {
  struct ::stat said{};
  ASSERT_EQ(0, ::fstat(fd_, &said));
  host::rewrite_stat(host::find(fd_), &said);
  EXPECT_TRUE(S_ISCHR(said.st_mode));
}

TEST_F(IommufdDevice, UnknownNumbersAreNoRequests) {
  u32 words[32] = {128};
  for (const u32 number : {0x00u, 0x63u, 0x7fu, 0x8fu, 0x9fu, 0xa1u, 0xffu}) {
    EXPECT_EQ(ask(fd_, _IO(IOMMUFD_TYPE, number), words), -ENOTTY) << number;
  }
  EXPECT_EQ(ask(fd_, _IOWR(IOMMUFD_TYPE, 0x80, u64), words), -ENOTTY) << "no size in the number";
}

TEST_F(IommufdDevice, TheTestCommandIsBehindASwitch) {
  abi_iommufd::set_test_commands(false);
  auto cmd = test_cmd(IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT, 0);
  cmd.memory_limit.limit = 65536;
  EXPECT_EQ(call(IOMMU_TEST_CMD, &cmd), -ENOTTY);
  abi_iommufd::set_test_commands(true);
  EXPECT_EQ(call(IOMMU_TEST_CMD, &cmd), 0);
}

TEST_F(IommufdDevice, StructsMayGrow) {
  struct {
    iommu_destroy cmd;
    u64 future;
  } cmd = {{sizeof(cmd), 0}, 0};
  EXPECT_EQ(ask(fd_, IOMMU_DESTROY, &cmd), -ENOENT);
  cmd.future = 1;
  EXPECT_EQ(ask(fd_, IOMMU_DESTROY, &cmd), -E2BIG);
  cmd.cmd.size = sizeof(cmd.cmd) - 1;
  EXPECT_EQ(ask(fd_, IOMMU_DESTROY, &cmd), -EINVAL);
  EXPECT_EQ(ask(fd_, IOMMU_DESTROY, nullptr), -EFAULT);
  // A struct that has grown since: the old one still does.
  iommu_hwpt_alloc old{};
  old.size = 24;
  EXPECT_EQ(ask(fd_, IOMMU_HWPT_ALLOC, &old), -ENOENT);
  old.size = 23;
  EXPECT_EQ(ask(fd_, IOMMU_HWPT_ALLOC, &old), -EINVAL);
}

TEST_F(IommufdDevice, AStructThatEndsWithThePageIsNotReadBeyond) {
  const test::GuardedPages page(1);
  auto* const cmd = static_cast<iommu_destroy*>(static_cast<void*>(page.bytes_at(4096 - 8)));
  *cmd = {8, 0};
  EXPECT_EQ(ask(fd_, IOMMU_DESTROY, cmd), -ENOENT);
  cmd->size = 12;
  EXPECT_EQ(ask(fd_, IOMMU_DESTROY, cmd), -EFAULT);
}

TEST_F(IommufdDevice, ObjectsHangOffTheDescription) {
  const u32 ioas = ioas_alloc();
  const pid_t child = ::fork();
  if (child == 0) ::_exit(ioas_alloc() == ioas + 1 ? 0 : 1);
  int status = 0;
  ASSERT_EQ(child, ::waitpid(child, &status, 0));
  EXPECT_EQ(status, 0);
  EXPECT_EQ(destroy(ioas + 1), 0) << "the child's is ours, too";
}

TEST_F(IommufdDevice, ADuplicateIsTheSameIommufd) {
  const u32 ioas = ioas_alloc();
  const test::GuardedPages memory(2);
  ASSERT_EQ(mock_device(ioas).error, 0);
  ASSERT_EQ(map(ioas, memory.address(), 8192, kAperture), 0);
  const int copy = ::dup(fd_);
  close_fd(fd_);
  fd_ = copy;
  EXPECT_EQ(host::pin_use().pages, 2u) << "somebody has it still";
  EXPECT_EQ(unmap(ioas, kAperture, 8192), 8192);
}

TEST_F(IommufdDevice, TheLastCloseUnpins) {
  const u32 ioas = ioas_alloc();
  const test::GuardedPages memory(2);
  ASSERT_EQ(mock_device(ioas).error, 0);
  ASSERT_EQ(map(ioas, memory.address(), 8192, kAperture), 0);
  close_fd(fd_);
  fd_ = -1;
  EXPECT_EQ(host::pin_use().pages, 0u);
}

TEST_F(IommufdDevice, AnExecutedProgramFindsItsObjects) {
  const u32 ioas = ioas_alloc();
  // What the attacher makes of the descriptor alone.
  host::DescriptorSpec spec;
  auto received = abi_iommufd::attach("iommufd", fd_, &spec);
  ASSERT_TRUE(received);
  EXPECT_EQ(spec.home, host::StateHome::kDescription);
  iommu_destroy cmd{sizeof(cmd), ioas};
  EXPECT_EQ(received->ioctl(fd_, IOMMU_DESTROY, reinterpret_cast<unsigned long>(&cmd)), 0);
  EXPECT_EQ(destroy(ioas), -ENOENT);
  EXPECT_FALSE(abi_iommufd::attach("kvm-vm", fd_, &spec));
}

}  // namespace
}  // namespace stagetwo
