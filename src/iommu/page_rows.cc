// SPDX-License-Identifier: Apache-2.0
// Rows of pages that were mapped one by one (memory_objects.h). One page of a row costs a bit where
// an area and its page set take 256 bytes, which are memory that has to be brought and put away
// again for each page that comes and goes. kernel files: drivers/iommu/iommufd/io_pagetable.c (an
// area for each), pages.c (a page set for each).
//
// Who asks for areas gets nodes of all pages that stand where it asks, once: a page that was spread
// stays so until it is unmapped. What that takes is kept back when the row is made, so that it
// cannot fail: nor can an unmap, a detach, or the end of a process.
#include <bitset>

#include "base/check.h"
#include "iommu/locked.h"
#include "iommu/near_entry.h"

namespace stagetwo::iommu {
namespace {

// The page tables' page of blocks comes whole.
constexpr u64 kSpreadBytes =
    kRowPages * (Arena::block_bytes<PageSet>() + Arena::block_bytes<Area>()) + 2 * kPageSize;

bool is_there(const PageRow& row, u64 page) {
  return (row.there[page / 64] >> page % 64 & 1) != 0;
}

bool has_page(const PageRow& row, u64 start, u64 last) {
  const u64 from = start <= row.node.start ? 0 : (start - row.node.start) / kPageSize;
  const u64 to = last >= row.node.last ? kRowPages - 1 : (last - row.node.start) / kPageSize;
  for (u64 page = from; page <= to; ++page) {
    if (is_there(row, page)) return true;
  }
  return false;
}

}  // namespace

// Null: the page in front of it is nothing it goes on from, or there is no memory.
PageRow* Locked::make_row(Ioas& ioas, u64 address, const MapRequest& request) {
  const u64 start = request.iova & ~(kRowBytes - 1);
  if (request.iova == start) return nullptr;
  const Area* const before = ioas.nodes.first(request.iova - 1, request.iova - 1);
  if (before == nullptr || !before->filled || before->length() != kPageSize) return nullptr;
  const PageSet& set = *before->pages;
  const bool goes_on = before->last() == request.iova - 1 && set.no_charge &&
                       set.process == c_.process_ && before->rights == request.rights &&
                       set.start + before->start_byte + kPageSize == address;
  if (!goes_on || !arena().keep_back(kSpreadBytes)) return nullptr;
  const auto made = arena().make<PageRow>("iommu.page_row");
  if (!made) {
    arena().give_back(kSpreadBytes);
    return nullptr;
  }
  PageRow& row = **made;
  row.node.start.set_unnoted(start);
  row.node.last.set_unnoted(start + (kRowBytes - 1));
  row.address.set_unnoted(address - (request.iova - start));
  row.rights.set_unnoted(request.rights);
  row.process.set_unnoted(c_.process_);
  ioas.rows.insert(&row);
  ioas.near_row = &row;
  ++root().processes[c_.process_].uses;
  return &row;
}

// What was kept back for it may be used from here on.
void Locked::drop_row(Ioas& ioas, PageRow* row) const {
  ioas.rows.erase(row);
  if (ioas.near_row.get() == row) ioas.near_row = nullptr;
  --root().processes[row->process].uses;
  arena().give_back(kSpreadBytes);
  arena().destroy(row);
}

void Locked::spread_rows(Ioas& ioas, u64 start, u64 last) const {
  PageRow* next = nullptr;
  for (PageRow* row = ioas.rows.first(start, last); row != nullptr; row = next) {
    if (row->node.start > last) return;
    next = ioas.rows.next(row);
    if (has_page(*row, start, last)) spread_row(ioas, row);
  }
}

void Locked::spread_row(Ioas& ioas, PageRow* row) const {
  const Hwpt& hwpt = *ioas.hwpts;
  ST_CHECK(hwpt.next.get() == nullptr);
  const u64 start = row->node.start, address = row->address;
  const u32 process = row->process, rights = row->rights;
  std::bitset<kRowPages> there;
  for (u64 i = 0; i < kRowPages; ++i) there[i] = is_there(*row, i);
  ioas.area_count -= row->pages;
  drop_row(ioas, row);
  for (u64 i = 0; i < kRowPages; ++i) {
    if (!there[i]) continue;
    const u64 iova = start + i * kPageSize;
    const auto found = translate(arena(), hwpt.domain, iova);
    ST_CHECK(found && process_of(found->address / kPageSize) == process);
    auto& set = *arena().make_kept<PageSet>();
    enter_page_set(root(), set, {process, true, true, address + i * kPageSize, 1});
    hold_known(root(), set, number_of(found->address / kPageSize));
    auto& area = *arena().make_kept<Area>();
    enter_area_of(ioas, area, set, {iova, 0, kPageSize, rights});
    area.filled.set_unnoted(true);
  }
}

// Of every IOAS there is.
void Locked::spread_all() const {
  for (u32 id = 1; id < root().table_size; ++id) {
    Object* const object = object_at(id);
    if (object == nullptr || !TypeOf<Ioas>::is(object->type)) continue;
    areas(*reinterpret_cast<Ioas*>(object));
  }
}

}  // namespace stagetwo::iommu
