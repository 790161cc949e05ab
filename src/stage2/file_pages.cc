// SPDX-License-Identifier: Apache-2.0
#include "stage2/file_pages.h"

#include <algorithm>

#include "base/alloc.h"
#include "stage2/private_memory.h"
#include "stage2/slot.h"

namespace stagetwo::stage2 {

Result<FilePages*> FilePages::bind(PrivateMemory& memory, mem::GuestMemfd& object, const Slot& slot,
                                   u64 offset, bool file_only) {
  FilePages* const pages = ST_TRY(make<FilePages>("stage2.file_pages", memory, slot.base_gfn,
                                                  file_only ? Half::kBoth : Half::kPrivate));
  const u64 bytes = slot.page_count << kPageShift;
  using Pages = mem::GuestMemfd::Pages;
  const Pages under_limit = file_only ? Pages::kStay : Pages::kMayLeave;
  if (const auto bound = object.bind(offset, bytes, *pages, &pages->binding_, under_limit);
      !bound) {
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

GfnRange FilePages::gfns_of(HvaRange range) const {
  const Hva start = std::max(range.start(), hvas().start());
  const Hva end = std::min(range.end(), hvas().end());
  return {base_ + ((start - binding_.at()) >> kPageShift), (end - start) >> kPageShift};
}

void FilePages::going(mem::PageRange pages) {
  memory_.pages_going(frames_of(pages), hvas_of(pages), half_);
}

void FilePages::gone(mem::PageRange pages) {
  memory_.pages_gone(hvas_of(pages));
}

void FilePages::left(mem::PageRange pages) {
  memory_.pages_left(hvas_of(pages));
}

}  // namespace stagetwo::stage2
