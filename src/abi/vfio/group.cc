// SPDX-License-Identifier: Apache-2.0
// What a group has in the place of a container: kernel file: drivers/vfio/group.c
// (vfio_group_ioctl_set_container, vfio_group_ioctl_unset_container, vfio_df_group_open).
#include <fcntl.h>
#include <sys/stat.h>

#include <array>
#include <utility>

#include "abi/vfio/files.h"
#include "base/sys.h"
#include "base/text.h"
#include "iommu/other_process.h"
#include "sync/passing_number.h"

namespace stagetwo::abi_vfio {
namespace {

using Kind = vfio::GroupLink::Kind;

sync::Ref<vfio::Container> container_of(const host::DescriptionRef& ref) {
  const auto* const file = ref ? dynamic_cast<const ContainerFile*>(ref.get()) : nullptr;
  return file != nullptr ? file->container() : sync::Ref<vfio::Container>{};
}
sync::Ref<iommu::Iommufd> iommufd_of(const host::DescriptionRef& ref) {
  const auto* const file = ref ? dynamic_cast<const iommu::IommufdFile*>(ref.get()) : nullptr;
  return file != nullptr ? file->iommufd() : sync::Ref<iommu::Iommufd>{};
}

// The linked file as `what` takes it: of this process, which may not know yet that it has it, or of
// the one that has set it. Empty: neither has it open.
template <typename F>
auto find_linked(const vfio::GroupLink& link, F&& what) {
  struct ::stat behind {};
  behind.st_mode = S_IFREG;
  behind.st_dev = link.device;
  behind.st_ino = link.inode;
  auto found = what(host::find(-1, behind));
  for (const u32 process : {static_cast<u32>(sys::getpid()), link.process}) {
    if (found) break;
    const sync::PassingNumber passing;
    const auto fd = iommu::open_of_process(process, link.device, link.inode, O_RDWR);
    if (!fd) continue;
    found = what(host::find(*fd, behind));
    static_cast<void>(sys::close(*fd));
  }
  return found;
}

vfio::GroupLink link_to(Kind kind, const iommu::Context& context) {
  return {kind, static_cast<u32>(sys::getpid()), context.device(), context.inode()};
}

}  // namespace

void clean_up(const vfio::Listed& device, const vfio::GroupLink& left) {
  if (left.kind != Kind::kContainer) return;
  if (const auto container = find_linked(left, container_of)) container->remove_group(device);
}

Result<int> publish(const vfio::Listed& which, vfio::FileRole role, Box<host::Description> file,
                    host::Backing backing, const host::DescriptorSpec& spec) {
  struct ::stat behind{};
  ST_TRY(sys::fstat(backing.fd(), &behind));
  const int fd = ST_TRY(host::publish(std::move(file), std::move(backing), spec));
  vfio::note_file(which, role, behind.st_ino);
  return fd;
}

void append_kind(std::string_view prefix, const vfio::Listed& which, u64 opening, TextWriter& out) {
  out.append(prefix);
  for (const u64 number : {u64{which.slot}, which.born, opening, vfio::registry_identity()}) {
    out.append_char(':').append_int(number);
  }
}

Result<Named> read_kind(std::string_view kind) {
  std::array<u64, 4> numbers{};
  for (u64& number : numbers) {
    if (!kind.starts_with(':')) return refuse(EIO);
    kind.remove_prefix(1);
    const std::string_view digits = kind.substr(0, kind.find(':'));
    if (!parse_u64(digits, &number)) return refuse(EIO);
    kind.remove_prefix(digits.size());
  }
  const auto [slot, born, opening, registry] = numbers;
  if (!kind.empty() || slot >= vfio::kSlots || registry != vfio::registry_identity()) {
    return refuse(EIO);
  }
  const auto which = vfio::device_from(static_cast<u32>(slot));
  if (!which || which->slot != slot || which->born != born || !which->type) return refuse(EIO);
  return Named{*which, opening};
}

// The claim first: while it is there, no other opening begins.
Result<sync::Ref<Group>> Group::received(std::string_view kind) {
  const auto [which, opening] = ST_TRY(read_kind(kind));
  auto claim = ST_TRY(vfio::claim(vfio::ClaimKind::kGroup, which.born, vfio::Share::kMany));
  if (!vfio::is_opening(which.slot, opening)) return refuse(EIO);
  return sync::Ref<Group>::make("abi_vfio.group", which, std::move(claim), opening);
}

bool Group::is_gone() const {
  const auto now = vfio::device_at(which_.slot);
  return !now || now->born != which_.born;
}

// Another process may have changed the link. Looked up without the lock: descriptors are found
// before groups are locked.
void Group::follow() {
  for (;;) {
    const auto link = vfio::link_of(which_.slot, opening_);
    {
      const sync::MutexGuard guard(lock_);
      if (link == seen_) return;
    }
    sync::Ref<vfio::Container> container;
    sync::Ref<iommu::Iommufd> iommufd;
    if (link.kind == Kind::kContainer) container = find_linked(link, container_of);
    if (link.kind == Kind::kIommufd) iommufd = find_linked(link, iommufd_of);
    const bool found = link.kind == Kind::kNone || container || iommufd;
    const sync::MutexGuard guard(lock_);
    if (vfio::link_of(which_.slot, opening_) != link) continue;
    container_ = std::move(container);
    iommufd_ = std::move(iommufd);
    seen_ = found ? link : vfio::GroupLink{};
    return;
  }
}

bool Group::has_container() {
  return vfio::link_of(which_.slot, opening_).kind != Kind::kNone;
}

bool Group::has_type() {
  follow();
  const sync::MutexGuard guard(lock_);
  return !container_ || container_->type() != vfio::IommuType::kNone;
}

Result<void> Group::join(sync::Ref<vfio::Container> container) {
  const sync::MutexGuard guard(lock_);
  const auto link = link_to(Kind::kContainer, container->context());
  ST_TRY(vfio::set_link(which_.slot, opening_, link));
  if (const auto done = container->add_group(which_); !done) {
    static_cast<void>(vfio::take_link(which_.slot, opening_));
    return done;
  }
  container_ = std::move(container);
  iommufd_.reset();
  seen_ = link;
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
  const auto link = link_to(Kind::kIommufd, iommufd->context());
  ST_TRY(vfio::set_link(which_.slot, opening_, link));
  iommufd_ = std::move(iommufd);
  container_.reset();
  seen_ = link;
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
  follow();
  const sync::MutexGuard guard(lock_);
  if (device.is_connected()) return {};
  if (iommufd_) return connect_to_iommufd(device);
  if (!container_) return refuse(has_container() ? EIO : EINVAL);
  return device.connect(container_.clone());
}

Result<void> Group::leave() {
  follow();
  const auto in_container = [&] {
    return vfio::link_of(which_.slot, opening_).kind == Kind::kContainer;
  };
  const auto is_busy = [&] { return vfio::is_claimed(vfio::ClaimKind::kDevice, which_.born); };
  vfio::Settling settling(which_);
  while (in_container() && is_busy() && settling.goes_on(vfio::ClaimKind::kDevice)) {
  }
  const sync::MutexGuard guard(lock_);
  if (in_container() && is_busy()) return refuse(EBUSY);
  if (vfio::take_link(which_.slot, opening_).kind == Kind::kNone) return refuse(EINVAL);
  if (container_) container_->remove_group(which_);
  container_.reset();
  iommufd_.reset();
  seen_ = {};
  return {};
}

// The last holder of all takes it out. A new opening may begin as soon as the claim is gone; then
// that has done it (clean_up).
Group::~Group() {
  follow();
  const sync::MutexGuard guard(lock_);
  claim_.reset();
  if (vfio::is_claimed(vfio::ClaimKind::kGroup, which_.born)) return;
  const bool had = vfio::take_link(which_.slot, opening_).kind == Kind::kContainer;
  if (had && container_) container_->remove_group(which_);
}

}  // namespace stagetwo::abi_vfio
