// SPDX-License-Identifier: Apache-2.0
// A group's requests. kernel file: drivers/vfio/group.c.
#include <fcntl.h>
#include <linux/vfio.h>

#include "abi/vfio/client_memory.h"
#include "abi/vfio/files.h"
#include "abi/vfio/mappings.h"
#include "abi/vfio/requests.h"
#include "abi/vfio/vfio.h"
#include "base/sys.h"
#include "base/vec.h"
#include "host/access.h"

namespace stagetwo::abi_vfio {
namespace {

constexpr size_t kLongestName = 4096;

class GroupFile final : public host::Description {
 public:
  explicit GroupFile(sync::Ref<Group> group) : group_(std::move(group)) {}
  long ioctl(int fd, unsigned long request, unsigned long arg) override;

 private:
  Result<long> serve(u32 request, u64 arg);
  sync::Ref<Group> group_;
};

// A name as the kernel takes it: it ends within a page. Failure: EFAULT, EINVAL.
Result<Vec<char>> read_name(u64 from) {
  Vec<char> name{"abi_vfio.name"};
  for (size_t i = 0; i < kLongestName; ++i) {
    char c = 0;
    ST_TRY(copy_in_bytes(&c, from + i, 1));
    if (c == '\0') return name;
    ST_TRY(name.push_back(c));
  }
  return refuse(EINVAL);
}

// Behind a function's name: blanks, and one token of a virtual function's owner, which this one has
// no use for. Analogue: vfio_pci_core_match.
Result<void> check_options(std::string_view rest) {
  constexpr std::string_view kToken = "vf_token=";
  for (bool token = false; !rest.empty();) {
    if (rest.front() == ' ') {
      rest.remove_prefix(1);
      continue;
    }
    if (token || !rest.starts_with(kToken)) return refuse(EINVAL);
    rest.remove_prefix(kToken.size());
    if (rest.size() < vfio::Uuid::kTextBytes) return refuse(EINVAL);
    static_cast<void>(ST_TRY(vfio::parse_uuid(rest.substr(0, vfio::Uuid::kTextBytes))));
    rest.remove_prefix(vfio::Uuid::kTextBytes);
    token = true;
  }
  return {};
}

Result<bool> is_name(std::string_view text, std::string_view name, bool function) {
  if (!text.starts_with(name)) return false;
  text.remove_prefix(name.size());
  if (!function || text.empty() || text.front() != ' ') return text.empty();
  ST_TRY(check_options(text));
  return true;
}

Result<long> get_device(sync::Ref<Group> group, u64 arg) {
  FixedString<vfio::Uuid::kTextBytes + 1> name;
  vfio::append_name(group->which(), name);
  const Vec<char> asked = ST_TRY(read_name(arg));
  const bool function = group->which().type.parent->function != nullptr;
  const bool known = ST_TRY(is_name({asked.data(), asked.size()}, name.view(), function));
  if (!known || group->is_gone()) return refuse(ENODEV);
  // The container wants its type first.
  if (!group->has_container() || !group->has_type()) return refuse(EINVAL);
  return open_device(std::move(group));
}

Result<long> get_status(Group& group, u64 arg) {
  vfio_group_status status{};
  ST_TRY(copy_in(&status, arg));
  if (group.is_gone()) return refuse(ENODEV);
  status.flags = VFIO_GROUP_FLAGS_VIABLE;
  if (group.has_container()) status.flags |= VFIO_GROUP_FLAGS_CONTAINER_SET;
  ST_TRY(copy_out_bytes(arg, &status, sizeof(status)));
  return 0;
}

Result<long> set_container(Group& group, u64 arg) {
  s32 fd = -1;
  ST_TRY(copy_in_bytes(&fd, arg, sizeof(fd)));
  if ((ST_TRY(sys::fcntl(fd, F_GETFL)) & O_PATH) != 0) return refuse(EBADF);
  if (group.has_container()) return refuse(EINVAL);
  if (group.is_gone()) return refuse(ENODEV);
  const auto file = host::find(fd);
  const auto* const container = file ? dynamic_cast<const ContainerFile*>(file.get()) : nullptr;
  if (container != nullptr) {
    ST_TRY(group.join(container->container()));
    return 0;
  }
  auto iommufd = iommu::find_iommufd(fd);
  if (!iommufd) return refuse(EBADFD);
  ST_TRY(group.join(std::move(iommufd)));
  return 0;
}

Result<long> GroupFile::serve(u32 request, u64 arg) {
  switch (request) {
    case VFIO_GROUP_GET_DEVICE_FD:
      return get_device(group_.clone(), arg);
    case VFIO_GROUP_GET_STATUS:
      return get_status(*group_, arg);
    case VFIO_GROUP_SET_CONTAINER:
      return set_container(*group_, arg);
    case VFIO_GROUP_UNSET_CONTAINER:
      ST_TRY(group_->leave());
      return 0;
    default:
      return refuse(ENOTTY);
  }
}

long GroupFile::ioctl(int, unsigned long request, unsigned long arg) {
  return as_answer(serve(static_cast<u32>(request), arg));
}

}  // namespace

bool Group::is_gone() const {
  const auto now = vfio::device_at(which_.slot);
  return !now || now->born != which_.born;
}

bool Group::has_container() {
  const sync::MutexGuard guard(lock_);
  return iommufd_ || (container_ && container_->has_group(which_));
}

bool Group::has_type() {
  const sync::MutexGuard guard(lock_);
  if (iommufd_) return true;
  return container_ && container_->type() != vfio::IommuType::kNone;
}

Result<void> Group::join(sync::Ref<vfio::Container> container) {
  const sync::MutexGuard guard(lock_);
  ST_TRY(container->add_group(which_));
  container_ = std::move(container);
  return {};
}

// What an iommufd serves containers' requests with; a client may have named one.
Result<void> Group::join(sync::Ref<iommu::Iommufd> iommufd) {
  const sync::MutexGuard guard(lock_);
  {
    iommu::Locked locked(iommufd->context());
    if (!locked.ok()) return refuse(EIO);
    if (locked.root().vfio_ioas.get() == nullptr) {
      locked.root().vfio_ioas = ST_TRY(locked.make_ioas());
    }
  }
  iommufd_ = std::move(iommufd);
  return {};
}

Result<void> Group::connect_to_iommufd(vfio::Device& device) {
  static_cast<void>(ST_TRY(device.bind(iommufd_.clone())));
  u32 ioas = 0;
  {
    iommu::Locked locked(iommufd_->context());
    if (!locked.ok()) return refuse(EIO);
    const iommu::Ioas* const compat = locked.root().vfio_ioas;
    if (compat == nullptr) return refuse(ENODEV);
    ioas = compat->object.id;
  }
  return device.attach(&ioas);
}

// Whoever opens it again finds it where the first has put it.
Result<void> Group::connect(vfio::Device& device) {
  const sync::MutexGuard guard(lock_);
  if (device.is_connected()) return {};
  if (iommufd_) return connect_to_iommufd(device);
  if (!container_) return refuse(EINVAL);
  return device.connect(container_.clone());
}

Result<void> Group::leave() {
  const sync::MutexGuard guard(lock_);
  if (iommufd_) {
    iommufd_.reset();
    return {};
  }
  if (!container_ || !container_->has_group(which_)) return refuse(EINVAL);
  if (vfio::is_claimed(vfio::ClaimKind::kDevice, which_.born)) return refuse(EBUSY);
  container_->remove_group(which_);
  container_.reset();
  return {};
}

Group::~Group() {
  const sync::MutexGuard guard(lock_);
  if (container_) container_->remove_group(which_);
}

bool has_group(u32 group) {
  return group < kMostGroups && vfio::start_bus().has_value() && vfio::device_at(group).has_value();
}

Result<int> open_group(u32 group, int flags) {
  const auto which = vfio::device_at(group);
  if (!which || !which->type) return refuse(ENODEV);
  auto claim = ST_TRY(vfio::claim(vfio::ClaimKind::kGroup, which->born, vfio::Share::kOne));
  auto backing = ST_TRY(host::Backing::create("vfio-group", 0));
  auto made = ST_TRY(sync::Ref<Group>::make("abi_vfio.group", *which, std::move(claim)));
  auto file = ST_TRY(make_box<GroupFile>("abi_vfio.group_file", std::move(made)));
  return host::publish(std::move(file), std::move(backing),
                       {.shape = host::FileShape::kCharDevice,
                        .home = host::StateHome::kDescription,
                        .open_flags = flags & (O_ACCMODE | O_CLOEXEC | O_NONBLOCK),
                        .device_major = kGroupMajor,
                        .device_minor = group,
                        .wants_last_close = true});
}

void after_fork_child() {
  mappings_after_fork_child();
  vfio::devices_after_fork_child();
  vfio::bus_after_fork_child();
}

}  // namespace stagetwo::abi_vfio
