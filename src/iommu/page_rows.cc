// SPDX-License-Identifier: Apache-2.0
#include "iommu/page_rows.h"

#include <algorithm>
#include <bitset>

#include "base/check.h"
#include "iommu/domain.h"

namespace stagetwo::iommu {
namespace {

// Blocks come by pages of the heap.
constexpr u64 kSpreadBytes =
    kRowPages * (Arena::block_bytes<PageSet>() + Arena::block_bytes<Area>()) + 2 * kPageSize;

// What is kept back is refused to everybody else, and a row may be of two pages. So there is a row
// more only while this much is neither used nor kept back.
constexpr u64 kLeftToOthers = (Arena::kUndo - Arena::kHeap) / 2;

bool keep_back_for_row(Arena& arena) {
  if (!arena.keep_back(kSpreadBytes + kLeftToOthers)) return false;
  arena.give_back(kLeftToOthers);
  return true;
}

}  // namespace

// Null: the page in front of it is nothing it goes on from, or there is no memory.
PageRow* PageRows::make(u64 address, const MapRequest& request) const {
  const u64 start = request.iova & ~(kRowBytes - 1);
  if (request.iova == start) return nullptr;
  const Area* const before = ioas_.nodes.first(request.iova - 1, request.iova - 1);
  if (before == nullptr || !before->filled || before->length() != kPageSize) return nullptr;
  const PageSet& set = *before->pages;
  const bool goes_on = before->last() == request.iova - 1 && set.no_charge &&
                       set.process == process_ && before->rights == request.rights &&
                       set.start + before->start_byte + kPageSize == address;
  if (!goes_on || !keep_back_for_row(l_.arena())) return nullptr;
  const auto made = l_.arena().make<PageRow>("iommu.page_row");
  if (!made) {
    l_.arena().give_back(kSpreadBytes);
    return nullptr;
  }
  PageRow& row = **made;
  row.node.start.set_unnoted(start);
  row.node.last.set_unnoted(start + (kRowBytes - 1));
  row.address.set_unnoted(address - (request.iova - start));
  row.rights.set_unnoted(request.rights);
  row.process.set_unnoted(process_);
  ioas_.rows.tree.insert(&row);
  ioas_.rows.near = &row;
  ++l_.root().processes[process_].uses;
  return &row;
}

// What was kept back for it may be used from here on.
void PageRows::drop(PageRow& row) const {
  ioas_.rows.tree.erase(&row);
  if (ioas_.rows.near.get() == &row) ioas_.rows.near = nullptr;
  --l_.root().processes[row.process].uses;
  l_.arena().give_back(kSpreadBytes);
  l_.arena().destroy(&row);
}

bool PageRows::has_any(const PageRow& row, u64 start, u64 last) {
  const u64 end = std::min(last, row.node.last.get());
  for (u64 at = std::max(start & kPageMask, row.node.start.get()); at <= end; at += kPageSize) {
    if (has(row, at)) return true;
  }
  return false;
}

void PageRows::spread(const Locked& locked, Ioas& ioas, u64 start, u64 last) {
  PageRow* next = nullptr;
  for (PageRow* row = ioas.rows.tree.first(start, last); row != nullptr; row = next) {
    if (row->node.start > last) return;
    next = ioas.rows.tree.next(row);
    if (has_any(*row, start, last)) PageRows(locked, ioas).spread(*row);
  }
}

void detail::spread_rows(const Locked& locked, Ioas& ioas, u64 start, u64 last) {
  PageRows::spread(locked, ioas, start, last);
}

// Where its pages are says the page table.
void PageRows::spread(PageRow& row) const {
  const Hwpt& hwpt = *ioas_.hwpts;
  ST_CHECK(hwpt.next.get() == nullptr);
  const u64 start = row.node.start, address = row.address;
  const u32 process = row.process, rights = row.rights;
  std::bitset<kRowPages> there;
  for (u64 i = 0; i < kRowPages; ++i) there[i] = has(row, i * kPageSize);
  ioas_.area_count -= row.pages;
  drop(row);
  Arena& arena = l_.arena();
  for (u64 i = 0; i < kRowPages; ++i) {
    if (!there[i]) continue;
    const u64 iova = start + i * kPageSize;
    const auto found = translate(arena, hwpt.domain, iova);
    ST_CHECK(found && process_of(found->address / kPageSize) == process);
    auto& set = *arena.make_kept<PageSet>();
    enter_page_set(l_.root(), set, {process, true, true, address + i * kPageSize, 1});
    hold_known(l_.root(), set, number_of(found->address / kPageSize));
    auto& area = *arena.make_kept<Area>();
    enter_area_of(ioas_, area, set, {iova, 0, kPageSize, rights});
    area.filled.set_unnoted(true);
  }
}

// Pages that follow each other from `iova` on, as many as are asked of the caches at once. Answers
// how many. With the last of the row it is gone.
u64 PageRows::unmap_some(Locked& locked, PageRow& row, u64 iova, u64 last) const {
  constexpr u64 kAtOnce = 64;
  host::FrameRun runs[kAtOnce];
  Domain& domain = ioas_.hwpts->domain;
  u64 count = 0, run = 0;
  for (u64 at = iova; count < kAtOnce && at <= last && has(row, at); at += kPageSize, ++count) {
    const auto found = translate(l_.arena(), domain, at);
    ST_CHECK(found && process_of(found->address / kPageSize) == row.process);
    const host::Frame frame = number_of(found->address / kPageSize);
    const bool follows = run != 0 && frame == runs[run - 1].first + runs[run - 1].pages;
    if (!follows) runs[run++] = {frame, 0};
    ++runs[run - 1].pages;
  }
  unmap_range(l_.arena(), domain, iova, count * kPageSize);
  locked.flush_ioas(ioas_, iova, iova + (count * kPageSize - 1));
  for (u64 i = 0; i < run; ++i) host::unpin_pages(runs[i]);
  for (u64 i = 0; i < count; ++i) erase(row, iova + i * kPageSize);
  return count;
}

bool PageRows::unmap(Locked& locked, Ioas& ioas, u64 start, u64 last, u64* unmapped) {
  const PageRows rows(locked, ioas);
  bool all = true;
  PageRow* next = nullptr;
  for (PageRow* row = ioas.rows.tree.first(start, last); row != nullptr; row = next) {
    if (row->node.start > last) break;
    next = ioas.rows.tree.next(row);
    const u64 end = std::min(last, row->node.last.get());
    if (!locked.is_this_process(row->process)) {
      all = all && !has_any(*row, start, end);
      continue;
    }
    u64 left = row->pages;
    for (u64 at = std::max(start, row->node.start.get()); left != 0 && at <= end;) {
      const u64 count = has(*row, at) ? rows.unmap_some(locked, *row, at, end) : 0;
      left -= count;
      *unmapped += count * kPageSize;
      at += std::max(count, u64{1}) * kPageSize;
    }
  }
  return all;
}

void PageRows::spread_all(const Locked& locked) {
  for (u32 id = 1; id < locked.root().table_size; ++id) {
    Object* const object = locked.object_at(id);
    if (object == nullptr || !TypeOf<Ioas>::is(object->type)) continue;
    locked.areas(*reinterpret_cast<Ioas*>(object));
  }
}

}  // namespace stagetwo::iommu
