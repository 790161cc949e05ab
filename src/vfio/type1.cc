// SPDX-License-Identifier: Apache-2.0
// Mapping: what VFIO's type 1 takes and refuses. kernel file: vfio_iommu_type1.c (vfio_dma_do_map,
// vfio_dma_do_unmap, vfio_iova_dirty_bitmap).
#include <algorithm>

#include "vfio/container.h"
#include "vfio/container_state.h"

namespace stagetwo::vfio {
namespace {

constexpr u64 kEnd = ~u64{0};
constexpr u64 kDomainPages = 0x40201000;  // of VT-d's tables: 4 KiB, 2 MiB, 1 GiB

bool is_aligned(u64 value) {
  return (value & (kPageSize - 1)) == 0;
}

struct Found {
  ContainerState& state;
  iommu::Ioas& ioas;
};

// A range to be read or taken away bisects no map. Failure: EINVAL.
Result<void> check_whole(const iommu::Locked& locked, const iommu::Ioas& ioas, u64 start,
                         u64 last) {
  const iommu::AreaSet& areas = locked.areas(ioas, start, last);
  const iommu::Area* const first = areas.first(start, start);
  if (first != nullptr && first->iova() != start) return refuse(EINVAL);
  const iommu::Area* const end = areas.first(last, last);
  if (end != nullptr && end->last() != last) return refuse(EINVAL);
  return {};
}

// The maps that go: how many bytes, up to where.
struct Going {
  u64 bytes = 0;
  u64 last = 0;
};
// Of v1 what begins in front of the range stays, and everything behind it; what begins in it goes
// whole.
Going count_going(const iommu::Locked& locked, const iommu::Ioas& ioas, u64 start, u64 last,
                  bool v2) {
  Going going;
  const iommu::AreaSet& areas = locked.areas(ioas, start, last);
  for (const iommu::Area* area = areas.first(start, last); area != nullptr && area->iova() <= last;
       area = areas.next(area)) {
    if (!v2 && area->iova() < start) break;
    going.bytes += area->length();
    going.last = area->last();
  }
  return going;
}

// The last IOVA. Failure: EINVAL (empty, not of whole pages, or around the end).
Result<u64> last_of(const Map& map) {
  u64 last = 0, address_last = 0;
  if (map.size == 0 || !is_aligned(map.size | map.iova | map.address) ||
      __builtin_add_overflow(map.iova, map.size - 1, &last) ||
      __builtin_add_overflow(map.address, map.size - 1, &address_last)) {
    return refuse(EINVAL);
  }
  return last;
}
Result<u64> last_of(const Unmap& unmap) {
  u64 last = kEnd;
  if (!is_aligned(unmap.iova)) return refuse(EINVAL);
  if (unmap.all) {
    if (unmap.iova != 0 || unmap.size != 0) return refuse(EINVAL);
  } else if (unmap.size == 0 || !is_aligned(unmap.size) ||
             __builtin_add_overflow(unmap.iova, unmap.size - 1, &last)) {
    return refuse(EINVAL);
  }
  return last;
}

Result<void> note(iommu::Locked& locked, Ranges& ranges, u64 first, u64 last) {
  auto* const range = ST_TRY(locked.arena().make<Range>("vfio.range"));
  range->node.start = first;
  range->node.last = last;
  ranges.insert(range);
  return {};
}

bool has_mediated(const ContainerState& found) {
  return std::ranges::any_of(found.members, [](const Member& member) { return member.mediated; });
}

#define ST_FIND_TYPE1(found)                                                                      \
  if (!locked.ok()) return refuse(EIO);                                                           \
  auto* const found##_state = ST_TRY(state(locked, false));                                       \
  if (found##_state == nullptr || found##_state->type == IommuType::kNone) return refuse(EINVAL); \
  const Found found {                                                                             \
    *found##_state, *ST_TRY(locked.find<iommu::Ioas>(found##_state->ioas))                        \
  }

}  // namespace

Result<void> Container::map(const Map& map) {
  const u64 last = ST_TRY(last_of(map));
  const sync::MutexGuard changing(changing_);
  iommu::Locked locked(*context_);
  ST_FIND_TYPE1(found);
  if (locked.areas(found.ioas, map.iova, last).first(map.iova, last) != nullptr) {
    return refuse(EEXIST);
  }
  if (found.ioas.area_count == kMostMaps) return refuse(ENOSPC);
  iommu::Locked::MapRequest request{true, map.iova, map.size, map.rights};
  ST_TRY(locked.map(found.ioas, map.address, &request));
  return {};
}

bool Container::may_move() {
  iommu::Locked locked(*context_);
  const auto found = state(locked, false);
  return found && *found != nullptr && (*found)->type != IommuType::kNone && !has_mediated(**found);
}

Result<u64> Container::lose_addresses(const Unmap& range) {
  const sync::MutexGuard changing(changing_);
  iommu::Locked locked(*context_);
  ST_FIND_TYPE1(found);
  if (has_mediated(found.state)) return refuse(EBUSY);  // it could pin any time
  const u64 last = ST_TRY(last_of(range));
  const bool v2 = found.state.type != IommuType::kType1;
  if (v2 && !range.all) ST_TRY(check_whole(locked, found.ioas, range.iova, last));
  const Going going = count_going(locked, found.ioas, range.iova, last, v2);
  if (going.bytes == 0) return 0;
  if (found.state.moving.first(range.iova, going.last) != nullptr) return refuse(EINVAL);
  const iommu::AreaSet& areas = locked.areas(found.ioas, range.iova, going.last);
  for (const iommu::Area* area = areas.first(range.iova, going.last);
       area != nullptr && area->iova() <= going.last; area = areas.next(area)) {
    if (const auto done = note(locked, found.state.moving, area->iova(), area->last()); !done) {
      clear(locked, found.state.moving, range.iova, going.last);
      return refuse(done.error());
    }
  }
  return going.bytes;
}

Result<void> Container::move(const Map& map) {
  const u64 last = ST_TRY(last_of(map));
  const sync::MutexGuard changing(changing_);
  iommu::Locked locked(*context_);
  ST_FIND_TYPE1(found);
  iommu::Area* const area = locked.areas(found.ioas, map.iova, last).first(map.iova, last);
  if (area == nullptr) return refuse(ENOENT);
  const bool whole = area->iova() == map.iova && area->last() == last;
  if (!whole || found.state.moving.first(map.iova, last) == nullptr) return refuse(EINVAL);
  ST_TRY(locked.move_page_set(*area->pages, map.address));
  clear(locked, found.state.moving, map.iova, last);
  return {};
}

Result<u64> Container::unmap(const Unmap& unmap, LateFn late, void* context) {
  const u64 last = ST_TRY(last_of(unmap));
  u64 bytes = 0;
  const sync::MutexGuard changing(changing_);
  Going going;
  u32 ioas = 0;
  {
    iommu::Locked locked(*context_);
    ST_FIND_TYPE1(found);
    const bool v2 = found.state.type != IommuType::kType1;
    if (v2 && !unmap.all) ST_TRY(check_whole(locked, found.ioas, unmap.iova, last));
    going = count_going(locked, found.ioas, unmap.iova, last, v2);
    if (going.bytes == 0) return 0;
    ioas = found.state.ioas;
  }
  // Drivers that have pinned are asked meanwhile: without the lock.
  ST_TRY(context_->unmap(ioas, unmap.iova, std::max(last, going.last), &bytes));
  iommu::Locked locked(*context_);
  ST_FIND_TYPE1(found);
  const u64 end = std::max(last, going.last);
  for (const Range* range = late != nullptr ? found.state.dirty.first(unmap.iova, end) : nullptr;
       range != nullptr && range->node.start <= end; range = found.state.dirty.next(range)) {
    late(context, range->node.start, range->node.last);
  }
  clear(locked, found.state.dirty, unmap.iova, end);
  clear(locked, found.state.moving, unmap.iova, end);
  return bytes;
}

Result<ContainerInfo> Container::info() {
  iommu::Locked locked(*context_);
  ST_FIND_TYPE1(found);
  const bool has_domain = found.state.hwpt != 0;
  return ContainerInfo{has_domain ? kDomainPages : kPageMask,
                       kMostMaps - static_cast<u32>(found.ioas.area_count), has_domain};
}

Result<std::optional<iommu::IovaRanges>> Container::range_from(u64 iova) {
  iommu::Locked locked(*context_);
  ST_FIND_TYPE1(found);
  iommu::IovaRanges range{};
  if (!iommu::Locked::next_range(found.ioas, iova, &range)) return std::nullopt;
  return range;
}

Result<void> Container::set_tracking(bool on) {
  const sync::MutexGuard changing(changing_);
  iommu::Locked locked(*context_);
  ST_FIND_TYPE1(found);
  found.state.tracking = on;
  if (!on) clear(locked, found.state.dirty, 0, kEnd);
  if (!on) found.state.all_dirty = false;
  return {};
}

Result<bool> Container::is_tracking() {
  iommu::Locked locked(*context_);
  ST_FIND_TYPE1(found);
  return found.state.tracking;
}

// With a domain every map is dirty, always: that is what the kernel says of it, too.
Result<void> Container::read_dirty(u64 iova, u64 last, DirtyFn fn, void* context) {
  const sync::MutexGuard changing(changing_);
  iommu::Locked locked(*context_);
  ST_FIND_TYPE1(found);
  if (!found.state.tracking) return refuse(EINVAL);
  ST_TRY(check_whole(locked, found.ioas, iova, last));
  const bool all = found.state.hwpt != 0 || found.state.all_dirty;
  const iommu::AreaSet& areas = locked.areas(found.ioas, iova, last);
  for (const iommu::Area* area = areas.first(iova, last); area != nullptr && area->iova() <= last;
       area = areas.next(area)) {
    ST_TRY(fn(context, area->iova(), area->last(), false));
    if (all) ST_TRY(fn(context, area->iova(), area->last(), true));
  }
  if (all) return {};
  for (const Range* range = found.state.dirty.first(iova, last);
       range != nullptr && range->node.start <= last; range = found.state.dirty.next(range)) {
    ST_TRY(fn(context, range->node.start, range->node.last, true));
  }
  clear(locked, found.state.dirty, iova, last);  // all of them were told
  return {};
}

Result<void> Container::note_dirty_again(u64 iova, u64 last) {
  const sync::MutexGuard changing(changing_);
  iommu::Locked locked(*context_);
  ST_FIND_TYPE1(found);
  return note_dirty(locked, found.state, iova, last);
}

Result<void> note_dirty(iommu::Locked& locked, ContainerState& found, u64 iova, u64 last) {
  if (!found.tracking) return {};
  u64 first = iova & kPageMask;
  last |= kPageSize - 1;
  for (;;) {
    const Range* const known = found.dirty.first(first, last);
    if (known == nullptr || known->node.start > first) {
      ST_TRY(note(locked, found.dirty, first, known == nullptr ? last : known->node.start - 1));
    }
    if (known == nullptr || known->node.last >= last) return {};
    first = known->node.last + 1;
  }
}

// Ranges are of maps, and these go whole.
void clear(iommu::Locked& locked, Ranges& ranges, u64 iova, u64 last) {
  while (Range* const range = ranges.first(iova, last)) {
    ranges.erase(range);
    locked.arena().destroy(range);
  }
}

}  // namespace stagetwo::vfio
