// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "stage2/tdp_mmu.h"

// Ageing: which pages has the guest used? Analogue: kvm_tdp_mmu_age_gfn_range, test_age_gfn of
// Linux 6.15, without the write lock. A is set by walk(), that is, when a translation is filled.
//
//   vCPU                                    | who ages
//   walk: sets A, fills                     |
//                                           | A off
//   uses the cached translation: A stays off| looks: old
//   the line is asked to flush; walk: A     | looks: young
//
// So a page is never called young that was not used, and one that is used all the time may be
// called old until the next flush: GuestMemory asks for one, lazily (address_space.cc).
//
// A is one bit that no other kind of word uses (a table's address is aligned, frozen and MMIO words
// have it clear), so it goes by an atomic and: nothing is lost, nothing is brought back, and no
// race is there to lose. Tables are followed inside a shared section.

namespace stagetwo::stage2 {

static_assert((Format::kFrozen & Format::kAccessed) == 0 &&
                  (Format::make_mmio(Format::kMmioGenerationMask) & Format::kAccessed) == 0 &&
                  (Format::kAddressMask & Format::kAccessed) == 0,
              "clearing A changes no word but a leaf");

bool TdpMmu::test_young(u32 address_space, GfnRange range) {
  const sync::BigReaderGuard shared(mmu_lock_);
  bool young = false;
  for_each_root([&](TdpRoot& root) {
    if (young || root.address_space != address_space) return;
    for (TdpCursor at = cursor(root, range); at.valid() && !young; at.next()) {
      young = at.is_leaf() && Format::is_accessed(at.old());
    }
  });
  return young;
}

bool TdpMmu::age(u32 address_space, GfnRange range) {
  const sync::BigReaderGuard shared(mmu_lock_);
  bool young = false;
  for_each_root([&](TdpRoot& root) {
    if (root.address_space != address_space) return;
    for (TdpCursor at = cursor(root, range); at.valid(); at.next()) {
      if (!at.is_leaf() || !Format::is_accessed(at.old())) continue;
      young |= Format::is_accessed(at.fetch_and(~Format::kAccessed));
    }
  });
  return young;
}

namespace {

// An atomic and waits for its line, and lets nothing behind it begin.
constexpr unsigned kEntriesAhead = 32;

// The pages that `leaf` and `pages` have in common, as bits of the latter.
void set_bits(HvaRange leaf, HvaRange pages, u64* bits) {
  const Hva start = std::max(leaf.start(), pages.start());
  const Hva end = std::min(leaf.end(), pages.end());
  u64 n = (start - pages.start()) >> kPageShift;
  for (Hva at = start; at < end; at += kPageSize, ++n) bits[n / 64] |= u64{1} << (n % 64);
}

}  // namespace

bool TdpMmu::collect_young(u32 address_space, GfnRange range, HvaRange pages, u64* bits) {
  const sync::BigReaderGuard shared(mmu_lock_);
  bool young = false;
  for_each_root([&](TdpRoot& root) {
    if (root.address_space != address_space) return;
    for (TdpCursor at = cursor(root, range); at.valid(); at.next()) {
      if (!at.is_leaf() || !Format::is_accessed(at.old())) continue;
      if (at.level() == 1) [[likely]] {
        const u64 offset = Format::output(at.old()) - pages.start().raw();
        if (offset >= pages.size()) continue;
        __builtin_prefetch(at.entry() + kEntriesAhead, 1);
        if (!Format::is_accessed(at.fetch_and(~Format::kAccessed))) continue;
        const u64 n = offset >> kPageShift;
        bits[n / 64] |= u64{1} << (n % 64);
        young = true;
        continue;
      }
      const HvaRange leaf(Hva(Format::output(at.old())), at.frames() << kPageShift);
      if (!leaf.overlaps(pages)) continue;  // private memory: not these pages
      if (!Format::is_accessed(at.fetch_and(~Format::kAccessed))) continue;
      set_bits(leaf, pages, bits);
      young = true;
    }
  });
  return young;
}

}  // namespace stagetwo::stage2
