// SPDX-License-Identifier: Apache-2.0
#pragma once

// What descriptors of the room stand for. Not for other rooms.
//
// A device's descriptor keeps its group, and a group its container, as the kernel's files do:
// closing the group's own does not take the device's IOMMU away.
// I1  A group is in at most one container, and leaves it only while no device of it is open.

#include "host/description.h"
#include "host/descriptor.h"
#include "host/placed_io.h"
#include "vfio/container.h"
#include "vfio/device.h"
#include "vfio/registry.h"

namespace stagetwo::abi_vfio {

// A group that is open. Lifetime: its descriptor, and those of its device.
class Group final : public sync::RefCounted {
 public:
  Group(const vfio::Listed& which, vfio::Claim claim) : which_(which), claim_(std::move(claim)) {}

  [[nodiscard]] const vfio::Listed& which() const { return which_; }
  // Has the device gone meanwhile?
  [[nodiscard]] bool is_gone() const;
  [[nodiscard]] bool has_container();
  [[nodiscard]] bool has_type();
  Result<void> join(sync::Ref<vfio::Container> container);
  Result<void> leave();
  // The device reaches memory by the group's container from now on. Pre: has_type().
  Result<void> connect(vfio::Device& device);

 private:
  ~Group() override;

  const vfio::Listed which_;
  const vfio::Claim claim_;
  sync::Mutex lock_{sync::Rank::kVm};
  sync::Ref<vfio::Container> container_ TA_GUARDED(lock_);
};

// A device that is open. Lifetime: its descriptor, and its mappings.
class OpenDevice final : public sync::RefCounted {
 public:
  OpenDevice(sync::Ref<Group> group, sync::Ref<vfio::Device> device)
      : group_(std::move(group)), device_(std::move(device)) {}
  [[nodiscard]] vfio::Device& device() const { return *device_; }

 private:
  ~OpenDevice() override = default;
  // The device goes first: its group's container is what it reaches memory by.
  sync::Ref<Group> group_;
  sync::Ref<vfio::Device> device_;
};

class ContainerFile final : public host::Description {
 public:
  explicit ContainerFile(sync::Ref<vfio::Container> container) : container_(std::move(container)) {}
  long ioctl(int fd, unsigned long request, unsigned long arg) override;
  void last_close() override { container_->closed(); }
  [[nodiscard]] sync::Ref<vfio::Container> container() const { return container_.clone(); }

 private:
  sync::Ref<vfio::Container> container_;
};

// Answers the descriptor.
[[nodiscard]] Result<long> open_device(sync::Ref<Group> group);

}  // namespace stagetwo::abi_vfio
