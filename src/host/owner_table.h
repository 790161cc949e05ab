// SPDX-License-Identifier: Apache-2.0
#pragma once

// The records behind host/page_owner.h (host/owner_records.h). Who ends a state that others wait in
// raises `turn_` under the lock, and wakes the page's touchers in the kernel after unlocking.

#include "base/hash_map.h"
#include "base/vec.h"
#include "host/footing.h"
#include "host/fork_marks.h"
#include "host/owned_change.h"
#include "host/owner_records.h"
#include "host/page_transit.h"
#include "host/userfault.h"
#include "sync/futex.h"
#include "sync/mutex.h"

namespace stagetwo::host {

class OwnerTable final : public TransitWatcher {
 public:
  explicit OwnerTable(Footings& footings = host::footings()) : footings_(footings) {}

  // A taker between these keeps fork out.
  void begin_take();
  void end_take();
  // Pre: between begin_take and end_take; watch() said `hiding`; `layout` is from before the
  // mapping was looked up, of a shared page what note_views() answered. False: the page stays.
  bool take(PageKey key, const PageRecord& fresh, u32 layout = kAnyLayout);
  // Raised by every change of mappings: what was looked up before it may be otherwise now.
  static constexpr u32 kAnyLayout = ~u32{0};
  [[nodiscard]] u32 layout();
  // The same for neighbours whose touches are reported; how many were taken, the first ones.
  unsigned take_run(PageKey first, const PageRecord* fresh, unsigned pages, u32 layout);
  // The same for pages without memory, at most kMostMissing, by themselves: they are not moved, and
  // the owner is not asked. Adds to *taken how many. False: the layout is another.
  bool take_missing(HvaRange pages, const PageRecord& like, u32 layout, u64* taken);
  // All its mappings; answers their layout. Failure: ENOMEM; EBUSY, one is private, or they change.
  [[nodiscard]] Result<u32> note_views(u64 object, const Mapping& mapping);
  // The kernel shows private memory there: what was unmapped behind our back is forgotten.
  void note_private(HvaRange range);
  unsigned views_of(u64 object, SharedView* out, unsigned room);
  // A part of it at `made`, from byte `offset` of the object on: nobody has its address yet.
  void view_made(u64 object, HvaRange made, u64 offset);
  // One more view, all of its mapping and with no rights yet, is noted and watched as the others;
  // it is to have the rights `wanted`. False: what is absent has to come back instead.
  [[nodiscard]] bool join_view(u64 object, const Mapping& made, Prot wanted);
  // What is absent of it is not to be taken again at once. False: some of it stays absent.
  bool bring_back_for_view(const Reach& reach);
  // Pre: marked (host/given_files.h). False: some of it is lost, or does not come.
  [[nodiscard]] bool bring_back_for_good(u64 object);
  // May pages of the span, one mapping's, be hidden, and how? Post: touches are reported, until
  // nothing of it is absent or taken. EAGAIN: under a change; EBUSY: somebody stands on it.
  [[nodiscard]] Result<Hiding> watch(HvaRange span, u64 object, const Mapping& mapping);
  void keep_watching(const HvaRange* ranges, size_t count);  // and no others with nothing absent
  bool fill_first(Hva at, Access access);
  u64 fill_holes(HvaRange range);  // that are watched, with zeros; how many
  // What write-protection has left in the page tables where pages of shared memory went. Pre: under
  // a change.
  void clear_marks(HvaRange range);
  void join_watched(HvaRange range, bool fresh);
  bool sides_differ(HvaRange range, bool fresh);

  BringBack bring_back(PageKey key, bool unasked = false);  // with its stuck neighbours
  BringBack bring_back(Hva at);
  u64 bring_back_all(const Reach& reach);       // an owner is asked kMostAsks times
  u64 bring_back_ahead(HvaRange range);         // neighbours nobody has in hand; waits for nobody
  bool resolve(const userfault::Touch& touch);  // userfaultfd's; waits for no thread. Memory grew?
  void free_swapped(HvaRange range);
  bool leave_hole(Hva at, const PageOwner* owner);
  void open_change(OwnedChange* change);
  void close_change(OwnedChange* change);
  void before_fork();
  void after_fork_parent();
  // In the child, on the parent's records: what could not be brought back is lost there.
  void lose_in_child();
  [[nodiscard]] OwnerCounts counts();
  void count_refused_shared(u64 pages);
  void count_refused_pinned();
  void count_refused_held(u64 pages);
  void count_refused_watch(u64 pages);
  void count_refused_change(u64 pages);
  // 0: no memory for the record. The caller then brings back what is absent. `object` is where it
  // stands, `frame` the lowest frame of the thread that is in use.
  [[nodiscard]] u64 hold(const Reach& reach, u64 object, u64 frame);
  void release_hold(u64 id);
  void hold_to_the_end(const HvaRange* ranges, unsigned count);  // drops those of who is gone

  // The records of `reach`, at most `room`; answers how many. `wanted(key, record)` under the lock.
  template <typename F>
  unsigned collect(const Reach& reach, PageKey* out, unsigned room, F&& wanted);
  bool find(PageKey key, PageRecord* out);
  // The record of the page at `at`, and the rights of the client there.
  bool find_hidden(Hva at, Prot* prot);
  bool has_private(HvaRange range);     // any record of private memory
  u64 pages_of_owners(HvaRange range);  // whose touch comes to us, a bit each, of at most 64
  bool is_absent(PageKey key);          // waits for a page in transit
  [[nodiscard]] u64 next_page_of(u64 object, u64 first, u64 end, bool kept);
  [[nodiscard]] u64 kept_of(u64 object);
  [[nodiscard]] PageKey key_of(Hva at);
  [[nodiscard]] u32 turn() const { return turn_.load(sync::kAcquire); }
  [[nodiscard]] bool ever_protected() const { return ever_protected_.load(sync::kRelaxed); }
  void reading(PageKey first, unsigned pages, bool on) override;

 private:
  bool drop_if_stale(PageKey key, const PageJob& job);
  [[nodiscard]] bool begin_join(HvaRange made);
  [[nodiscard]] bool note_joining(u64 object, const Mapping& made, Prot wanted);
  [[nodiscard]] bool is_joined(u64 object, HvaRange made);
  void await_transit_of(u64 object);
  bool enter(PageKey key, u32 layout, PageJob* job);
  BringBack bring_back_one(PageKey& key, const Hva* at = nullptr, bool unasked = false);
  [[nodiscard]] unsigned keys_ahead(HvaRange range, PageKey* keys);
  bool fill_if_absent(PageKey key);
  BringBack show_run(PageKey key);
  void mark_in_place(Hva at, const HvaRange& mapping, HvaRange* run) TA_REQ(lock_);
  bool fell_away(PageKey key, const PageJob& lost);
  unsigned bring_back_run(const PageKey* keys, unsigned count);
  u64 bring_back_keys(PageKey* keys, unsigned count, unsigned* asks, bool unasked = false);
  BringBack fill(PageKey key, const PageJob& job, bool unasked = false);
  [[nodiscard]] bool finish(PageKey key, BringBack outcome, bool in_place);
  enum class Refusal : u8 { kNone, kChange, kHeld };
  Refusal refusal(PageKey key, const PageViews& views) TA_REQ(lock_);
  bool refuses(PageKey key, const PageViews& views) TA_REQ(lock_);
  bool is_held(PageKey key, const PageViews& views) TA_REQ(lock_);
  [[nodiscard]] bool stands_on(const PageViews& views) const;
  [[nodiscard]] PageKey key_at(Hva at) const TA_REQ(lock_);
  PageViews views_at(PageKey key, const PageRecord& record) const TA_REQ(lock_);
  // Of so many neighbours the first ones that stand side by side wherever the first one is seen.
  [[nodiscard]] unsigned side_by_side(PageKey first, unsigned pages) const TA_REQ(lock_);
  [[nodiscard]] bool within(PageKey key, Hva at, const Reach& reach) const TA_REQ(lock_);
  void forget_views(HvaRange range) TA_REQ(lock_);
  void forget_rights(HvaRange range) TA_REQ(lock_);
  void keep_rights(Vec<SharedView>* views) const TA_REQ(lock_);
  [[nodiscard]] SharedView* find_view(u64 object, HvaRange range) TA_REQ(lock_);
  void drop_left_holds(int thread, u64 object, u64 frame) TA_REQ(lock_);
  void turn_over() TA_REQ(lock_);
  [[nodiscard]] u32 await_turn() TA_REQ(lock_);
  void wait_turn(u32 seen, u64 at_most_ns = sync::kNoTimeout);
  void drop_unwatched(HvaRange piece);
  void discard_each(const PageKey* keys, unsigned count);
  // A page began or ceased to be absent. Its record is in the table, or was.
  void count_in_spans(PageKey key, Hva at, bool absent) TA_REQ(lock_);
  void forget_spans() TA_REQ(lock_);
  [[nodiscard]] Mark mark_of(Hva at) TA_REQ(lock_);
  [[nodiscard]] bool stop_watching(HvaRange range);
  bool cut_spans(HvaRange range, bool forget) TA_REQ(lock_);
  [[nodiscard]] u64 absent_in(HvaRange range, u64 object) TA_REQ(lock_);
  [[nodiscard]] bool insert(PageKey key, const PageRecord& record) TA_REQ(lock_);
  void erase(PageKey key) TA_REQ(lock_);
  PageTransit transit_of(PageKey key, const PageJob& job);
  bool settle_for(OwnedChange& change, u32* seen);
  [[nodiscard]] bool fetch_for(const OwnedChange& change, bool all);
  [[nodiscard]] bool stays_elsewhere(PageKey key, const PageRecord& record,
                                     const OwnedChange& change) const TA_REQ(lock_);
  [[nodiscard]] bool is_leaving(Hva at) const TA_REQ(lock_);
  [[nodiscard]] bool begin_leaving(const OwnedChange& change);
  [[nodiscard]] bool settle_leaving(const OwnedChange& change);
  void end_leaving(const OwnedChange& change) TA_REQ(lock_);
  void settle_closing(const OwnedChange& change);
  bool closes_too(PageKey key, Hva at) const TA_REQ(lock_);
  void settle_page(const OwnedChange& change, PageKey key, const PageJob& job);
  void wake(const Reach& reach);

  Footings& footings_;
  sync::Mutex lock_{sync::Rank::kOwners};
  HashMap<PageKey, PageRecord> pages_ TA_GUARDED(lock_){"host.absent_pages"};
  Vec<WatchedSpan> spans_ TA_GUARDED(lock_){"host.watched_spans"};
  Vec<SharedView> views_ TA_GUARDED(lock_){"host.shared_views"};
  // Open changes that unmap views of absent pages, which are not put there any more.
  Vec<const OwnedChange*> leaving_ TA_GUARDED(lock_){"host.shared_views"};
  // Raised with whatever may have changed the views since they were looked up.
  u32 layout_ TA_GUARDED(lock_) = 0;
  OwnedChange* changes_ TA_GUARDED(lock_) = nullptr;
  Vec<Hold> holds_ TA_GUARDED(lock_){"host.held_pages"};
  u64 last_hold_ TA_GUARDED(lock_) = 0;
  u32 takers_ TA_GUARDED(lock_) = 0;
  ForkMarks forks_;
  OwnerCounts counts_ TA_GUARDED(lock_);
  // Raised under the lock; sleepers read it there and sleep on it (futex).
  sync::Atomic<u32> turn_{0};
  bool awaited_ TA_GUARDED(lock_) = false;
  // Sticky: hidden pages may meet the signal handler.
  sync::Atomic<bool> ever_protected_{false};
};

// The one of this process, or null.
[[nodiscard]] OwnerTable* owner_table();
// The pages of one shared mapping (host/shared_views.cc). Pre: between begin_take and end_take.
[[nodiscard]] Result<u64> take_shared(OwnerTable& table, HvaRange piece, const Mapping& mapping,
                                      const Taking& taking, const void* cookie);
// Starts the thread that answers touches. Idempotent. Failure: EAGAIN, ENOMEM.
[[nodiscard]] Result<void> start_resolver();

// In runs of neighbours with the same rights, and singly what does not go so. *stopped is the first
// one that another layout kept from being taken. Pre: as OwnerTable::take().
u64 take_records(OwnerTable& table, const Names& names, const PageRecord* records, unsigned count,
                 u32 layout, Hva* stopped);

}  // namespace stagetwo::host
