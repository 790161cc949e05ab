// SPDX-License-Identifier: Apache-2.0
#pragma once

// What each request answers to a bad argument, in each state: rows of tables. A refusal leaves the
// argument's bytes and everything a client can ask about as they were.

#include <string>
#include <vector>

#include "abi/iommufd/iommufd.h"
#include "abi/iommufd/uapi.h"
#include "abi/vfio/uapi.h"
#include "tests/unit/abi/vfio/vfio_client.h"
#include "vfio/container.h"
#include "vfio/pci_functions.h"

namespace stagetwo {

using Bytes = std::vector<u8>;

template <typename T>
Bytes bytes_of(const T& value) {
  const auto* const from = reinterpret_cast<const u8*>(&value);
  return {from, from + sizeof(T)};
}
template <typename T>
Bytes operator+(Bytes head, const T& tail) {
  const Bytes more = bytes_of(tail);
  head.insert(head.end(), more.begin(), more.end());
  return head;
}

enum class State { kFresh, kJoined, kTyped, kTyped1, kMapped, kTracking };

class ErrnoWorld : public testing::Test {
 public:
  static constexpr u64 kIova = 0x100000;

  // With a container, a group, and a device of it: a mediated one or a function.
  void build(State state, bool function = false) {
    ASSERT_TRUE(host::backstop::install());
    ASSERT_TRUE(host::join_session({}));
    uuid_ = function ? vfio::function_uuid(0) : *vfio::parse_uuid(kMdev);
    name_ = function ? "fffe:00:04.0" : kMdev;
    ASSERT_TRUE(vfio::create_device(
        function ? vfio::find_function("ioat") : vfio::find_type("serial-1"), uuid_));
    container_ = *abi_vfio::open_container(O_RDWR | O_CLOEXEC);
    group_ = *abi_vfio::open_group(0, O_RDWR | O_CLOEXEC);
    if (state == State::kFresh) return;
    ASSERT_EQ(ask(group_, VFIO_GROUP_SET_CONTAINER, &container_), 0);
    if (state == State::kJoined) return;
    const unsigned long type = state == State::kTyped1 ? VFIO_TYPE1_IOMMU : VFIO_TYPE1v2_IOMMU;
    ASSERT_EQ(number(container_, VFIO_SET_IOMMU, type), 0);
    if (state == State::kTyped || state == State::kTyped1) return;
    auto map = good_map();
    ASSERT_EQ(ask(container_, VFIO_IOMMU_MAP_DMA, &map), 0);
    if (state == State::kMapped) return;
    vfio_iommu_type1_dirty_bitmap start{sizeof(start), VFIO_IOMMU_DIRTY_PAGES_FLAG_START};
    ASSERT_EQ(ask(container_, VFIO_IOMMU_DIRTY_PAGES, &start), 0);
  }
  void TearDown() override {
    for (const int fd : {device_, iommufd_, group_, container_}) {
      if (fd >= 0) close_fd(fd);
    }
    auto removal = vfio::begin_removal(uuid_);
    if (removal) vfio::finish_removal(std::move(*removal));
    vfio::debug_leave_registry();
    host::debug_leave_session();
  }
  static void close_fd(int fd) {
    host::CloseWatch watch(fd);
    ::close(fd);
    watch.closed();
  }
  static long number(int fd, unsigned long request, unsigned long arg) {
    return host::find(fd)->ioctl(fd, request, arg);
  }
  static long ask(int fd, unsigned long request, const void* arg) {
    return number(fd, request, reinterpret_cast<unsigned long>(arg));
  }
  [[nodiscard]] vfio_iommu_type1_dma_map good_map() const {
    return {.argsz = sizeof(vfio_iommu_type1_dma_map),
            .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
            .vaddr = memory_.address(),
            .iova = kIova,
            .size = 4 * kPageSize};
  }
  [[nodiscard]] vfio_bitmap good_bitmap() const {
    return {kPageSize, 8, reinterpret_cast<__u64*>(memory_.address())};
  }

  // What a client finds out by asking.
  std::string seen() {
    std::string text;
    vfio_group_status status{sizeof(status), 0};
    text += std::to_string(ask(group_, VFIO_GROUP_GET_STATUS, &status)) + " ";
    text += std::to_string(status.flags) + " ";
    struct {
      vfio_iommu_type1_info info;
      u8 room[256];
    } info{};
    info.info.argsz = sizeof(info);
    text += std::to_string(ask(container_, VFIO_IOMMU_GET_INFO, &info)) + " ";
    text.append(reinterpret_cast<const char*>(&info), sizeof(info));
    if (device_ >= 0) {
      vfio_irq_info irq{sizeof(irq), 0, 0, 0};
      text += std::to_string(ask(device_, VFIO_DEVICE_GET_IRQ_INFO, &irq)) + " ";
      // Is an index in use? Then its own bools are taken.
      for (u32 index = 0; index < 3; ++index) {
        const u32 set[] = {24, VFIO_IRQ_SET_DATA_BOOL | VFIO_IRQ_SET_ACTION_TRIGGER, index, 0, 1,
                           0};
        text += std::to_string(ask(device_, VFIO_DEVICE_SET_IRQS, set)) + " ";
      }
    }
    return text;
  }
  // Pre: `argument` is what the request reads. It is refused, and nothing is different.
  void expect_refusal(int fd, unsigned long request, Bytes argument, int error) {
    const std::string before = seen();
    Bytes given = argument;
    given.resize(512, 0xee);
    const Bytes whole = given;
    EXPECT_EQ(ask(fd, request, given.data()), -error);
    EXPECT_EQ(given, whole) << "the argument was changed";
    EXPECT_EQ(seen(), before) << "something was changed";
  }

  static constexpr const char* kMdev = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
  test::GuardedPages memory_{4};
  vfio::Uuid uuid_{};
  std::string name_;
  int container_ = -1, group_ = -1, device_ = -1, iommufd_ = -1;
};

template <typename Row>
std::string row_name(const testing::TestParamInfo<Row>& info) {
  return info.param.name;
}

}  // namespace stagetwo
