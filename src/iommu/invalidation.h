// SPDX-License-Identifier: Apache-2.0
#pragma once

// What caches of translations are told to forget: VT-d's invalidation descriptors, 128 bits each.
// Source: Intel VT-d specification 6.5.2. A wait descriptor is not among them: whoever posts waits
// for the lines of the queue (iommu/invalidation_queue.h).
//
// I1  A range in a descriptor is a power of two of pages, aligned to its size, and covers what was
//     asked: more may be forgotten, never less.

#include <bit>

#include "addr/addr.h"
#include "base/bits.h"
#include "base/types.h"

namespace stagetwo::iommu {

enum class InvalidationType : u8 {
  kIotlb = 2,
  kDeviceTlb = 3,
  kPasidIotlb = 6,
  kPasidCache = 7,
  kPasidDeviceTlb = 8,
};

// [start, last], aligned, 2^order pages.
struct PageBlock {
  u64 start = 0;
  unsigned order = 64 - kPageShift;
  [[nodiscard]] constexpr u64 last() const { return start | (~u64{0} >> (52 - order)); }
};

constexpr PageBlock block_of(u64 first, u64 last) {
  const unsigned width = static_cast<unsigned>(std::bit_width(first ^ last));
  const unsigned order = width <= kPageShift ? 0 : width - kPageShift;
  return {first & ~(~u64{0} >> (52 - order)), order};
}

struct Invalidation {
  u64 low = 0, high = 0;

  [[nodiscard]] constexpr InvalidationType type() const {
    return static_cast<InvalidationType>(low & 0xf);
  }
  [[nodiscard]] constexpr bool whole() const { return get_field(low, 5, 4) != 3; }  // no address
  [[nodiscard]] constexpr u16 domain_id() const { return static_cast<u16>(low >> 16); }
  [[nodiscard]] constexpr u32 pasid() const { return static_cast<u32>(get_field(low, 51, 32)); }
  [[nodiscard]] constexpr SourceId source() const {
    return SourceId{
        static_cast<u16>(type() == InvalidationType::kDeviceTlb ? low >> 32 : low >> 16)};
  }
  // Of an IOTLB: a mask order beside the address. Of a device: ones below the size's bit.
  [[nodiscard]] constexpr PageBlock block() const {
    const bool device =
        type() == InvalidationType::kDeviceTlb || type() == InvalidationType::kPasidDeviceTlb;
    u64 start = high & kPageMask;
    unsigned order = static_cast<unsigned>(high & 0x3f);
    if (device) {
      const u64 sized = type() == InvalidationType::kDeviceTlb ? bit(0) : bit(11);
      order = (high & sized) == 0 ? 0 : static_cast<unsigned>(std::countr_one(start >> 12)) + 1;
    }
    return {start & ~(~u64{0} >> (52 - order)), order};
  }
};

namespace detail {
constexpr u64 sized_address(PageBlock block, u64 size_bit) {
  if (block.order == 0) return block.start;
  return block.start | (bit(block.order - 1) - 1) << kPageShift | size_bit;
}
}  // namespace detail

constexpr Invalidation forget_domain(u16 domain_id) {
  return {2 | 2 << 4 | u64{domain_id} << 16, 0};
}
constexpr Invalidation forget_pages(u16 domain_id, PageBlock block) {
  return {2 | 3 << 4 | u64{domain_id} << 16, block.start | block.order};
}
constexpr Invalidation forget_pasid_pages(u16 domain_id, u32 pasid, PageBlock block) {
  const u64 granularity = block.order == 52 ? 2 : 3;
  return {6 | granularity << 4 | u64{domain_id} << 16 | u64{pasid} << 32,
          block.start | block.order};
}
constexpr Invalidation forget_pasid_entry(u16 domain_id, u32 pasid) {
  return {7 | 1 << 4 | u64{domain_id} << 16 | u64{pasid} << 32, 0};
}
// Of a device's own requests (PASID 0), or of those with a PASID.
constexpr Invalidation forget_device_pages(SourceId source, u32 pasid, PageBlock block) {
  const u64 id = static_cast<u64>(source);
  if (pasid == 0) return {3 | id << 32, detail::sized_address(block, bit(0))};
  return {8 | id << 16 | u64{pasid} << 32, detail::sized_address(block, bit(11))};
}

static_assert(sizeof(Invalidation) == 16);
static_assert(block_of(0x5000, 0x5fff).order == 0 && block_of(0x5000, 0x6fff).order == 2 &&
              block_of(0x5000, 0x6fff).start == 0x4000 && block_of(0, ~u64{0}).order == 52);
static_assert(block_of(0x4000, 0x7fff).last() == 0x7fff && PageBlock{}.last() == ~u64{0});
static_assert(forget_device_pages(SourceId{7}, 9, block_of(0x4000, 0x7fff)).high == 0x5800 &&
              forget_device_pages(SourceId{7}, 9, block_of(0x4000, 0x7fff)).block().order == 2);
static_assert(forget_device_pages(SourceId{7}, 0, PageBlock{}).block().order == 52 &&
              forget_device_pages(SourceId{7}, 0, PageBlock{}).source() == SourceId{7});

}  // namespace stagetwo::iommu
