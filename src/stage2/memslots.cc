// SPDX-License-Identifier: Apache-2.0
#include "stage2/memslots.h"

#include <algorithm>

#include "base/check.h"
#include "base/guard.h"
#include "base/trace.h"
#include "host/access.h"
#include "host/mmu_notifier.h"
#include "stage2/file_pages.h"

// An update in five phases, each visible in set_region():
//
//   check      the lines of the check order, first failure decides; nothing is touched
//   prepare    everything that may want memory: slots, bitmap, the tree sets of each step
//   commit     publications, flush, acknowledgement; cannot fail
//   record     the id table and the counts
//   release    what the old sets held, once no reader is left
//
// What commit publishes:
//
//   CREATE   hva tree with the slot | wait for changes | gfn tree with the slot
//            A change that began before the first store may not have known the slot; it is over
//            before a fault can find it. One that began later rings for it.
//   DELETE   the slot as INVALID | close its hvas and its file's, zap, flush, wait
//            | the set without it | open
//   MOVE     the same, and the slot at its new place
//   FLAGS    close its hvas | the slot with its new flags | protect or widen, flush, wait | open
//
// Before the first publication the generation says "in progress", after the last it is the next
// number: an answer "no slot" that was cached under a number never outlives the set it came from.
//
//   vCPU, fault                             | DELETE
//   snapshot s                              |
//   finds the slot                          |
//                                           | publishes INVALID, closes the hvas (sequence rises at
//                                           | open), waits for lines and read sections
//   enters, install: closed, or s is old    |
//   -> retry                                | publishes the set without the slot
//   finds INVALID -> retry, or no slot: MMIO| opens
//
// The hva tree leads to the same slots, one node each, so that a change of an address finds every
// frame that uses it. Until MOVE's second set it leads to the old frames: those may still be
// mapped.

namespace stagetwo::stage2 {

struct Memslots::Plan {
  ChangeKind kind = ChangeKind::kNone;
  u32 id = 0;
  Slot* old = nullptr;            // what is there
  Slot* fresh = nullptr;          // what will be there
  Slot* invalid = nullptr;        // what is there meanwhile
  DirtyBitmap* bitmap = nullptr;  // made for `fresh`, not yet shared
  SlotTreeBuilder* builder = nullptr;
  const SlotSet* first = nullptr;
  const SlotSet* second = nullptr;
  bool bound = false;
};

Memslots::Memslots(SlotUpdateHost* host, const SlotPolicy& policy)
    : host_(host), slots_lock_(sync::Rank::kSlots), policy_(policy) {}

Result<void> Memslots::init() {
  const sync::MutexGuard guard(slots_lock_);
  const size_t bytes = kMaxAddressSpaces * kSlotsPerSpace * sizeof(Slot*);
  by_id_ = static_cast<Slot**>(ST_TRY(map_pages(bytes, "stage2.slot_ids")));
  return {};
}

Memslots::~Memslots() {
  const sync::MutexGuard guard(slots_lock_);
  if (const SlotSet* set = set_.load(sync::kRelaxed)) {
    for (const SlotNode* root : set->by_gfn) free_tree(root);
    free_tree(set->by_hva);
    destroy(const_cast<SlotSet*>(set));
  }
  if (by_id_ == nullptr) return;
  for (u32 i = 0; i < kMaxAddressSpaces * kSlotsPerSpace && count_.load(sync::kRelaxed) != 0; ++i) {
    if (by_id_[i] == nullptr) continue;
    if (policy_.binder != nullptr && (by_id_[i]->flags & kGuestMemfd) != 0) {
      policy_.binder->unbind(by_id_[i]);
    }
    DirtyBitmap::destroy(by_id_[i]->dirty);
    WriteTracks::destroy(by_id_[i]->tracks.get());
    destroy(by_id_[i]);
    count_.fetch_sub(1, sync::kRelaxed);
  }
  unmap_pages(by_id_, kMaxAddressSpaces * kSlotsPerSpace * sizeof(Slot*));
}

Slot*& Memslots::slot_of(u32 slot) const {
  return by_id_[(slot >> 16) * kSlotsPerSpace + (slot & 0xffff)];
}

// --- check ---

// Lines 2 to 11: the region alone. Line 1, the copy of the argument, is abi's.
Verdict Memslots::check_shape(const Region& region) const {
  if (region.first_version && (region.flags & ~(kLogDirtyPages | kReadonly)) != 0) {
    return {2, EINVAL};
  }
  if ((region.slot & 0xffff) >= kUserSlots) return {3, EINVAL};
  u32 legal = kLogDirtyPages;
  if (policy_.binder != nullptr) legal |= kGuestMemfd;
  if ((region.flags & kGuestMemfd) != 0) {
    legal &= ~kLogDirtyPages;
  } else if (policy_.readonly_slots) {
    legal |= kReadonly;
  }
  if ((region.flags & ~legal) != 0) return {4, EINVAL};
  if ((region.size & ~kPageMask) != 0) return {5, EINVAL};
  if ((region.gpa & ~kPageMask) != 0) return {6, EINVAL};
  if ((region.hva & ~kPageMask) != 0 || !host::is_user_range(Hva(region.hva), region.size)) {
    return {7, EINVAL};
  }
  if ((region.flags & kGuestMemfd) != 0 &&
      ((region.memfd_offset & ~kPageMask) != 0 ||
       region.memfd_offset + region.size < region.memfd_offset)) {
    return {8, EINVAL};
  }
  if (region.slot >> 16 >= policy_.address_spaces) return {9, EINVAL};
  if (region.gpa + region.size < region.gpa) return {10, EINVAL};
  if (region.size >> kPageShift > kMaxSlotPages) return {11, EINVAL};
  return {};
}

Verdict Memslots::check_delete(Plan* plan) const {
  if (plan->old == nullptr) return {12, EINVAL};
  if (total_pages_ < plan->old->page_count) return {13, EIO};
  plan->kind = ChangeKind::kDelete;
  return {};
}

// Lines 12 to 17: the region against the slot of its id. kNone with line 17: nothing to do.
Verdict Memslots::check_change(const Region& region, Plan* plan) const {
  plan->id = region.slot;
  plan->old = slot_of(region.slot);
  if (region.size == 0) return check_delete(plan);
  const u64 pages = region.size >> kPageShift;
  const Slot* old = plan->old;
  if (old == nullptr) {
    if (total_pages_ + pages < total_pages_) return {14, EINVAL};
    plan->kind = ChangeKind::kCreate;
    return {};
  }
  if ((region.flags & kGuestMemfd) != 0) return {15, EINVAL};
  if (region.hva != old->hva.raw() || pages != old->page_count ||
      ((region.flags ^ old->flags) & (kReadonly | kGuestMemfd)) != 0) {
    return {16, EINVAL};
  }
  if (gpa_to_gfn(Gpa(region.gpa)) != old->base_gfn) {
    plan->kind = ChangeKind::kMove;
  } else if (region.flags != old->flags) {
    plan->kind = ChangeKind::kFlags;
  } else {
    return {17, 0};
  }
  return {};
}

// Line 18.
Verdict Memslots::check_place(const Region& region, const Plan& plan) const {
  if (plan.kind != ChangeKind::kCreate && plan.kind != ChangeKind::kMove) return {};
  const SlotSet* set = set_.load(sync::kRelaxed);  // stored under this lock
  if (set == nullptr) return {};
  const u64 first = region.gpa >> kPageShift;
  const u64 end = first + (region.size >> kPageShift);
  if (find_overlap(set->by_gfn[region.slot >> 16], first, end, region.slot) != nullptr) {
    return {18, EEXIST};
  }
  return {};
}

// Lines 22 and 23, in the kernel's order: the tracker first (kernel file: x86.c).
Verdict Memslots::check_machine(const Region& region, const Plan& plan) const {
  if (plan.kind == ChangeKind::kMove && policy_.write_tracked) return {23, EINVAL};
  if (plan.kind == ChangeKind::kCreate || plan.kind == ChangeKind::kMove) {
    if (((region.gpa + region.size - 1) >> kPageShift) > policy_.max_gfn) return {22, EINVAL};
  }
  return {};
}

// --- prepare ---

Result<void> Memslots::prepare_bitmap(Plan* plan) {
  Slot& fresh = *plan->fresh;
  if ((fresh.flags & kLogDirtyPages) == 0) return {};
  if (plan->old != nullptr && plan->old->dirty != nullptr) {
    fresh.dirty = plan->old->dirty;
    return {};
  }
  plan->bitmap = ST_TRY(DirtyBitmap::create(fresh.page_count));
  if (protect_.initially_set && !rings_only_.load(sync::kRelaxed))
    plan->bitmap->set_first(fresh.page_count);
  fresh.dirty = plan->bitmap;
  return {};
}

Result<void> Memslots::build_sets(Plan* plan) {
  plan->builder = ST_TRY(make<SlotTreeBuilder>("stage2.slot_builder", set_.load(sync::kRelaxed)));
  SlotTreeBuilder& builder = *plan->builder;
  switch (plan->kind) {
    case ChangeKind::kNone:
      break;
    case ChangeKind::kCreate:
      builder.insert_hva(*plan->fresh);
      plan->first = builder.snapshot();
      builder.insert_gfn(*plan->fresh);
      break;
    case ChangeKind::kDelete:
      builder.replace_gfn(*plan->invalid);
      builder.replace_hva(*plan->invalid);
      plan->first = builder.snapshot();
      builder.remove_gfn(*plan->old);
      builder.remove_hva(*plan->old);
      break;
    case ChangeKind::kMove:
      builder.replace_gfn(*plan->invalid);
      builder.replace_hva(*plan->invalid);
      plan->first = builder.snapshot();
      builder.remove_gfn(*plan->old);
      builder.insert_gfn(*plan->fresh);
      builder.replace_hva(*plan->fresh);
      break;
    case ChangeKind::kFlags:
      builder.replace_gfn(*plan->fresh);
      builder.replace_hva(*plan->fresh);
      break;
  }
  plan->second = builder.snapshot();
  if (plan->second == nullptr) return refuse(ENOMEM);
  return {};
}

Result<void> Memslots::prepare(const Region& region, Plan* plan) {
  if (plan->kind != ChangeKind::kDelete) {
    plan->fresh = ST_TRY(make<Slot>("stage2.slot"));  // line 19
    *plan->fresh = Slot{region.slot, region.flags, gpa_to_gfn(Gpa(region.gpa)),
                        region.size >> kPageShift, Hva(region.hva)};
    if (plan->kind == ChangeKind::kFlags) plan->fresh->tracks = plan->old->tracks;
    if ((region.flags & kGuestMemfd) != 0) {
      if (region.file == nullptr) return refuse(region.file_error);  // 20, 21
      ST_TRY(policy_.binder->bind(plan->fresh, region));
      plan->bound = true;
    }
    ST_TRY(prepare_bitmap(plan));
  }
  const Verdict machine = check_machine(region, *plan);
  if (machine.error != 0) return refuse(machine.error);
  if (plan->kind == ChangeKind::kDelete || plan->kind == ChangeKind::kMove) {
    plan->invalid = ST_TRY(make<Slot>("stage2.slot_invalid"));
    *plan->invalid = *plan->old;
    plan->invalid->flags |= kInvalid;
  }
  return build_sets(plan);
}

void Memslots::abandon(Plan* plan) {
  destroy(plan->builder);
  if (plan->bound) policy_.binder->unbind(plan->fresh);
  DirtyBitmap::destroy(plan->bitmap);
  destroy(plan->fresh);
  destroy(plan->invalid);
}

// --- commit ---

void Memslots::publish(const SlotSet* set) {
  set_.store(set, sync::kSeqCst);  // pairs with Reader's load
}

void Memslots::commit(Plan* plan) {
  // Numbers of two address spaces never collide: each has its residue.
  const u64 next = generation_.load(sync::kRelaxed) + kMaxAddressSpaces;
  generation_.store((next - kMaxAddressSpaces) | kUpdateInProgress, sync::kSeqCst);
  commit_sets(plan);
  host_->slots_changed();
  if (ST_GUARD(mmio_wrap, (next & kMmioGenerationMask) == 0)) host_->generation_wraps();
  generation_.store(next, sync::kSeqCst);
}

void Memslots::commit_sets(Plan* plan) {
  plan->builder->keep();
  // A change that is under way ends with the slots it began with. Analogue: the wait of
  // kvm_swap_active_memslots for mn_active_invalidate_count (kernel file: kvm_main.c).
  if (plan->kind != ChangeKind::kCreate && ST_GUARD(swap_waits, true)) host::wait_for_changes();
  switch (plan->kind) {
    case ChangeKind::kNone:
      break;
    case ChangeKind::kCreate:
      publish(plan->first);
      if (ST_GUARD(create_waits, true)) host::wait_for_changes();
      publish(plan->second);
      break;
    case ChangeKind::kDelete:
    case ChangeKind::kMove:
      publish(plan->first);
      host_->close_range(plan->old->hvas());
      if (plan->old->file != nullptr) host_->close_range(plan->old->file->hvas());
      host_->zap_slot(*plan->old, plan->kind == ChangeKind::kDelete);
      host_->flush_and_wait();
      publish(plan->second);
      if (plan->old->file != nullptr) host_->open_range(plan->old->file->hvas());
      host_->open_range(plan->old->hvas());
      break;
    case ChangeKind::kFlags:
      host_->close_range(plan->old->hvas());
      publish(plan->second);
      // Who found the old flags may make an entry writable without a mark; not after this.
      wait_for_readers();
      host_->logging_changed(*plan->old, *plan->fresh,
                             begins_marked() && !rings_only_.load(sync::kRelaxed));
      host_->flush_and_wait();
      host_->open_range(plan->old->hvas());
      break;
  }
}

void Memslots::record(const Plan& plan) {
  slot_of(plan.id) = plan.fresh;
  if (plan.kind == ChangeKind::kCreate) {
    total_pages_ += plan.fresh->page_count;
    count_.fetch_add(1, sync::kRelaxed);
  } else if (plan.kind == ChangeKind::kDelete) {
    total_pages_ -= plan.old->page_count;
    count_.fetch_sub(1, sync::kRelaxed);
  }
  const Slot& named = plan.fresh != nullptr ? *plan.fresh : *plan.old;
  trace::emit(trace::Event::st_memslot, trace::Room::stage2, plan.id, named.base_gfn.raw(),
              named.page_count, static_cast<u64>(plan.kind));
}

Result<void> Memslots::set_region(const Region& region) {
  const sync::MutexGuard guard(slots_lock_);
  // check
  Plan plan;
  if (const Verdict shape = check_shape(region); shape.line != 0) return refuse(shape.error);
  if (const Verdict change = check_change(region, &plan); change.line != 0) {
    if (change.error == 0) return {};
    return refuse(change.error);
  }
  if (const Verdict place = check_place(region, plan); place.line != 0) return refuse(place.error);
  // prepare
  if (const Result<void> ready = prepare(region, &plan); !ready) {
    abandon(&plan);
    return ready;
  }
  // commit
  commit(&plan);
  record(plan);
  // release
  wait_for_readers();
  destroy(plan.builder);
  if (plan.old != nullptr) {
    if (plan.kind == ChangeKind::kDelete && (plan.old->flags & kGuestMemfd) != 0) {
      policy_.binder->unbind(plan.old);
    }
    if (plan.fresh == nullptr || plan.fresh->dirty != plan.old->dirty) {
      DirtyBitmap::destroy(plan.old->dirty);
    }
    if (plan.kind != ChangeKind::kFlags) forget_tracks(*plan.old);
    destroy(plan.old);
  }
  destroy(plan.invalid);
  return {};
}

// --- readers ---

const Slot* Memslots::Reader::find(u32 address_space, Gfn gfn) const {
  const SlotSet* set = slots_.set_.load(sync::kSeqCst);
  if (set == nullptr || address_space >= kTreeSpaces) return nullptr;
  const SlotNode* node = find_containing(set->by_gfn[address_space], gfn.raw());
  return node == nullptr ? nullptr : node->slot;
}

const Slot* Memslots::Reader::find_from(u32 address_space, Gfn gfn) const {
  const SlotSet* set = slots_.set_.load(sync::kSeqCst);
  if (set == nullptr || address_space >= kTreeSpaces) return nullptr;
  const Slot* first = nullptr;
  for_each_overlap_from(set->by_gfn[address_space], gfn.raw(), ~u64{0}, 0, 0,
                        [&first](const Slot& slot) {
                          first = &slot;
                          return false;
                        });
  return first;
}

bool Memslots::Reader::overlaps(HvaRange range) const {
  return find_overlap(by_hva(), range.start().raw(), range.end().raw()) != nullptr;
}

size_t Memslots::Reader::find_users(HvaRange range, UserCursor* cursor, Users* users,
                                    size_t most) const {
  size_t found = 0;
  const auto add = [&](const Slot& slot) {
    const u32 address_space = slot.id >> 16;
    const GfnRange frames = slot.gfns_of(range);
    if (found != 0 && users[found - 1].address_space == address_space &&
        users[found - 1].frames.end() == frames.start()) {
      GfnRange& last = users[found - 1].frames;
      last = GfnRange(last.start(), last.size() + frames.size());
    } else {
      if (found == most) return false;
      users[found++] = {address_space, frames};
    }
    *cursor = {slot.hva.raw(), u64{slot.id} + 1};
    return true;
  };
  for_each_overlap_from(by_hva(), range.start().raw(), range.end().raw(), cursor->start,
                        cursor->next_id, add);
  return found;
}

const SlotNode* Memslots::Reader::by_hva() const {
  const SlotSet* set = slots_.set_.load(sync::kSeqCst);
  return set == nullptr ? nullptr : set->by_hva;
}

void Memslots::set_max_gfn(u64 max_gfn) {
  const sync::MutexGuard guard(slots_lock_);
  policy_.max_gfn = max_gfn;
}

void Memslots::set_write_tracked(bool tracked) {
  const sync::MutexGuard guard(slots_lock_);
  policy_.write_tracked = tracked;
}

u32 Memslots::count() const {
  return count_.load(sync::kRelaxed);
}

// --- checks and tests ---

void Memslots::check_world() const {
  const sync::MutexGuard guard(slots_lock_);
  const SlotSet* set = set_.load(sync::kRelaxed);
  u64 in_trees = 0;
  u64 in_hva_tree = 0;
  if (set != nullptr) {
    for (const SlotNode* root : set->by_gfn) in_trees += check_tree(root, true);
    in_hva_tree = check_tree(set->by_hva, false);
  }
  u64 slots = 0;
  for (u32 i = 0; i < kMaxAddressSpaces * kSlotsPerSpace; ++i) {
    const Slot* slot = by_id_[i];
    if (slot == nullptr) continue;
    ++slots;
    ST_CHECK(set != nullptr);  // I2
    ST_CHECK_OP(slot->flags & kInvalid, ==, 0U);
    ST_CHECK_OP((slot->flags & kLogDirtyPages) != 0, ==, slot->dirty != nullptr);
    const SlotNode* node = find_containing(set->by_gfn[slot->id >> 16], slot->base_gfn.raw());
    ST_CHECK(node != nullptr && node->slot == slot);  // I2
    bool leads_here = false;
    for_each_overlap(set->by_hva, slot->hva.raw(), slot->hva.raw() + 1,
                     [&](const Slot& found) { leads_here = leads_here || &found == slot; });
    ST_CHECK(leads_here);  // I5
  }
  ST_CHECK_OP(slots, ==, u64{count_.load(sync::kRelaxed)});
  ST_CHECK_OP(slots, ==, in_trees);
  ST_CHECK_OP(slots, ==, in_hva_tree);  // I5
}

Verdict Memslots::debug_verdict(const Region& region) {
  const sync::MutexGuard guard(slots_lock_);
  Plan plan;
  if (const Verdict shape = check_shape(region); shape.line != 0) return shape;
  if (const Verdict change = check_change(region, &plan); change.line != 0) return change;
  if (const Verdict place = check_place(region, plan); place.line != 0) return place;
  return check_machine(region, plan);
}

void Memslots::debug_set_generation(u64 generation) {
  const sync::MutexGuard guard(slots_lock_);
  generation_.store(generation, sync::kSeqCst);
}

void Memslots::debug_set_total_pages(u64 pages) {
  const sync::MutexGuard guard(slots_lock_);
  total_pages_ = pages;
}

}  // namespace stagetwo::stage2
