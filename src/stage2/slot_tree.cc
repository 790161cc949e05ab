// SPDX-License-Identifier: Apache-2.0
#include "stage2/slot_tree.h"

#include <algorithm>

#include "base/alloc.h"
#include "base/check.h"

// A treap whose nodes are copied on their way to the change. `own` is the only place that copies: a
// node the builder made since its last snapshot is edited in place, any other is replaced by a copy
// and superseded. A builder that once got no memory goes on with nulls and is thrown away at the
// end; nothing it touched was published.

namespace stagetwo::stage2 {
namespace {

// Spreads ids so that neighbouring slots do not make a list of the tree (splitmix64).
u64 priority_of(u32 id) {
  u64 z = (u64{id} + 1) * 0x9E3779B97F4A7C15U;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
  return z ^ (z >> 31);
}

// Builders are made under a lock, one after the other; a number tells their nodes apart.
constinit sync::Atomic<u64> next_batch{1};
constexpr u64 kMaxSnapshots = 8;

bool before(u64 start, u32 id, const SlotNode& node) {
  return start != node.start ? start < node.start : id < node.id;
}

u64 max_end_of(const SlotNode* node) {
  return node == nullptr ? 0 : node->max_end;
}

void free_nodes(SlotNode* list) {
  while (list != nullptr) {
    SlotNode* next = list->next;
    destroy(list);
    list = next;
  }
}

}  // namespace

Result<DirtyBitmap*> DirtyBitmap::create(u64 page_count) {
  DirtyBitmap* bitmap = ST_TRY(make<DirtyBitmap>("stage2.dirty_bitmap"));
  bitmap->word_count = (page_count + 63) / 64;
  const size_t bytes = bitmap->word_count * sizeof(u64);
  const Result<void*> pages = map_pages(2 * bytes, "stage2.dirty_bitmap_pages");
  if (!pages) {
    stagetwo::destroy(bitmap);
    return refuse(pages.error());
  }
  // Fresh pages are zero, which is an Atomic<u64> of zero.
  bitmap->words = static_cast<sync::Atomic<u64>*>(*pages);
  bitmap->taken = reinterpret_cast<u64*>(static_cast<u8*>(*pages) + bytes);
  return bitmap;
}

void DirtyBitmap::destroy(DirtyBitmap* bitmap) {
  if (bitmap == nullptr) return;
  unmap_pages(bitmap->words, 2 * bitmap->word_count * sizeof(u64));
  stagetwo::destroy(bitmap);
}

void DirtyBitmap::set_first(u64 page_count) {
  for (u64 word = 0; word * 64 < page_count; ++word) {
    const u64 pages = std::min<u64>(64, page_count - word * 64);
    words[word].store(pages == 64 ? ~u64{0} : (u64{1} << pages) - 1, sync::kRelaxed);
  }
}

unsigned Slot::max_level(Gfn gfn) const {
  if ((flags & kLogDirtyPages) != 0) return 1;
  const WriteTracks* t = tracks.get();
  const u64 first = base_gfn.raw();
  for (unsigned level = 2; level <= 3; ++level) {
    const u64 pages = u64{1} << (9 * (level - 1));
    const u64 start = gfn.raw() & ~(pages - 1);
    const bool aligned_alike = ((first ^ (hva.raw() >> kPageShift)) & (pages - 1)) == 0;
    if (!aligned_alike || start < first || start + pages > first + page_count) return level - 1;
    if (t != nullptr && !t->permits(level, gfn)) return level - 1;
  }
  return 3;
}

const SlotNode* find_overlap(const SlotNode* node, u64 start, u64 end, u32 skip_id) {
  if (node == nullptr || node->max_end <= start) return nullptr;
  if (const SlotNode* found = find_overlap(node->left, start, end, skip_id)) return found;
  if (node->start >= end) return nullptr;  // and so is everything to the right
  if (node->end > start && node->id != skip_id) return node;
  return find_overlap(node->right, start, end, skip_id);
}

namespace {

u64 check_subtree(const SlotNode* node, bool disjoint, const SlotNode** previous) {
  if (node == nullptr) return 0;
  for (const SlotNode* child : {node->left, node->right}) {
    if (child != nullptr) ST_CHECK_OP(child->priority, <=, node->priority);
  }
  ST_CHECK_OP(node->max_end, ==,
              std::max({node->end, max_end_of(node->left), max_end_of(node->right)}));
  ST_CHECK_OP(node->start, <, node->end);
  u64 count = check_subtree(node->left, disjoint, previous);
  if (*previous != nullptr) {
    ST_CHECK(before((*previous)->start, (*previous)->id, *node));
    if (disjoint) ST_CHECK_OP((*previous)->end, <=, node->start);
  }
  *previous = node;
  count += 1 + check_subtree(node->right, disjoint, previous);
  return count;
}

}  // namespace

u64 check_tree(const SlotNode* root, bool disjoint) {
  const SlotNode* previous = nullptr;
  return check_subtree(root, disjoint, &previous);
}

void free_tree(const SlotNode* root) {
  if (root == nullptr) return;
  free_tree(root->left);
  free_tree(root->right);
  destroy(const_cast<SlotNode*>(root));
}

SlotTreeBuilder::SlotTreeBuilder(const SlotSet* from)
    : now_(from == nullptr ? SlotSet{} : *from),
      replaced_(from),
      first_batch_(next_batch.fetch_add(kMaxSnapshots, sync::kRelaxed)),
      batch_(first_batch_) {}

SlotTreeBuilder::~SlotTreeBuilder() {
  SlotSet* dead_sets = sets_;
  if (kept_) {
    dead_sets = sets_->next;  // the newest lives on
    sets_->next = nullptr;
    free_nodes(stale_);
    destroy(const_cast<SlotSet*>(replaced_));
  }
  for (SlotNode* node = fresh_; node != nullptr;) {
    SlotNode* next = node->next;
    if (!kept_ || node->superseded) destroy(node);
    node = next;
  }
  while (dead_sets != nullptr) {
    SlotSet* next = dead_sets->next;
    destroy(dead_sets);
    dead_sets = next;
  }
}

const SlotSet* SlotTreeBuilder::snapshot() {
  if (failed_) return nullptr;
  auto made = stagetwo::make<SlotSet>("stage2.slot_set", now_);
  if (!made) {
    failed_ = true;
    return nullptr;
  }
  (*made)->next = sets_;
  sets_ = *made;
  ++batch_;
  ST_CHECK_OP(batch_ - first_batch_, <, kMaxSnapshots);
  return sets_;
}

void SlotTreeBuilder::keep() {
  ST_CHECK(!failed_ && sets_ != nullptr);
  kept_ = true;
}

void SlotTreeBuilder::supersede(SlotNode* node) {
  if (node->batch >= first_batch_) {
    node->superseded = true;
    return;
  }
  node->next = stale_;
  stale_ = node;
}

SlotNode* SlotTreeBuilder::make(u64 start, u64 end, u32 id, const Slot* slot) {
  auto made = stagetwo::make<SlotNode>("stage2.slot_node");
  if (!made) {
    failed_ = true;
    return nullptr;
  }
  **made =
      SlotNode{start, end, end, priority_of(id), slot, nullptr, nullptr, id, false, batch_, fresh_};
  fresh_ = *made;
  return *made;
}

SlotNode* SlotTreeBuilder::own(const SlotNode* node) {
  auto* old = const_cast<SlotNode*>(node);
  if (old->batch == batch_) return old;
  SlotNode* copy = make(old->start, old->end, old->id, old->slot);
  if (copy == nullptr) return nullptr;
  copy->left = old->left;
  copy->right = old->right;
  copy->max_end = old->max_end;
  supersede(old);
  return copy;
}

void SlotTreeBuilder::insert_gfn(const Slot& slot) {
  const GfnRange range = slot.gfns();
  const SlotNode*& root = now_.by_gfn[slot.id >> 16];
  root = insert(root, make(range.start().raw(), range.end().raw(), slot.id, &slot));
}

void SlotTreeBuilder::insert_hva(const Slot& slot) {
  const HvaRange range = slot.hvas();
  now_.by_hva = insert(now_.by_hva, make(range.start().raw(), range.end().raw(), slot.id, &slot));
}

void SlotTreeBuilder::remove_gfn(const Slot& slot) {
  const SlotNode*& root = now_.by_gfn[slot.id >> 16];
  root = remove(root, slot.base_gfn.raw(), slot.id);
}

void SlotTreeBuilder::remove_hva(const Slot& slot) {
  now_.by_hva = remove(now_.by_hva, slot.hva.raw(), slot.id);
}

void SlotTreeBuilder::replace_gfn(const Slot& fresh) {
  const SlotNode*& root = now_.by_gfn[fresh.id >> 16];
  root = replace(root, fresh.base_gfn.raw(), fresh);
}

void SlotTreeBuilder::replace_hva(const Slot& fresh) {
  now_.by_hva = replace(now_.by_hva, fresh.hva.raw(), fresh);
}

void SlotTreeBuilder::refresh(SlotNode* node) {
  node->max_end = std::max({node->end, max_end_of(node->left), max_end_of(node->right)});
}

void SlotTreeBuilder::split(const SlotNode* root, u64 start, u32 id, const SlotNode** left,
                            const SlotNode** right) {
  *left = nullptr;
  *right = nullptr;
  if (root == nullptr || failed_) return;
  SlotNode* node = own(root);
  if (node == nullptr) return;
  if (before(start, id, *node)) {
    split(node->left, start, id, left, &node->left);
    *right = node;
  } else {
    split(node->right, start, id, &node->right, right);
    *left = node;
  }
  refresh(node);
}

const SlotNode* SlotTreeBuilder::merge(const SlotNode* left, const SlotNode* right) {
  if (left == nullptr) return right;
  if (right == nullptr || failed_) return left;
  if (left->priority >= right->priority) {
    SlotNode* node = own(left);
    if (node == nullptr) return nullptr;
    node->right = merge(node->right, right);
    refresh(node);
    return node;
  }
  SlotNode* node = own(right);
  if (node == nullptr) return nullptr;
  node->left = merge(left, node->left);
  refresh(node);
  return node;
}

const SlotNode* SlotTreeBuilder::insert(const SlotNode* root, SlotNode* fresh) {
  if (fresh == nullptr || failed_) return root;
  if (root == nullptr) return fresh;
  if (fresh->priority > root->priority) {
    split(root, fresh->start, fresh->id, &fresh->left, &fresh->right);
    refresh(fresh);
    return fresh;
  }
  SlotNode* node = own(root);
  if (node == nullptr) return nullptr;
  if (before(fresh->start, fresh->id, *node)) {
    node->left = insert(node->left, fresh);
  } else {
    node->right = insert(node->right, fresh);
  }
  refresh(node);
  return node;
}

const SlotNode* SlotTreeBuilder::remove(const SlotNode* root, u64 start, u32 id) {
  if (failed_) return root;
  ST_CHECK(root != nullptr);  // the caller found it under the lock
  if (root->start == start && root->id == id) {
    const SlotNode* merged = merge(root->left, root->right);
    supersede(const_cast<SlotNode*>(root));
    return merged;
  }
  SlotNode* node = own(root);
  if (node == nullptr) return nullptr;
  if (before(start, id, *node)) {
    node->left = remove(node->left, start, id);
  } else {
    node->right = remove(node->right, start, id);
  }
  refresh(node);
  return node;
}

const SlotNode* SlotTreeBuilder::replace(const SlotNode* root, u64 start, const Slot& slot) {
  if (failed_) return root;
  ST_CHECK(root != nullptr);
  SlotNode* node = own(root);
  if (node == nullptr) return nullptr;
  if (start == node->start && slot.id == node->id) {
    node->slot = &slot;
  } else if (before(start, slot.id, *node)) {
    node->left = replace(node->left, start, slot);
  } else {
    node->right = replace(node->right, start, slot);
  }
  return node;
}

}  // namespace stagetwo::stage2
