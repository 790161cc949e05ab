// SPDX-License-Identifier: Apache-2.0
#pragma once

// Rows of pages that were mapped one by one (PageRow, memory_objects.h), of one IOAS.
//
// One page of a row costs a bit where an area and its page set take 256 bytes, which are memory
// that has to be brought and put away again for each page that comes and goes. Analogue: none; the
// kernel has an area and a page set for each (drivers/iommu/iommufd/io_pagetable.c, pages.c).
//
// Who asks for areas (Locked::areas) gets nodes of all pages that stand where it asks, once: a page
// that was spread stays so until it is unmapped. What that takes is kept back when the row is made,
// so that it cannot fail: nor can a detach or the end of a process. An unmap makes none.
// Locking: the arena's. Lifetime: a call's.

#include "iommu/locked.h"

namespace stagetwo::iommu {

class PageRows {
 public:
  // `process`: this one, of which pages are entered.
  PageRows(const Locked& locked, Ioas& ioas, u32 process = kProcesses)
      : l_(locked), ioas_(ioas), process_(process) {}

  // The row that stands where `iova` does; null: none.
  [[nodiscard]] PageRow* at(u64 iova) const {
    PageRow* row = ioas_.rows.near;
    if (row == nullptr || row->node.start != (iova & ~(kRowBytes - 1))) [[unlikely]] {
      row = ioas_.rows.tree.first(iova, iova);
      if (row != nullptr) ioas_.rows.near = row;
    }
    return row;
  }
  // The row a page belongs to, or begins; null: none. Pre: the page is not mapped.
  [[nodiscard]] PageRow* row_for(u64 address, const MapRequest& request) const {
    PageRow* const row = at(request.iova);
    if (row == nullptr) [[unlikely]]
      return make(address, request);
    const bool fits = row->address + request.iova % kRowBytes == address &&
                      row->rights == request.rights && row->process == process_;
    return fits ? row : nullptr;
  }
  [[nodiscard]] static bool has(const PageRow& row, u64 iova) {
    return (row.there[word_of(iova)] & bit_of(iova)) != 0;
  }
  void enter(PageRow& row, u64 iova) const {
    row.there[word_of(iova)] |= bit_of(iova);
    ++row.pages;
    ++ioas_.area_count;
  }
  // The row goes with its last page.
  void erase(PageRow& row, u64 iova) const {
    row.there[word_of(iova)] &= ~bit_of(iova);
    --ioas_.area_count;
    if (--row.pages == 0) drop(row);
  }

  // Every page of [start, last] gets an area with a node, and those of its row. Cannot fail.
  static void spread(const Locked& locked, Ioas& ioas, u64 start, u64 last);
  static void spread_all(const Locked& locked);  // of every IOAS there is
  // Unmaps the pages of [start, last], whole pages, without making areas. False: those of another
  // process are left. Pre: no node stands there. Cannot fail.
  static bool unmap(Locked& locked, Ioas& ioas, u64 start, u64 last, u64* unmapped);

 private:
  static u64 word_of(u64 iova) { return iova / kPageSize % kRowPages / 64; }
  static u64 bit_of(u64 iova) { return u64{1} << iova / kPageSize % 64; }
  static bool has_any(const PageRow& row, u64 start, u64 last);
  PageRow* make(u64 address, const MapRequest& request) const;
  void drop(PageRow& row) const, spread(PageRow& row) const;
  u64 unmap_some(Locked& locked, PageRow& row, u64 iova, u64 last) const;

  const Locked& l_;
  Ioas& ioas_;
  const u32 process_;
};

}  // namespace stagetwo::iommu
