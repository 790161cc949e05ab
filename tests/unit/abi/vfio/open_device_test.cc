// SPDX-License-Identifier: Apache-2.0
// A device by its own node: bound to an iommufd, attached, and what is refused in which order. The
// iommufd in the place of a container.
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "tests/unit/abi/vfio/node_client.h"

namespace stagetwo {
namespace {

TEST_F(Node, AnswersNothingBeforeItIsBound) {
  vfio_device_info info{};
  info.argsz = sizeof(info);
  EXPECT_EQ(ask(device_, VFIO_DEVICE_GET_INFO, &info), -EINVAL);
  EXPECT_EQ(ask(device_, VFIO_DEVICE_RESET), -EINVAL);
  EXPECT_EQ(ask(device_, VFIO_DEVICE_ATTACH_IOMMUFD_PT), -EINVAL);
  EXPECT_EQ(ask(device_, 0), -EINVAL);
  const auto ref = host::find(device_);
  EXPECT_FALSE(dynamic_cast<host::PlacedIo*>(ref.get())->read_at(memory_.address(), 4, 0));
  EXPECT_FALSE(ref->check_mmap({kPageSize, 3, 1, 0}));
  EXPECT_EQ(bind(device_, iommufd_), 0);
  EXPECT_EQ(ask(device_, VFIO_DEVICE_GET_INFO, &info), 0);
}

// Each row breaks all that the rows below it break, and is refused for its own reason.
TEST_F(Node, BindIsRefusedInTheKernelsOrder) {
  vfio_device_bind_iommufd cmd{sizeof(cmd) - 1, 0, -1, 0};
  EXPECT_EQ(ask(device_, VFIO_DEVICE_BIND_IOMMUFD, nullptr), -EFAULT);
  group_ = *abi_vfio::open_group(0, O_RDWR | O_CLOEXEC);
  EXPECT_EQ(ask(device_, VFIO_DEVICE_BIND_IOMMUFD, &cmd), -EINVAL) << "too short";
  cmd.argsz = sizeof(cmd);
  EXPECT_EQ(ask(device_, VFIO_DEVICE_BIND_IOMMUFD, &cmd), -EINVAL) << "no such number";
  cmd.iommufd = 9999;
  cmd.flags = 1;
  EXPECT_EQ(ask(device_, VFIO_DEVICE_BIND_IOMMUFD, &cmd), -EINVAL) << "a flag";
  EXPECT_EQ(bind(device_, 9999), -EBUSY) << "the group is open";
  close_fd(group_);
  group_ = -1;
  EXPECT_EQ(bind(device_, 9999), -EBADF);
  EXPECT_EQ(bind(device_, container_), -EBADFD);
  EXPECT_EQ(bind(device_, iommufd_), 0);
  EXPECT_EQ(bind(device_, 9999), -EINVAL) << "it is bound";
  const int other = *abi_vfio::open_node(0, O_RDWR | O_CLOEXEC);
  EXPECT_EQ(bind(other, 9999), -EBADF) << "the iommufd is looked at first";
  EXPECT_EQ(bind(other, iommufd_), -EINVAL) << "another file has it";
  close_fd(other);
  EXPECT_EQ(to_int(abi_vfio::open_group(0, O_RDWR).error()), EBUSY);
}

TEST_F(Node, IsItsGroupsAgainWhenItIsClosed) {
  ASSERT_EQ(bind(device_, iommufd_), 0);
  close_fd(device_);
  device_ = -1;
  group_ = *abi_vfio::open_group(0, O_RDWR | O_CLOEXEC);
  open_device();
  vfio_device_bind_iommufd cmd{sizeof(cmd), 0, iommufd_, 0};
  EXPECT_EQ(ask(device_, VFIO_DEVICE_BIND_IOMMUFD, &cmd), -EINVAL) << "a group's file";
  EXPECT_EQ(attach(1), -ENOTTY);
  EXPECT_EQ(detach(), -ENOTTY);
}

TEST_F(Node, AnAnswerThatCannotBeToldIsTakenBack) {
  test::GuardedPages page(1);
  ASSERT_EQ(mprotect(page.pointer(), kPageSize, PROT_READ | PROT_WRITE), 0);
  auto* const cmd = reinterpret_cast<vfio_device_bind_iommufd*>(page.address());
  *cmd = {sizeof(*cmd), 0, iommufd_, 0};
  ASSERT_EQ(mprotect(page.pointer(), kPageSize, PROT_READ), 0);
  EXPECT_EQ(ask(device_, VFIO_DEVICE_BIND_IOMMUFD, cmd), -EFAULT);
  EXPECT_EQ(bind(device_, iommufd_), 0);
}

TEST_F(Node, IsAnObjectOfItsIommufdThatTheClientDoesNotDestroy) {
  ASSERT_EQ(bind(device_, iommufd_), 0);
  iommu_destroy destroy{sizeof(destroy), id_};
  EXPECT_EQ(ask(iommufd_, IOMMU_DESTROY, &destroy), -EBUSY);
  close_fd(device_);
  device_ = -1;
  EXPECT_EQ(ask(iommufd_, IOMMU_DESTROY, &destroy), -ENOENT);
}

TEST_F(Node, AttachIsRefusedInTheKernelsOrder) {
  ASSERT_EQ(bind(device_, iommufd_), 0);
  EXPECT_EQ(ask(device_, VFIO_DEVICE_ATTACH_IOMMUFD_PT, nullptr), -EFAULT);
  vfio_device_attach_iommufd_pt_pasid cmd{11, 1, 0, 0};
  EXPECT_EQ(ask(device_, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &cmd), -EINVAL);
  EXPECT_EQ(attach(9999, 1), -EINVAL) << "no flag of 6.12";
  EXPECT_EQ(attach(9999), -ENOENT);
  EXPECT_EQ(attach(id_), -EINVAL) << "a device";
  vfio_device_detach_iommufd_pt_pasid gone{7, 0, 0};
  EXPECT_EQ(ask(device_, VFIO_DEVICE_DETACH_IOMMUFD_PT, &gone), -EINVAL);
  EXPECT_EQ(detach(1), -EINVAL);
  EXPECT_EQ(detach(), 0) << "nothing attached: nothing to do";
}

TEST_F(Node, ItsDmaFollowsWhatIsAttached) {
  ASSERT_EQ(bind(device_, iommufd_), 0);
  const u32 first = make_ioas(), second = make_ioas();
  ASSERT_EQ(map(first, kIova, 0), 0);
  ASSERT_EQ(map(second, kIova, 1), 0);
  EXPECT_EQ(write(kIova, 1), 0x51u) << "nothing was ever attached";
  ASSERT_EQ(attach(first), 0);
  EXPECT_NE(attached_, first) << "the page table that was made for it";
  EXPECT_EQ(write(kIova, 0xa1), 0u);
  EXPECT_EQ(byte(0), 0xa1);
  ASSERT_EQ(attach(second), 0) << "in the place of the first";
  EXPECT_EQ(write(kIova, 0xa2), 0u);
  EXPECT_EQ(byte(0), 0xa1);
  EXPECT_EQ(byte(1), 0xa2);
  ASSERT_EQ(detach(), 0);
  EXPECT_EQ(write(kIova, 1), 0x59u);
}

TEST_F(Node, EachPasidIsAnIoasOfItsOwn) {
  abi_vfio::set_newer_requests(true);
  ASSERT_EQ(bind(device_, iommufd_), 0);
  constexpr u32 kFirst = 5, kSecond = 6, kUnused = 7;
  const u32 spaces[] = {make_ioas(), make_ioas()};
  for (const u64 page : {u64{0}, u64{1}}) {
    ASSERT_EQ(map(spaces[page], kIova, page), 0) << "the same IOVA of both";
    ASSERT_EQ(map(spaces[page], kIova + (page + 1) * kPageSize, 2 + page), 0);
  }
  const u32 tables[] = {make_table(spaces[0]), make_table(spaces[1])};
  EXPECT_EQ(attach(9999, VFIO_DEVICE_ATTACH_PASID, 0), -EINVAL) << "PASID 0 is no PASID";
  EXPECT_EQ(attach(9999, VFIO_DEVICE_ATTACH_PASID, kFirst), -ENOENT);
  EXPECT_EQ(attach(9999, 2, kFirst), -EINVAL) << "an unknown flag";
  EXPECT_EQ(attach(tables[0], VFIO_DEVICE_ATTACH_PASID, 1 << 20), -EINVAL);
  ASSERT_EQ(attach(tables[0], VFIO_DEVICE_ATTACH_PASID, kFirst), 0);
  ASSERT_EQ(attach(tables[1], VFIO_DEVICE_ATTACH_PASID, kSecond), 0);
  EXPECT_EQ(write(kIova, 0xb1, {kFirst, false}), 0u);
  EXPECT_EQ(write(kIova, 0xb2, {kSecond, false}), 0u);
  EXPECT_EQ(byte(0), 0xb1);
  EXPECT_EQ(byte(1), 0xb2);
  // What only one of them has.
  EXPECT_EQ(write(kIova + kPageSize, 0xc1, {kFirst, false}), 0u);
  EXPECT_NE(write(kIova + kPageSize, 1, {kSecond, false}), 0u);
  EXPECT_EQ(write(kIova + 2 * kPageSize, 0xc2, {kSecond, false}), 0u);
  EXPECT_NE(write(kIova + 2 * kPageSize, 1, {kFirst, false}), 0u);
  EXPECT_EQ(byte(2), 0xc1);
  EXPECT_EQ(byte(3), 0xc2);
  EXPECT_EQ(write(kIova, 1, {kUnused, false}), 0x59u);
  EXPECT_EQ(write(kIova, 1), 0x59u) << "and the device itself has none";
  EXPECT_EQ(detach(VFIO_DEVICE_DETACH_PASID, kUnused), 0) << "no effect";
  ASSERT_EQ(detach(VFIO_DEVICE_DETACH_PASID, kFirst), 0);
  EXPECT_EQ(write(kIova, 1, {kFirst, false}), 0x59u);
  EXPECT_EQ(write(kIova, 0xb3, {kSecond, false}), 0u) << "the other one goes on";
  EXPECT_EQ(byte(1), 0xb3);
  EXPECT_EQ(byte(0), 0xb1);
}

TEST_F(Node, ADeviceWithoutAnIommuDeviceIsAnAccess) {
  auto removal = vfio::begin_removal(uuid());
  close_fd(device_);
  vfio::finish_removal(std::move(*removal));
  ASSERT_TRUE(vfio::create_device(vfio::find_type("registers-a"), uuid()));
  device_ = *abi_vfio::open_node(0, O_RDWR | O_CLOEXEC);
  ASSERT_EQ(bind(device_, iommufd_), 0);
  const u32 ioas = make_ioas();
  ASSERT_EQ(map(ioas, kIova, 3), 0);
  EXPECT_NE(write(kIova, 1), 0u);
  EXPECT_EQ(attach(id_), -ENOENT) << "an IOAS and nothing else";
  ASSERT_EQ(attach(ioas), 0);
  EXPECT_EQ(write(kIova, 0xc3), 0u);
  EXPECT_EQ(byte(3), 0xc3);
  abi_vfio::set_newer_requests(true);
  EXPECT_EQ(attach(ioas, VFIO_DEVICE_ATTACH_PASID, 5), -EOPNOTSUPP);
  ASSERT_EQ(detach(), 0);
  EXPECT_NE(write(kIova, 1), 0u);
}

// ---- an iommufd as a container

TEST_F(Node, AnIommufdServesAGroup) {
  close_fd(device_);
  device_ = -1;
  group_ = *abi_vfio::open_group(0, O_RDWR | O_CLOEXEC);
  ASSERT_EQ(ask(group_, VFIO_GROUP_SET_CONTAINER, &iommufd_), 0);
  EXPECT_EQ(ask(group_, VFIO_GROUP_SET_CONTAINER, &iommufd_), -EINVAL);
  vfio_group_status status{sizeof(status), 0};
  ASSERT_EQ(ask(group_, VFIO_GROUP_GET_STATUS, &status), 0);
  EXPECT_EQ(status.flags, u32{VFIO_GROUP_FLAGS_VIABLE | VFIO_GROUP_FLAGS_CONTAINER_SET});
  device_ = static_cast<int>(ask(group_, VFIO_GROUP_GET_DEVICE_FD, kName));
  ASSERT_GE(device_, 0);
  vfio_iommu_type1_dma_map cmd{.argsz = sizeof(cmd),
                               .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
                               .vaddr = memory_.address(),
                               .iova = kIova,
                               .size = kPageSize};
  ASSERT_EQ(ask(iommufd_, VFIO_IOMMU_MAP_DMA, &cmd), 0);
  EXPECT_EQ(write(kIova, 0xd4), 0u);
  EXPECT_EQ(byte(0), 0xd4);
  EXPECT_EQ(ask(group_, VFIO_GROUP_UNSET_CONTAINER), 0) << "also while the device is open";
  EXPECT_EQ(ask(group_, VFIO_GROUP_UNSET_CONTAINER), -EINVAL);
}

// ---- who has it open hears that it is to go

// Whose file was open before the removal began is served: the kernel's holds the registration.
TEST_F(Node, AnOpenNodeIsBoundWhileARemovalWaitsForIt) {
  auto removal = vfio::begin_removal(uuid());
  ASSERT_TRUE(removal);
  ASSERT_EQ(bind(device_, iommufd_), 0);
  const u32 ioas = make_ioas();
  ASSERT_EQ(map(ioas, kIova, 0), 0);
  ASSERT_EQ(attach(ioas), 0);
  EXPECT_EQ(write(kIova, 0x77), 0u);
  EXPECT_EQ(byte(0), 0x77);
  close_fd(device_);
  device_ = -1;
  vfio::finish_removal(std::move(*removal));
  EXPECT_FALSE(vfio::device_from(0));
}

TEST_F(Node, I19ARemovalWaitsForTheNodeAndAsksItsHolder) {
  ASSERT_EQ(bind(device_, iommufd_), 0);
  const int bell = eventfd(0, EFD_NONBLOCK);
  // struct vfio_irq_set with one number behind it.
  const u32 cmd[] = {24,
                     VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
                     VFIO_PCI_REQ_IRQ_INDEX,
                     0,
                     1,
                     static_cast<u32>(bell)};
  ASSERT_EQ(ask(device_, VFIO_DEVICE_SET_IRQS, cmd), 0);
  auto removal = vfio::begin_removal(uuid());
  ASSERT_TRUE(removal);
  EXPECT_FALSE(abi_vfio::has_group(0)) << "nobody opens it any more";
  u64 rings = 0;
  for (int i = 0; i < 500 && read(bell, &rings, sizeof(rings)) < 0; ++i) usleep(10'000);
  EXPECT_EQ(rings, 1u);
  close_fd(device_);
  device_ = -1;
  vfio::finish_removal(std::move(*removal));
  EXPECT_FALSE(vfio::find_device(uuid()));
  close(bell);
}

}  // namespace
}  // namespace stagetwo
