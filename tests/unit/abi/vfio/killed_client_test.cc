// SPDX-License-Identifier: Apache-2.0
// I18 of the isolation matrix (docs/support-matrix-vfio.md): a client is killed in the middle of
// its DMA, and its container outlives it. Whoever opens the group next finds it as the kernel
// leaves it. What goes with the last descriptor of a container: tests/unit/vfio/isolation_test.cc.
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <chrono>
#include <utility>

#include "abi/vfio/files.h"
#include "host/pin.h"
#include "host/process.h"
#include "iommu/locked.h"
#include "tests/unit/abi/vfio/register_device.h"
#include "tests/unit/abi/vfio/vfio_client.h"

namespace stagetwo {
namespace {

class KilledClient : public VfioClient {
 protected:
  // In a page of its own: what the client tells before it is killed. The page behind is what its
  // device writes.
  struct Told {
    volatile u32 device, pasid;
    volatile u64 pins;
  };

  KilledClient() {
    test::register_devices();
    type_ = "isolated-a";
  }
  void SetUp() override {
    VfioClient::SetUp();
    close_fd(std::exchange(group_, -1));  // the client's, and nobody else's
    void* const pages =
        mmap(nullptr, 2 * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(pages, MAP_FAILED);
    told_ = static_cast<Told*>(pages);
    written_ = static_cast<volatile u8*>(pages) + kPageSize;
  }
  void TearDown() override {
    munmap(told_, 2 * kPageSize);
    VfioClient::TearDown();
  }
  static sync::Ref<vfio::Container> container_at(int fd) {
    return dynamic_cast<abi_vfio::ContainerFile*>(host::find(fd).get())->container();
  }
  long map_written() {
    vfio_iommu_type1_dma_map cmd{.argsz = sizeof(cmd),
                                 .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
                                 .vaddr = reinterpret_cast<u64>(written_),
                                 .iova = kIova,
                                 .size = kPageSize};
    return ask(container_, VFIO_IOMMU_MAP_DMA, &cmd);
  }
  [[noreturn]] void be_the_client() {
    host::after_fork_child();  // as the shim does
    abi_vfio::after_fork_child();
    group_ = *abi_vfio::open_group(0, O_RDWR | O_CLOEXEC);
    open_device();
    if (map_written() != 0) _exit(1);
    const auto container = container_at(container_);
    const auto tag = *container->tag_of(*vfio::device_at(0));
    told_->device = tag.device;
    told_->pasid = tag.pasid;
    told_->pins = host::pin_use().pages;
    for (u8 value = 1;; value = value == 0xff ? u8{1} : static_cast<u8>(value + 1)) {
      static_cast<void>(test::RegisterDevice::dma->write(kIova, &value, 1));
    }
  }

  Told* told_ = nullptr;
  volatile u8* written_ = nullptr;
};

TEST_F(KilledClient, I18LeavesNoEntryNoPinAndItsDeviceToTheNext) {
  using Clock = std::chrono::steady_clock;
  const pid_t child = fork();
  if (child == 0) be_the_client();
  int status = 0;
  while (*written_ == 0) ASSERT_EQ(waitpid(child, &status, WNOHANG), 0) << status;
  const auto container = container_at(container_);
  ASSERT_NE(told_->pasid, 0u);
  EXPECT_EQ(told_->pins, 1u);
  {
    iommu::Locked locked(container->context());
    ASSERT_TRUE(locked.ok());
    EXPECT_TRUE(locked.find<iommu::Device>(told_->device));
    EXPECT_NE(locked.root().page_sets.get(), nullptr);
  }
  kill(child, SIGKILL);
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  const auto killed = Clock::now();
  *written_ = 0;
  group_ = *abi_vfio::open_group(0, O_RDWR | O_CLOEXEC);
  {
    iommu::Locked locked(container->context());
    ASSERT_TRUE(locked.ok());
    EXPECT_FALSE(locked.find<iommu::Device>(told_->device)) << "its tables have no such requester";
    EXPECT_EQ(locked.root().page_sets.get(), nullptr) << "something is mapped";
    EXPECT_EQ(locked.root().orphans, 0u) << "or still pinned";
  }
  EXPECT_EQ(container->type(), vfio::IommuType::kNone) << "its last group is out";
  EXPECT_EQ(host::pin_use().pages, 0u);
  open_device();  // and its queue is to be had
  EXPECT_EQ(map_written(), 0);
  EXPECT_LT(Clock::now() - killed, std::chrono::seconds(1));
  usleep(20'000);
  EXPECT_EQ(*written_, 0) << "an access was in flight";
  const u8 value = 5;
  EXPECT_EQ(test::RegisterDevice::dma->write(kIova, &value, 1).reason, iommu::FaultReason::kNone);
  EXPECT_EQ(*written_, 5);
}

}  // namespace
}  // namespace stagetwo
