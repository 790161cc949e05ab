// SPDX-License-Identifier: Apache-2.0
#include "host/page_owner.h"

#include <sys/mman.h>

#include <algorithm>

#include "base/kernel_numbers.h"
#include "base/own_memory.h"
#include "base/process_page.h"
#include "base/sys.h"
#include "host/blocked_faults.h"
#include "host/change.h"
#include "host/footing.h"
#include "host/held_pages.h"
#include "host/kernel_io.h"
#include "host/memory_budget.h"
#include "host/owner_collect.h"
#include "host/process_map.h"
#include "host/shared_objects.h"
#include "host/userfault.h"

namespace stagetwo::host {
namespace {

struct Owned {
  OwnerTable table;
  u32 stamp;
  explicit Owned(u32 of) : stamp(of) {}
};

// Made at the first take-away, never destroyed. Stored and loaded seq_cst: a change either sees it
// or is waited for, as with the roster of mmu_notifier.cc.
constinit sync::Atomic<Owned*> the_table{nullptr};

Result<OwnerTable*> make_table() {
  if (OwnerTable* table = owner_table()) return table;
  Owned* fresh = ST_TRY(make<Owned>("host.owner_table", process_stamp()));
  Owned* seen = nullptr;
  if (!the_table.compare_exchange(seen, fresh)) destroy(fresh);
  // Changes that began without it are over.
  wait_for_changes();
  return owner_table();
}

// Pages a client watches itself are its own business: it may never answer a touch of ours.
bool may_hide(Which which, Hiding hiding) {
  return which != Which::kReclaim || hiding == Hiding::kUserfault;
}

HvaRange part_of(HvaRange span, const Mapping& mapping) {
  const Hva start = std::max(span.start(), mapping.range.start());
  const Hva end = std::min(span.end(), mapping.range.end());
  return HvaRange(start, end - start);
}

bool wants(Which which, const Mapping& mapping, const PageState& page) {
  const bool swapped = page.swapped && which != Which::kReclaim;  // it costs no memory as it is
  const bool there = swapped || (page.present && page.anonymous && !page.zero);
  return there || (which == Which::kAnonymous && !mapping.file_backed && !page.present) ||
         (which == Which::kAnonymous && page.zero && !mapping.file_backed);
}

// How often a page is looked at whose mappings change all the time, before it stays.
constexpr unsigned kMostLooks = 16;

// A part of a huge page that is pinned cannot be moved, and Linux 6.12 tries for ever: it asks the
// page to be split until somebody lets go.
bool any_huge(const PageState* states, unsigned count) {
  return std::any_of(states, states + count, [](const PageState& state) { return state.huge; });
}

// Touches of the piece are seen from now on, as *hiding says. False: they are not, or the pages are
// not to be taken. Failure: EBUSY, somebody stands there since the piece was cut.
Result<bool> watch_private(OwnerTable& table, HvaRange piece, const Taking& taking,
                           const Mapping& mapping, Hiding* hiding) {
  const HvaRange watched = footings().clear_around(piece, part_of(taking.span, mapping));
  // Each time anew: memory that was mapped behind our back is registered with nobody.
  auto way = table.watch(watched, kPrivateMemory, mapping);
  const auto fails_with = [&](int error) { return !way && to_int(way.error()) == error; };
  if (fails_with(EAGAIN) && watched != piece) way = table.watch(piece, kPrivateMemory, mapping);
  if (fails_with(ENOMEM) || fails_with(EBUSY)) return refuse(to_int(way.error()));
  if (!way && taking.owner != nullptr) table.count_refused_change(piece.size() / kPageSize);
  if (!way) return false;
  *hiding = *way;
  if (may_hide(taking.which, *way)) return true;
  table.count_refused_watch(piece.size() / kPageSize);
  return false;
}

// budget::watch_growth(): of what is watched nothing is to be found out.
void report_first_touches(OwnerTable& table, HvaRange piece, const Taking& taking,
                          const Mapping& mapping) {
  if (mapping.file_backed || userfault::is_watched(piece.start())) return;
  table.note_private(piece);
  Hiding hiding{};
  static_cast<void>(watch_private(table, piece, taking, mapping, &hiding));
}

// What userfault::bind() does, where userfaultfd is denied: for a mapping nobody has written to.
void bind_by_store(Hva untouched, const Mapping& mapping) {
  if (!mapping.prot.write || mapping.file_backed) return;
  void* const page = reinterpret_cast<void*>(untouched.raw());
  static_cast<void>(sys::madvise(page, kPageSize, MADV_POPULATE_WRITE));
}

// Its pages without memory, where touches are reported. *reached as below.
u64 take_missing(OwnerTable& table, HvaRange piece, const Taking& taking, const Mapping& mapping,
                 u32 layout, Hva* reached) {
  u64 taken = 0;
  if (mapping.file_backed) return taken;
  PageRecord like;
  like.owner = taking.owner;
  like.prot = mapping.prot;
  like.writable = mapping.prot.write;
  const auto stays = [](Hva page) { return is_own_data(page) || is_library_data(page); };
  for (Hva at = piece.start(); at < piece.end();) {
    const Hva most = std::min(piece.end(), at + kMostMissing * kPageSize);
    Hva end = at;
    while (end < most && !stays(end)) end += kPageSize;
    if (end > at && !table.take_missing(HvaRange(at, end - at), like, layout, &taken)) {
      *reached = at;
      return taken;
    }
    at = end < most ? end + kPageSize : end;
  }
  return taken;
}

// The pages of one private mapping, looked up under `layout`; *reached is where it was no longer
// that one. A page that was mapped anew since is watched by nobody, and may have lost its rights.
Result<u64> take_private(OwnerTable& table, HvaRange piece, const Taking& taking,
                         const Mapping& mapping, u32 layout, Hva* reached) {
  *reached = piece.end();
  table.note_private(piece);
  Hiding hiding{};
  const auto watched = watch_private(table, piece, taking, mapping, &hiding);
  if (!watched && to_int(watched.error()) == EBUSY) {
    *reached = piece.start();
    return u64{0};
  }
  if (!ST_TRY(watched)) return u64{0};
  const bool behind_protection = hiding == Hiding::kProtection;
  if (behind_protection && !may_hide_pages()) return u64{0};
  const bool kernel_waits = !behind_protection && userfault::serves_kernel();
  if (!kernel_waits) note_thread_data();
  if (taking.which == Which::kMissing) {
    return kernel_waits ? take_missing(table, piece, taking, mapping, layout, reached) : 0;
  }
  u64 taken = 0;
  bool bound = false;
  PageState states[kMaxPageStates];
  PageRecord wanted[kMaxPageStates];
  for (Hva at = piece.start(); at < piece.end();) {
    const u64 left = (piece.end() - at) / kPageSize;
    const unsigned count = static_cast<unsigned>(std::min<u64>(left, kMaxPageStates));
    ST_TRY(page_states(at, count, states));
    unsigned records = 0;
    const bool unmovable = any_huge(states, count) && kernel_pins_memory();
    for (unsigned i = 0; i < count; ++i, at += kPageSize) {
      if (!wants(taking.which, mapping, states[i])) continue;
      if (states[i].huge && unmovable) {
        table.count_refused_pinned();
        continue;
      }
      // What the client's own userfaultfd protects could not be put back as it was.
      if (behind_protection && states[i].guarded) continue;
      // And what it is to fill is the client's to bring. (migrate_vma_insert_page(), kernel file:
      // mm/migrate_device.c.)
      const bool missing = !states[i].present && !states[i].swapped;
      if (behind_protection && missing && userfault::client_watches(at)) continue;
      if (is_own_data(at) || is_library_data(at) || (!kernel_waits && is_stack(at))) continue;
      PageRecord& record = wanted[records++];
      record = {};
      record.owner = taking.owner;
      record.at = at;
      record.hiding = hiding;
      record.prot = mapping.prot;
      const bool none = !states[i].present || states[i].zero;
      if (behind_protection && none && !bound) bind_by_store(at, mapping);
      bound = true;
      record.writable = none ? mapping.prot.write : states[i].writable(mapping);
    }
    Hva stopped = piece.end();
    taken += take_records(table, {}, wanted, records, layout, &stopped);
    if (stopped < piece.end()) {
      *reached = stopped;
      return taken;
    }
  }
  return taken;
}

Result<u64> take_range(OwnerTable& table, HvaRange range, const Taking& taking,
                       const void* cookie) {
  u64 taken = 0;
  unsigned looks = 0;
  for (Hva at = range.start(); at < range.end();) {
    const u32 layout = table.layout();
    const auto mapping = mapping_at(at);
    if (!mapping || !mapping->prot.read || mapping->page_size != kPageSize) return refuse(EINVAL);
    Hva end = std::min(range.end(), mapping->range.end());
    // As the kernel refuses what a driver has mapped for itself.
    const OwnMemory own = own_memory_in(at.raw(), end.raw());
    if (own.start == at.raw()) return refuse(EINVAL);
    if (own.end != 0) end = Hva(own.start);
    const HvaRange stack = own_stack_in(HvaRange(at, end - at));
    if (!stack.empty() && stack.start() == at) {
      at = stack.end();
      continue;
    }
    if (!stack.empty()) end = stack.start();
    // Nor what other threads stand on, and what is watched ends there.
    const HvaRange stood = footings().first_in(HvaRange(at, end - at));
    if (!stood.empty() && stood.start() == at) {
      table.count_refused_held(stood.size() / kPageSize);
      at = stood.end();
      continue;
    }
    if (!stood.empty()) end = stood.start();
    const HvaRange piece(at, end - at);
    Hva reached = end;
    if (!mapping->shared && taking.owner == nullptr) {
      report_first_touches(table, piece, taking, *mapping);
    } else if (!mapping->shared) {
      taken += ST_TRY(take_private(table, piece, taking, *mapping, layout, &reached));
    } else if (taking.which == Which::kAll || taking.which == Which::kReclaim) {
      taken += ST_TRY(take_shared(table, piece, *mapping, taking, cookie));
    }
    looks = reached == at ? looks + 1 : 0;
    if (looks == kMostLooks) table.count_refused_change(1);
    at = looks == kMostLooks ? at + kPageSize : reached;
    looks %= kMostLooks;
  }
  return taken;
}

}  // namespace

OwnerTable* owner_table() {
  Owned* owned = the_table.load();
  return owned != nullptr && owned->stamp == process_stamp() ? &owned->table : nullptr;
}

bool owners_active() {
  return the_table.load(sync::kRelaxed) != nullptr;
}

void prepare_places(HvaRange range) {
  static_cast<void>(
      sys::madvise(reinterpret_cast<void*>(range.start().raw()), range.size(), MADV_DONTFORK));
  // Without it pages are copied there instead of moved.
  if (userfault::open()) static_cast<void>(userfault::watch_protection(range));
}

void expect_takes() {
  if (make_table()) copies_may_come();
}

Result<u64> take_away(HvaRange range, PageOwner* owner, const void* cookie, Which which,
                      const HvaRange* span) {
  OwnerTable* table = ST_TRY(make_table());
  table->begin_take();
  const Result<u64> taken = [&] {
    const EventKind kind = which == Which::kPresent ? EventKind::kExclusive : EventKind::kMigrate;
    const InvalidateSection bell(InvalidateEvent{range, kind, cookie});
    return take_range(*table, range, {owner, which, span == nullptr ? range : *span}, cookie);
  }();
  table->end_take();
  return taken;
}

// As a taker that has no owner for what it finds, and takes nothing.
void budget::watch_growth(const HvaRange* ranges, size_t count) {
  OwnerTable* table = owner_table();
  if (table == nullptr || (count != 0 && !userfault::serves_kernel())) return;
  table->begin_take();
  for (size_t i = 0; i < count; ++i) {
    const Taking nothing{nullptr, Which::kReclaim, ranges[i]};
    static_cast<void>(take_range(*table, ranges[i], nothing, nullptr));
  }
  table->keep_watching(ranges, count);
  table->end_take();
}

BringBack bring_back(Hva at) {
  if (!owners_active()) [[likely]]
    return BringBack::kNotAbsent;
  OwnerTable* table = owner_table();
  return table == nullptr ? BringBack::kNotAbsent : table->bring_back(at);
}

bool fill_first_touch(Hva at, Access access) {
  OwnerTable* table = owners_active() ? owner_table() : nullptr;
  return table != nullptr && table->fill_first(at, access);
}

u64 bring_back_range(HvaRange range) {
  OwnerTable* table = owners_active() ? owner_table() : nullptr;
  return table == nullptr ? 0 : table->bring_back_all({kPrivateMemory, range});
}

bool leave_hole(Hva at, const PageOwner* owner) {
  OwnerTable* table = owners_active() ? owner_table() : nullptr;
  return table != nullptr && table->leave_hole(at, owner);
}

u64 bring_back_ahead(HvaRange range) {
  OwnerTable* table = owners_active() ? owner_table() : nullptr;
  return table == nullptr ? 0 : table->bring_back_ahead(range);
}

bool is_absent(Hva at) {
  OwnerTable* table = owners_active() ? owner_table() : nullptr;
  return table != nullptr && table->is_absent(table->key_of(at));
}

bool has_absent_pages(HvaRange range) {
  OwnerTable* table = owners_active() ? owner_table() : nullptr;
  return table != nullptr && table->has_private(range);
}

u64 pages_with_devices(HvaRange range) {
  OwnerTable* table = owners_active() ? owner_table() : nullptr;
  if (table == nullptr) return 0;
  u64 with_devices = 0;
  const u64 first = range.start().raw() >> kPageShift;
  table->collect({kPrivateMemory, range}, nullptr, 1,
                 [&](const PageKey& key, const PageRecord& record) {
                   const bool is_private = key.object == kPrivateMemory;
                   const bool has = !record.in_place() && record.stage != PageStage::kLost;
                   if (is_private && has && !record.owner->is_swap() && key.index - first < 64)
                     with_devices |= u64{1} << (key.index - first);
                   return false;
                 });
  return with_devices;
}

bool hidden_rights(Hva at, HvaRange* range, Prot* prot) {
  if (!owners_active() || owner_table() == nullptr) return false;
  if (!owner_table()->find_hidden(at, prot)) return false;
  *range = page_at(at);
  return true;
}

OwnerCounts owner_counts() {
  OwnerTable* table = owners_active() ? owner_table() : nullptr;
  return table == nullptr ? OwnerCounts{} : table->counts();
}

void owners_see_mapping(HvaRange made) {
  if (the_table.load() == nullptr) [[likely]]
    return;
  OwnerTable* table = owner_table();
  if (table == nullptr) return;
  table->join_watched(made, true);
  for (HvaRange left = made; !left.empty();) {
    const auto mapping = next_file_mapping(left.start(), false);
    if (!mapping || mapping->range.start() >= left.end()) return;
    const HvaRange part = part_of(left, *mapping);
    const u64 object = object_behind(mapping->device, mapping->inode);
    const u64 offset = mapping->offset + (part.start() - mapping->range.start());
    if (object != 0) table->view_made(object, part, offset);
    left = HvaRange(part.end(), left.end() - part.end());
  }
}

bool owners_join_mapping(HvaRange made, Prot wanted) {
  OwnerTable* table = owners_active() ? owner_table() : nullptr;
  const auto shown =
      table == nullptr ? Result<Mapping>(refuse(EINVAL)) : shown_mapping_at(made.start());
  // Locked from the beginning (mlockall(MCL_FUTURE)) it is to be filled.
  if (!shown || shown->range != made || !shown->shared || is_locked(made)) return false;
  const u64 object = object_behind(shown->device, shown->inode);
  return object != 0 && table->join_view(object, *shown, wanted);
}

u64 next_page_of(u64 object, u64 first, u64 end, bool kept) {
  OwnerTable* table = owners_active() ? owner_table() : nullptr;
  if (table == nullptr) return kept ? end : first;
  return table->next_page_of(object, first, end, kept);
}

u64 kept_pages_of(u64 object) {
  OwnerTable* table = owners_active() ? owner_table() : nullptr;
  return table == nullptr ? 0 : table->kept_of(object);
}

bool kernel_meets_hidden_pages() {
  if (!owners_active()) [[likely]]
    return false;
  const OwnerTable* table = owner_table();
  return table != nullptr && (table->ever_protected() || !userfault::serves_kernel());
}

u64 owners_turn() {
  OwnerTable* table = owners_active() ? owner_table() : nullptr;
  return table == nullptr ? 0 : table->turn();
}

bool resolve_signal(Hva at, Access access) {
  OwnerTable* table = owners_active() ? owner_table() : nullptr;
  if (table == nullptr || !table->ever_protected()) return false;
  const BringBack outcome = table->bring_back(at);
  if (outcome == BringBack::kLost || outcome == BringBack::kStuck) {
    // What the kernel shows now: a bus error, or the same fault for ever.
    const auto shown = shown_mapping_at(page_floor(at));
    return shown && shown->prot.allows(access);
  }
  if (outcome != BringBack::kNotAbsent) return true;
  // Another thread may have brought it back between the fault and this line.
  const auto mapping = mapping_at(page_floor(at));
  return mapping && mapping->prot.allows(access);
}

void free_absent_pages(HvaRange range) {
  OwnerTable* table = owners_active() ? owner_table() : nullptr;
  if (table != nullptr) table->free_swapped(range);
}

OwnedChange::OwnedChange(const Reach& reach, Announced what) : reach_(reach), what_(what) {
  if (the_table.load() == nullptr) [[likely]]
    return;
  OwnerTable* table = owner_table();
  if (table != nullptr) table->open_change(this);
}

OwnedChange::~OwnedChange() {
  if (open_) owner_table()->close_change(this);
}

void owners_before_fork() {
  shared_objects_fork_turn();
  if (OwnerTable* table = owner_table()) table->before_fork();
}
void owners_after_fork_parent() {
  if (OwnerTable* table = owner_table()) table->after_fork_parent();
  shared_objects_fork_turn();
}
void owners_after_fork_child() {
  // The parent's arena is not ours to give back to, but what it says is still to be read.
  Owned* parents = the_table.load();
  the_table.store(nullptr);
  if (parents != nullptr) parents->table.lose_in_child();
  shared_objects_after_fork_child();
}

}  // namespace stagetwo::host
