// SPDX-License-Identifier: Apache-2.0
#include "host/piecewise.h"

#include <algorithm>
#include <optional>

#include "base/alloc.h"
#include "base/guard.h"
#include "base/kernel_numbers.h"
#include "base/sys.h"
#include "host/change.h"
#include "host/file_change.h"
#include "host/owner_table.h"
#include "host/process_map.h"
#include "host/userfault.h"
#include "sync/atomic.h"

namespace stagetwo::host {
namespace {

// The pages nobody has pinned: the kernel frees no page that is. What is absent stays with its
// owner, as a device's page does in the kernel, unless it is swapped.
int free_lazily(const MappedPart& part, Discard* call) {
  const HvaRange all = part.range;
  if (part.mapping.file_backed || is_locked(all))
    return call->advise(all.start().raw(), all.size());
  const PinnedChange pinned(all, Announced::kProtects, kWholeRange);
  free_absent_pages(all);
  for (HvaRange left = all; !left.empty();) {
    const HvaRange free = next_unpinned(left);
    const int answer = free.empty() ? 0 : call->advise(free.start().raw(), free.size());
    if (answer != 0) return answer;
    left = HvaRange(free.end(), left.end() - free.end());
  }
  return 0;
}

// A hole in the file that is mapped there.
int punch(const MappedPart& part, Discard* call) {
  const u64 offset = part.mapping.offset + (part.range.start() - part.mapping.range.start());
  FileChange change({part.mapping.device, part.mapping.inode}, offset, part.range.size());
  if (change.refused()) return no_memory<int>();
  const int answer = call->advise(part.range.start().raw(), part.range.size());
  if (answer == 0) change.succeeded();
  return answer;
}

int discard_part(const MappedPart& part, int advice, Discard* call) {
  const HvaRange range = part.range;
  if (part.mapped && advice == MADV_FREE) return free_lazily(part, call);
  if (part.mapped && advice == MADV_REMOVE && part.mapping.shared) return punch(part, call);
  OwnedChange absent(range, Announced::kClears);
  PinnedChange pinned(range, Announced::kClears, kWholeRange);
  if (pinned.refused()) return no_memory<int>();
  const int answer = call->advise(range.start().raw(), range.size());
  if (answer == 0) {
    absent.succeeded();
    pinned.succeeded(range.start());
  }
  return answer;
}

int discard_parts(HvaRange range, int advice, Discard* call) {
  bool gap = false;
  for (HvaRange left = range; !left.empty();) {
    const MappedPart part = first_part(left);
    const int answer = discard_part(part, advice, call);
    const bool goes_on = answer == 0 || (!part.mapped && errno == ENOMEM);
    if (!goes_on) return answer;
    gap = gap || answer != 0;
    left = HvaRange(part.range.end(), left.end() - part.range.end());
  }
  if (!gap) return 0;
  errno = ENOMEM;
  return -1;
}

// With nothing there whose fate would have to be known. None: there is, by now.
std::optional<int> discard_at_once(HvaRange range, u64 size, Discard* call) {
  OwnedChange absent(range, Announced::kClears);
  const PinnedChange pinned(range, Announced::kClears, kWholeRange);
  if (absent.met_pages() || pinned.met_pages()) return std::nullopt;
  return call->advise(range.start().raw(), size);
}

}  // namespace

MappedPart first_part(HvaRange range) {
  if (!ST_GUARD(by_mapping, true)) return {range, true, {}};
  const auto found = shown_mapping_from(range.start());
  if (!found && to_int(found.error()) != EFAULT) return {range, true, {}};
  if (!found || found->range.start() >= range.end()) return {range, false, {}};
  if (found->range.start() > range.start()) {
    return {HvaRange(range.start(), found->range.start() - range.start()), false, {}};
  }
  const Hva end = std::min(found->range.end(), range.end());
  return {HvaRange(range.start(), end - range.start()), true, *found};
}

bool has_kept_pages(HvaRange range) {
  return has_absent_pages(range) || (pins_active() && next_unpinned(range) != range);
}

int discard_by(u64 start, u64 size, int advice, Discard* call) {
  const std::optional<HvaRange> range = pages_of(start, size);
  if (!range || range->start() != Hva(start)) return call->advise(start, size);
  // A hole in a file rings for all its mappings; whatever else there is, the kernel refuses.
  if (advice == MADV_REMOVE) return discard_parts(*range, advice, call);
  const InvalidateSection section(InvalidateEvent{*range, EventKind::kClear});
  // Of shared memory the kernel (6.18) zaps what is in the way of a guard, and finds our mark there
  // for ever. (guard_install_pte_entry(), kernel file: mm/madvise.c.)
  constexpr int kGuardInstall = 102;
  std::optional<OwnedChange> no_taker;
  if (advice == kGuardInstall && owner_table() != nullptr) {
    no_taker.emplace(*range, Announced::kProtects);
    owner_table()->clear_marks(*range);
  }
  if (!has_kept_pages(*range)) {
    const std::optional<int> answer = discard_at_once(*range, size, call);
    if (answer) return *answer;
  }
  return discard_parts(*range, advice, call);
}

// ---- mremap -----------------------------------------------------------------------------------

namespace {

// Does mremap take several mappings (Linux 6.17)? Tried on two of ours.
bool try_several() {
  const auto made = reserve_pages(4 * kPageSize, "host.move_probe");
  if (!made) return false;
  auto* const first = static_cast<char*>(*made);
  const bool several = sys::mprotect(first, kPageSize, PROT_READ) &&
                       sys::mremap(first, 2 * kPageSize, 2 * kPageSize,
                                   MREMAP_MAYMOVE | MREMAP_FIXED, first + 2 * kPageSize);
  unmap_pages(*made, 4 * kPageSize);
  return several;
}

bool moves_several() {
  static constinit sync::Atomic<u8> known{0};  // 1: no, 2: yes
  u8 answer = known.load(sync::kRelaxed);
  if (answer == 0) {
    answer = try_several() ? 2 : 1;
    known.store(answer, sync::kRelaxed);
  }
  return answer == 2;
}

// A file that chooses its own addresses (a System V segment) may not be moved together with others:
// asked of a second mapping of one page, beside a page of ours. Where that cannot be made it may.
bool second_goes_with_others(Hva page) {
  const auto made = reserve_pages(4 * kPageSize, "host.move_probe");
  if (!made) return true;
  auto* const first = static_cast<char*>(*made);
  const Result<void*> second = sys::mremap(reinterpret_cast<void*>(page.raw()), 0, kPageSize,
                                           MREMAP_MAYMOVE | MREMAP_FIXED, first);
  const Result<void*> both = sys::mremap(first, 2 * kPageSize, 2 * kPageSize,
                                         MREMAP_MAYMOVE | MREMAP_FIXED, first + 2 * kPageSize);
  unmap_pages(*made, 4 * kPageSize);
  return !second || both || to_int(both.error()) != EFAULT;
}

bool overlaps(const Remap& call) {
  return call.from < call.to + call.new_size && call.to < call.from + call.size;
}

constexpr u64 kEndOfAddresses = (u64{1} << 47) - kPageSize;
bool is_there(u64 at, u64 size) {
  return (at & ~kPageMask) == 0 && size <= kEndOfAddresses && at <= kEndOfAddresses - size;
}

}  // namespace

// Of a target over the source the changes would wait for each other.
Remapping kind_of(const Remap& call) {
  constexpr int kKnown = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
  const bool may_move = (call.flags & MREMAP_MAYMOVE) != 0;
  if ((call.flags & ~kKnown) != 0 || (!may_move && call.flags != 0)) return Remapping::kRefused;
  if (!is_there(call.from, call.size) || call.new_size == 0) return Remapping::kRefused;
  const bool leaves = (call.flags & MREMAP_DONTUNMAP) != 0;
  if (leaves && call.size != call.new_size) return Remapping::kRefused;
  if (!may_move) return Remapping::kInPlace;
  if ((call.flags & MREMAP_FIXED) == 0) return Remapping::kMoves;
  const bool refused = !is_there(call.to, call.new_size) || overlaps(call);
  return refused ? Remapping::kRefused : Remapping::kFixed;
}

// A mapping that stays where it is and loses its tail may be several.
HvaRange source_of(const Remap& call, Remapping kind) {
  const bool stays = kind == Remapping::kInPlace && call.new_size <= call.size;
  return HvaRange(Hva(call.from), stays ? 0 : call.size);
}

HvaRange left_behind(const Remap& call) {
  const bool leaves = (call.flags & MREMAP_DONTUNMAP) != 0;
  return HvaRange(Hva(call.from), leaves ? call.size : 0);
}

HvaRange growth_of(const Remap& call) {
  const bool grows = call.new_size > call.size && is_there(call.from, call.new_size);
  return HvaRange(Hva(call.from + call.size), grows ? call.new_size - call.size : 0);
}

// Of no size it is a second mapping of what is shared.
bool hold_growth(const Remap& call, HeldPages* held) {
  if (!owners_active() || (call.size != 0 && call.new_size <= call.size)) return true;
  const auto first = mapping_at(Hva(call.from));
  if (!first || !first->shared) return true;
  const u64 offset = first->offset + (call.from - first->range.start().raw());
  return held->hold_for_view(*first, offset, call.new_size);
}

// What the kernel refuses at once it is given as a whole: a gap at the beginning, one mapping
// alone.
bool goes_by_mapping(const Remap& call) {
  if (call.size == 0 || call.size != call.new_size) return false;
  if (!owners_active() && !pins_active()) return false;
  const MappedPart first = first_part(HvaRange(Hva(call.from), call.size));
  return first.mapped && first.range.size() < call.size && moves_several();
}

bool goes_with_others(const MappedPart& part) {
  const Hva start = part.range.start();
  if (userfault::client_watches(start)) return false;
  return !part.mapping.shared || second_goes_with_others(start);
}

}  // namespace stagetwo::host
