// SPDX-License-Identifier: Apache-2.0
// Where the process sees the pages of shared objects. The views of an object are looked up whenever
// pages of it are to be taken, and are right for as long as one of its pages is absent:
//
//   taker                                  | who maps, unmaps or protects a view
//   lock; layout n; unlock                 |
//   asks the kernel for every mapping      | holds the part of the file: what is absent of it comes
//   lock; layout is n: they are noted      | back before the kernel can fill its hole with zeros
//   lock; layout is n: record (taking)     | mmap; lock; layout + 1; unlock; only then the client
//   (a page that is held: refused)         | has the address, and the hold ends
//   write-protects, copies, punches        | announced change: what would be absent without a view
//                                          | comes back, records in transit are waited
//                                          | for; layout + 1 at its end; its views are forgotten
//
// Either the taker sees the new layout and leaves the page, or the other one finds its record.
// Tried and rejected: noting views as mmap and munmap go by, which misses those made before the
// engine woke; asking the kernel at each bring-back, a system call for each mapping of the process.

#include <errno.h>

#include <algorithm>

#include "base/own_memory.h"
#include "base/sys.h"
#include "host/held_pages.h"
#include "host/memory_budget.h"
#include "host/owner_collect.h"
#include "host/process_map.h"
#include "host/shared_objects.h"

namespace stagetwo::host {
namespace {

// Sticky. Set before the views are looked up, so that who maps or reads later sees it.
constinit sync::Atomic<bool> any_taken{false};

HvaRange common(HvaRange a, HvaRange b) {
  const Hva start = std::max(a.start(), b.start());
  const Hva end = std::min(a.end(), b.end());
  return start < end ? HvaRange(start, end - start) : HvaRange(start, 0);
}

SharedView part_of(const SharedView& view, HvaRange part) {
  const u64 skipped = (part.start() - view.range.start()) >> kPageShift;
  return {part, view.object, view.first + skipped, view.prot, view.rights_known};
}

// The engine's own second mappings (PageTransit::put_through_alias(), pins) are none of them. One
// lasts as long as its copy, and then another thread's may stand there: hidden for a page of the
// first, the second one's copy would wait for the page it has in hand. A private mapping of the
// file would show the holes: EBUSY.
Result<void> find_views(u64 object, const Mapping& mapping, Vec<SharedView>* out) {
  for (Hva at{};;) {
    const u32 forgotten = own_memory_forgotten();
    const auto next = next_file_mapping(at, false);
    if (!next && to_int(next.error()) != EFAULT) return refuse(next.error());
    if (!next) return {};
    const Hva start = std::max(at, next->range.start());
    Hva end = next->range.end();
    const bool meant = next->device == mapping.device && next->inode == mapping.inode;
    const OwnMemory own = meant ? own_memory_in(start.raw(), end.raw()) : OwnMemory{};
    // It may have been ours when the kernel was asked.
    if (meant && own_memory_forgotten() != forgotten) continue;
    if (own.end != 0) end = Hva(own.start);
    if (meant && !next->shared && start < end) return refuse(EBUSY);
    const SharedView view{next->range, object, next->offset >> kPageShift, next->prot};
    if (meant && start < end) ST_TRY(out->push_back(part_of(view, HvaRange(start, end - start))));
    at = own.end != 0 ? Hva(own.end) : end;
  }
}

}  // namespace

bool shared_pages_taken() {
  return any_taken.load(sync::kRelaxed);
}

PageKey OwnerTable::key_at(Hva at) const {
  for (const SharedView& view : views_) {
    if (view.range.contains(at)) {
      return {view.object, view.first + ((at - view.range.start()) >> kPageShift)};
    }
  }
  return private_key(at);
}

// Pre: of a shared page, note_views(). More views than we can name are none: the page stays.
PageViews OwnerTable::views_at(PageKey key, const PageRecord& record) const {
  PageViews found;
  if (key.object == kPrivateMemory) {
    found.view[found.count++] = {record.at, record.prot};
    return found;
  }
  for (const SharedView& view : views_) {
    if (view.object != key.object || key.index < view.first) continue;
    const u64 offset = (key.index - view.first) << kPageShift;
    if (offset >= view.range.size() || is_leaving(view.range.start() + offset)) continue;
    if (found.count == kMaxViews) return {};
    found.view[found.count++] = {view.range.start() + offset, view.prot};
  }
  return found;
}

bool OwnerTable::within(PageKey key, Hva at, const Reach& reach) const {
  if (reach.object != kPrivateMemory) {
    return key.object == reach.object && reach.range.contains(Hva(key.index << kPageShift));
  }
  if (reach.range.contains(at)) return true;
  if (key.object == kPrivateMemory) return false;
  for (const SharedView& view : views_) {
    if (view.object != key.object || key.index < view.first) continue;
    const u64 offset = (key.index - view.first) << kPageShift;
    if (offset < view.range.size() && reach.range.contains(view.range.start() + offset)) {
      return true;
    }
  }
  return false;
}

// A view of pages that are hidden behind PROT_NONE has the rights that are noted, not those it
// shows.
void OwnerTable::keep_rights(Vec<SharedView>* views) const {
  for (SharedView& fresh : *views) {
    if (fresh.prot.read || fresh.prot.write) continue;
    for (const SharedView& old : views_) {
      const bool same = old.object == fresh.object && old.range.overlaps(fresh.range);
      if (same && old.rights_known) fresh.prot = old.prot;
    }
  }
}

// What was found is what stands only if no mapping changed meanwhile: a list from before a mapping
// was made, put in place of the one that names it, would have its touches taken for nobody's, and
// zeros for what is absent.
Result<u32> OwnerTable::note_views(u64 object, const Mapping& mapping) {
  constexpr unsigned kTries = 16;
  any_taken.store(true);
  for (unsigned tries = 0; tries < kTries; ++tries) {
    const u32 found_at = layout();
    Vec<SharedView> fresh{"host.shared_views"};
    ST_TRY(find_views(object, mapping, &fresh));
    // Of more than can be named nothing is taken. Those that are noted stay: what is absent comes
    // back through them.
    if (fresh.size() > kMaxViews) return refuse(EBUSY);
    const sync::MutexGuard guard(lock_);
    if (layout_ != found_at) continue;
    keep_rights(&fresh);
    ST_TRY(views_.reserve(2 * views_.size() + fresh.size()));
    for (size_t i = 0; i < views_.size();) {
      if (views_[i].object == object) {
        views_.swap_erase(i);
      } else {
        ++i;
      }
    }
    // Where the kernel shows this object, another one was unmapped behind our back.
    for (const SharedView& view : fresh) forget_views(view.range);
    for (const SharedView& view : fresh) static_cast<void>(views_.push_back(view));
    return found_at;
  }
  return refuse(EBUSY);
}

void OwnerTable::note_private(HvaRange range) {
  {
    const sync::MutexGuard guard(lock_);
    forget_views(range);
  }
  drop_unwatched(range);
}

unsigned OwnerTable::views_of(u64 object, SharedView* out, unsigned room) {
  const sync::MutexGuard guard(lock_);
  unsigned count = 0;
  for (const SharedView& view : views_) {
    if (view.object == object && count < room) out[count++] = view;
  }
  return count;
}

namespace {

// All views are watched, or none is relied on.
Result<Hiding> watch_views(OwnerTable& table, const SharedView* views, unsigned count) {
  Hiding hiding = Hiding::kUserfault;
  for (unsigned i = 0; i < count; ++i) {
    Mapping mapping;
    mapping.shared = mapping.file_backed = true;
    const Hiding here = ST_TRY(table.watch(views[i].range, views[i].object, mapping));
    if (here == Hiding::kProtection) hiding = here;
  }
  return hiding;
}

}  // namespace

// What is absent would be zeros there until the mapping is watched, so it comes back first, unless
// nobody can touch it yet (join_view()).
void OwnerTable::view_made(u64 object, HvaRange made, u64 offset) {
  {
    const sync::MutexGuard guard(lock_);
    ++layout_;
  }
  bring_back_for_view({object, HvaRange(Hva(offset), made.size())});
  if (counts().lost_now == 0) return;
  const Names names{object, (offset >> kPageShift) - (made.start().raw() >> kPageShift)};
  for (Hva at = made.start(); at < made.end(); at += kPageSize) {
    PageRecord record;
    if (!find(names.of(at), &record) || record.stage != PageStage::kLost) continue;
    // Lost in each of its views. A child of fork has what is mapped, and asks only those noted.
    PageTransit::make_bus_error(at);
  }
}

// ---- a view that joins the others -----------------------------------------------------------
//
//   who maps                               | taker
//   mmap without rights: nothing is filled |
//   lock; layout + 1; unlock               | looks for views: finds it, or the layout is another
//   notes all views, this one among them   | notes them, this one among them
//   watches each                           | watches each; lock; layout is n: record; unlock
//   waits for records in transit, whose    | a record from before goes its way without the view
//   views were found before                |
//   nothing is lost, or hidden behind      |
//   PROT_NONE: the rights (host::gain)     |
//
// Nobody touches it before the last step, and whoever does then finds what is there, or is
// reported.

// As a taker: a span in which nothing is absent any more is given up at the end. A fork would wait
// for us, and we would make its thread's mark void: what is mapped then brings back.
bool OwnerTable::begin_join(HvaRange made) {
  const sync::MutexGuard guard(lock_);
  if (forks_.any()) return false;
  // Who unmapped this address before forgets at its end what is noted there.
  for (const OwnedChange* change = changes_; change != nullptr; change = change->next_) {
    if (change->reach_.object == kPrivateMemory && change->reach_.range.overlaps(made))
      return false;
  }
  ++takers_;
  ++layout_;
  return true;
}

SharedView* OwnerTable::find_view(u64 object, HvaRange range) {
  for (SharedView& view : views_) {
    if (view.object == object && view.range == range) return &view;
  }
  return nullptr;
}

bool OwnerTable::note_joining(u64 object, const Mapping& made, Prot wanted) {
  if (!note_views(object, made)) return false;
  const sync::MutexGuard guard(lock_);
  // Not if the kernel has made it one with a mapping without rights beside it.
  SharedView* const view = find_view(object, made.range);
  if (view != nullptr) view->prot = wanted;
  return view != nullptr;
}

bool OwnerTable::is_joined(u64 object, HvaRange made) {
  const sync::MutexGuard guard(lock_);
  bool by_touches = true;
  pages_.for_each([&](const PageKey& key, const PageRecord& record) {
    const bool shows = record.hiding == Hiding::kUserfault && record.stage != PageStage::kLost;
    by_touches = by_touches && (key.object != object || shows);
  });
  return by_touches && find_view(object, made) != nullptr;
}

bool OwnerTable::join_view(u64 object, const Mapping& made, Prot wanted) {
  if (!begin_join(made.range)) return false;
  const auto all_watched = [&] {
    SharedView views[kMaxViews + 1];
    const unsigned count = views_of(object, views, kMaxViews + 1);
    const auto hiding =
        count <= kMaxViews ? watch_views(*this, views, count) : Result<Hiding>(refuse(EBUSY));
    return hiding && *hiding == Hiding::kUserfault;
  };
  const bool watched = note_joining(object, made, wanted) && all_watched();
  if (watched) await_transit_of(object);
  const bool joined = watched && is_joined(object, made.range);
  end_take();
  return joined;
}

// Those that are in transit now.
void OwnerTable::await_transit_of(u64 object) {
  constexpr u64 kWholeFile = u64{1} << 62;
  PageKey keys[kBatch];
  for (unsigned found = kBatch; found == kBatch;) {
    found =
        collect({object, HvaRange(Hva(0), kWholeFile)}, keys, kBatch,
                [](const PageKey&, const PageRecord& record) { return in_transit(record.stage); });
    for (unsigned i = 0; i < found; ++i) static_cast<void>(is_absent(keys[i]));
  }
}

bool OwnerTable::bring_back_for_view(const Reach& reach) {
  // Takers go on with what they are told of now. Of a page that comes back they keep off until all
  // have: with a guest larger than its limit some page would always be absent.
  HeldPages held;
  held.hold_object(reach.object, reach.range.start().raw(), reach.range.size());
  const budget::NoRoom none_is_made;
  bring_back_all(reach);
  PageKey left;
  return collect(reach, &left, 1, [](const PageKey&, const PageRecord& record) {
           return record.stage != PageStage::kLost;
         }) == 0;
}

// ---- a view that leaves the others ------------------------------------------------------------
//
// Of several mappings of a page one is unmapped while it is absent:
//
//   who unmaps                              | toucher by another view
//   lock; its change; unlock                | brings it back by any of the views
//   what no other view shows comes back     |
//   lock; the range is leaving; unlock      | from here on by the others alone: at this address may
//   waits for records in transit            | stand somebody else's memory soon
//   munmap                                  |
//   lock; its views are forgotten; unlock   |
//
// A view counts as another one only if no change is open that might take it: two that unmap the two
// views of a page both see to it. A page whose record names the address that goes comes back:
// its owner knows it by that.
bool OwnerTable::stays_elsewhere(PageKey key, const PageRecord& record,
                                 const OwnedChange& change) const {
  if (record.hiding != Hiding::kUserfault || change.reach_.range.contains(record.at)) return false;
  for (const PageView& view : views_at(key, record)) {
    bool stays = true;
    for (const OwnedChange* other = changes_; other != nullptr; other = other->next_) {
      const bool takes = other->what_ == Announced::kUnmaps || other->what_ == Announced::kMoves;
      const Reach& reach = other->reach_;
      if (takes && reach.object == kPrivateMemory && reach.range.contains(view.at)) stays = false;
    }
    if (stays) return true;
  }
  return false;
}

bool OwnerTable::is_leaving(Hva at) const {
  return std::any_of(leaving_.begin(), leaving_.end(),
                     [&](const OwnedChange* each) { return each->reach_.range.contains(at); });
}

// False: without memory for what has to be known of it, or to forget it then, everything comes
// back. Under one lock with the last look: what was seen to stay elsewhere does.
bool OwnerTable::begin_leaving(const OwnedChange& change) {
  if (change.what_ != Announced::kUnmaps || change.reach_.object != kPrivateMemory) return true;
  const sync::MutexGuard guard(lock_);
  bool any = false;
  bool all_stay = true;
  pages_.for_each([&](const PageKey& key, const PageRecord& record) {
    lock_.assert_held();
    if (key.object == kPrivateMemory || record.stage == PageStage::kLost) return;
    if (!within(key, record.at, change.reach_)) return;
    any = true;
    all_stay = all_stay && stays_elsewhere(key, record, change);
  });
  if (!any || !all_stay) return !any;
  return views_.reserve(2 * views_.size() + 1) && leaving_.push_back(&change);
}

// Of a call that failed nobody knows what it has unmapped: everything comes back by the other
// views. False: it does not, and the view is kept.
bool OwnerTable::settle_leaving(const OwnedChange& change) {
  {
    const sync::MutexGuard guard(lock_);
    const bool leaves = std::find(leaving_.begin(), leaving_.end(), &change) != leaving_.end();
    if (!leaves || (change.succeeded_ && views_.reserve(2 * views_.size() + 1))) return true;
  }
  return fetch_for(change, true);
}

void OwnerTable::end_leaving(const OwnedChange& change) {
  for (size_t i = 0; i < leaving_.size(); ++i) {
    if (leaving_[i] == &change) return leaving_.swap_erase(i);
  }
}

bool OwnerTable::bring_back_for_good(u64 object) {
  constexpr u64 kWholeFile = u64{1} << 62;
  const Reach all{object, HvaRange(Hva(0), kWholeFile)};
  {
    const sync::MutexGuard guard(lock_);
    ++layout_;
  }
  bring_back_for_view(all);
  PageKey left;
  return collect(all, &left, 1, [](const PageKey&, const PageRecord&) { return true; }) == 0;
}

// The pages that are absent there stay so, whatever the rights.
void OwnerTable::forget_rights(HvaRange range) {
  for (SharedView& view : views_) {
    if (view.range.overlaps(range)) view.rights_known = false;
  }
}

// Not in one go: takers and touches come in between.
u64 OwnerTable::next_page_of(u64 object, u64 first, u64 end, bool kept) {
  constexpr u64 kAtOnce = 4096;
  for (u64 index = first; index < end;) {
    const sync::MutexGuard guard(lock_);
    for (const u64 stop = std::min(end, index + kAtOnce); index < stop; ++index) {
      if ((pages_.find({object, index}) != nullptr) == kept) return index;
    }
  }
  return end;
}

u64 OwnerTable::kept_of(u64 object) {
  const sync::MutexGuard guard(lock_);
  for (const WatchedSpan& span : spans_) {
    if (span.object == object) return span.absent;
  }
  return 0;
}

// Nothing is absent there. Without memory for the second half of a view that is cut in two it stays
// whole: of the part that is gone no page is absent, and the next take looks again.
void OwnerTable::forget_views(HvaRange range) {
  for (size_t i = 0; i < views_.size();) {
    const SharedView old = views_[i];
    if (!old.range.overlaps(range) || !views_.reserve(views_.size() + 1)) {
      ++i;
      continue;
    }
    const HvaRange before(old.range.start(), common(old.range, range).start() - old.range.start());
    const Hva cut_end = common(old.range, range).end();
    const HvaRange after(cut_end, old.range.end() - cut_end);
    views_.swap_erase(i);
    if (!before.empty()) static_cast<void>(views_.push_back(part_of(old, before)));
    if (!after.empty()) static_cast<void>(views_.push_back(part_of(old, after)));
  }
}

// ---- taking ---------------------------------------------------------------------------------

namespace {

// Pages of a shared mapping, at most kMaxPageStates, with the same hiding in all views.
struct Chunk {
  HvaRange piece;
  u64 object;
  u64 first;  // the index of the first page
  bool writable;
  u32 layout;
  Hiding hiding;
};

u64 take_pages(OwnerTable& table, const Chunk& chunk, PageOwner* owner) {
  unsigned char cached[kMaxPageStates];
  PageRecord wanted[kMaxPageStates];
  unsigned count = 0;
  if (!sys::mincore(reinterpret_cast<void*>(chunk.piece.start().raw()), chunk.piece.size(),
                    cached)) {
    return 0;
  }
  for (u64 i = 0; i < chunk.piece.size() / kPageSize; ++i) {
    if ((cached[i] & 1) == 0) continue;  // a hole: nothing to take
    PageRecord& record = wanted[count++];
    record.owner = owner;
    record.at = chunk.piece.start() + i * kPageSize;
    record.hiding = chunk.hiding;
    record.writable = chunk.writable;
  }
  const Names names{chunk.object, chunk.first - (chunk.piece.start().raw() >> kPageShift)};
  Hva stopped;
  return take_records(table, names, wanted, count, chunk.layout, &stopped);
}

// The bell at every other address of the chunk's pages, then the pages.
u64 ring_and_take(OwnerTable& table, const Chunk& chunk, const SharedView* views, unsigned count,
                  PageOwner* owner, const void* cookie) {
  if (count == 0) return take_pages(table, chunk, owner);
  const SharedView& view = views[count - 1];
  const u64 pages = chunk.piece.size() / kPageSize;
  const u64 from = std::max(view.first, chunk.first);
  const u64 to = std::min(view.first + view.range.size() / kPageSize, chunk.first + pages);
  const auto go_on = [&] { return ring_and_take(table, chunk, views, count - 1, owner, cookie); };
  if (from >= to) return go_on();
  const HvaRange there(view.range.start() + (from - view.first) * kPageSize,
                       (to - from) * kPageSize);
  if (there == chunk.piece) return go_on();
  const InvalidateSection bell(InvalidateEvent{there, EventKind::kMigrate, cookie});
  return go_on();
}

}  // namespace

Result<u64> take_shared(OwnerTable& table, HvaRange piece, const Mapping& mapping,
                        const Taking& taking, const void* cookie) {
  const u64 object = alone_with(mapping.device, mapping.inode);
  if (object == 0) {
    table.count_refused_shared(piece.size() / kPageSize);
    return u64{0};
  }
  u64 taken = 0;
  for (Hva at = piece.start(); at < piece.end();) {
    const u64 bytes = std::min<u64>(piece.end() - at, kMaxPageStates * kPageSize);
    Chunk chunk;
    chunk.piece = HvaRange(at, bytes);
    chunk.object = object;
    chunk.first = (mapping.offset + (at - mapping.range.start())) >> kPageShift;
    chunk.writable = mapping.prot.write;
    const auto layout = table.note_views(object, mapping);
    if (!layout && to_int(layout.error()) != EBUSY) return refuse(layout.error());
    if (!layout) {
      table.count_refused_shared((piece.end() - at) / kPageSize);
      return taken;
    }
    chunk.layout = *layout;
    // After the layout: host/given_files.h.
    if (alone_with(mapping.device, mapping.inode) != object) {
      table.count_refused_shared((piece.end() - at) / kPageSize);
      return taken;
    }
    SharedView views[kMaxViews + 1];
    const unsigned count = table.views_of(object, views, kMaxViews + 1);
    if (count > kMaxViews) {
      table.count_refused_shared(bytes / kPageSize);
    } else if (const auto hiding = watch_views(table, views, count)) {
      if (taking.owner == nullptr) return u64{0};
      chunk.hiding = *hiding;
      if (taking.which == Which::kReclaim && *hiding != Hiding::kUserfault) {
        table.count_refused_watch(bytes / kPageSize);
      } else {
        taken += ring_and_take(table, chunk, views, count, taking.owner, cookie);
      }
    } else if (taking.owner != nullptr) {
      table.count_refused_change(bytes / kPageSize);
    }
    at += bytes;
  }
  return taken;
}

}  // namespace stagetwo::host
