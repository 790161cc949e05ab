// SPDX-License-Identifier: Apache-2.0
#pragma once

// Parts of the container's requests, and of the device's. Not for other rooms.

#include <linux/vfio.h>

#include "vfio/container.h"
#include "vfio/device.h"

namespace stagetwo::abi_vfio {

inline long as_answer(const Result<long>& done) {
  return done ? *done : -static_cast<long>(to_int(done.error()));
}

// Of a function: is its memory off? Then its BARs answer nothing.
[[nodiscard]] inline bool memory_is_off(vfio::Device& device) {
  constexpr u64 kCommand = 4;
  constexpr u8 kMemory = 2;
  u8 low = 0;
  device.read(vfio::kConfigRegion, kCommand, {&low, 1});
  return (low & kMemory) == 0;
}

// INT_MAX pages.
inline constexpr u64 kMostBitmapBytes = u64{1} << 28;

// A client's bitmap of the pages in a range of IOVAs, the lowest one first.
class DirtyBitmap {
 public:
  DirtyBitmap() = default;
  // Failure: EFAULT, EINVAL (not in the client's half, too small or too large for the range).
  static Result<DirtyBitmap> make(const vfio_bitmap& bitmap, u64 iova, u64 size);
  static Result<DirtyBitmap> read(u64 at, u64 iova, u64 size);
  // What the maps in the range have; bits of no map are left as they are. Failure: EINVAL, EFAULT;
  // what was written stays to be told.
  Result<void> fill(vfio::Container& container);
  // The range goes, with what is written to the end. Answers the bytes.
  Result<u64> fill_and_unmap(vfio::Container& container);

 private:
  Result<void> set_pages(u64 first, u64 last, bool dirty) const;
  Result<void> set(u64 first_page, u64 last_page, bool dirty) const;
  vfio_bitmap bitmap_{};
  u64 iova_ = 0, size_ = 0;
};

}  // namespace stagetwo::abi_vfio
