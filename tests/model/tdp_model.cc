// SPDX-License-Identifier: Apache-2.0
#include "tests/model/tdp_model.h"

#include <algorithm>

namespace stagetwo::test {

using stage2::kLogDirtyPages;
using stage2::kReadonly;

// --- choices ---

Slot* TdpModel::some_slot() {
  if (host_.slots.empty()) return nullptr;
  return &*std::next(host_.slots.begin(),
                     static_cast<std::ptrdiff_t>(random_.below(host_.slots.size())));
}

// Few tables in all: beginnings, ends, and where a table ends.
TdpModel::Place TdpModel::some_place() {
  static constexpr u64 kOffsets[] = {0, 1, 2, 7, 63, 64, 510, 511, 512, 513, 700, 1023, 1024};
  const u32 space = random_.one_in(4) ? 1 : 0;
  const Slot* slot = some_slot();
  if (slot == nullptr || random_.one_in(16)) return {space, random_.below(2 * kGiBFrames)};
  const u64 offset = random_.one_in(6)
                         ? slot->page_count - 1
                         : kOffsets[random_.below(std::size(kOffsets))] + random_.below(4);
  return {slot->id >> 16, slot->base_gfn.raw() + offset};  // at times just behind the slot
}

// --- accesses ---

void TdpModel::expect_hit(Place place, Access kind, const Walk& walk) {
  const Slot* slot = host_.find(place.space, place.gfn);
  ASSERT_NE(slot, nullptr) << "a translation without a slot, frame " << place.gfn;
  EXPECT_EQ(walk.page.raw(), slot->gfn_to_hva(Gfn(place.gfn)).raw());
  const auto leaf = table_[place.space].covering(place.gfn);
  ASSERT_NE(leaf, table_[place.space].leaves().end()) << "frame " << place.gfn;
  EXPECT_EQ(unsigned{walk.level}, leaf->second.level);
  leaf->second.young = true;
  if (kind != Access::kWrite) return;
  EXPECT_EQ(slot->flags & kReadonly, 0U);
  if ((slot->flags & kLogDirtyPages) == 0) return;
  stored_[place.space].insert(place.gfn);
  EXPECT_TRUE(host_.marked[place.space].contains(place.gfn))
      << "a store the log does not know, frame " << place.gfn;
}

void TdpModel::learn(MmuContext& context, Place place, const Fault& fault) {
  const auto found = stage2::TdpTestAccess::find(host_.mmu, context, place.space, place.gfn);
  ASSERT_TRUE(Format::is_leaf(found.word, found.level));
  const unsigned wanted = (fault.slot->flags & kLogDirtyPages) != 0 ? 1U : fault.max_level;
  NaiveTable& table = table_[place.space];
  const auto before = table.covering(place.gfn);
  if (before == table.leaves().end() || before->second.level != found.level) {
    EXPECT_LE(found.level, wanted);
  }
  NaiveLeaf& leaf = table.map(place.gfn, found.level);
  if (!fault.prefetch && Format::is_accessed(found.word)) leaf.young = true;
}

FaultOutcome TdpModel::fault_in(MmuContext& context, Place place, Access kind, bool prefetch) {
  if (!context.top_up()) return FaultOutcome::kNoMemory;
  Fault fault;
  fault.gpa = Gpa(place.gfn << kPageShift);
  fault.address_space = place.space;
  fault.access = kind;
  fault.prefetch = prefetch;
  fault.snapshot = host_.gate.snapshot();
  fault.mmio_generation = host_.generation;
  fault.gfn = Gfn(place.gfn);
  Slot* slot = host_.find(place.space, place.gfn);
  if (slot == nullptr) return host_.mmu.page_fault(context, fault);
  if (kind == Access::kWrite && (slot->flags & kReadonly) != 0) return FaultOutcome::kMmio;
  fault.slot = slot;
  fault.slot_flags = slot->flags;
  fault.page = slot->gfn_to_hva(fault.gfn);
  fault.map_writable =
      (slot->flags & kReadonly) == 0 && (kind == Access::kWrite || !random_.one_in(3));
  fault.max_level = static_cast<u8>(1 + random_.below(3));
  FaultOutcome outcome = FaultOutcome::kRetry;
  if (!prefetch && kind == Access::kWrite && host_.mmu.fast_page_fault(context, fault, &outcome)) {
    return outcome;
  }
  outcome = host_.mmu.page_fault(context, fault);
  if (outcome == FaultOutcome::kFixed || outcome == FaultOutcome::kSpurious) {
    learn(context, place, fault);
  }
  return outcome;
}

FaultOutcome TdpModel::access(MmuContext& context, Place place, Access kind) {
  ++accesses;
  for (int attempt = 0; attempt < 3; ++attempt) {
    if (!host_.mmu.load_root(context, place.space)) return FaultOutcome::kNoMemory;
    const Walk walk = host_.mmu.walk(context, place.space, Gfn(place.gfn), kind);
    if (walk.kind == Walk::Kind::kHit) {
      expect_hit(place, kind, walk);
      return FaultOutcome::kFixed;
    }
    if (walk.kind == Walk::Kind::kMmio) {
      EXPECT_EQ(host_.find(place.space, place.gfn), nullptr) << "frame " << place.gfn;
      return FaultOutcome::kMmio;
    }
    const FaultOutcome outcome = fault_in(context, place, kind, false);
    if (outcome == FaultOutcome::kMmio || outcome == FaultOutcome::kNoMemory) return outcome;
    EXPECT_TRUE(outcome == FaultOutcome::kFixed || outcome == FaultOutcome::kSpurious)
        << "nobody else is here, and the fault says " << static_cast<int>(outcome);
  }
  ADD_FAILURE() << "a fault was fixed and its access does not go through, frame " << place.gfn;
  return FaultOutcome::kRetry;
}

// A walk alone: what it finds is true, and what is not mapped it does not find.
void TdpModel::probe() {
  const Place place = some_place();
  MmuContext& context = some_context();
  if (!host_.mmu.load_root(context, place.space)) return;
  const Access kind = random_.one_in(2) ? Access::kRead : Access::kWrite;
  const Walk walk = host_.mmu.walk(context, place.space, Gfn(place.gfn), kind);
  if (walk.kind == Walk::Kind::kHit) expect_hit(place, kind, walk);
  if (walk.kind == Walk::Kind::kMmio) {
    EXPECT_EQ(host_.find(place.space, place.gfn), nullptr);
  }
}

// Some questions for memory are refused: the access says so or does without, and once there is
// memory again it goes through.
void TdpModel::access_without_memory() {
  MmuContext& context = some_context();
  const Place place = some_place();
  failpoint::arm(nullptr, 1 + random_.below(3), 1 + random_.below(40));
  const FaultOutcome outcome = access(context, place, Access::kRead);
  failpoint::disarm();
  refused += outcome == FaultOutcome::kNoMemory;
  EXPECT_NE(access(context, place, Access::kRead), FaultOutcome::kNoMemory);
}

// --- changes ---

void TdpModel::zap(u32 space, GfnRange range) {
  pt::Gather removed;
  static_cast<void>(host_.mmu.zap_leafs(space, range, &removed, random_.one_in(2)));
  host_.mmu.flush_and_release(&removed);
  table_[space].remove(range.start().raw(), range.size());
}

// A change of host addresses, which several slots may use.
void TdpModel::bell() {
  const Slot* slot = some_slot();
  if (slot == nullptr) return;
  const u64 first = slot->hva.raw() + (random_.below(slot->page_count) << kPageShift);
  const u64 pages = random_.one_in(3) ? 1 + random_.below(2 * kGiBFrames) : 1 + random_.below(600);
  const HvaRange range(Hva(first), pages << kPageShift);
  const u64 last = (first >> kPageShift) + pages - 1;
  host_.gate.begin(first >> kPageShift, last);
  for (const Slot& user : host_.slots) {
    if (user.hvas().overlaps(range)) zap(user.id >> 16, user.gfns_of(range));
  }
  for (const Slot& user : host_.slots) {
    if (!user.hvas().overlaps(range)) continue;
    const GfnRange gone = user.gfns_of(range);
    NaiveTable& table = table_[user.id >> 16];
    ASSERT_EQ(table.first_in(gone.start().raw(), gone.size()), table.leaves().end());
  }
  host_.gate.end(first >> kPageShift, last);
}

void TdpModel::create_slot() {
  static constexpr u64 kBases[] = {0,
                                   512,
                                   1536,
                                   kGiBFrames,
                                   kGiBFrames + 512,
                                   kGiBFrames + 1027,
                                   3 * kGiBFrames,
                                   (u64{1} << 36) - 2048};
  static constexpr u64 kSizes[] = {1, 3, 64, 512, 700, 1024, 2048, kGiBFrames, kGiBFrames + 600};
  if (host_.slots.size() >= 6) return;
  Slot slot{};
  const u32 space = random_.one_in(4) ? 1 : 0;
  slot.id = space << 16;
  slot.base_gfn = Gfn(kBases[random_.below(std::size(kBases))]);
  slot.page_count = kSizes[random_.below(std::size(kSizes))];
  for (const Slot& other : host_.slots) {
    if (other.id >> 16 == space && other.gfns().overlaps(slot.gfns())) return;
  }
  const Slot* alias = random_.one_in(3) ? some_slot() : nullptr;
  const u64 window = kHvaBase + (random_.below(8) * 4 * kGiBFrames << kPageShift);
  // Aligned as the frames are, or as nothing is.
  const u64 offset = random_.one_in(3) ? random_.below(1024) : slot.base_gfn.raw() % kGiBFrames;
  slot.hva = alias != nullptr ? alias->hva : Hva(window + (offset << kPageShift));
  if (random_.one_in(6)) slot.flags = kReadonly;
  if (random_.one_in(4)) slot.flags |= kLogDirtyPages;
  host_.generation += stage2::kMaxAddressSpaces;
  host_.slots.push_back(slot);
}

void TdpModel::remove_slot(Slot& slot) {
  const u32 space = slot.id >> 16;
  if (random_.one_in(2)) {
    invalidate_roots();
  } else {
    zap(space, slot.gfns());
  }
  forget_log(slot);
  host_.generation += stage2::kMaxAddressSpaces;
  host_.slots.remove_if([&slot](const Slot& other) { return &other == &slot; });
}

void TdpModel::move_slot(Slot& slot) {
  Slot moved = slot;
  remove_slot(slot);
  moved.base_gfn = Gfn(moved.base_gfn.raw() + 512 * (1 + random_.below(4)));
  for (const Slot& other : host_.slots) {
    if (other.id >> 16 == moved.id >> 16 && other.gfns().overlaps(moved.gfns())) return;
  }
  host_.slots.push_back(moved);
}

void TdpModel::toggle_logging(Slot& slot) {
  slot.flags ^= kLogDirtyPages;
  if ((slot.flags & kLogDirtyPages) == 0) {
    recover(slot);
    forget_log(slot);
    return;
  }
  forget_log(slot);
  if (random_.one_in(2)) split(slot, slot.gfns());
  host_.mmu.write_protect_slot(slot, 1);
  host_.flush_tlbs();
}

void TdpModel::forget_log(const Slot& slot) {
  const auto of_slot = [&slot](u64 frame) { return slot.gfns().contains(Gfn(frame)); };
  std::erase_if(stored_[slot.id >> 16], of_slot);
  std::erase_if(host_.marked[slot.id >> 16], of_slot);
}

// Only what lies in the range; a large leaf that reaches beyond it is split all the same.
void TdpModel::split(const Slot& slot, GfnRange range) {
  const unsigned target = 1 + random_.small(2);
  const bool starved = random_.one_in(4);
  if (starved) failpoint::arm("stage2.table_page", 1 + random_.below(50), failpoint::kForever);
  host_.mmu.try_split_huge(slot, range, target);
  failpoint::disarm();
  NaiveTable& table = table_[slot.id >> 16];
  for (u64 frame = range.start().raw(); frame < range.end().raw();) {
    const auto at = table.first_in(frame, range.end().raw() - frame);
    if (at == table.leaves().end()) return;
    const u64 first = std::max(frame, at->first);
    if (at->second.level > target) {
      // With memory every leaf is split; without, some are: ask.
      const unsigned level = starved ? level_of(slot.id >> 16, first) : target;
      table.split(first, level);
    }
    const auto now = table.covering(first);
    frame = now->first + frames_of_level(now->second.level);
  }
}

unsigned TdpModel::level_of(u32 space, u64 frame) {
  EXPECT_TRUE(host_.mmu.load_root(*contexts_[0], space));
  return stage2::TdpTestAccess::find(host_.mmu, *contexts_[0], space, frame).level;
}

// Tables in whose place a large leaf could be are gone, with what they held.
void TdpModel::recover(const Slot& slot) {
  const unsigned host_level = 2 + random_.small(2);
  host_.mmu.recover_huge(slot, slot.gfns(), host_level);
  NaiveTable& table = table_[slot.id >> 16];
  for (unsigned level = host_level; level > 1 && !host_.mixed; --level) {
    const u64 span = frames_of_level(level);
    for (u64 first = 0; (first = next_small(table, slot, first, level)) != ~u64{0}; first += span) {
      if (slot.max_level(Gfn(first)) >= level) table.remove(first, span);
    }
  }
}

// The first frame from `from`, a multiple of the level's span, of a range that holds smaller
// leaves of the slot only; ~0: none.
u64 TdpModel::next_small(NaiveTable& table, const Slot& slot, u64 from, unsigned level) {
  const u64 end = slot.gfns().end().raw();
  u64 frame = std::max(from, slot.base_gfn.raw());
  while (frame < end) {
    const auto at = table.first_in(frame, end - frame);
    if (at == table.leaves().end()) break;
    if (at->second.level < level) return at->first & ~(frames_of_level(level) - 1);
    frame = at->first + frames_of_level(at->second.level);
  }
  return ~u64{0};
}

void TdpModel::invalidate_roots() {
  host_.mmu.invalidate_all_roots();
  host_.flush_tlbs();
  if (random_.one_in(2)) {
    for (auto& context : contexts_) host_.mmu.drop_obsolete_roots(*context);
  }
  host_.mmu.zap_invalidated_roots();
  for (NaiveTable& table : table_) table.clear();
}

// What was used since it was made old is young, and nothing else is.
void TdpModel::age(const Slot& slot) {
  const u32 space = slot.id >> 16;
  const GfnRange range(slot.base_gfn + random_.below(slot.page_count), 1 + random_.below(1024));
  bool young = false;
  const bool clear = random_.one_in(2);
  table_[space].for_each_in(range.start().raw(), range.size(), [&](NaiveLeaf& leaf) {
    young |= leaf.young;
    if (clear) leaf.young = false;
  });
  const bool answer = clear ? host_.mmu.age(space, range) : host_.mmu.test_young(space, range);
  EXPECT_EQ(answer, young);
}

// The policy changes, or the worker thread's hour has come. What recovery takes away is small and
// could be large.
void TdpModel::change_nx() {
  if (random_.one_in(8)) {
    if (host_.mmu.set_nx_huge_pages(!host_.mmu.nx_huge_pages())) invalidate_roots();
    return;
  }
  const u64 before = host_.mmu.count_pages().nx_lpage_splits;
  const u64 ratio = random_.below(4);
  host_.mmu.recover_nx(ratio);
  const u64 after = host_.mmu.count_pages().nx_lpage_splits;
  if (ratio == 1) {
    EXPECT_EQ(after, 0U);
  }
  if (ratio == 0) {
    EXPECT_EQ(after, before);
  }
  for (u32 space = 0; space < kSpaces && after != before; ++space) {
    NaiveTable& table = table_[space];
    for (auto at = table.leaves().begin(); at != table.leaves().end();) {
      const u64 first = (at++)->first;
      if (!host_.mmu.load_root(*contexts_[0], space)) return;
      const auto found = stage2::TdpTestAccess::find(host_.mmu, *contexts_[0], space, first);
      if (Format::is_present(found.word)) continue;
      const Slot* slot = host_.find(space, first);
      ASSERT_NE(slot, nullptr);
      EXPECT_GT(slot->max_level(Gfn(first)), 1U);
      table.remove(first, 1);
    }
  }
}

// A harvest names every page stored to since the one before.
void TdpModel::harvest(Slot& slot) {
  if ((slot.flags & kLogDirtyPages) == 0) return;
  const u32 space = slot.id >> 16;
  std::set<u64>& marks = host_.marked[space];
  const auto of_slot = [&slot](u64 frame) { return slot.gfns().contains(Gfn(frame)); };
  for (u64 frame : stored_[space]) EXPECT_TRUE(!of_slot(frame) || marks.contains(frame));
  // A part of the log, as CLEAR takes it, or all of it.
  const u64 words = slot.page_count / 64 + 1;
  const u64 first_word = random_.one_in(2) ? random_.below(words) : 0;
  const u64 count = std::min<u64>(words - first_word, random_.one_in(2) ? 4096 : 1);
  std::vector<u64> masks(count);
  for (u64 frame : std::vector<u64>(marks.begin(), marks.end())) {
    const u64 page = frame - slot.base_gfn.raw();
    if (!of_slot(frame) || page / 64 < first_word || page / 64 >= first_word + count) continue;
    masks[page / 64 - first_word] |= u64{1} << page % 64;
    marks.erase(frame);
    stored_[space].erase(frame);
  }
  host_.mmu.write_protect_masked(slot, first_word * 64, masks.data(), count);
  host_.flush_tlbs();
}

void TdpModel::change_contexts() {
  if (contexts_.size() > 1 && random_.one_in(2)) {
    contexts_.erase(contexts_.begin() +
                    static_cast<std::ptrdiff_t>(random_.below(contexts_.size())));
  } else if (contexts_.size() < 5) {
    add_context();
  }
}

void TdpModel::step() {
  static constexpr Access kKinds[] = {Access::kRead, Access::kWrite, Access::kWrite, Access::kExec};
  Slot* slot = some_slot();
  const u64 dice = random_.below(100);
  if (slot == nullptr || dice < 4) return create_slot();
  if (dice < 60) {
    static_cast<void>(access(some_context(), some_place(), kKinds[random_.below(4)]));
  } else if (dice < 66) {
    const Place place = some_place();
    MmuContext& context = some_context();
    if (!host_.mmu.load_root(context, place.space)) return;
    static_cast<void>(fault_in(context, place, Access::kRead, true));
  } else if (dice < 72) {
    probe();
  } else if (dice < 76) {
    zap(slot->id >> 16,
        GfnRange(slot->base_gfn + random_.below(slot->page_count), 1 + random_.below(1024)));
  } else if (dice < 80) {
    bell();
  } else if (dice < 82) {
    remove_slot(*slot);
  } else if (dice < 84) {
    move_slot(*slot);
  } else if (dice < 87) {
    toggle_logging(*slot);
  } else if (dice < 88) {
    invalidate_roots();
  } else if (dice < 93) {
    harvest(*slot);
  } else if (dice < 95) {
    change_contexts();
  } else if (dice < 96) {
    access_without_memory();
  } else if (dice < 98) {
    age(*slot);
  } else if (dice < 99) {
    if (nx_) change_nx();
  } else {
    host_.mixed = random_.one_in(4);
  }
}

void TdpModel::compare() {
  u64 expected[3] = {};
  MmuContext& context = some_context();
  for (u32 space = 0; space < kSpaces; ++space) {
    if (table_[space].leaves().empty()) continue;
    ASSERT_TRUE(host_.mmu.load_root(context, space));
    for (const auto& [first, leaf] : table_[space].leaves()) {
      ++expected[leaf.level - 1];
      const auto found = stage2::TdpTestAccess::find(host_.mmu, context, space, first);
      ASSERT_TRUE(Format::is_leaf(found.word, found.level)) << "frame " << first;
      ASSERT_EQ(found.level, leaf.level) << "frame " << first;
      ASSERT_EQ(Format::is_accessed(found.word), leaf.young) << "frame " << first;
      const Slot* slot = host_.find(space, first);
      ASSERT_NE(slot, nullptr);
      if ((slot->flags & kLogDirtyPages) == 0 || !Format::is_writable(found.word)) continue;
      ASSERT_TRUE(host_.marked[space].contains(first))
          << "a store could go through and leave no mark, frame " << first;
    }
  }
  const stage2::PageCounts counts = host_.mmu.count_pages();
  EXPECT_EQ(counts.pages_4k, expected[0]);
  EXPECT_EQ(counts.pages_2m, expected[1]);
  EXPECT_EQ(counts.pages_1g, expected[2]);
}

}  // namespace stagetwo::test
