// SPDX-License-Identifier: Apache-2.0
// VFIO's type 1 container requests on an iommufd: they work on the IOAS that IOMMU_VFIO_IOAS named.
// kernel file: drivers/iommu/iommufd/vfio_compat.c.
#include <linux/vfio.h>

#include <cstddef>

#include "abi/iommufd/calls.h"

namespace stagetwo::abi_iommufd {
namespace {

constexpr u64 kMost = ~u64{0};
constexpr size_t kMapSize = sizeof(vfio_iommu_type1_dma_map);
constexpr size_t kUnmapSize = offsetof(vfio_iommu_type1_dma_unmap, data);
constexpr size_t kInfoSize = sizeof(vfio_iommu_type1_info);
constexpr size_t kLeastInfo = offsetof(vfio_iommu_type1_info, iova_pgsizes) + sizeof(u64);
static_assert(kMapSize == 32 && kUnmapSize == 24 && kInfoSize == 24 && kLeastInfo == 16);

Result<iommu::Ioas*> compat_ioas(iommu::Locked& locked) {
  iommu::Ioas* const ioas = locked.root().vfio_ioas;
  if (ioas == nullptr) return refuse(ENODEV);
  return ioas;
}

Result<long> map_dma(Call& call) {
  constexpr u32 kKnown = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
  vfio_iommu_type1_dma_map map{};
  ST_TRY(copy_in_bytes(&map, call.arg, kMapSize));
  if (map.argsz < kMapSize || (map.flags & ~kKnown) != 0) return refuse(EINVAL);
  const u32 rights = ((map.flags & VFIO_DMA_MAP_FLAG_READ) != 0 ? iommu::kMayRead : 0u) |
                     ((map.flags & VFIO_DMA_MAP_FLAG_WRITE) != 0 ? iommu::kMayWrite : 0u);
  u32 ioas = 0;
  {
    ST_LOCK_IOMMUFD(locked, call);
    ioas = ST_TRY(compat_ioas(locked))->object.id;
  }
  iommu::MapRequest request{true, map.iova, map.size, rights};
  ST_TRY(call.context().map(ioas, map.vaddr, &request));
  return 0;
}

// Type 1 may cut what it mapped; so there are only small pages then. Answers the IOAS.
Result<u32> prepare_unmap(Call& call, const vfio_iommu_type1_dma_unmap& unmap, bool all) {
  ST_LOCK_IOMMUFD(locked, call);
  auto* const ioas = ST_TRY(compat_ioas(locked));
  if (all && (unmap.iova != 0 || unmap.size != 0)) return refuse(EINVAL);
  if (!all && ioas->no_large_pages) {
    ST_TRY(locked.cut(*ioas, unmap.iova + unmap.size - 1));
    if (unmap.iova != 0) ST_TRY(locked.cut(*ioas, unmap.iova - 1));
  }
  return ioas->object.id;
}

Result<long> unmap_dma(Call& call) {
  vfio_iommu_type1_dma_unmap unmap{};
  ST_TRY(copy_in_bytes(&unmap, call.arg, kUnmapSize));
  if (unmap.argsz < kUnmapSize || (unmap.flags & ~u32{VFIO_DMA_UNMAP_FLAG_ALL}) != 0) {
    return refuse(EINVAL);
  }
  const bool all = (unmap.flags & VFIO_DMA_UNMAP_FLAG_ALL) != 0;
  const u32 ioas_id = ST_TRY(prepare_unmap(call, unmap, all));
  u64 unmapped = 0, last = kMost;
  Result<void> done;
  if (!all && unmap.size == 0) {
    done = refuse(EINVAL);
  } else if (!all && __builtin_add_overflow(unmap.iova, unmap.size - 1, &last)) {
    done = refuse(EOVERFLOW);
  } else {
    done = call.context().unmap(ioas_id, unmap.iova, last, &unmapped);
  }
  // How far it came is said in any case.
  unmap.size = unmapped;
  ST_TRY(copy_out_bytes(call.arg, &unmap, kUnmapSize));
  ST_TRY(std::move(done));
  return 0;
}

Result<long> check_extension(Call& call, u64 type) {
  switch (type) {
    case VFIO_TYPE1_IOMMU:
    case VFIO_TYPE1v2_IOMMU:
    case VFIO_UNMAP_ALL:
      return 1;
    case VFIO_DMA_CC_IOMMU: {
      ST_LOCK_IOMMUFD(locked, call);
      const auto* const ioas = ST_TRY(compat_ioas(locked));
      // No page table here enforces it; without one there is nothing that does not.
      return ioas->hwpts.get() == nullptr ? 1 : 0;
    }
    default:
      return 0;
  }
}

Result<long> set_iommu(Call& call, u64 type) {
  if (type != VFIO_TYPE1_IOMMU && type != VFIO_TYPE1v2_IOMMU) return refuse(EINVAL);
  ST_LOCK_IOMMUFD(locked, call);
  auto* const ioas = ST_TRY(compat_ioas(locked));
  if (type == VFIO_TYPE1_IOMMU) ST_TRY(locked.set_large_pages(*ioas, false));
  return 0;
}

u64 page_sizes(const iommu::Ioas& ioas) {
  u64 sizes = kMost;
  for (const iommu::Hwpt* hwpt = ioas.hwpts; hwpt != nullptr; hwpt = hwpt->next) {
    sizes &= hwpt->domain.page_sizes;
  }
  if ((sizes & ~kPageMask) != 0) sizes = (sizes & kPageMask) | kPageSize;
  return std::max(sizes, ioas.alignment.get());
}

// vfio_iommu_type1_info_cap_iova_range without its array.
struct RangesHead {
  vfio_info_cap_header header;
  u32 nr_iovas;
  u32 reserved;
};
static_assert(sizeof(RangesHead) == sizeof(vfio_iommu_type1_info_cap_iova_range));

// The answer to GET_INFO behind the struct, made under the lock.
struct Capabilities {
  Vec<u8> bytes{"abi_iommufd.vfio_info"};
  u64 pages = 0;

  template <typename T>
  Result<void> add(const T& item) {
    const auto* const from = reinterpret_cast<const u8*>(&item);
    return bytes.append(std::span<const u8>(from, sizeof(T)));
  }
};

Result<void> fill(Call& call, Capabilities* out, size_t* second) {
  ST_LOCK_IOMMUFD(locked, call);
  const auto* const ioas = ST_TRY(compat_ioas(locked));
  out->pages = page_sizes(*ioas);
  vfio_iommu_type1_info_dma_avail avail{};
  avail.header = {VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, 1, 0};
  avail.avail = ~u32{0};
  ST_TRY(out->add(avail));
  while ((kInfoSize + out->bytes.size()) % 8 != 0) ST_TRY(out->bytes.push_back(0));
  *second = kInfoSize + out->bytes.size();
  RangesHead ranges{};
  ranges.header = {VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, 1, 0};
  iommu::IovaRanges range{};
  for (u64 from = 0; iommu::Locked::next_range(*ioas, from, &range); from = range.last + 1) {
    ++ranges.nr_iovas;
    if (range.last == kMost) break;
  }
  ST_TRY(out->add(ranges));
  for (u64 from = 0; iommu::Locked::next_range(*ioas, from, &range); from = range.last + 1) {
    ST_TRY(out->add(range));
    if (range.last == kMost) break;
  }
  return {};
}

Result<long> get_info(Call& call) {
  vfio_iommu_type1_info info{};
  ST_TRY(copy_in_bytes(&info, call.arg, kLeastInfo));
  if (info.argsz < kLeastInfo) return refuse(EINVAL);
  Capabilities capabilities;
  size_t second = 0;
  ST_TRY(fill(call, &capabilities, &second));
  const size_t total = kInfoSize + capabilities.bytes.size();
  const u32 room = info.argsz;
  // A capability is written where all of it fits; the first one names the second where that begins
  // within the room.
  const size_t first_bytes = sizeof(vfio_iommu_type1_info_dma_avail);
  auto* const first = reinterpret_cast<vfio_iommu_type1_info_dma_avail*>(capabilities.bytes.data());
  if (room >= second) first->header.next = static_cast<u32>(second);
  if (room >= kInfoSize + first_bytes) {
    ST_TRY(copy_out_bytes(call.arg + kInfoSize, first, first_bytes));
  }
  if (room > second) {
    // Ranges that fit are written also where their number does not.
    const u8* const at = capabilities.bytes.data() + (second - kInfoSize);
    const size_t head = sizeof(RangesHead);
    const size_t avail = std::min<size_t>(room - second, total - second);
    const size_t whole = avail < head ? 0 : (avail - head) / sizeof(iommu::IovaRanges);
    if (whole != 0) {
      ST_TRY(
          copy_out_bytes(call.arg + second + head, at + head, whole * sizeof(iommu::IovaRanges)));
    }
    if (room >= total) ST_TRY(copy_out_bytes(call.arg + second, at, head));
  }
  info.flags = VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS;
  info.iova_pgsizes = capabilities.pages;
  info.cap_offset = room >= total ? static_cast<u32>(kInfoSize) : 0;
  info.argsz = static_cast<u32>(total);
  ST_TRY(copy_out_bytes(call.arg, &info, std::min<size_t>(room, kInfoSize)));
  return 0;
}

}  // namespace

Result<long> vfio_request(Iommufd& iommufd, u32 request, u64 arg) {
  Call call{iommufd, arg, 0};
  switch (request) {
    case VFIO_GET_API_VERSION:
      return VFIO_API_VERSION;
    case VFIO_SET_IOMMU:
      return set_iommu(call, arg);
    case VFIO_CHECK_EXTENSION:
      return check_extension(call, arg);
    case VFIO_IOMMU_GET_INFO:
      return get_info(call);
    case VFIO_IOMMU_MAP_DMA:
      return map_dma(call);
    case VFIO_IOMMU_UNMAP_DMA:
      return unmap_dma(call);
    default:
      return refuse(ENOTTY);
  }
}

}  // namespace stagetwo::abi_iommufd
