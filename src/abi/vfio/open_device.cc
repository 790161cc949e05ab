// SPDX-License-Identifier: Apache-2.0
// A device by its own node: bound to an iommufd, attached to its page tables. kernel files:
// drivers/vfio/device_cdev.c, iommufd.c. What is looked at first:
//
//   BIND     the struct; the group's own file; the group is open; bound already; the iommufd;
//   another file is bound
//   ATTACH   not bound: EINVAL, as everything but BIND; the struct; PASIDs where there are any
#include <fcntl.h>
#include <sys/stat.h>

#include "abi/vfio/client_memory.h"
#include "abi/vfio/files.h"
#include "abi/vfio/uapi.h"
#include "abi/vfio/vfio.h"
#include "base/sys.h"

namespace stagetwo::abi_vfio {
namespace {

constinit sync::Atomic<bool> newer_requests{false};

// The PASID behind the struct, if the flag says that there is one.
template <typename T>
Result<u32> read_pasid(T* asked, u64 arg, size_t known, u32 flag, const vfio::Device& device) {
  const u32 flags = newer_requests.load(sync::kRelaxed) ? flag : 0;
  if ((asked->flags & ~flags) != 0) return refuse(EINVAL);
  if (asked->flags == 0) return 0;
  if (device.which().type.parent->pasid_bits == 0) return refuse(EOPNOTSUPP);
  if (asked->argsz < sizeof(T)) return refuse(EINVAL);
  ST_TRY(copy_in_bytes(&asked->pasid, arg + known, sizeof(u32)));
  if (asked->pasid == 0) return refuse(EINVAL);  // it means the device's own requests
  return asked->pasid;
}

}  // namespace

void set_newer_requests(bool on) {
  newer_requests.store(on, sync::kRelaxed);
}

OpenDevice::~OpenDevice() {
  device_.reset();
  if (!node_) return;
  node_.reset();
  vfio::finish_left();
}

bool OpenDevice::stays_elsewhere() const {
  vfio::Settling settling(which_);
  while (is_elsewhere()) {
    if (!settling.goes_on(vfio::ClaimKind::kBound)) return true;
  }
  return false;
}

Result<u32> OpenDevice::bind(int own, int fd) {
  // Against the group's file, which is one's own; of these there may be several.
  auto against = ST_TRY(vfio::claim(vfio::ClaimKind::kOwnNode, which_.born, vfio::Share::kMany));
  vfio::Settling settling(which_);
  while (vfio::is_claimed(vfio::ClaimKind::kGroup, which_.born)) {
    if (!settling.goes_on(vfio::ClaimKind::kGroup)) return refuse(EBUSY);
  }
  if (is_granted()) return refuse(EINVAL);
  if ((ST_TRY(sys::fcntl(fd, F_GETFL)) & O_PATH) != 0) return refuse(EBADF);
  auto iommufd = iommu::find_iommufd(fd);
  if (!iommufd) return refuse(EBADFD);
  const auto claim_it = [&] {
    return vfio::claim(vfio::ClaimKind::kBound, which_.born, vfio::Share::kOne);
  };
  auto bound = claim_it();
  while (!bound && to_int(bound.error()) == EBUSY && settling.goes_on(vfio::ClaimKind::kBound)) {
    bound = claim_it();
  }
  if (!bound) return refuse(to_int(bound.error()) == EBUSY ? EINVAL : to_int(bound.error()));
  auto device = ST_TRY(vfio::Device::open(which_, vfio::Device::Opening::kHeld));
  const u32 id = ST_TRY(device->bind(std::move(iommufd)));
  device_ = std::move(device);
  bound_ = std::move(*bound);
  against_group_ = std::move(against);
  struct ::stat behind{};
  if (sys::fstat(own, &behind)) vfio::note_file(which_, vfio::FileRole::kBound, behind.st_ino);
  return id;
}

void OpenDevice::unbind() {
  device_.reset();
  bound_.reset();
  against_group_.reset();
}

Result<long> bind_iommufd(OpenDevice& device, int fd, u64 arg) {
  vfio_device_bind_iommufd asked{};
  ST_TRY(copy_in(&asked, arg));
  if (asked.flags != 0 || asked.iommufd < 0 || device.has_group()) return refuse(EINVAL);
  const sync::MutexGuard changing(device.changing());
  const u32 id = ST_TRY(device.bind(fd, asked.iommufd));
  const u64 place = arg + offsetof(vfio_device_bind_iommufd, out_devid);
  if (const auto told = copy_out_bytes(place, &id, sizeof(id)); !told) {
    device.unbind();
    return refuse(told.error());
  }
  device.granted();
  return 0;
}

Result<long> attach_pt(OpenDevice& device, u64 arg) {
  using Asked = vfio_device_attach_iommufd_pt_pasid;
  constexpr size_t kKnown = offsetof(Asked, pasid);
  Asked asked{};
  ST_TRY(copy_in(&asked, arg, kKnown));
  const u32 pasid =
      ST_TRY(read_pasid(&asked, arg, kKnown, VFIO_DEVICE_ATTACH_PASID, device.device()));
  const sync::MutexGuard changing(device.changing());
  ST_TRY(device.device().attach(&asked.pt_id, pasid));
  if (const auto told = copy_out_bytes(arg + offsetof(Asked, pt_id), &asked.pt_id, sizeof(u32));
      !told) {
    device.device().detach(pasid);
    return refuse(told.error());
  }
  return 0;
}

Result<long> detach_pt(OpenDevice& device, u64 arg) {
  using Asked = vfio_device_detach_iommufd_pt_pasid;
  constexpr size_t kKnown = offsetof(Asked, pasid);
  Asked asked{};
  ST_TRY(copy_in(&asked, arg, kKnown));
  const u32 pasid =
      ST_TRY(read_pasid(&asked, arg, kKnown, VFIO_DEVICE_DETACH_PASID, device.device()));
  const sync::MutexGuard changing(device.changing());
  device.device().detach(pasid);
  return 0;
}

}  // namespace stagetwo::abi_vfio
