// SPDX-License-Identifier: Apache-2.0
#pragma once

// Calls that the kernel makes mapping by mapping: madvise, and mremap of several mappings. When it
// refuses one of them, or there is a gap, what was done to those before it stays done, and neither
// the errno nor the page table says how far it came. So where pages of the range are absent or
// pinned the call is made for one mapping after the other, in the kernel's order and with its
// answers, and what becomes of a page is what became of its mapping's call. Analogue:
// madvise_walk_vmas() (kernel file: mm/madvise.c), remap_move() (mm/mremap.c, since Linux 6.17).
// Differs: another thread may change the next mapping between two of them.
//
//   return host::discard(start, size, advice, [&](u64 at, u64 bytes) { return real_madvise(…); });
//   return host::remap({from, size, …}, [&](const Remap& one) { return real_mremap(…); }, made);
//
// I1: with nothing absent or pinned in the range it is one call, as it was asked for; an mremap
// with
//     nothing pinned in the process.
// I2: errno and effect are those of the one call.
// Context and errors: as host/change.h.

#include "host/change.h"
#include "host/footing.h"
#include "host/held_pages.h"
#include "host/process_map.h"

namespace stagetwo::host {

// Pages from some address on: of one mapping, as the kernel shows it, or of none.
struct MappedPart {
  HvaRange range;
  bool mapped = true;
  Mapping mapping;  // if it is
};
// What `range` begins with. Where the kernel does not say: all of it, as if it were one mapping.
[[nodiscard]] MappedPart first_part(HvaRange range);

// Is a page of the range absent or pinned?
[[nodiscard]] bool has_kept_pages(HvaRange range);

// A madvise that takes contents (loss_by_madvise()): answers 0, or -1 and errno.
class Discard {
 public:
  virtual int advise(u64 start, u64 size) = 0;

 protected:
  ~Discard() = default;
};
int discard_by(u64 start, u64 size, int advice, Discard* call);

template <typename F>
int discard(u64 start, u64 size, int advice, F&& advise) {
  struct Call final : Discard {
    explicit Call(F& call) : call_(call) {}
    int advise(u64 at, u64 bytes) override {
      const int answer = call_(at, bytes);
      // A thread that ends gives the lower part of its own stack back.
      if (owners_active()) footing_discarded(at, bytes);
      return answer;
    }
    F& call_;
  };
  Call call(advise);
  return discard_by(start, size, advice, &call);
}

// An mremap, as the client asks for it.
struct Remap {
  u64 from;
  u64 size;
  u64 new_size;
  int flags;
  u64 to;
};
enum class Remapping : u8 {
  kRefused,  // it is not done, whatever is mapped: nothing is announced
  kInPlace,  // what it takes is the tail
  kMoves,    // it may go anywhere
  kFixed,    // there
};
// By what is asked for alone. Pre: whole pages.
[[nodiscard]] Remapping kind_of(const Remap& call);
// Shared memory of which it shows more than before, the kernel fills where it is locked: nothing of
// that is absent while `held` holds it. False: the call is refused (ENOMEM).
[[nodiscard]] bool hold_growth(const Remap& call, HeldPages* held);
// What has to be one mapping of the client's; empty: nothing.
[[nodiscard]] HvaRange source_of(const Remap& call, Remapping kind);
// What stays behind, empty, when its pages have gone. The kernel lets go of all that binds it to
// its neighbours if it was a mapping by itself.
[[nodiscard]] HvaRange left_behind(const Remap& call);
// Where it grows if it stays in place.
[[nodiscard]] HvaRange growth_of(const Remap& call);
// Does the kernel take the source, of several mappings, one after the other? Pre: a change kMoves
// of it is open.
[[nodiscard]] bool goes_by_mapping(const Remap& call);
// May this mapping be moved together with others? (vma_multi_allowed(), kernel file: mm/mremap.c.)
[[nodiscard]] bool goes_with_others(const MappedPart& part);

// Of one mapping. `remap(Remap)` is the system call, `made(there, size)` sees what came of it while
// nobody has its address.
template <typename F, typename G>
void* remap_announced(const Remap& call, Remapping kind, F&& remap, G&& made) {
  const auto go_on = [&] { return remap(call); };
  const auto source = [&]() -> void* {
    if (kind != Remapping::kInPlace) {
      // Of no size: a second mapping of what is shared.
      const u64 size = call.size == 0 ? call.new_size : call.size;
      return made(
          change(call.from, size, EventKind::kUnmap, Announced::kMoves, go_on, call.new_size),
          call.new_size);
    }
    if (call.new_size >= call.size) return made(go_on(), call.new_size);
    return change(call.from + call.new_size, call.size - call.new_size, EventKind::kUnmap, go_on);
  };
  if (kind == Remapping::kInPlace || kind == Remapping::kMoves) return source();
  return change(call.to, call.new_size, EventKind::kUnmap, source);
}

// One after the other, where pinned pages have to be followed. Where there is no mapping, what
// stands at the target is left alone.
template <typename F, typename G>
void* remap_parts(const Remap& call, F&& remap, G&& made) {
  const HvaRange source(Hva(call.from), call.size);
  for (HvaRange left = source; !left.empty();) {
    const MappedPart part = first_part(left);
    const u64 start = part.range.start().raw();
    const u64 size = part.range.size();
    const Remap one{start, size, size, call.flags, call.to + (start - call.from)};
    if (part.mapped && !goes_with_others(part)) {
      errno = EFAULT;
      return MAP_FAILED;
    }
    const bool moved =
        !part.mapped || remap_announced(one, Remapping::kFixed, remap, made) != MAP_FAILED;
    if (!moved) return MAP_FAILED;
    left = HvaRange(part.range.end(), left.end() - part.range.end());
  }
  return reinterpret_cast<void*>(call.to);
}

// Before the mappings are looked at, what is ours of borders between them is gone, and nothing of
// the source is taken until the call is over: the kernel finds what the client has made.
template <typename F, typename G>
void* remap(const Remap& asked, F&& remap, G&& made) {
  // As the kernel does: a page that is kept in part is kept.
  Remap call = asked;
  call.size = (asked.size + kPageSize - 1) & kPageMask;
  call.new_size = (asked.new_size + kPageSize - 1) & kPageMask;
  const Remapping kind = kind_of(call);
  if (kind == Remapping::kRefused) return remap(asked);
  HeldPages grown;
  if (!hold_growth(call, &grown)) return no_memory<void*>();
  // What is left behind stays one mapping with what is beside it, unless it was one by itself.
  const EvenSides source_sides(left_behind(call), true);
  const OwnedChange source(source_of(call, kind), Announced::kMoves);
  if (source.refused()) return no_memory<void*>();
  const bool fixed = kind == Remapping::kFixed;
  const HvaRange target_range(Hva(call.to), call.new_size);
  const EvenSides target_sides(fixed ? target_range : HvaRange(), true);
  const EvenSides grown_sides(growth_of(call), true);
  if (!fixed || !goes_by_mapping(call)) {
    return remap_announced(call, kind, remap, made);
  }
  // What of the target is opposite a gap stays.
  const OwnedChange target(target_range, Announced::kMoves);
  if (target.refused()) return no_memory<void*>();
  if (pins_active()) return remap_parts(call, remap, made);
  void* const there = remap_announced(call, kind, remap, made);
  // What of it has moved before the kernel refused.
  if (there == MAP_FAILED) static_cast<void>(made(reinterpret_cast<void*>(call.to), call.new_size));
  return there;
}

}  // namespace stagetwo::host
