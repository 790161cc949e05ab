// SPDX-License-Identifier: Apache-2.0
// What fstat says of an emulated descriptor.

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "host/descriptor.h"

namespace stagetwo::host {

void rewrite_stat(const DescriptionRef& ref, struct ::stat* out) {
  const DescriptorSpec& spec = ref.spec();
  if (spec.shape == FileShape::kMemory) {
    out->st_mode = S_IFREG | 0600;
    out->st_nlink = 1;
    out->st_blocks = 0;
    out->st_blksize = kPageSize;
    return;
  }
  out->st_size = 0;
  out->st_blocks = 0;
  out->st_nlink = 1;
  if (spec.shape == FileShape::kCharDevice) {
    out->st_mode = S_IFCHR | 0666;
    out->st_rdev = makedev(spec.device_major, spec.device_minor);
    out->st_uid = 0;
    out->st_gid = 0;
  } else {
    out->st_mode = 0600;
  }
}

}  // namespace stagetwo::host
