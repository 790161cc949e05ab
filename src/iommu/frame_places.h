// SPDX-License-Identifier: Apache-2.0
#pragma once

// Where an engine found frames, so that it need not look at each of them again: of a few blocks of
// frames the pages that stand in one piece at the process's addresses. Analogue: none; a device has
// physical addresses.
//
// I1  What is answered is where FrameSection::at() says that the bytes are, now: a page that was
//     moved since (FrameSection::moves) is looked for again.
// I2  A frame can mean another page when its last pin has gone. Before that the engine heeds an
//     invalidation: with each it forgets all places.
// Context: the engine's thread; span() in a section.

#include <algorithm>
#include <optional>

#include "addr/addr.h"
#include "base/guard.h"
#include "host/pin.h"
#include "iommu/memory_objects.h"

namespace stagetwo::iommu {

// Bytes that stand in one piece: what is at `first` + i is there at `at` + i. Empty at first.
struct Span {
  u64 first = 1, last = 0;
  u64 at = 0;
  [[nodiscard]] bool has(u64 address, u64 bytes) const {
    return address >= first && address <= last && bytes - 1 <= last - address;
  }
  [[nodiscard]] Hva place(u64 address) const { return Hva(at + (address - first)); }
};

class FramePlaces {
 public:
  // What there is around `address`, frames as tables hold them: of the `bytes` from there on those
  // that are there in one piece, at least. None: they are not to be touched directly now. `moves`:
  // the section's.
  std::optional<Span> span(const host::FrameSection& frames, u64 moves, u64 address,
                           stagetwo::Access access, u64 bytes) {
    const u64 block = address / kBlockBytes;
    Place& known = places_[(block * 2 + (access == stagetwo::Access::kWrite)) % kPlaces];
    const bool moved = known.moves != moves;
    const bool stands = known.age == age_ && !ST_GUARD(iommu_frame_moves, moved);
    if (stands && known.span.has(address, bytes)) return known.span;
    const host::Frame first{address / kPageSize & (bit(kFrameBits) - 1)};
    u64 pages = (address % kPageSize + bytes + kPageSize - 1) / kPageSize;
    const auto start = frames.at(first, access, &pages);
    if (!start) return std::nullopt;
    const u64 page = address & kPageMask;
    const Span found{page, page + (pages * kPageSize - 1), start->raw()};
    if (!stands) known = {age_, moves, {}};
    keep(known.span, found, block);
    return found;
  }
  void forget() { ++age_; }

 private:
  static constexpr unsigned kPlaces = 32;
  static constexpr u64 kBlockBytes = 2 << 20;
  struct Place {
    u64 age = 0;  // 0: of none
    u64 moves = 0;
    Span span;  // within a block
  };
  // What continues what is known makes it longer.
  static void keep(Span& known, Span found, u64 block) {
    found.last = std::min(found.last, block * kBlockBytes + (kBlockBytes - 1));
    const bool joins = known.at - known.first == found.at - found.first &&
                       found.first <= known.last + 1 && known.first <= found.last + 1;
    if (joins && found.first > known.first) {
      found.at = known.at;
      found.first = known.first;
    }
    if (joins) found.last = std::max(found.last, known.last);
    known = found;
  }

  u64 age_ = 1;
  Place places_[kPlaces];
};

}  // namespace stagetwo::iommu
