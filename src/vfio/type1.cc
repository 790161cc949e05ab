// SPDX-License-Identifier: Apache-2.0
// Mapping: what VFIO's type 1 takes and refuses. kernel file: vfio_iommu_type1.c (vfio_dma_do_map,
// vfio_dma_do_unmap, vfio_iova_dirty_bitmap).
#include "vfio/container.h"
#include "vfio/container_state.h"

namespace stagetwo::vfio {
namespace {

constexpr u64 kEnd = ~u64{0};

bool is_aligned(u64 value) {
  return (value & (kPageSize - 1)) == 0;
}

struct Found {
  ContainerState& state;
  iommu::Ioas& ioas;
};

// A range to be read or taken away bisects no map. Failure: EINVAL.
Result<void> check_whole(const iommu::Ioas& ioas, u64 start, u64 last) {
  const iommu::Area* const first = ioas.areas.first(start, start);
  if (first != nullptr && first->iova() != start) return refuse(EINVAL);
  const iommu::Area* const end = ioas.areas.first(last, last);
  if (end != nullptr && end->last() != last) return refuse(EINVAL);
  return {};
}

// The maps that go: how many, how many bytes, up to where.
struct Going {
  u32 maps = 0;
  u64 bytes = 0;
  u64 last = 0;
};
// Of v1 what begins in front of the range stays, and everything behind it; what begins in it goes
// whole.
Going count_going(const iommu::Ioas& ioas, u64 start, u64 last, bool v2) {
  Going going;
  for (const iommu::Area* area = ioas.areas.first(start, last);
       area != nullptr && area->iova() <= last; area = ioas.areas.next(area)) {
    if (!v2 && area->iova() < start) break;
    ++going.maps;
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
  if (found.ioas.areas.first(map.iova, last) != nullptr) return refuse(EEXIST);
  if (found.state.maps == kMostMaps) return refuse(ENOSPC);
  iommu::Locked::MapRequest request{true, map.iova, map.size, map.rights};
  ST_TRY(locked.map(found.ioas, map.address, &request));
  ++found.state.maps;
  return {};
}

Result<int> Container::move_refusal(const Map& map) {
  const auto last = last_of(map);
  if (!last) return to_int(last.error());
  iommu::Locked locked(*context_);
  ST_FIND_TYPE1(found);
  return found.ioas.areas.first(map.iova, *last) == nullptr ? ENOENT : EINVAL;
}

Result<u64> Container::unmap(const Unmap& unmap) {
  u64 last = kEnd, bytes = 0;
  if (!is_aligned(unmap.iova)) return refuse(EINVAL);
  if (unmap.all) {
    if (unmap.iova != 0 || unmap.size != 0) return refuse(EINVAL);
  } else if (unmap.size == 0 || !is_aligned(unmap.size) ||
             __builtin_add_overflow(unmap.iova, unmap.size - 1, &last)) {
    return refuse(EINVAL);
  }
  const sync::MutexGuard changing(changing_);
  Going going;
  u32 ioas = 0;
  {
    iommu::Locked locked(*context_);
    ST_FIND_TYPE1(found);
    const bool v2 = found.state.type != IommuType::kType1;
    if (v2 && !unmap.all) ST_TRY(check_whole(found.ioas, unmap.iova, last));
    going = count_going(found.ioas, unmap.iova, last, v2);
    if (going.maps == 0) return 0;
    ioas = found.state.ioas;
  }
  // Drivers that have pinned are asked meanwhile: without the lock.
  ST_TRY(context_->unmap(ioas, unmap.iova, std::max(last, going.last), &bytes));
  iommu::Locked locked(*context_);
  ST_FIND_TYPE1(found);
  found.state.maps -= going.maps;
  clear_dirty(locked, found.state, unmap.iova, std::max(last, going.last));
  return bytes;
}

Result<ContainerInfo> Container::info() {
  iommu::Locked locked(*context_);
  ST_FIND_TYPE1(found);
  return ContainerInfo{kPageMask, kMostMaps - found.state.maps, found.state.hwpt != 0};
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
  if (!on) clear_dirty(locked, found.state, 0, kEnd);
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
  ST_TRY(check_whole(found.ioas, iova, last));
  const bool all = found.state.hwpt != 0;
  for (const iommu::Area* area = found.ioas.areas.first(iova, last);
       area != nullptr && area->iova() <= last; area = found.ioas.areas.next(area)) {
    ST_TRY(fn(context, area->iova(), area->last(), all));
  }
  if (all) return {};
  for (const DirtyRange* range = found.state.dirty.first(iova, last); range != nullptr;
       range = found.state.dirty.first(iova, last)) {
    ST_TRY(fn(context, range->node.start, range->node.last, true));
    clear_dirty(locked, found.state, range->node.start, range->node.last);
  }
  return {};
}

Result<void> note_dirty(iommu::Locked& locked, ContainerState& found, u64 iova, u64 last) {
  if (!found.tracking) return {};
  u64 first = iova & kPageMask;
  last |= kPageSize - 1;
  for (;;) {
    const DirtyRange* const known = found.dirty.first(first, last);
    if (known == nullptr || known->node.start > first) {
      auto* const range = ST_TRY(locked.arena().make<DirtyRange>("vfio.dirty"));
      range->node.start = first;
      range->node.last = known == nullptr ? last : known->node.start - 1;
      found.dirty.insert(range);
    }
    if (known == nullptr || known->node.last >= last) return {};
    first = known->node.last + 1;
  }
}

// Ranges are of maps, and these go whole.
void clear_dirty(iommu::Locked& locked, ContainerState& found, u64 iova, u64 last) {
  while (DirtyRange* const range = found.dirty.first(iova, last)) {
    found.dirty.erase(range);
    locked.arena().destroy(range);
  }
}

}  // namespace stagetwo::vfio
