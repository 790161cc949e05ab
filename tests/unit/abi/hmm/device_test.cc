// SPDX-License-Identifier: Apache-2.0
// The device file: the kernel's checks in the kernel's order, outputs on success only.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "abi/hmm/hmm.h"
#include "abi/hmm/uapi.h"
#include "host/backstop.h"
#include "host/descriptor.h"
#include "host/session.h"
#include "tests/support/pages.h"

namespace stagetwo {
namespace {

class HmmDevice : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    fd_ = *abi_hmm::open_device(0, O_RDWR);
    std::memset(memory_.pointer(), 7, memory_.bytes());
  }
  void TearDown() override {
    host::CloseWatch watch(fd_);
    ::close(fd_);
    watch.closed();
  }
  long call(unsigned long request, hmm_dmirror_cmd* cmd) {
    return host::find(fd_)->ioctl(fd_, request, reinterpret_cast<unsigned long>(cmd));
  }
  hmm_dmirror_cmd command(u64 pages = 4) {
    return {memory_.address(), reinterpret_cast<u64>(buffer_.data()), pages, 99, 99};
  }

  test::GuardedPages memory_{4};
  std::vector<u8> buffer_ = std::vector<u8>(4 * 4096, 1);
  int fd_ = -1;
};

TEST_F(HmmDevice, IsACharacterDevice) {
  const auto ref = host::find(fd_);
  ASSERT_TRUE(ref);
  struct ::stat said{};
  ASSERT_EQ(0, ::fstat(fd_, &said));
  host::rewrite_stat(ref, &said);
  EXPECT_TRUE(S_ISCHR(said.st_mode));
  EXPECT_EQ(0, said.st_size);
}

TEST_F(HmmDevice, ReadsAndReportsWhatItDid) {
  auto cmd = command();
  EXPECT_EQ(0, call(HMM_DMIRROR_READ, &cmd));
  EXPECT_EQ(4u, cmd.cpages);
  EXPECT_EQ(1u, cmd.faults);
  EXPECT_EQ(7, buffer_[3 * 4096]);
}

TEST_F(HmmDevice, ChecksTheStructThenItsValuesThenTheCommand) {
  EXPECT_EQ(-EFAULT, call(HMM_DMIRROR_READ, nullptr));
  EXPECT_EQ(-EFAULT, call(0, nullptr)) << "an unknown command reads its struct, too";
  auto cmd = command();
  cmd.addr += 1;
  EXPECT_EQ(-EINVAL, call(HMM_DMIRROR_READ, &cmd));
  cmd = command(0);
  EXPECT_EQ(-EINVAL, call(HMM_DMIRROR_READ, &cmd));
  cmd = command(u64{1} << 52);
  EXPECT_EQ(-EINVAL, call(HMM_DMIRROR_READ, &cmd));
  cmd = command();
  EXPECT_EQ(-EINVAL, call(0x1234, &cmd));
  EXPECT_EQ(99u, cmd.cpages) << "nothing is written on a refusal";
}

TEST_F(HmmDevice, ARefusedReadLeavesTheBufferAsItWas) {
  auto cmd = command(5);  // one page too many
  EXPECT_EQ(-EFAULT, call(HMM_DMIRROR_READ, &cmd));
  EXPECT_EQ(99u, cmd.cpages);
  EXPECT_EQ(1, buffer_[0]);
  cmd = command();
  cmd.ptr = 8;
  EXPECT_EQ(-EFAULT, call(HMM_DMIRROR_READ, &cmd));
  EXPECT_EQ(-EFAULT, call(HMM_DMIRROR_WRITE, &cmd));
}

TEST_F(HmmDevice, MoreThanThereIsMemoryForIsEnomem) {
  auto cmd = command();
  cmd.npages = u64{1} << 40;
  EXPECT_EQ(-ENOMEM, call(HMM_DMIRROR_READ, &cmd));
}

TEST_F(HmmDevice, SnapshotWritesAByteAPage) {
  auto cmd = command(5);
  EXPECT_EQ(0, call(HMM_DMIRROR_MIGRATE_TO_DEV, [&] {
              static hmm_dmirror_cmd one;
              one = command(1);
              return &one;
            }()));
  ASSERT_EQ(0, call(HMM_DMIRROR_SNAPSHOT, &cmd));
  EXPECT_EQ(HMM_DMIRROR_PROT_DEV_PRIVATE_LOCAL | HMM_DMIRROR_PROT_WRITE, buffer_[0]);
  EXPECT_EQ(HMM_DMIRROR_PROT_WRITE, buffer_[1]);
  EXPECT_EQ(HMM_DMIRROR_PROT_ERROR, buffer_[4]);
}

TEST(HmmParameters, BothAddressesMakeTheCoherentUnits) {
  host::debug_leave_session();
  EXPECT_TRUE(abi_hmm::has_unit(1));
  EXPECT_FALSE(abi_hmm::has_unit(2));
  EXPECT_TRUE(abi_hmm::set_parameter("spm_addr_dev0", "0x180000000"));
  EXPECT_FALSE(abi_hmm::has_unit(2));
  EXPECT_TRUE(abi_hmm::set_parameter("spm_addr_dev1", "8589934592\n"));
  EXPECT_TRUE(abi_hmm::has_unit(2));
  EXPECT_TRUE(abi_hmm::has_unit(3));
  EXPECT_FALSE(abi_hmm::has_unit(4));
  EXPECT_TRUE(abi_hmm::set_parameter("spm_addr_dev1", "0"));
  EXPECT_FALSE(abi_hmm::has_unit(3));
}

TEST(HmmParameters, ARefusedValueChangesNothing) {
  const auto refusal = [](const char* name, const char* value) {
    const auto stored = abi_hmm::set_parameter(name, value);
    return stored ? 0 : to_int(stored.error());
  };
  host::debug_leave_session();
  EXPECT_EQ(ENOENT, refusal("spm_addr_dev2", "1"));
  for (const char* nonsense : {"", "x", "0x", "08", "1 ", "--1", "0xg"}) {
    EXPECT_EQ(EINVAL, refusal("spm_addr_dev0", nonsense)) << nonsense;
  }
  EXPECT_EQ(ERANGE, refusal("spm_addr_dev0", "0x8000000000000000"));
  EXPECT_EQ(ERANGE, refusal("spm_addr_dev0", "99999999999999999999"));
  EXPECT_EQ(0, refusal("spm_addr_dev1", "-9223372036854775808"));
  EXPECT_FALSE(abi_hmm::has_unit(2)) << "the first one is still 0";
  host::debug_leave_session();
}

TEST_F(HmmDevice, PagesOfADriverOrOfTheKernelDoNotMigrate) {
  void* mine = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd_, 0);
  ASSERT_NE(MAP_FAILED, mine);
  auto cmd = command(1);
  for (const u64 address : {reinterpret_cast<u64>(mine), u64{::getauxval(AT_SYSINFO_EHDR)},
                            u64{::getauxval(AT_SYSINFO_EHDR)} - 4096}) {
    cmd = command(1);
    cmd.addr = address;
    EXPECT_EQ(-EINVAL, call(HMM_DMIRROR_MIGRATE_TO_DEV, &cmd));
    EXPECT_EQ(-EINVAL, call(HMM_DMIRROR_MIGRATE_TO_SYS, &cmd));
    EXPECT_EQ(0, call(HMM_DMIRROR_SNAPSHOT, &cmd)) << "a look at it is no migration";
  }
  ::munmap(mine, 4096);
}

TEST_F(HmmDevice, WhatDoesNotMigrateIsEnoent) {
  void* shared = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  auto cmd = command(1);
  cmd.addr = reinterpret_cast<u64>(shared);
  EXPECT_EQ(-ENOENT, call(HMM_DMIRROR_MIGRATE_TO_DEV, &cmd));
  EXPECT_EQ(0, call(HMM_DMIRROR_MIGRATE_TO_SYS, &cmd));
  EXPECT_EQ(0u, cmd.cpages);
  EXPECT_EQ(-EBUSY, call(HMM_DMIRROR_EXCLUSIVE, &cmd)) << "only private pages can be exclusive";
  ::munmap(shared, 4096);
}

TEST_F(HmmDevice, EachWayToMigrateAHoleOrAProtectedPageIsEinval) {
  auto cmd = command(5);  // the fifth page is no memory
  EXPECT_EQ(-EINVAL, call(HMM_DMIRROR_MIGRATE_TO_DEV, &cmd));
  EXPECT_EQ(-EINVAL, call(HMM_DMIRROR_MIGRATE_TO_SYS, &cmd));
  EXPECT_EQ(-EBUSY, call(HMM_DMIRROR_EXCLUSIVE, &cmd));
  EXPECT_EQ(7, *memory_.bytes_at(0));
}

TEST_F(HmmDevice, AWriteWithoutTheRightIsEpermAndChangesNothing) {
  ASSERT_EQ(0, ::mprotect(memory_.pointer(), 4096, PROT_READ));
  auto cmd = command(1);
  EXPECT_EQ(-EPERM, call(HMM_DMIRROR_WRITE, &cmd));
  EXPECT_EQ(7, *memory_.bytes_at(0));
  ASSERT_EQ(0, ::mprotect(memory_.pointer(), 4096, PROT_NONE));
  EXPECT_EQ(-EFAULT, call(HMM_DMIRROR_WRITE, &cmd));
  EXPECT_EQ(-EFAULT, call(HMM_DMIRROR_READ, &cmd));
  ASSERT_EQ(0, ::mprotect(memory_.pointer(), 4096, PROT_READ | PROT_WRITE));
}

TEST_F(HmmDevice, ASnapshotSaysWhoseResidentPagesAre) {
  const int coherent = *abi_hmm::open_device(2, O_RDWR);
  auto cmd = command(2);
  const auto call_coherent = [&](unsigned long request) {
    return host::find(coherent)->ioctl(coherent, request, reinterpret_cast<unsigned long>(&cmd));
  };
  ASSERT_EQ(0, call_coherent(HMM_DMIRROR_MIGRATE_TO_DEV));
  EXPECT_EQ(2u, cmd.cpages);
  EXPECT_EQ(7, buffer_[4096]);
  ASSERT_EQ(0, call_coherent(HMM_DMIRROR_SNAPSHOT));
  EXPECT_EQ(HMM_DMIRROR_PROT_DEV_COHERENT_LOCAL | HMM_DMIRROR_PROT_WRITE, buffer_[0]);
  ASSERT_EQ(0, call(HMM_DMIRROR_SNAPSHOT, &cmd));
  EXPECT_EQ(HMM_DMIRROR_PROT_DEV_COHERENT_REMOTE | HMM_DMIRROR_PROT_WRITE, buffer_[1]);
  cmd = command(4);
  ASSERT_EQ(0, call_coherent(HMM_DMIRROR_MIGRATE_TO_SYS));
  EXPECT_EQ(2u, cmd.cpages) << "two of the four were there";
  host::CloseWatch watch(coherent);
  ::close(coherent);
  watch.closed();
}

TEST_F(HmmDevice, ExclusiveAccessIsCheckedAndRevoked) {
  auto cmd = command();
  ASSERT_EQ(0, call(HMM_DMIRROR_EXCLUSIVE, &cmd));
  EXPECT_EQ(4u, cmd.cpages);
  EXPECT_EQ(-EPERM, call(HMM_DMIRROR_CHECK_EXCLUSIVE, &cmd));
  EXPECT_EQ(7, *memory_.bytes_at(0));
  EXPECT_EQ(-EPERM, call(HMM_DMIRROR_CHECK_EXCLUSIVE, &cmd));
  for (size_t i = 1; i < 4; ++i) EXPECT_EQ(7, *memory_.bytes_at(i * 4096));
  EXPECT_EQ(0, call(HMM_DMIRROR_CHECK_EXCLUSIVE, &cmd));
}

}  // namespace
}  // namespace stagetwo
