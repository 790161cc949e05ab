// SPDX-License-Identifier: Apache-2.0
#include "shim/file_holes.h"

#include <errno.h>
#include <unistd.h>

#include <algorithm>

#include "addr/addr.h"
#include "host/held_pages.h"
#include "host/page_owner.h"
#include "host/run_section.h"
#include "host/shared_objects.h"
#include "shim/engine.h"
#include "shim/next.h"

// The kernel's answer, then ours:
//
//   seeker                                 | another thread
//   holds the file: no page leaves it      |
//   the kernel: a hole from here on        | touches a page there: it comes back
//   no record of it: ask the kernel again  |
//   the same answer, still no record: it is a hole
//
// Pages only come back meanwhile, so that the second answer holds.

namespace stagetwo::shim {
namespace {

constexpr u64 kSectorsOfAPage = kPageSize / 512;

u64 page_of(off_t offset) {
  return static_cast<u64>(offset) >> kPageShift;
}
off_t start_of(u64 page) {
  return static_cast<off_t>(page << kPageShift);
}

off_t first_hole(int fd, u64 object, off_t offset) {
  const off_t size = next::lseek(fd, 0, SEEK_END);
  for (off_t at = offset;;) {
    const off_t hole = next::lseek(fd, at, SEEK_HOLE);
    if (hole < 0 || hole >= size) return hole;
    const u64 first = page_of(hole);
    const u64 end = host::next_page_of(object, first, page_of(size) + 1, false);
    if (end != first) {
      at = start_of(end);
      if (at >= size) return size;
    } else if (next::lseek(fd, hole, SEEK_HOLE) == hole) {
      return hole;
    } else {
      at = hole;  // progress: a page has come back, and none goes
    }
  }
}

off_t first_data(int fd, u64 object, off_t offset) {
  for (;;) {
    const off_t size = next::lseek(fd, 0, SEEK_END);
    if (size < 0) return size;
    const off_t data = next::lseek(fd, offset, SEEK_DATA);
    const int error = errno;
    if (data < 0 && (error != ENXIO || offset >= size)) return data;
    const u64 first = page_of(offset);
    const u64 end = page_of((data < 0 ? size : data) + static_cast<off_t>(kPageSize) - 1);
    const u64 kept = host::next_page_of(object, first, end, true);
    const off_t found = std::max(start_of(kept), offset);
    if (kept != end && found < size) return found;
    const off_t again = next::lseek(fd, offset, SEEK_DATA);
    if (again == data) return again;
  }
}

}  // namespace

u64 has_our_holes(int fd) {
  if (!awake() || !host::shared_pages_taken()) [[likely]]
    return 0;
  const int error = errno;
  host::EngineSection section(host::Touches::kNothing);
  const u64 object = host::object_behind(fd);
  section.leave();
  errno = error;
  return object;
}

off_t seek_data(int fd, u64 object, off_t offset, int whence) {
  const int before = errno;
  host::EngineSection section(host::Touches::kNothing);
  host::HeldPages held;
  held.hold_object(object, 0, u64{1} << 62);
  const off_t place = next::lseek(fd, 0, SEEK_CUR);
  errno = before;
  const off_t found = offset < 0            ? next::lseek(fd, offset, whence)
                      : whence == SEEK_HOLE ? first_hole(fd, object, offset)
                                            : first_data(fd, object, offset);
  const int error = errno;
  static_cast<void>(next::lseek(fd, found < 0 ? place : found, SEEK_SET));
  held.release();
  section.leave();
  errno = found < 0 ? error : before;
  return found;
}

u64 kept_blocks(u64 device, u64 inode) {
  if (!awake() || !host::shared_pages_taken()) [[likely]]
    return 0;
  const int error = errno;
  host::EngineSection section(host::Touches::kNothing);
  const u64 object = host::object_behind(device, inode);
  const u64 pages = object == 0 ? 0 : host::kept_pages_of(object);
  section.leave();
  errno = error;
  return pages * kSectorsOfAPage;
}

}  // namespace stagetwo::shim
