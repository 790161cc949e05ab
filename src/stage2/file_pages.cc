// SPDX-License-Identifier: Apache-2.0
#include "stage2/file_pages.h"

#include "base/alloc.h"
#include "stage2/private_memory.h"
#include "stage2/slot.h"

namespace stagetwo::stage2 {

Result<FilePages*> FilePages::bind(PrivateMemory& memory, mem::GuestMemfd& object, int fd,
                                   const Slot& slot, u64 offset, bool file_only) {
  FilePages* const pages = ST_TRY(make<FilePages>("stage2.file_pages", memory, slot.base_gfn,
                                                  file_only ? Half::kBoth : Half::kPrivate));
  const u64 bytes = slot.page_count << kPageShift;
  if (const auto bound = object.bind(fd, offset, bytes, *pages, &pages->binding_); !bound) {
    destroy(pages);
    return refuse(bound.error());
  }
  return pages;
}

void FilePages::unbind(FilePages* pages) {
  if (pages == nullptr) return;
  mem::GuestMemfd::unbind(&pages->binding_);
  destroy(pages);
}

void FilePages::going(mem::PageRange pages) {
  const GfnRange frames = frames_of(pages);
  memory_.pages_going(frames, HvaRange(gfn_to_hva(frames.start()), pages.count() << kPageShift),
                      half_);
}

void FilePages::gone(mem::PageRange pages) {
  const GfnRange frames = frames_of(pages);
  memory_.pages_gone(HvaRange(gfn_to_hva(frames.start()), pages.count() << kPageShift));
}

}  // namespace stagetwo::stage2
