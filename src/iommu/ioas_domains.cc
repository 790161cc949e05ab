// SPDX-License-Identifier: Apache-2.0
// The areas of an IOAS in the tables of its domains. kernel files:
// drivers/iommu/iommufd/io_pagetable.c (iopt_table_add_domain), pages.c (iopt_area_fill_domains).
#include <algorithm>

#include "base/check.h"
#include "iommu/locked.h"

namespace stagetwo::iommu {
// Puts an area into one domain, all or nothing. Pre: its pages are held. Frames that follow each
// other go in one call, so that the domain picks the page size; without large pages one by one,
// because any page may later be unmapped alone.
Result<void> Locked::map_area(const Ioas& ioas, Hwpt& hwpt, const Area& area) {
  const PageSet& set = *area.pages;
  const u64 first = area.start_byte / kPageSize;
  const u64 count = area.page_count();
  u64 iova = area.iova();
  if (count == 1) {
    const u64 address = set.frames[first] * kPageSize + area.start_byte % kPageSize;
    return map_range(arena(), hwpt.domain, iova, address, area.length(), area.rights);
  }
  for (u64 done = 0; done < count;) {
    u64 end = done + 1;
    while (!ioas.no_large_pages && end < count &&
           set.frames[first + end] == set.frames[first + end - 1] + 1) {
      ++end;
    }
    const u64 offset = done == 0 ? area.start_byte % kPageSize : 0;
    const u64 bytes = std::min((end - done) * kPageSize - offset, area.last() - iova + 1);
    const u64 address = set.frames[first + done] * kPageSize + offset;
    const auto mapped = map_range(arena(), hwpt.domain, iova, address, bytes, area.rights);
    if (!mapped) {
      if (iova != area.iova()) {
        unmap_range(arena(), hwpt.domain, area.iova(), iova - area.iova());
      }
      return mapped;
    }
    iova += bytes;
    done = end;
  }
  return {};
}

// Into every domain there is. All or nothing.
Result<void> Locked::fill_area(Ioas& ioas, Area& area) {
  if (ioas.hwpts.get() == nullptr) return {};
  PageSet& set = *area.pages;
  const u64 first = area.start_byte / kPageSize, count = area.page_count();
  ST_TRY(hold_pages(set, first, count));
  const auto done = enter_area(ioas, area);
  if (!done) release_pages(set, first, count);
  return done;
}

// The same of one whose pages are held. Pre: there is a domain.
Result<void> Locked::enter_area(Ioas& ioas, Area& area) {
  for (Hwpt* hwpt = ioas.hwpts; hwpt != nullptr; hwpt = hwpt->next) {
    const auto mapped = map_area(ioas, *hwpt, area);
    if (mapped) continue;
    for (Hwpt* undo = ioas.hwpts; undo != hwpt; undo = undo->next) {
      unmap_range(arena(), undo->domain, area.iova(), area.length());
    }
    return mapped;
  }
  area.filled = true;
  return {};
}

// First out of the tables, then of all caches, then the pins.
void Locked::unfill_area(Ioas& ioas, Area& area) {
  if (!area.filled) return;
  for (Hwpt* hwpt = ioas.hwpts; hwpt != nullptr; hwpt = hwpt->next) {
    unmap_range(arena(), hwpt->domain, area.iova(), area.length());
  }
  flush_ioas(ioas, area.iova(), area.last());
  release_pages(*area.pages, area.start_byte / kPageSize, area.page_count());
  area.filled = false;
}

Result<void> Locked::check_alignment(const Ioas& ioas, u64 alignment) const {
  const u64 mask = alignment - 1;
  for (const Area* area = areas(ioas).first(); area != nullptr; area = ioas.nodes.next(area)) {
    if (((area->iova() | area->length() | area->start_byte % kPageSize) & mask) != 0) {
      return refuse(EADDRINUSE);
    }
  }
  return {};
}

Result<void> Locked::recompute_alignment(Ioas& ioas) {
  u64 alignment = ioas.no_large_pages ? kPageSize : 1;
  for (const Hwpt* hwpt = ioas.hwpts; hwpt != nullptr; hwpt = hwpt->next) {
    alignment = std::max(alignment, hwpt->domain.page_sizes & -hwpt->domain.page_sizes);
  }
  for (const AccessSeat* seat = ioas.accesses; seat != nullptr; seat = seat->next) {
    alignment = std::max(alignment, seat->access->alignment.get());
  }
  if (alignment > ioas.alignment) ST_TRY(check_alignment(ioas, alignment));
  ioas.alignment = alignment;
  return {};
}

Result<void> Locked::set_large_pages(Ioas& ioas, bool on) {
  if (on) {
    ioas.no_large_pages = false;
    ST_CHECK(recompute_alignment(ioas).has_value());  // it only falls
    return {};
  }
  if (ioas.no_large_pages) return {};
  if (ioas.hwpts.get() != nullptr && !areas(ioas).empty()) return refuse(EINVAL);
  ioas.no_large_pages = true;
  const auto done = recompute_alignment(ioas);
  if (!done) ioas.no_large_pages = false;
  return done;
}

// Fills a fresh domain with every area and lists it. On failure it is empty and nothing changed.
Result<void> Locked::add_domain(Ioas& ioas, Hwpt& hwpt) {
  const u64 smallest = hwpt.domain.page_sizes & -hwpt.domain.page_sizes;
  const u64 alignment = std::max(ioas.alignment.get(), smallest);
  if (alignment > kPageSize) return refuse(EINVAL);
  if (alignment != ioas.alignment) ST_TRY(check_alignment(ioas, alignment));
  const auto done = reserve_and_fill(ioas, hwpt);
  if (!done) {
    remove_reserved(ioas, hwpt.object.id);
    return done;
  }
  ioas.alignment = alignment;
  if (ioas.hwpts.get() == nullptr) {
    ioas.hwpts = &hwpt;
    return {};
  }
  Hwpt* last = ioas.hwpts;
  while (last->next.get() != nullptr) last = last->next;
  last->next = &hwpt;
  return {};
}

Result<void> Locked::reserve_and_fill(Ioas& ioas, Hwpt& hwpt) {
  const Domain& domain = hwpt.domain;
  const u32 owner = hwpt.object.id;
  if (domain.aperture_start != 0) ST_TRY(reserve(ioas, 0, domain.aperture_start - 1, owner));
  if (domain.aperture_last != ~u64{0}) {
    ST_TRY(reserve(ioas, domain.aperture_last + 1, ~u64{0}, owner));
  }
  const bool first_domain = ioas.hwpts.get() == nullptr;
  for (Area* area = areas(ioas).first(); area != nullptr; area = ioas.nodes.next(area)) {
    if (area->filler != 0) continue;  // comes into every domain when its pages are there
    const u64 first = area->start_byte / kPageSize;
    Result<void> filled;
    if (first_domain) filled = hold_pages(*area->pages, first, area->page_count());
    if (filled) {
      filled = map_area(ioas, hwpt, *area);
      if (!filled && first_domain) release_pages(*area->pages, first, area->page_count());
    }
    if (!filled) {
      for (Area* undo = areas(ioas).first(); undo != area; undo = ioas.nodes.next(undo)) {
        unmap_range(arena(), hwpt.domain, undo->iova(), undo->length());
        if (!first_domain || !undo->filled) continue;
        release_pages(*undo->pages, undo->start_byte / kPageSize, undo->page_count());
        undo->filled = false;
      }
      return filled;
    }
    area->filled = true;
  }
  return {};
}

void Locked::remove_domain(Ioas& ioas, Hwpt& hwpt) {
  areas(ioas);  // while the tables say where the pages of rows are
  Hwpt* const next = hwpt.next;
  if (ioas.hwpts.get() == &hwpt) {
    ioas.hwpts = next;
  } else {
    Hwpt* before = ioas.hwpts;
    while (before->next.get() != &hwpt) before = before->next;
    before->next = next;
  }
  hwpt.next = nullptr;
  const bool last_domain = ioas.hwpts.get() == nullptr;
  for (Area* area = areas(ioas).first(); area != nullptr; area = ioas.nodes.next(area)) {
    unmap_range(arena(), hwpt.domain, area->iova(), area->length());
    if (!last_domain || !area->filled) continue;
    release_pages(*area->pages, area->start_byte / kPageSize, area->page_count());
    area->filled = false;
  }
  remove_reserved(ioas, hwpt.object.id);
  ST_CHECK(recompute_alignment(ioas).has_value());  // it only falls
}

}  // namespace stagetwo::iommu
