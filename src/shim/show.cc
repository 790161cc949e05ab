// SPDX-License-Identifier: Apache-2.0
#include "shim/show.h"

#include <errno.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "shim/bus_names.h"

namespace stagetwo::shim {
namespace {

// Where devtmpfs and sysfs usually are; programs compare, they do not look them up.
constexpr dev_t kDeviceFileSystem = 6;
constexpr dev_t kSysFileSystem = 22;
constexpr ino_t kFirstInode = 0x570000;
constexpr off_t kAttributeSize = 4096;
constexpr blksize_t kBlockSize = 4096;

void show_device(u32 major_number, u32 minor_number, struct ::stat* out) {
  out->st_dev = kDeviceFileSystem;
  out->st_ino = (u64{major_number} << 20) | minor_number;
  out->st_nlink = 1;
  out->st_mode = S_IFCHR | 0666;
  out->st_uid = 0;
  out->st_gid = 0;
  out->st_rdev = makedev(major_number, minor_number);
  out->st_size = 0;
  out->st_blocks = 0;
  out->st_blksize = kBlockSize;
  show_rights(major_number, minor_number, out);
}

}  // namespace

void show_target(const Target& target, struct ::stat* out) {
  *out = {};
  if (target.kind == PathKind::kDevice) {
    show_device(target.device->major, target.device->minor, out);
    return;
  }
  out->st_dev = kSysFileSystem;
  out->st_ino = kFirstInode + (target.file ? target.file.number() : kMaxVirtualFiles);
  out->st_blksize = kBlockSize;
  const bool directory = target.kind == PathKind::kDirectory;
  out->st_mode = directory ? (S_IFDIR | 0755) : (S_IFREG | target.file.mode());
  out->st_nlink = directory ? 3 : 1;
  out->st_size = directory ? 0 : kAttributeSize;
}

void show_description(const host::DescriptionRef& ref, struct ::stat* out) {
  host::rewrite_stat(ref, out);
  const host::DescriptorSpec& spec = ref.spec();
  if (spec.shape == host::FileShape::kCharDevice) {
    show_device(spec.device_major, spec.device_minor, out);
  }
}

void to_statx(const struct ::stat& from, struct ::statx* out) {
  // Nothing of ours knows its birth or has flags of a disk's files.
  constexpr u64 kFileFlags = STATX_ATTR_IMMUTABLE | STATX_ATTR_APPEND | STATX_ATTR_NODUMP;
  out->stx_mask = (out->stx_mask | STATX_BASIC_STATS) & ~u32{STATX_BTIME};
  out->stx_btime = {};
  out->stx_attributes &= ~kFileFlags;
  out->stx_attributes_mask &= ~kFileFlags;
  out->stx_blksize = static_cast<u32>(from.st_blksize);
  out->stx_nlink = static_cast<u32>(from.st_nlink);
  out->stx_uid = from.st_uid;
  out->stx_gid = from.st_gid;
  out->stx_mode = static_cast<u16>(from.st_mode);
  out->stx_ino = from.st_ino;
  out->stx_size = static_cast<u64>(from.st_size);
  out->stx_blocks = static_cast<u64>(from.st_blocks);
  out->stx_rdev_major = major(from.st_rdev);
  out->stx_rdev_minor = minor(from.st_rdev);
  out->stx_dev_major = major(from.st_dev);
  out->stx_dev_minor = minor(from.st_dev);
}

int access_refusal(const Target& target, int mode, bool effective) {
  if ((mode & ~(R_OK | W_OK | X_OK)) != 0) return EINVAL;
  if (target.trailing_slash && target.kind != PathKind::kDirectory) return ENOTDIR;
  const bool directory = target.kind == PathKind::kDirectory;
  if (target.kind == PathKind::kDevice) {
    const auto said = node_refusal(target.device->major, target.device->minor, mode, effective);
    if (said) return *said;
  }
  if ((mode & X_OK) != 0 && !directory) return EACCES;
  const bool root = (effective ? geteuid() : getuid()) == 0;
  const bool everybody = target.file && (target.file.mode() & 0002) != 0;
  const bool writes = target.kind == PathKind::kDevice || everybody || root;
  if ((mode & W_OK) != 0 && !writes) return EACCES;
  return 0;
}

}  // namespace stagetwo::shim
