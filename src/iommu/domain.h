// SPDX-License-Identifier: Apache-2.0
#pragma once

// One set of I/O page tables: IOVA to frame. The formats are pt's; the tables stand in the arena.
// Analogue: struct iommu_domain with its map_pages, unmap_pages, iova_to_phys and the dirty
// operations (kernel file: include/linux/iommu.h).
//
// I1  map() puts the largest pages that alignment, contiguity and page_sizes permit; unmap() takes
//     unions of what single calls of map() put, so it never has to cut a large page.
// I2  unmap() and clearing dirty bits cannot fail.
// Locking: the arena's.

#include <optional>

#include "base/result.h"
#include "iommu/objects.h"

namespace stagetwo::iommu {

// Which tables a device has.
struct DomainShape {
  FormatKind format;
  u64 aperture_start;
  u64 aperture_last;
  u64 page_sizes;
  unsigned levels = 0;  // 0: as many as the aperture needs
};
// VT-d's second level (3 to 5 levels: 39, 48, 57 bits), and its first (4 or 5), which is a
// processor's: the lower half, and what is present may be read.
[[nodiscard]] DomainShape vtd_shape(unsigned levels);
[[nodiscard]] DomainShape first_level_shape(unsigned levels);

// Failure: ENOMEM.
Result<void> make_domain(Arena& arena, const DomainShape& shape, Domain* out);
// Pre: nothing is mapped.
void destroy_domain(Arena& arena, Domain& domain);

// `frame_address` is that of the first byte: aligned as iova is, to the smallest page. Failure:
// ENOMEM, EADDRINUSE; nothing is mapped then.
Result<void> map_range(Arena& arena, Domain& domain, u64 iova, u64 frame_address, u64 bytes,
                       u32 rights);
// Returns how many bytes were mapped.
u64 unmap_range(Arena& arena, Domain& domain, u64 iova, u64 bytes);

// Makes the last table of a page's way the one used last (Domain::near_table). False: there is
// none.
bool find_near_table(Arena& arena, Domain& domain, u64 iova);

struct Translation {
  u64 address;  // of the byte
  u32 rights;
  u64 page_bytes;  // of the page it is in
};
[[nodiscard]] std::optional<Translation> translate(const Arena& arena, const Domain& domain,
                                                   u64 iova);

// Marks the page that maps `iova` as written. False: nothing is mapped.
bool set_dirty(Arena& arena, Domain& domain, u64 iova);
// The first page at or behind `iova` and not behind `last` that was written; marked clean if
// `clear`. None: no more.
struct DirtyPage {
  u64 iova;  // of the page
  u64 bytes;
};
[[nodiscard]] std::optional<DirtyPage> next_dirty(Arena& arena, Domain& domain, u64 iova, u64 last,
                                                  bool clear);

}  // namespace stagetwo::iommu
