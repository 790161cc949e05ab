// SPDX-License-Identifier: Apache-2.0
// An IOAS: which IOVAs may be used, and what is mapped where. Filling domains: ioas_domains.cc.
// kernel file: drivers/iommu/iommufd/io_pagetable.c.
#include <algorithm>

#include "base/bits.h"
#include "base/check.h"
#include "host/access.h"
#include "iommu/locked.h"
#include "iommu/page_rows.h"

namespace stagetwo::iommu {
namespace {

constexpr u64 kEnd = ~u64{0};
constexpr u64 kLargestAlignment = u64{2} << 20;  // of a transparent huge page

// The first place of `length` in [start, last] that is aligned and keeps the offset within a page.
bool fit(u64* start, u64 last, u64 length, u64 alignment, u64 page_offset) {
  const auto up = checked_add(*start, alignment - 1);
  if (!up) return false;
  const u64 aligned = (*up & ~(alignment - 1)) | page_offset;
  if (aligned >= last || last - aligned < length - 1) return false;
  *start = aligned;
  return true;
}

// The first IOVA at or behind `from` in neither set, and the last one before the next member.
// False: none up to `last`. Pre: all areas have nodes.
bool next_hole(const Ioas& ioas, u64 from, u64 last, IovaRanges* hole) {
  for (;;) {
    const Area* const area = ioas.nodes.first(from, last);
    const Reserved* const reserved = ioas.reserved.first(from, last);
    u64 covered = 0;
    bool is_covered = false;
    for (const IntervalNode* node : {area == nullptr ? nullptr : &area->node,
                                     reserved == nullptr ? nullptr : &reserved->node}) {
      if (node == nullptr || node->start > from) continue;
      covered = std::max(covered, node->last.get());
      is_covered = true;
    }
    if (is_covered) {
      if (covered >= last) return false;
      from = covered + 1;
      continue;
    }
    hole->start = from;
    hole->last = last;
    if (area != nullptr) hole->last = std::min(hole->last, area->iova() - 1);
    if (reserved != nullptr) hole->last = std::min(hole->last, reserved->node.start - 1);
    return true;
  }
}

// The first IOVAs of [from, last] that may be chosen, as far as they go on: ranges that touch each
// other are one. False: none.
bool next_allowed(const Ioas& ioas, u64 from, u64 last, IovaRanges* span) {
  const Allowed* range = ioas.allowed.first(from, last);
  if (range == nullptr) return false;
  *span = {std::max(from, range->node.start.get()), range->node.last};
  while (span->last < last) {
    range = ioas.allowed.next(range);
    if (range == nullptr || range->node.start != span->last + 1) break;
    span->last = range->node.last;
  }
  span->last = std::min(span->last, last);
  return true;
}

}  // namespace

Result<Ioas*> Locked::make_ioas() {
  return add<Ioas>(ObjectType::kIoas, "iommu.ioas");
}

void Locked::destroy_ioas(Ioas* ioas) {
  while (Area* area = areas(*ioas).first()) {
    ST_DCHECK(!area->filled && area->accesses == 0);
    PageSet* const set = area->pages;
    erase_area(*ioas, area);
    put_page_set(set);
  }
  while (Reserved* reserved = ioas->reserved.first()) {
    ioas->reserved.erase(reserved);
    arena().destroy(reserved);
  }
  while (Allowed* allowed = ioas->allowed.first()) {
    ioas->allowed.erase(allowed);
    arena().destroy(allowed);
  }
  if (root().vfio_ioas.get() == ioas) root().vfio_ioas = nullptr;
  remove(ioas);
}

// An IOVA that nobody uses, as far aligned as the memory is, so that a large page can map both.
// Never 0.
Result<void> Locked::choose_iova(const Ioas& ioas, u64 user_address, u64 length, u64* iova) const {
  if (length == 0 || length >= kEnd / 2) return refuse(EOVERFLOW);
  u64 alignment = std::bit_ceil(length);
  if (user_address != 0) alignment = std::min(alignment, user_address & -user_address);
  alignment = std::min(alignment, kLargestAlignment);
  if (alignment < ioas.alignment) return refuse(EINVAL);
  areas(ioas);
  const u64 page_offset = user_address % kPageSize;

  constexpr IovaRanges kWindow{kPageSize, kEnd - kPageSize};
  IovaRanges span = kWindow;
  const bool any = ioas.allowed.empty();
  for (u64 from = kWindow.start; any || next_allowed(ioas, from, kWindow.last, &span);) {
    const u64 last = span.last;
    if (fit(&span.start, last, length, alignment, page_offset)) {
      IovaRanges hole;
      for (u64 at = span.start; next_hole(ioas, at, last, &hole);) {
        const u64 behind = hole.last;
        if (fit(&hole.start, hole.last, length, alignment, page_offset)) {
          *iova = hole.start;
          return {};
        }
        if (behind >= last) break;
        at = behind + 1;
      }
    }
    if (any || last == kWindow.last) break;
    from = last + 1;
  }
  return refuse(ENOSPC);
}

Result<void> Locked::check_iova(Ioas& ioas, u64 iova, u64 length) {
  if ((iova & (ioas.alignment - 1)) != 0) return refuse(EINVAL);
  const auto last = checked_add(iova, length - 1);
  if (!last) return refuse(EOVERFLOW);
  if (ioas.reserved.first(iova, *last) != nullptr) return refuse(EINVAL);
  while (Area* const area = areas(ioas, iova, *last).first(iova, *last)) {
    if (!drop_dead_fill(ioas, area)) return refuse(EEXIST);
  }
  return {};
}

// Takes over the caller's use of `set` on success.
Result<Area*> Locked::insert_area(Ioas& ioas, PageSet& set, const AreaHow& how) {
  if ((how.rights & kMayWrite) != 0 && !set.writable) return refuse(EPERM);
  if ((how.start_byte % kPageSize & (ioas.alignment - 1)) != 0) return refuse(EINVAL);
  const auto last = checked_add(how.iova, how.length - 1);
  const auto last_byte = checked_add(how.start_byte, how.length - 1);
  if (!last || !last_byte || *last_byte / kPageSize >= set.pages) return refuse(EOVERFLOW);
  Area* const area = ST_TRY(arena().make<Area>("iommu.area"));
  enter_area_of(ioas, *area, set, how);
  return area;
}

Result<void> Locked::map(Ioas& ioas, u64 user_address, MapRequest* request) {
  PageSet* const set =
      ST_TRY(make_page_set(user_address, request->length, (request->rights & kMayWrite) != 0));
  const auto done = map_page_set(ioas, *set, user_address - set->start, request);
  if (!done) put_page_set(set);
  return done;
}

// Takes over the caller's use of `set` on success.
Result<void> Locked::map_page_set(Ioas& ioas, PageSet& set, u64 start_byte, MapRequest* request) {
  Area* const area = ST_TRY(place_page_set(ioas, set, start_byte, request));
  if (const auto filled = fill_area(ioas, *area); !filled) {
    erase_area(ioas, area);
    return filled;
  }
  request->iova = area->iova();
  return {};
}

// Nothing is pinned. Takes over the caller's use of `set` on success.
Result<Area*> Locked::place_page_set(Ioas& ioas, PageSet& set, u64 start_byte,
                                     MapRequest* request) {
  const u64 length = request->length;
  if ((length & (ioas.alignment - 1)) != 0 || length == 0) return refuse(EINVAL);
  u64 iova = request->iova;
  if (request->fixed) {
    ST_TRY(check_iova(ioas, iova, length));
  } else {
    ST_TRY(choose_iova(ioas, set.start + start_byte, length, &iova));
  }
  return insert_area(ioas, set, {iova, start_byte, length, request->rights});
}

// The source's areas one after the other: same memory, no gap. All of it or nothing.
Result<void> Locked::copy(Ioas& from, u64 iova, u32 to_id, MapRequest* request) {
  const u64 length = request->length;
  if (length == 0) return refuse(EINVAL);
  const auto last = checked_add(iova, length - 1);
  if (!last) return refuse(EOVERFLOW);
  Vec<Piece> pieces("iommu.copy");
  for (u64 at = iova;;) {
    Area* const area = areas(from, at, at).first(at, at);
    if (area == nullptr || area->filler != 0) return refuse(ENOENT);
    const u64 end = std::min(*last, area->last());
    ST_TRY(pieces.push_back({area->pages, area->byte_at(at), end - at + 1}));
    if (end == *last) break;
    at = end + 1;
  }
  Ioas& to = *ST_TRY(find<Ioas>(to_id));
  if ((length & (to.alignment - 1)) != 0) return refuse(EINVAL);
  u64 target = request->iova;
  if (request->fixed) {
    ST_TRY(check_iova(to, target, length));
  } else {
    const Piece& first = pieces.front();
    ST_TRY(choose_iova(to, first.set->start + first.start_byte, length, &target));
  }
  ST_TRY(insert_pieces(to, pieces.span(), target, request->rights));
  if (const auto filled = fill_areas(to, target, length); !filled) {
    remove_areas(to, target, length);
    return filled;
  }
  request->iova = target;
  return {};
}

// One behind the other from `iova` on. Nothing is pinned yet: what is refused for one of them is
// refused before memory is looked at for the first. On failure none is left.
Result<void> Locked::insert_pieces(Ioas& to, std::span<const Piece> pieces, u64 iova, u32 rights) {
  u64 done = 0;
  for (const Piece& piece : pieces) {
    const auto area =
        insert_area(to, *piece.set, {iova + done, piece.start_byte, piece.length, rights});
    if (!area) {
      remove_areas(to, iova, done);
      return refuse(area.error());
    }
    ++piece.set->users;
    done += piece.length;
  }
  return {};
}

// Of [iova, iova + length), which begins and ends with one, and was entered in this section. What
// was filled on failure stays so.
Result<void> Locked::fill_areas(Ioas& ioas, u64 iova, u64 length) {
  for (u64 done = 0; done < length;) {
    Area* const area = ioas.nodes.first(iova + done, iova + done);
    done += area->length();
    ST_TRY(fill_area(ioas, *area));
  }
  return {};
}

// Of the same, filled or not.
void Locked::remove_areas(Ioas& ioas, u64 iova, u64 length) {
  for (u64 done = 0; done < length;) {
    Area* const area = ioas.nodes.first(iova + done, iova + done);
    done += area->length();
    PageSet* const set = area->pages;
    unfill_area(ioas, *area);
    erase_area(ioas, area);
    put_page_set(set);
  }
}

// The ranges as a set. Failure: EINVAL (empty, or two overlap), ENOMEM; nothing is left.
Result<IntervalSet<Allowed>*> Locked::make_allowed(std::span<const IovaRanges> ranges) {
  auto* const set = ST_TRY(arena().make<IntervalSet<Allowed>>("iommu.allowed_set"));
  for (const IovaRanges& range : ranges) {
    const bool bad = range.start >= range.last || set->first(range.start, range.last) != nullptr;
    const auto one =
        bad ? Result<Allowed*>(refuse(EINVAL)) : arena().make<Allowed>("iommu.allowed");
    if (!one) {
      free_allowed(set);
      return refuse(one.error());
    }
    (*one)->node.start = range.start;
    (*one)->node.last = range.last;
    set->insert(*one);
  }
  return set;
}

void Locked::free_allowed(IntervalSet<Allowed>* set) {
  while (Allowed* one = set->first()) {
    set->erase(one);
    arena().destroy(one);
  }
  arena().destroy(set);
}

Result<void> Locked::check_allowed(std::span<const IovaRanges> ranges) {
  free_allowed(ST_TRY(make_allowed(ranges)));
  return {};
}

Result<void> Locked::allow(Ioas& ioas, std::span<const IovaRanges> ranges) {
  IntervalSet<Allowed>* const fresh = ST_TRY(make_allowed(ranges));
  Result<void> result;
  for (const Allowed* one = fresh->first(); result && one != nullptr; one = fresh->next(one)) {
    if (ioas.reserved.first(one->node.start, one->node.last) != nullptr) {
      result = refuse(EADDRINUSE);
    }
  }
  if (result) ioas.allowed.swap(*fresh);
  free_allowed(fresh);
  return result;
}

Result<void> Locked::reserve(Ioas& ioas, u64 start, u64 last, u32 owner) {
  const bool is_mapped = areas(ioas, start, last).first(start, last) != nullptr;
  if (is_mapped || ioas.allowed.first(start, last) != nullptr) {
    return refuse(EADDRINUSE);
  }
  Reserved* const reserved = ST_TRY(arena().make<Reserved>("iommu.reserved"));
  reserved->node.start = start;
  reserved->node.last = last;
  reserved->owner = owner;
  ioas.reserved.insert(reserved);
  return {};
}

void Locked::remove_reserved(Ioas& ioas, u32 owner) {
  for (Reserved* reserved = ioas.reserved.first(); reserved != nullptr;) {
    Reserved* const next = ioas.reserved.next(reserved);
    if (reserved->owner == owner) {
      ioas.reserved.erase(reserved);
      arena().destroy(reserved);
    }
    reserved = next;
  }
}

bool Locked::next_range(const Ioas& ioas, u64 from, IovaRanges* out) {
  for (const Reserved* in = ioas.reserved.first(from, from); in != nullptr;
       in = ioas.reserved.first(from, from)) {
    if (in->node.last == kEnd) return false;
    from = in->node.last + 1;
  }
  const Reserved* const behind = ioas.reserved.first(from, kEnd);
  *out = {from, behind == nullptr ? kEnd : behind->node.start - 1};
  return true;
}

// Two areas in the place of one, so that the first ends at `iova`.
Result<void> Locked::cut(Ioas& ioas, u64 iova) {
  Area* const area = areas(ioas, iova, iova).first(iova, iova);
  if (area == nullptr || iova == area->iova() || iova == area->last()) return {};
  if (area->prevent_access || area->filler != 0) return refuse(EBUSY);
  const u64 behind = iova + 1;
  if (((behind | area->byte_at(behind)) & (ioas.alignment - 1)) != 0) return refuse(EINVAL);
  if (area->accesses != 0) return refuse(EINVAL);
  // A domain may have mapped it with large pages.
  if (area->filled && !ioas.no_large_pages) return refuse(EINVAL);
  Area* const rest = ST_TRY(arena().make<Area>("iommu.area"));
  rest->node.start = behind;
  rest->node.last = area->last();
  rest->pages = area->pages.get();
  rest->start_byte = area->byte_at(behind);
  rest->rights = area->rights;
  rest->filled = area->filled;
  // What is filled is cut between pages: without large pages the alignment is a page.
  ST_DCHECK(!area->filled || rest->start_byte % kPageSize == 0);
  ++area->pages->users;
  ioas.nodes.erase(area);
  area->node.last = iova;
  ioas.nodes.insert(area);
  ioas.nodes.insert(rest);
  ++ioas.area_count;
  return {};
}

namespace {

// The first area that has something in common with [start, last]. Pages of rows in front of it are
// unmapped already, where none of them is cut.
Area* next_to_unmap(Locked& locked, Ioas& ioas, u64 start, u64 last, u64* unmapped) {
  if (!ioas.rows.tree.empty()) {
    const Area* const node = ioas.nodes.first(start, last);
    const bool whole = start % kPageSize == 0 && last % kPageSize == kPageSize - 1;
    const u64 end = node == nullptr ? last : node->iova() - 1;
    const bool in_front = node == nullptr || node->iova() > start;
    if (in_front && !(whole && PageRows::unmap(locked, ioas, start, end, unmapped))) {
      locked.areas(ioas, start, end);
    }
  }
  return ioas.nodes.first(start, last);
}

}  // namespace

Result<UnmapStep> Locked::unmap_some(Ioas& ioas, u64* start, u64 last, u64* unmapped) {
  while (Area* area = next_to_unmap(*this, ioas, *start, last, unmapped)) {
    if (area->filler != 0) {
      if (drop_dead_fill(ioas, area)) continue;
      return refuse(EBUSY);
    }
    if (area->locks != 0) return refuse(EBUSY);
    if (area->iova() < *start || area->last() > last) return refuse(ENOENT);
    const u64 area_last = area->last();
    if (area->accesses != 0) {
      if (drop_dead_accesses(ioas)) continue;
      area->prevent_access = true;
      return UnmapStep{.notify_start = area->iova(), .notify_last = area_last};
    }
    *unmapped += area->length();
    PageSet* const set = area->pages;
    prefetch_behind(ioas, *area);
    unfill_area(ioas, *area);
    erase_area(ioas, area);
    put_page_set(set);
    if (area_last >= last) break;
    *start = area_last + 1;
  }
  return UnmapStep{.done = true};
}

Result<void> Context::unmap(u32 ioas_id, u64 start, u64 last, u64* unmapped) {
  constexpr unsigned kMostTries = 100;
  unsigned tries = 0;
  u64 asked_for = 0;
  for (;;) {
    UnmapStep step;
    {
      Locked locked(*this);
      if (!locked.ok()) return refuse(EIO);
      Ioas* const ioas = ST_TRY(locked.find<Ioas>(ioas_id));
      if (locked.unmap_one_page(*ioas, start, last)) {
        *unmapped += kPageSize;
        return {};
      }
      step = ST_TRY(locked.unmap_some(*ioas, &start, last, unmapped));
    }
    if (step.done) return {};
    if (tries == 0 || step.notify_start != asked_for) tries = 0;
    asked_for = step.notify_start;
    call_clients(ioas_id, step.notify_start, step.notify_last);
    if (++tries > kMostTries) return refuse(EDEADLOCK);
  }
}

}  // namespace stagetwo::iommu
