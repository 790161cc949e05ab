// SPDX-License-Identifier: Apache-2.0
// What is resident. The kernel is asked page by page now and then; in between the process's
// resident set, one cheap read, says by how much that can have grown: guests' pages are part of it.
// Memory of the client's that shrinks meanwhile hides as much growth, until the next look.

#include "reclaim/reclaimer.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <string_view>

#include "base/kernel_numbers.h"
#include "base/sys.h"
#include "host/kept_fd.h"
#include "host/memory_budget.h"
#include "host/process_map.h"
#include "host/shared_objects.h"
#include "mem/private_swap.h"
#include "reclaim/guests.h"
#include "sync/futex.h"

namespace stagetwo::reclaim {
namespace {

constinit host::KeptFd statm("/proc/self/statm");

// The second number of the line: resident pages. 0: the kernel does not say.
u64 process_resident() {
  const auto fd = statm.use();
  char line[128];
  const auto got =
      fd ? sys::pread(fd->get(), line, sizeof(line), 0) : Result<size_t>(refuse(fd.error()));
  if (!got) return 0;
  const std::string_view text(line, *got);
  u64 pages = 0;
  for (size_t i = text.find(' ') + 1; i < text.size() && text[i] >= '0' && text[i] <= '9'; ++i) {
    pages = pages * 10 + static_cast<u64>(text[i] - '0');
  }
  return pages << kPageShift;
}

// The kernel refuses to call locked memory cold, and else does nothing that could be noticed; but
// of a huge page it splits a part off, so it is asked about a whole one.
bool is_locked(HvaRange span) {
  constexpr u64 kHuge = u64{2} << 20;
  const Hva first((span.start().raw() + kHuge - 1) & ~(kHuge - 1));
  const bool whole = first < span.end() && span.end() - first >= kHuge;
  const Hva at = whole ? first : span.start();
  const auto cold =
      sys::madvise(reinterpret_cast<void*>(at.raw()), whole ? kHuge : kPageSize, MADV_COLD);
  return !cold && to_int(cold.error()) == EINVAL;
}

// Of the span, mapping by mapping: bytes that are locked. Of a span in very many pieces (each with
// rights of its own) the first ones: the kernel refuses the others when they are to go.
u64 locked_bytes(const host::Mapping& first, HvaRange span) {
  constexpr unsigned kMostPieces = 64;
  u64 locked = 0;
  host::Mapping mapping = first;
  for (unsigned pieces = 0; pieces < kMostPieces; ++pieces) {
    const Hva start = std::max(span.start(), mapping.range.start());
    const Hva end = std::min(span.end(), mapping.range.end());
    if (start < end && is_locked(HvaRange(start, end - start))) locked += end - start;
    if (mapping.range.end() >= span.end()) break;
    const auto next = host::shown_mapping_from(mapping.range.end());
    if (!next || next->range.start() >= span.end()) break;
    mapping = *next;
  }
  return locked;
}

// Some calls (mprotect, madvise) leave several mappings side by side. Of more than host can name
// (kMaxViews: host/page_transit.h), and of several files, nothing is taken.
bool shows_one_file(const host::Mapping& first, HvaRange span) {
  constexpr unsigned kMostPieces = 8;
  host::Mapping mapping = first;
  for (unsigned pieces = 1; mapping.range.end() < span.end(); ++pieces) {
    const auto next = host::shown_mapping_at(mapping.range.end());
    const bool goes_on = next && next->shared && next->device == first.device &&
                         next->inode == first.inode && next->page_size == kPageSize;
    if (!goes_on || pieces == kMostPieces) return false;
    mapping = *next;
  }
  return true;
}

Span::Kind kind_of(const host::Mapping& mapping, HvaRange span, u64* locked) {
  if (mapping.page_size != kPageSize) return Span::Kind::kHugetlb;
  if (mapping.shared && !shows_one_file(mapping, span)) return Span::Kind::kUnmapped;
  if (!mapping.shared && mapping.file_backed) return Span::Kind::kFile;
  *locked = locked_bytes(mapping, span);
  return *locked == span.size() ? Span::Kind::kLocked : Span::Kind::kOrdinary;
}

// Bytes of what stays, by why.
struct LeftAlone {
  u64 hugetlb = 0;
  u64 locked = 0;
  u64 private_shared = 0;
  u64 shared = 0;
  u64 files = 0;
  u64* figure_of(Span::Kind kind) {
    switch (kind) {
      case Span::Kind::kHugetlb:
        return &hugetlb;
      case Span::Kind::kLocked:
        return &locked;
      case Span::Kind::kShared:
        return &private_shared;
      case Span::Kind::kOthers:
        return &shared;
      case Span::Kind::kFile:
        return &files;
      case Span::Kind::kOrdinary:
      case Span::Kind::kPrivate:
      case Span::Kind::kUnmapped:
        return nullptr;
    }
    return nullptr;
  }
};

}  // namespace

void Reclaimer::look_at(Span& span) {
  const auto mapping = host::shown_mapping_at(span.range.start());
  span.locked = 0;
  const bool was_unmapped = span.kind == Span::Kind::kUnmapped;
  span.kind = mapping ? kind_of(*mapping, span.range, &span.locked) : Span::Kind::kUnmapped;
  if (span.kind == Span::Kind::kOrdinary && mem::private_pages::are_bound(span.range)) {
    // Who else has the file may punch it, and would be told nothing of what is away.
    const bool alone = host::alone_with(mapping->device, mapping->inode) != 0;
    span.kind = alone ? Span::Kind::kPrivate : Span::Kind::kShared;
  } else if (span.kind == Span::Kind::kOrdinary && mapping->shared) {
    const bool alone = host::alone_with(mapping->device, mapping->inode) != 0;
    if (!alone) span.kind = Span::Kind::kOthers;
  }
  span.shared = mapping && mapping->shared;
  const bool whole = span.kind != Span::Kind::kUnmapped;
  const auto count =
      host::resident_pages(span.range, span.shared && whole, span.resident, span.huge);
  span.resident_count = count ? *count : 0;
  if (!count) std::fill_n(span.resident, span.words(), u64{0});
  if (!whole && !was_unmapped) unmapped_ += span.resident_count;
}

void Reclaimer::look() {
  const u64 begun = sync::now_ns();
  LeftAlone alone;
  look_.process = process_resident() - std::min(process_resident(), kept_bytes());
  u64 resident = 0;
  u64 fixed = 0;
  private_holes_ = 0;
  for_each_span([&](Span& span) {
    span.forget_stuck(begun);
    look_at(span);
    const u64 bytes = span.resident_count << kPageShift;
    if (u64* const figure = alone.figure_of(span.kind)) *figure += bytes;
    // Locked pages are there, and those of a part of a span stay as the whole of one does.
    if (span.can_leave()) alone.locked += std::min(span.locked, bytes);
    if (span.kind != Span::Kind::kHugetlb) resident += bytes;
    if (span.kind != Span::Kind::kHugetlb) fixed += span.can_leave() ? span.locked : bytes;
    if (span.kind == Span::Kind::kPrivate) private_holes_ += span.pages - span.resident_count;
  });
  look_.resident = resident;
  whole_.fixed = fixed;
  look_.at = sync::now_ns();
  look_.took = look_.at - begun;
  swapper_.set_resident(resident >> kPageShift);
  measure_limited();
  measure_due_ = false;
  const sync::MutexGuard guard(report_);
  shown_.hugetlb = alone.hugetlb;
  shown_.locked = alone.locked;
  shown_.private_shared = alone.private_shared;
  shown_.shared_with_others = alone.shared;
  shown_.private_files = alone.files;
}

u64 Reclaimer::kept_bytes() {
  return swapper_.store().memory_bytes() + swapper_.placed_bytes();
}

u64 Reclaimer::resident_now() {
  const u64 all = process_resident();
  const u64 now = all - std::min(all, kept_bytes());
  const u64 then = look_.process;
  if (now >= then) return look_.resident + (now - then);
  return look_.resident - std::min(look_.resident, then - now);
}

// A look is up to a millisecond late, and on a busy machine more: what the process stores in that
// time would be over the limit before anybody knows. So where guests may have more than it, and
// what is free is less than can come within a few turns, who touches memory for the first time
// waits for us (host/page_resolver.cc). Before, first touches are the kernel's, and may be of huge
// pages. The same for a guest with a limit of its own.
void Reclaimer::watch_growth(u64 now) {
  constexpr u64 kAgainNs = 100'000'000;  // who changes a mapping ends it there
  const u64 limit = limit_.load(sync::kRelaxed);
  u64 most = 0;
  for_each_span([&](Span& span) { most += span.range.size(); });
  const bool may_exceed = limit != kNoLimit && most > limit;
  const u64 margin = std::max(limit / 2, kMostBetweenTurns);
  // Before the first look all that the process has would be growth.
  if (may_exceed && look_.at == 0) look();
  all_grow_ = may_exceed && (all_grow_ || margin >= limit || usage() > limit - margin);
  note_growth_of_guests();
  u64 which = 0;
  for_each_span([&](Span& span) {
    if (!grows(span.range)) return;
    which = hash_u64(which ^ hash_u64(span.range.start().raw() ^ span.range.size())) | 1;
  });
  if (which == 0) {
    if (growth_of_ != 0) host::budget::watch_growth(nullptr, 0);
    growth_of_ = 0;
    return;
  }
  if (which == growth_of_ && now - growth_at_ < kAgainNs) return;
  Vec<HvaRange> ranges{"reclaim.growth"};
  bool all = true;
  for_each_span([&](Span& span) {
    const bool ours = mem::private_pages::are_bound(span.range);
    if (span.kind != Span::Kind::kOrdinary || ours || !grows(span.range)) return;
    all = all && ranges.push_back(span.range);
  });
  if (!all) return;  // the next turn
  host::budget::watch_growth(ranges.begin(), ranges.size());
  growth_of_ = which;
  growth_at_ = now;
}

namespace {

// The bits [first, end) that are set.
u64 count_bits(const u64* bits, u64 first, u64 end) {
  u64 count = 0;
  for (u64 i = first; i < end;) {
    const u64 left = std::min(64 - i % 64, end - i);
    const u64 word = bits[i / 64] >> (i % 64);
    count += static_cast<u64>(std::popcount(left == 64 ? word : word & ((u64{1} << left) - 1)));
    i += left;
  }
  return count;
}

}  // namespace

// Of the pages of the range: those in memory, and of guest_memfds those that are not.
Reclaimer::Parts Reclaimer::parts_of(HvaRange range) {
  Parts parts;
  for (Span* span = spans_.next(range.start());
       span != nullptr && span->range.start() < range.end();
       span = spans_.next(span->range.end())) {
    const Hva from = std::max(range.start(), span->range.start());
    const Hva to = std::min(range.end(), span->range.end());
    const u64 end = (to - span->range.start()) >> kPageShift;
    const u64 here = count_bits(span->resident, span->index_of(from), end);
    parts.resident += here;
    if (span->kind == Span::Kind::kHugetlb) {
      parts.hugetlb += here;
    } else {
      parts.fixed += span->can_leave() ? std::min(span->locked >> kPageShift, here) : here;
    }
    if (span->kind == Span::Kind::kPrivate)
      parts.private_holes += end - span->index_of(from) - here;
  }
  return parts;
}

void Reclaimer::measure_guests() {
  last_measure_ = sync::now_ns();
  const sync::MutexGuard guard(guests.lock);
  for (Guest* guest = guests.first; guest != nullptr; guest = guest->next_) {
    u64 resident = 0;
    guest->ranges_.for_each(
        [&](u32, const Guest::Range& used) { resident += parts_of(used.range).resident; });
    guest->resident_ = resident << kPageShift;
  }
}

}  // namespace stagetwo::reclaim
