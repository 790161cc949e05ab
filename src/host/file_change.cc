// SPDX-License-Identifier: Apache-2.0
#include "host/file_change.h"

#include <sys/stat.h>

#include <algorithm>

#include "base/bits.h"
#include "base/sys.h"
#include "host/process_map.h"
#include "host/shared_objects.h"

namespace stagetwo::host {

FileChange::FileChange(int fd, u64 offset, u64 size) {
  struct ::stat behind{};
  if (!sys::fstat(fd, &behind) || !S_ISREG(behind.st_mode)) return;
  begin({behind.st_dev, behind.st_ino}, offset, size);
}

void FileChange::begin(FileId file, u64 offset, u64 size) {
  constexpr u64 kLast = ~u64{0} & kPageMask;  // no file is longer
  const u64 end = size < kLast - std::min(offset, kLast) ? offset + size : kLast;
  if (offset >= end) return;
  const u64 start = offset & kPageMask;
  ring(file, HvaRange(Hva(start), ((end + kPageSize - 1) & kPageMask) - start), end == kLast);
  if (pins_active()) pinned_.emplace(file.device, file.inode, offset, end - offset);
  const u64 object = owners_active() ? object_behind(file.device, file.inode) : 0;
  if (object == 0) return;
  if (offset % kPageSize != 0) edges_[0].hold_object(object, offset, 1);
  if (end % kPageSize != 0) edges_[1].hold_object(object, end, 1);
  for (HeldPages& edge : edges_) static_cast<void>(edge.fetch_file());
  const u64 first = (offset + kPageSize - 1) & kPageMask;
  const u64 last = end & kPageMask;
  if (first < last) absent_.emplace(Reach{object, {Hva(first), last - first}}, Announced::kPunches);
}

// Absent pages first, of all copies: whoever changes one of them has its pages in hand before it
// waits for the change that has pinned pages to see to, which would be this one.
void FileChange::ring(FileId file, HvaRange bytes, bool ends) {
  HvaRange rest;  // of those we have no bell left for
  HvaRange copied[kMaxRung];
  unsigned rung = 0;
  const auto announce = [&](HvaRange range, bool copies) {
    bells_[rung].emplace(InvalidateEvent{range, EventKind::kClear});
    if (copies && owners_active()) copies_[rung].emplace(range, Announced::kMoves);
    if (copies) copied[rung] = range;
    ++rung;
  };
  for (Hva at{};;) {
    const auto next = next_file_mapping(at, false);
    if (!next) break;
    at = next->range.end();
    // Not by its device, of which some file systems have one number in stat and another in maps:
    // another file of that number is rung for nothing.
    if (next->inode != file.inode) continue;
    const u64 from = std::max(next->offset, bytes.start().raw());
    const u64 to = std::min(next->offset + next->range.size(), bytes.end().raw());
    if (from >= to) continue;
    const HvaRange there(next->range.start() + (from - next->offset), to - from);
    if (rung < kMaxRung - 1) {
      announce(there, !next->shared);
    } else {
      const Hva start = rest.empty() ? there.start() : rest.start();
      rest = HvaRange(start, there.end() - start);
    }
  }
  if (!rest.empty()) announce(rest, true);
  for (unsigned i = 0; i < rung && ends && pins_active(); ++i) {
    const HvaRange range = copied[i];
    if (range.empty()) continue;
    pinned_copies_[i].emplace(range, Announced::kUnmaps, range.size(), true);
  }
}

}  // namespace stagetwo::host
