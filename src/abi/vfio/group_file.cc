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
constexpr std::string_view kKind = "vfio-group";

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

host::DescriptorSpec group_spec(u32 group, int flags) {
  return host::shared_device(kGroupMajor, group, flags);
}

}  // namespace

bool has_group(u32 group) {
  return group < kMostGroups && vfio::start_bus().has_value() && vfio::device_at(group).has_value();
}

namespace {

Result<vfio::Claim> claim_group(const vfio::Listed& which) {
  using vfio::ClaimKind;
  host::settle_closed();  // what was closed here first, and elsewhere since, is open no more
  vfio::Settling settling(which);
  for (;;) {
    ClaimKind busy = ClaimKind::kGroup;
    auto claim = vfio::claim(ClaimKind::kGroup, which.born, vfio::Share::kFirst);
    if (claim) {
      if (!vfio::is_claimed(ClaimKind::kOwnNode, which.born)) return claim;
      busy = ClaimKind::kOwnNode;
    } else if (to_int(claim.error()) != EBUSY) {
      return claim;
    }
    claim = refuse(EBUSY);
    if (!settling.goes_on(busy)) return claim;
  }
}

}  // namespace

Result<int> open_group(u32 group, int flags) {
  const auto which = vfio::device_at(group);
  if (!which || !which->type) return refuse(ENODEV);
  auto claim = ST_TRY(claim_group(*which));
  const auto opening = ST_TRY(vfio::begin_opening(group));
  clean_up(*which, opening.before);
  auto made =
      ST_TRY(sync::Ref<Group>::make("abi_vfio.group", *which, std::move(claim), opening.number));
  FixedString<kLongestKind> kind;
  made->append_kind(kKind, kind);
  auto backing = ST_TRY(host::Backing::create(kind.c_str(), 0));
  auto file = ST_TRY(make_box<GroupFile>("abi_vfio.group_file", std::move(made)));
  return publish(*which, vfio::FileRole::kGroup, std::move(file), std::move(backing),
                 group_spec(group, flags));
}

Box<host::Description> attach_group(std::string_view kind, host::DescriptorSpec* spec) {
  if (!kind.starts_with(kKind) || !kind.substr(kKind.size()).starts_with(':')) return {};
  auto group = Group::received(kind.substr(kKind.size()));
  if (!group) return {};
  *spec = group_spec((*group)->which().slot, O_RDWR | O_CLOEXEC);
  auto file = make_box<GroupFile>("abi_vfio.group_file", std::move(*group));
  if (!file) return {};
  return std::move(*file);
}

void after_fork_child() {
  vfio::devices_after_fork_child();
  vfio::bus_after_fork_child();
  mappings_after_fork_child();
}

}  // namespace stagetwo::abi_vfio
