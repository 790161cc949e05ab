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

inline constexpr size_t kLongestKind = 128;

// How descriptors of a device are named, for whoever receives one: PREFIX:slot:device:opening:
// registry; of its own node the opening is 0.
void append_kind(std::string_view prefix, const vfio::Listed& which, u64 opening, TextWriter& out);
struct Named {
  vfio::Listed which;
  u64 opening;
};
// Such a name without its prefix. Failure: EIO (another session's, or the device is gone).
[[nodiscard]] Result<Named> read_kind(std::string_view kind);

// A group that is open, as one process sees it: what it has in the place of a container stands in
// the registry (vfio/group_link.h). Lifetime: its descriptor here, and those of its device; in
// whichever process the last one ends it leaves its container.
class Group final : public sync::RefCounted {
 public:
  Group(const vfio::Listed& which, vfio::Claim claim, u64 opening)
      : which_(which), opening_(opening), claim_(std::move(claim)) {}
  // The group behind a descriptor that another process has opened. Failure: EIO (that was another
  // session's, or it is over), EMFILE, ENOMEM.
  static Result<sync::Ref<Group>> received(std::string_view kind);
  // Of its descriptors, and those of its device.
  void append_kind(std::string_view prefix, TextWriter& out) const {
    abi_vfio::append_kind(prefix, which_, opening_, out);
  }

  [[nodiscard]] const vfio::Listed& which() const { return which_; }
  // Has the device gone meanwhile?
  [[nodiscard]] bool is_gone() const;
  [[nodiscard]] bool has_container();
  [[nodiscard]] bool has_type();
  Result<void> join(sync::Ref<vfio::Container> container);
  // An iommufd in the place of a container; it has an IOAS of VFIO's from now on. Failure: ENOMEM,
  // EIO.
  Result<void> join(sync::Ref<iommu::Iommufd> iommufd);
  Result<void> leave();
  // The device reaches memory by the group's container from now on, or by the iommufd's IOAS. Pre:
  // has_type().
  Result<void> connect(vfio::Device& device);

 private:
  ~Group() override;
  Result<void> connect_to_iommufd(vfio::Device& device) TA_REQ(lock_);
  void follow();

  const vfio::Listed which_;
  const u64 opening_;
  vfio::Claim claim_;
  sync::Mutex lock_{sync::Rank::kVm};
  // What the link names, here; one of the two, or, where no process that has it is left, none.
  vfio::GroupLink seen_ TA_GUARDED(lock_);
  sync::Ref<vfio::Container> container_ TA_GUARDED(lock_);
  sync::Ref<iommu::Iommufd> iommufd_ TA_GUARDED(lock_);
};
// As host::publish(), and whoever wants to open the device knows of it from now on.
[[nodiscard]] Result<int> publish(const vfio::Listed& which, vfio::FileRole role,
                                  Box<host::Description> file, host::Backing backing,
                                  const host::DescriptorSpec& spec);

// What a process that died with the group open has left in its container.
void clean_up(const vfio::Listed& device, const vfio::GroupLink& left);

// A device's file: of its group, or of its own node, and then it is the device's once it is bound
// to an iommufd. Lifetime: its descriptor, and its mappings.
class OpenDevice final : public sync::RefCounted {
 public:
  OpenDevice(sync::Ref<Group> group, sync::Ref<vfio::Device> device)
      : which_(device->which()),
        group_(std::move(group)),
        device_(std::move(device)),
        granted_(true) {}
  OpenDevice(const vfio::Listed& which, vfio::Claim node, bool received = false)
      : which_(which), received_(received), node_(std::move(node)) {}

  // May it be used? Before it is, nothing but bind() and has_group() is asked.
  [[nodiscard]] bool is_granted() const { return granted_.load(sync::kAcquire); }
  // Of one that was received: is it bound in another process? It cannot be used by this one then.
  [[nodiscard]] bool is_elsewhere() const {
    return received_ && !is_granted() && vfio::is_claimed(vfio::ClaimKind::kBound, which_.born);
  }
  // The same, when those who have closed it have let go.
  [[nodiscard]] bool stays_elsewhere() const;
  [[nodiscard]] bool has_group() const { return static_cast<bool>(group_); }
  [[nodiscard]] vfio::Device& device() const { return *device_; }
  [[nodiscard]] sync::Mutex& changing() TA_RETURN(changing_) { return changing_; }

  // `own`: the file's own descriptor. Answers the iommufd's number for it; granted() says that the
  // client knows. Failure: EBUSY (the group is open), EINVAL (it is bound already, here or by
  // another), EBADF, EBADFD, ENODEV, ENOMEM.
  Result<u32> bind(int own, int iommufd) TA_REQ(changing_);
  void granted() TA_REQ(changing_) { granted_.store(true, sync::kRelease); }
  void unbind() TA_REQ(changing_);

 private:
  ~OpenDevice() override;
  const vfio::Listed which_;
  const bool received_ = false;
  sync::Mutex changing_{sync::Rank::kVm};
  vfio::Claim node_;
  vfio::Claim against_group_, bound_;
  // The device goes first: its group's container is what it reaches memory by.
  sync::Ref<Group> group_;
  sync::Ref<vfio::Device> device_;
  sync::Atomic<bool> granted_{false};
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

// Of received descriptors; empty: none of these, or nothing that can be found from here.
[[nodiscard]] Box<host::Description> attach_group(std::string_view kind,
                                                  host::DescriptorSpec* spec);
[[nodiscard]] Box<host::Description> attach_device(std::string_view kind,
                                                   host::DescriptorSpec* spec);
[[nodiscard]] Box<host::Description> attach_node(std::string_view kind, host::DescriptorSpec* spec);

// The requests of a device's own node (open_device.cc).
[[nodiscard]] Result<long> bind_iommufd(OpenDevice& device, int fd, u64 arg);
[[nodiscard]] Result<long> attach_pt(OpenDevice& device, u64 arg);
[[nodiscard]] Result<long> detach_pt(OpenDevice& device, u64 arg);

}  // namespace stagetwo::abi_vfio
