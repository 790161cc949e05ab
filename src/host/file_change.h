// SPDX-License-Identifier: Apache-2.0
#pragma once

// The client takes bytes out of a file that it may have mapped: a hole, a new end. All mappings,
// private ones too, lose them, so the bell rings at each; and what is absent of them dies when the
// call succeeded (host/page_owner.h). Analogue: unmap_mapping_range() (kernel file: mm/memory.c).
// Differs: only mappings of this process hear of it.
//
//   FileChange change(fd, offset, size);
//   if (ftruncate(fd, offset) == 0) change.succeeded();
//
// Pages of which only a part goes are brought back first and stay. So are a private mapping's own
// copies: whether they go, too, is the kernel's to say (with an end, not with a hole).
// Context and errors: as host/change.h. More mappings than kMaxRung ring as one range.

#include <optional>

#include "host/held_pages.h"
#include "host/mmu_notifier.h"
#include "host/owned_change.h"
#include "host/pin.h"

namespace stagetwo::host {

// As a Mapping says it, and fstat.
struct FileId {
  u64 device;
  u64 inode;
};

class FileChange {
 public:
  static constexpr u64 kToTheEnd = ~u64{0};
  FileChange(int fd, u64 offset, u64 size);
  explicit FileChange(FileId file, u64 offset, u64 size) { begin(file, offset, size); }
  FileChange(const FileChange&) = delete;
  FileChange& operator=(const FileChange&) = delete;

  // Pinned pages could not be kept: the call is not to be made, and answers ENOMEM.
  [[nodiscard]] bool refused() const {
    bool any = pinned_ && pinned_->refused();
    for (const auto& copy : pinned_copies_) any = any || (copy && copy->refused());
    return any;
  }
  void succeeded() {
    if (absent_) absent_->succeeded();
    if (pinned_) pinned_->succeeded();
  }

 private:
  static constexpr unsigned kMaxRung = 4;
  void begin(FileId file, u64 offset, u64 size);
  void ring(FileId file, HvaRange bytes, bool ends);

  HeldPages edges_[2];
  std::optional<InvalidateSection> bells_[kMaxRung];
  // Closed before the bells end.
  std::optional<OwnedChange> copies_[kMaxRung];
  std::optional<OwnedChange> absent_;
  std::optional<PinnedPunch> pinned_;
  // Told to no success: each page is looked at.
  std::optional<PinnedChange> pinned_copies_[kMaxRung];
};

}  // namespace stagetwo::host
