// SPDX-License-Identifier: Apache-2.0
#include "iommu/walk.h"

#include <algorithm>

#include "iommu/arena_memory.h"
#include "pt/cursor.h"
#include "pt/fmt/vtd_second_level.h"
#include "pt/fmt/x86_first_level.h"

namespace stagetwo::iommu {
namespace {

using First = pt::X86FirstLevel;
using Second = pt::VtdSecondLevel;

Walked refused(FaultReason reason) {
  return {.reason = reason};
}

u64 within(u64 address, unsigned page_lg2) {
  return address & (bit(page_lg2) - 1);
}

Walked walk_second(const Arena& arena, const PasidEntry& entry, u64 iova, Rights wanted) {
  const unsigned levels = entry.second_levels();
  if (levels > Second::kMaxLevel || iova >> pt::bytes_lg2<Second>(levels + 1) != 0) {
    return refused(FaultReason::kBeyondWidth);
  }
  const ArenaMemory<u64> memory(arena);
  auto [place, word, level] = pt::find<Second>(memory.entries(entry.second_table()), levels,
                                               iova >> Second::kGranuleLg2, 1, memory);
  if (!Second::is_leaf(word, level)) return refused(FaultReason::kSecondDenied);
  const u32 rights = ((word & Second::kRead) != 0 ? kMayRead : 0u) |
                     ((word & Second::kWrite) != 0 ? kMayWrite : 0u);
  if ((rights & wanted) == 0) return refused(FaultReason::kSecondDenied);
  if (entry.second_dirty()) {
    memory.fetch_or(place, Second::kAccessed | (wanted == kMayWrite ? Second::kDirty : 0));
  }
  const unsigned page_lg2 = pt::bytes_lg2<Second>(level);
  const u64 page = Second::output(word, level) & ~(bit(page_lg2) - 1);
  return {.address = page | within(iova, page_lg2), .page_bytes = bit(page_lg2), .rights = rights};
}

// First-level entries, wherever they are.
struct OwnTables {
  const Arena& arena;
  FaultReason load(u64 at, u64* word) const {
    *word = ArenaMemory<u64>::load(entry(at));
    return FaultReason::kNone;
  }
  void mark(u64 at, u64 bits) const { ArenaMemory<u64>::fetch_or(entry(at), bits); }
  sync::Atomic<u64>* entry(u64 at) const { return static_cast<sync::Atomic<u64>*>(arena.at(at)); }
};
struct GuestTables {
  const Arena& arena;
  const PasidEntry& below;
  FrameReader& frames;
  FaultReason load(u64 at, u64* word) const {
    const Walked found = walk_second(arena, below, at, kMayRead);
    if (found.reason != FaultReason::kNone) return found.reason;
    return frames.read(found.address, word) ? FaultReason::kNone : FaultReason::kFirstUnreadable;
  }
  void mark(u64, u64) const {}
};

template <typename Tables>
Walked walk_first(const Tables& tables, const PasidEntry& entry, u64 iova, Rights wanted) {
  const unsigned levels = entry.first_levels();
  if (levels > First::kMaxLevel) return refused(FaultReason::kBeyondWidth);
  const unsigned width = pt::bytes_lg2<First>(levels + 1);
  if (sign_extend(iova, width) != static_cast<s64>(iova)) {
    return refused(FaultReason::kNotCanonical);
  }
  const u64 frame = within(iova, width) >> First::kGranuleLg2;
  bool writable = true, user = true;
  u64 table = entry.first_table();
  for (unsigned level = levels;; --level) {
    const u64 at = table + pt::index_of<First>(frame, level) * sizeof(u64);
    u64 word = 0;
    const FaultReason read = tables.load(at, &word);
    if (read != FaultReason::kNone) return refused(read);
    if (!First::is_present(word)) return refused(FaultReason::kFirstNotPresent);
    const bool leaf = First::is_leaf(word, level);
    if ((word & First::always_reserved(leaf, level)) != 0) {
      return refused(FaultReason::kFirstReserved);
    }
    writable = writable && (word & First::kWritable) != 0;
    user = user && (word & First::kUser) != 0;
    if (!leaf) {
      table = First::table_address(word);
      continue;
    }
    if (!user) return refused(FaultReason::kSupervisorPage);
    if (wanted == kMayWrite && !writable) return refused(FaultReason::kNoWrite);
    tables.mark(at, First::kAccessed | (wanted == kMayWrite ? First::kDirty : 0));
    const unsigned page_lg2 = pt::bytes_lg2<First>(level);
    return {.address = First::leaf_address(word, level) | within(iova, page_lg2),
            .page_bytes = bit(page_lg2),
            .rights = u32{kMayRead} | (writable ? kMayWrite : 0u)};
  }
}

}  // namespace

Walked walk(const Arena& arena, const PasidEntry& entry, u64 iova, Rights wanted,
            FrameReader& frames) {
  if (iova >= kInterruptStart && iova <= kInterruptLast) {
    return refused(FaultReason::kInterruptRange);
  }
  switch (entry.type()) {
    case TranslationType::kFirstLevel:
      return walk_first(OwnTables{arena}, entry, iova, wanted);
    case TranslationType::kSecondLevel:
      return walk_second(arena, entry, iova, wanted);
    case TranslationType::kNested: {
      const Walked first = walk_first(GuestTables{arena, entry, frames}, entry, iova, wanted);
      if (first.reason != FaultReason::kNone) return first;
      Walked found = walk_second(arena, entry, first.address, wanted);
      found.page_bytes = std::min(found.page_bytes, first.page_bytes);
      found.rights &= first.rights;
      return found;
    }
    case TranslationType::kPassThrough:
      break;
  }
  return {.address = iova, .page_bytes = kPageSize, .rights = u32{kMayRead} | kMayWrite};
}

}  // namespace stagetwo::iommu
