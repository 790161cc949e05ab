// SPDX-License-Identifier: Apache-2.0
#pragma once

// One memory slot as everybody sees it, and its dirty bitmap. Analogue: struct kvm_memory_slot.
//
// Locking: immutable after publication but for the bits of the bitmap and the counters of the
// tracks. Lifetime: until every reader and every acknowledged vCPU has left it (memslots.h).

#include <algorithm>

#include "addr/addr.h"
#include "base/result.h"
#include "base/types.h"
#include "stage2/write_tracks.h"
#include "sync/atomic.h"

namespace stagetwo::stage2 {

class FilePages;

// The uapi's flag bits; abi static_asserts them equal.
inline constexpr u32 kLogDirtyPages = 1U << 0;
inline constexpr u32 kReadonly = 1U << 1;
inline constexpr u32 kGuestMemfd = 1U << 2;
inline constexpr u32 kInvalid = 1U << 16;  // never the user's

// One bit a frame; bits past the last frame stay zero. `words` and `taken` are one allocation.
struct DirtyBitmap {
  u64 word_count = 0;
  sync::Atomic<u64>* words = nullptr;
  u64* taken = nullptr;  // where a harvest collects before it copies out

  // Failure: ENOMEM.
  [[nodiscard]] static Result<DirtyBitmap*> create(u64 page_count);
  static void destroy(DirtyBitmap* bitmap);
  void set_first(u64 page_count);
};

struct Slot {
  u32 id = 0;     // address space in bits 16-31, as the ioctl names it
  u32 flags = 0;  // the user's, and kInvalid
  Gfn base_gfn;
  u64 page_count = 0;
  Hva hva;
  DirtyBitmap* dirty = nullptr;  // shared by a slot and its successor
  WriteTracksPointer tracks{};   // the same; null: no frame was ever tracked
  FilePages* file = nullptr;     // kGuestMemfd: where private pages come from
  bool file_only = false;        // the shared ones too; `hva` is for KVM's own accesses alone

  [[nodiscard]] GfnRange gfns() const { return {base_gfn, page_count}; }
  [[nodiscard]] HvaRange hvas() const { return {hva, page_count << kPageShift}; }
  // Pre: gfn is in gfns().
  [[nodiscard]] Hva gfn_to_hva(Gfn gfn) const { return hva + ((gfn - base_gfn) << kPageShift); }
  // Is every store to the frame somebody's to know? Pre: gfn is in gfns().
  [[nodiscard]] bool is_write_tracked(Gfn gfn) const {
    const WriteTracks* t = tracks.get();
    return t != nullptr && t->is_tracked(gfn);
  }
  // The largest level an entry that covers gfn may have as far as the slot decides: frames and host
  // addresses aligned alike, the whole range in the slot, no tracked frame in it, no logging.
  [[nodiscard]] unsigned max_level(Gfn gfn) const;
  // The frames that use host addresses of `range`. Pre: it overlaps hvas().
  [[nodiscard]] GfnRange gfns_of(HvaRange range) const;
};

inline GfnRange Slot::gfns_of(HvaRange range) const {
  const u64 first = std::max(range.start().raw(), hva.raw()) - hva.raw();
  const u64 end = std::min(range.end().raw(), hvas().end().raw()) - hva.raw();
  const u64 first_page = first >> kPageShift;
  return {base_gfn + first_page, ((end + kPageSize - 1) >> kPageShift) - first_page};
}

}  // namespace stagetwo::stage2
