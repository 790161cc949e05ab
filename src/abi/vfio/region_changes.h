// SPDX-License-Identifier: Apache-2.0
#pragma once

// Regions that a client has mapped, as it changes their rights and their places: what the calls of
// mprotect and mremap make of them besides. Analogue: a device's VMA (VM_PFNMAP, VM_DONTEXPAND),
// which mprotect_fixup() and vma_to_resize() look at (kernel files: mm/mprotect.c, mm/mremap.c).
//
// Context: the client's thread, in a section of the engine, no lock held.

#include <cerrno>

#include "addr/addr.h"
#include "base/alloc.h"
#include "host/change.h"
#include "host/piecewise.h"

namespace stagetwo::abi_vfio {

// Is any mapped? A load or two.
[[nodiscard]] bool has_mapped_regions();

// Before the rights of a range change: what is in it is known by itself. Failure: ENOMEM.
[[nodiscard]] Result<void> divide_regions(HvaRange range);
// As far as all pages from its start on get the same rights: how many bytes, and which rights. A
// trapped part of a region is not given the right to write.
struct RightsAt {
  u64 bytes;
  int prot;
};
[[nodiscard]] RightsAt rights_at(HvaRange range, int prot);
// They have them. Pre: the range was divided.
void note_rights(HvaRange range, int prot);

// mprotect; `protect(start, size, prot)` is the call.
template <typename F>
int protect_regions(u64 start, u64 size, int prot, F&& protect) {
  const auto range = host::pages_of(start, size);
  const bool whole_pages = range && range->start() == Hva(start);
  if (!whole_pages || !has_mapped_regions()) [[likely]]
    return protect(start, size, prot);
  if (!divide_regions(*range)) {
    errno = ENOMEM;
    return -1;
  }
  for (HvaRange left = *range; !left.empty();) {
    const RightsAt here = rights_at(left, prot);
    const HvaRange part(left.start(), here.bytes);
    if (const int done = protect(part.start().raw(), part.size(), here.prot); done != 0) {
      return done;
    }
    note_rights(part, prot);
    left = HvaRange(part.end(), left.end() - part.end());
  }
  return 0;
}

// mremap: made before the call, told where it went.
class RemapOfRegions {
 public:
  explicit RemapOfRegions(const host::Remap& call);
  ~RemapOfRegions();
  RemapOfRegions(const RemapOfRegions&) = delete;
  RemapOfRegions& operator=(const RemapOfRegions&) = delete;
  // What stands against it, as an errno; 0: nothing. A device's pages neither grow (EFAULT) nor
  // stay behind (EINVAL).
  [[nodiscard]] int refused() const { return refused_; }
  void moved(Hva to);

 private:
  struct Kept;
  void look(const host::Remap& call);
  int refused_ = 0;
  Hva from_{0};
  Box<Kept> kept_;  // rows of what moves
};

}  // namespace stagetwo::abi_vfio
