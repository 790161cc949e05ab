// SPDX-License-Identifier: Apache-2.0
#pragma once

// The naive model of KVM_SET_USER_MEMORY_REGION(2): a map of slots, and one predicate for each line
// of the kernel's check order, written without regard to the others. The answer is the first line,
// in the kernel's order, whose predicate holds. (Kernel files: kvm_main.c, x86.c; the write-tracker
// of line 23 is asked before the highest frame of line 22.)

#include <array>
#include <map>

#include "stage2/memslots.h"

namespace stagetwo::test {

struct ModelSlot {
  u32 flags;
  u64 gfn, pages, hva;
};

// What a region's memfd may be: of this VM, not open, or another's.
inline constexpr int kMemfdGood = 0;
inline constexpr int kMemfdClosed = EBADF;
inline constexpr int kMemfdForeign = EINVAL;

inline void name_memfd(stagetwo::stage2::Region* region, int which) {
  static const stagetwo::sync::KeptNumber none;
  static stagetwo::mem::GuestMemfd good(u64{1} << 40, none);
  region->file = which == kMemfdGood ? &good : nullptr;
  region->file_error = which;
}

struct SlotModel {
  std::map<u32, ModelSlot> slots;
  u32 spaces = 1;
  bool memfd = false;
  bool tracked = false;
  bool no_memory = false;
  u64 max_gfn = (u64{1} << 40) - 1;
  u64 total = 0;

  struct Asked {
    const stage2::Region& region;
    const ModelSlot* old;
    u64 pages, gfn;
    bool deletes, creates, moves;
  };
  [[nodiscard]] Asked ask(const stage2::Region& r) const {
    const auto found = slots.find(r.slot);
    const ModelSlot* old = found == slots.end() ? nullptr : &found->second;
    Asked a{r, old, r.size >> 12, r.gpa >> 12, r.size == 0, r.size != 0 && old == nullptr, false};
    a.moves = r.size != 0 && old != nullptr && old->gfn != a.gfn;
    return a;
  }
  [[nodiscard]] bool overlaps(const Asked& a) const {
    if (!a.creates && !a.moves) return false;
    if (a.region.gpa + a.region.size < a.region.gpa) return false;  // no place at all
    for (const auto& [id, slot] : slots) {
      if (id == a.region.slot || id >> 16 != a.region.slot >> 16) continue;
      if (a.gfn < slot.gfn + slot.pages && slot.gfn < a.gfn + a.pages) return true;
    }
    return false;
  }
  [[nodiscard]] bool identical(const Asked& a) const {
    return a.old != nullptr && a.region.size != 0 && a.region.size % 4096 == 0 &&
           a.old->gfn == a.gfn && a.region.gpa % 4096 == 0 && a.old->flags == a.region.flags &&
           a.old->hva == a.region.hva && a.old->pages == a.pages;
  }
  // Does line `n` hold on its own?
  [[nodiscard]] bool violates(int n, const stage2::Region& r) const {
    const Asked a = ask(r);
    const bool with_memfd = (r.flags & stage2::kGuestMemfd) != 0;
    u32 legal = stage2::kLogDirtyPages | stage2::kReadonly;
    if (with_memfd) legal = memfd ? stage2::kGuestMemfd : 0;
    switch (n) {
      case 2:
        return r.first_version && (r.flags & ~3U) != 0;
      case 3:
        return (r.slot & 0xffff) >= 32764;
      case 4:
        return (r.flags & ~legal) != 0;
      case 5:
        return r.size % 4096 != 0;
      case 6:
        return r.gpa % 4096 != 0;
      case 7:
        return r.hva % 4096 != 0 || r.size > 0x7ffffffff000 || r.hva > 0x7ffffffff000 - r.size;
      case 8:
        return with_memfd &&
               (r.memfd_offset % 4096 != 0 || r.memfd_offset + r.size < r.memfd_offset);
      case 9:
        return r.slot >> 16 >= spaces;
      case 10:
        return r.gpa + r.size < r.gpa;
      case 11:
        return a.pages > (u64{1} << 31) - 1;
      case 12:
        return a.deletes && a.old == nullptr;
      case 13:
        return a.deletes && a.old != nullptr && total < a.old->pages;
      case 14:
        return a.creates && total + a.pages < total;
      case 15:
        return r.size != 0 && a.old != nullptr && with_memfd;
      case 16:
        return r.size != 0 && a.old != nullptr &&
               (a.old->hva != r.hva || a.old->pages != a.pages ||
                ((a.old->flags ^ r.flags) & 6) != 0);
      case 17:
        return identical(a);
      case 18:
        return overlaps(a);
      case 19:
        return no_memory;
      case 20:
        return a.creates && with_memfd && r.file == nullptr && r.file_error == kMemfdClosed;
      case 21:
        return a.creates && with_memfd && r.file == nullptr && r.file_error == kMemfdForeign;
      case 22:
        return (a.creates || a.moves) && ((r.gpa + r.size - 1) >> 12) > max_gfn;
      case 23:
        return a.moves && tracked;
      default:
        return false;
    }
  }
  static constexpr std::array<int, 22> kOrder = {2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12,
                                                 13, 14, 15, 16, 17, 18, 19, 20, 21, 23, 22};
  static int errno_of(int line) {
    switch (line) {
      case 0:
      case 17:
        return 0;
      case 13:
        return EIO;
      case 18:
        return EEXIST;
      case 19:
        return ENOMEM;
      case 20:
        return EBADF;
      default:
        return EINVAL;
    }
  }
  // 0: nothing is wrong.
  [[nodiscard]] int first_line(const stage2::Region& r) const {
    for (const int line : kOrder) {
      if (violates(line, r)) return line;
    }
    return 0;
  }
  // Pre: first_line(r) == 0.
  void apply(const stage2::Region& r) {
    if (r.size == 0) {
      total -= slots[r.slot].pages;
      slots.erase(r.slot);
      return;
    }
    if (!slots.contains(r.slot)) total += r.size >> 12;
    slots[r.slot] = {r.flags, r.gpa >> 12, r.size >> 12, r.hva};
  }
};

}  // namespace stagetwo::test
