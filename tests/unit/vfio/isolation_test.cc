// SPDX-License-Identifier: Apache-2.0
// Isolation between the clients of one parent, and between a client and its own past: the numbers
// are those of the matrix in docs/support-matrix-vfio.md. What is asked of PASIDs and of the
// caches themselves: tests/unit/iommu/isolation_test.cc.
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "host/process.h"
#include "tests/unit/vfio/container_world.h"
#include "vfio/dma.h"

namespace stagetwo::vfio {
namespace {

using iommu::FaultReason;

// Another client with a device of the same parent.
class OtherClient {
 public:
  explicit OtherClient(const Listed& group) : group_(group) {
    container_ = *Container::attach(backing_.fd());
    EXPECT_TRUE(container_->add_group(group));
    EXPECT_TRUE(container_->set_type(3));
    EXPECT_TRUE(dma.connect(container_.clone(), group));
  }
  ~OtherClient() {
    container_->remove_group(group_);
    container_->closed();
  }
  Container& container() { return *container_; }

 private:
  Listed group_;
  host::Backing backing_ = *Container::make_file("test-container");
  sync::Ref<Container> container_;

 public:
  Dma dma;
};

class Isolation : public ContainerWorld {
 protected:
  void SetUp() override {
    ContainerWorld::SetUp();
    start(4);
    dma_.emplace();
    ASSERT_TRUE(dma_->connect(container_.clone(), group(4)));
  }
  void TearDown() override {
    dma_.reset();
    ContainerWorld::TearDown();
  }
  static iommu::DmaAnswer put(Dma& dma, u64 iova, u8 value) { return dma.write(iova, &value, 1); }
  iommu::DmaAnswer put(u64 iova, u8 value) { return put(*dma_, iova, value); }
  u8& byte(u64 at) { return *memory_.bytes_at(at); }

  std::optional<Dma> dma_;
};

TEST_F(Isolation, I1OneAddressIsEachClientsOwn) {
  OtherClient b(group(5));
  ASSERT_EQ(map(kIova), 0);
  ASSERT_TRUE(b.container().map({kIova, kPageSize, memory_.address() + kPageSize, kBoth}));
  u8 fill[kPageSize];
  std::memset(fill, 0xaa, sizeof(fill));
  EXPECT_EQ(dma_->write(kIova, fill, sizeof(fill)).done, kPageSize);
  for (u64 i = 0; i < kPageSize; ++i) {
    ASSERT_EQ(byte(i), 0xaa);
    ASSERT_EQ(byte(kPageSize + i), 0);
  }
}

TEST_F(Isolation, I2WhatOnlyAnotherHasMappedIsAFaultOfOnesOwn) {
  OtherClient b(group(5));
  ASSERT_TRUE(b.container().map({kIova, kPageSize, memory_.address(), kBoth}));
  u8 seen = 0;
  const auto answer = dma_->read(kIova + 8, &seen, 1);
  EXPECT_EQ(answer.done, 0u);
  EXPECT_EQ(answer.iova, kIova + 8);
  EXPECT_EQ(answer.reason, FaultReason::kSecondDenied);
}

TEST_F(Isolation, I4WhatMayBeReadIsNotWritten) {
  ASSERT_EQ(map(kIova, 1, 0, iommu::kMayRead), 0);
  byte(0) = 7;
  u8 seen = 0;
  EXPECT_EQ(dma_->read(kIova, &seen, 1).reason, FaultReason::kNone);
  EXPECT_EQ(seen, 7);
  EXPECT_EQ(put(kIova, 9).reason, FaultReason::kSecondDenied);
  EXPECT_EQ(byte(0), 7);
}

TEST_F(Isolation, I5AfterAnUnmapNothingLandsAlsoWhileTheDeviceWrites) {
  for (unsigned round = 0; round < 20; ++round) {
    ASSERT_EQ(map(kIova), 0);
    sync::Atomic<u32> writes{0}, stop{0};
    std::thread device([&] {
      while (stop.load(sync::kRelaxed) == 0) {
        if (put(kIova, 0x11).reason == FaultReason::kNone) writes.fetch_add(1, sync::kRelaxed);
      }
    });
    while (writes.load(sync::kRelaxed) == 0) std::this_thread::yield();
    ASSERT_EQ(unmap(kIova, 1), s64{kPageSize});
    byte(0) = 0x22;  // a canary from here on
    const u32 landed = writes.load(sync::kRelaxed);
    usleep(100);
    EXPECT_EQ(byte(0), 0x22);
    stop.store(1, sync::kRelaxed);
    device.join();
    EXPECT_LE(writes.load(sync::kRelaxed), landed + 1) << "one may not have been counted yet";
    EXPECT_EQ(byte(0), 0x22);
  }
}

TEST_F(Isolation, I6AnAddressMappedAgainIsTheNewMemory) {
  for (unsigned round = 0; round < 10000; ++round) {
    const u64 page = round % 2;
    ASSERT_EQ(map(kIova, 1, page), 0);
    ASSERT_EQ(put(kIova, 0x40).reason, FaultReason::kNone);
    ASSERT_EQ(byte(page * kPageSize), 0x40);
    ASSERT_EQ(byte((1 - page) * kPageSize), 0) << "round " << round;
    byte(page * kPageSize) = 0;
    ASSERT_EQ(unmap(kIova, 1), s64{kPageSize});
  }
}

TEST_F(Isolation, I8ADeviceWhoseGroupHasLeftReachesNothing) {
  OtherClient b(group(5));
  ASSERT_TRUE(b.container().map({kIova, kPageSize, memory_.address(), kBoth}));
  ASSERT_EQ(put(b.dma, kIova, 1).reason, FaultReason::kNone);
  b.container().remove_group(group(5));
  EXPECT_EQ(put(b.dma, kIova, 2).done, 0u);
  EXPECT_EQ(byte(0), 1);
}

TEST_F(Isolation, I18AKilledClientLeavesNothingBehind) {
  void* const page =
      mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  volatile u8* const counted = static_cast<u8*>(page);
  const pid_t child = fork();
  if (child == 0) {
    host::after_fork_child();  // as the shim does
    OtherClient b(group(5));
    if (!b.container().map({kIova, kPageSize, reinterpret_cast<u64>(page), kBoth})) _exit(1);
    for (u8 value = 1;; value = value == 0xff ? u8{1} : static_cast<u8>(value + 1)) {
      put(b.dma, kIova, value);
    }
  }
  int status = 0;
  while (counted[0] == 0) ASSERT_EQ(waitpid(child, &status, WNOHANG), 0) << status;
  kill(child, SIGKILL);
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  counted[0] = 0;
  usleep(20000);
  EXPECT_EQ(counted[0], 0) << "no access is in flight";
  OtherClient again(group(5));
  ASSERT_TRUE(again.container().map({kIova, kPageSize, reinterpret_cast<u64>(page), kBoth}));
  EXPECT_EQ(put(again.dma, kIova, 5).reason, FaultReason::kNone);
  EXPECT_TRUE(again.container().unmap({0, 0, true}));
  munmap(page, kPageSize);
}

TEST_F(Isolation, I20TwoDevicesInOneContainerAreNotKeptApart) {
  ASSERT_EQ(add(5), 0);
  Dma second;
  ASSERT_TRUE(second.connect(container_.clone(), group(5)));
  ASSERT_EQ(map(kIova), 0);
  EXPECT_EQ(put(second, kIova, 3).reason, FaultReason::kNone);
  EXPECT_EQ(put(kIova + 1, 4).reason, FaultReason::kNone);
  EXPECT_EQ(byte(0), 3);
  EXPECT_EQ(byte(1), 4);
  EXPECT_EQ(*second.pasid(), *dma_->pasid());
}

TEST_F(Isolation, I23WhatIsMappedIsPinnedWhateverItsClientDoesToTheAddress) {
  u8* const own = static_cast<u8*>(
      mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_TRUE(container_->map({kIova, kPageSize, reinterpret_cast<u64>(own), kBoth}));
  ASSERT_EQ(put(kIova, 1).reason, FaultReason::kNone);
  ASSERT_EQ(own[0], 1);
  ASSERT_EQ(mprotect(own, kPageSize, PROT_NONE), 0);
  const auto answer = put(kIova, 2);
  // Without the shim nobody told us of the change: the access is guarded and says so. With it the
  // page is kept aside first (tests/shim/programs/pins.c).
  EXPECT_TRUE(answer.reason == FaultReason::kNone ||
              answer.reason == FaultReason::kSecondUnreadable);
  ASSERT_EQ(mprotect(own, kPageSize, PROT_READ), 0);
  EXPECT_EQ(own[0], answer.reason == FaultReason::kNone ? 2 : 1);
  EXPECT_EQ(unmap(kIova, 1), s64{kPageSize});
  munmap(own, kPageSize);
}

}  // namespace
}  // namespace stagetwo::vfio
