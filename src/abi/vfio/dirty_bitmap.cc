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
    const auto told = set_pages(range.first, range.last, range.dirty);
    if (told) continue;
    for (const Range& lost : ranges) {
      if (lost.dirty) static_cast<void>(container.note_dirty_again(lost.first, lost.last));
    }
    return told;
  }
  return {};
}

Result<u64> DirtyBitmap::fill_and_unmap(vfio::Container& container) {
  ST_TRY(fill(container));
  // What comes between the two.
  struct Late {
    Vec<Range> ranges{"abi_vfio.dirty_ranges"};
    bool too_many = false;
  } late;
  const u64 bytes = ST_TRY(container.unmap(
      {iova_, size_, false},
      [](void* to, u64 first, u64 last) {
        auto& noted = *static_cast<Late*>(to);
        if (!noted.ranges.push_back({first, last, true})) noted.too_many = true;
      },
      &late));
  if (late.too_many) ST_TRY(set_pages(iova_, iova_ + (size_ - 1), true));
  for (const Range& range : late.ranges) ST_TRY(set_pages(range.first, range.last, true));
  return bytes;
}

Result<void> DirtyBitmap::set_pages(u64 first, u64 last, bool dirty) const {
  return set((first - iova_) / kPageSize, (last - iova_) / kPageSize, dirty);
}

// Of a map whole words are written: what stands in front of its first bit stays, behind its last
// one there is nothing.
Result<void> DirtyBitmap::set(u64 first_page, u64 last_page, bool dirty) const {
  constexpr u64 kBits = 64;
  const u64 base = reinterpret_cast<u64>(bitmap_.data);
  for (u64 page = first_page; page <= last_page;) {
    const u64 at = base + page / kBits * sizeof(u64), end = std::min(last_page, page | (kBits - 1));
    const u64 bits = (~u64{0} << page % kBits) & (~u64{0} >> (kBits - 1 - end % kBits));
    u64 word = 0;
    if (dirty ? ~bits != 0 : page % kBits != 0) ST_TRY(copy_in_bytes(&word, at, sizeof(word)));
    word = dirty ? word | bits : word & ~(~u64{0} << page % kBits);
    ST_TRY(copy_out_bytes(at, &word, sizeof(word)));
    page = end + 1;
  }
  return {};
}

}  // namespace stagetwo::abi_vfio
