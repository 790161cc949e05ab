// SPDX-License-Identifier: Apache-2.0
// What was written, as the client's bitmap says it. kernel file: vfio_iommu_type1.c
// (update_user_bitmap, verify_bitmap_size).
#include "abi/vfio/client_memory.h"
#include "abi/vfio/requests.h"
#include "base/vec.h"

namespace stagetwo::abi_vfio {
namespace {

struct Range {
  u64 first, last;
  bool dirty;
};

}  // namespace

Result<DirtyBitmap> DirtyBitmap::make(const vfio_bitmap& bitmap, u64 iova, u64 size) {
  const u64 at = reinterpret_cast<u64>(bitmap.data);
  if (!host::is_user_range(Hva(at), bitmap.size) || bitmap.pgsize == 0) return refuse(EINVAL);
  const u64 pages = size >> __builtin_ctzll(bitmap.pgsize);
  const u64 least = (pages + 63) / 64 * 8;
  if (pages == 0 || bitmap.size == 0 || bitmap.size > kMostBitmapBytes || bitmap.size < least) {
    return refuse(EINVAL);
  }
  DirtyBitmap made;
  made.bitmap_ = bitmap;
  made.iova_ = iova;
  made.size_ = size;
  return made;
}

Result<DirtyBitmap> DirtyBitmap::read(u64 at, u64 iova, u64 size) {
  vfio_bitmap bitmap{};
  ST_TRY(copy_in_bytes(&bitmap, at, sizeof(bitmap)));
  return make(bitmap, iova, size);
}

Result<void> DirtyBitmap::fill(vfio::Container& container) {
  if (bitmap_.pgsize != kPageSize || ((iova_ | size_) & (kPageSize - 1)) != 0 || size_ == 0 ||
      iova_ + (size_ - 1) < iova_) {
    return refuse(EINVAL);
  }
  // The container is not locked while the client's memory is written.
  Vec<Range> ranges{"abi_vfio.dirty_ranges"};
  ST_TRY(container.read_dirty(
      iova_, iova_ + (size_ - 1),
      [](void* to, u64 first, u64 last, bool dirty) {
        return static_cast<Vec<Range>*>(to)->push_back({first, last, dirty});
      },
      &ranges));
  for (const Range& range : ranges) {
    ST_TRY(set((range.first - iova_) / kPageSize, (range.last - iova_) / kPageSize, range.dirty));
  }
  return {};
}

Result<void> DirtyBitmap::set(u64 first_page, u64 last_page, bool value) const {
  const u64 base = reinterpret_cast<u64>(bitmap_.data);
  for (u64 page = first_page; page <= last_page;) {
    const u64 byte = page / 8;
    const u64 end = std::min(last_page, byte * 8 + 7);
    const auto bits = static_cast<u8>((0xffu << (page % 8)) & (0xffu >> (7 - end % 8)));
    u8 old = 0;
    if (bits != 0xff) ST_TRY(copy_in_bytes(&old, base + byte, 1));
    const u8 fresh = static_cast<u8>(value ? old | bits : old & ~bits);
    ST_TRY(copy_out_bytes(base + byte, &fresh, 1));
    page = end + 1;
  }
  return {};
}

}  // namespace stagetwo::abi_vfio
