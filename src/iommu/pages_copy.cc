// SPDX-License-Identifier: Apache-2.0
// Bytes of page sets, for accesses. kernel file: drivers/iommu/iommufd/pages.c
// (iopt_pages_rw_access).
#include <algorithm>

#include "base/failpoint.h"
#include "host/access.h"
#include "host/pin.h"
#include "host/process_map.h"
#include "iommu/locked.h"
#include "iommu/other_process.h"

namespace stagetwo::iommu {

// A page of shared memory that another process has, or had when it was pinned.
std::optional<Hva> Locked::address_here(const PageSet& set, u64 page) const {
  if (set.file_known) return own_address_of({set.device, set.inode, set.file_page + page});
  if (!is_near(set.process) || !is_alive(set.process)) return std::nullopt;
  const u32 pid = root().processes[set.process].pid;
  const auto behind = shared_page_of(pid, Hva(set.start + page * kPageSize));
  return behind ? own_address_of(*behind) : std::nullopt;
}

// Its process may be gone before another one asks.
void Locked::note_file(PageSet& set) {
  if (set.file_asked || !is_this_process(set.process)) return;
  set.file_asked = true;
  const auto mapping = host::mapping_at(Hva(set.start));
  if (!mapping || !mapping->shared || !mapping->file_backed) return;
  const u64 into = Hva(set.start) - mapping->range.start();
  if (set.pages * kPageSize > mapping->range.size() - into) return;
  set.device = mapping->device;
  set.inode = mapping->inode;
  set.file_page = (mapping->offset + into) / kPageSize;
  set.file_known = true;
}

// Within one page.
Result<void> Locked::copy_page(PageSet& set, u64 page, u64 offset, u64 size, void* to,
                               const void* from) {
  if (failpoint::should_fail(to != nullptr ? "iommu.page_read" : "iommu.page_write")) {
    return refuse(EFAULT);
  }
  const bool pinned = set.holds.get() != nullptr && set.holds[page] != 0;
  const u64 frame = pinned ? set.frames[page].get() : 0;
  if (pinned && is_this_process(process_of(frame))) {
    const host::Frame number = number_of(frame);
    const bool done = to != nullptr ? host::read_frame(number, offset, to, size)
                                    : host::write_frame(number, offset, from, size);
    return done ? Result<void>{} : Result<void>(refuse(EFAULT));
  }
  std::optional<Hva> at;
  if (is_this_process(set.process)) {
    at = Hva(set.start + page * kPageSize);
  } else if (pinned || set.engine_maps || is_alive(set.process)) {  // a file's outlive a process
    at = address_here(set, page);
  }
  if (!at && !pinned && is_near(set.process) && is_alive(set.process) &&
      !is_this_process(set.process)) {
    const Hva there = Hva(set.start + page * kPageSize) + offset;
    const u32 pid = root().processes[set.process].pid;
    return copy_of_process(pid, there, size, to, from) ? Result<void>{}
                                                       : Result<void>(refuse(EFAULT));
  }
  if (!at || !host::is_user_range(*at, kPageSize)) return refuse(EFAULT);
  const Hva address = *at + offset;
  const size_t done =
      to != nullptr ? host::copy_from(to, address, size) : host::copy_to(address, from, size);
  return done == size ? Result<void>{} : Result<void>(refuse(EFAULT));
}

Result<void> Locked::copy_pages(PageSet& set, u64 byte, u64 length, void* to, const void* from) {
  while (length != 0) {
    const u64 offset = byte % kPageSize;
    const u64 size = std::min(length, kPageSize - offset);
    ST_TRY(copy_page(set, byte / kPageSize, offset, size, to, from));
    byte += size;
    length -= size;
    if (to != nullptr) to = static_cast<u8*>(to) + size;
    if (from != nullptr) from = static_cast<const u8*>(from) + size;
  }
  return {};
}

}  // namespace stagetwo::iommu
