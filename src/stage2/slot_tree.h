// SPDX-License-Identifier: Apache-2.0
#pragma once

// The slots as readers see them: an immutable set of balanced trees, and the builder that makes the
// next set by copying the paths it changes. Analogue: the kernel's two slot sets with their gfn and
// hva trees. Differs: no second set has to be brought up to date, and an update that cannot get
// memory is thrown away whole.
//
// Invariants: I1  a published node or set never changes; a node is edited only by the builder that
//                 made it.
//             I2  trees are ordered by (start, id) and heap-ordered by a number hashed from the id,
//             so
//                 their shape depends only on their contents and their depth is logarithmic.
//             I3  max_end of a node is the largest end in its subtree.
// Locking: none; the builder is used under slots_lock. Lifetime: what a published set replaced is
// kept by its builder until the caller says that no reader is left.

#include "addr/addr.h"
#include "base/types.h"
#include "stage2/slot.h"

namespace stagetwo::stage2 {

inline constexpr u32 kTreeSpaces = 2;

struct SlotNode {
  u64 start;
  u64 end;
  u64 max_end;
  u64 priority;
  const Slot* slot;
  const SlotNode* left;
  const SlotNode* right;
  u32 id;
  // The builder's own; never read by readers.
  bool superseded;  // made by this builder and replaced or removed by it again
  u64 batch;        // which builder made it, and before which of its snapshots
  SlotNode* next;   // in a list of the builder
};

struct SlotSet {
  const SlotNode* by_gfn[kTreeSpaces] = {};
  const SlotNode* by_hva = nullptr;
  SlotSet* next = nullptr;  // its builder's list
};

// The node whose range contains `at`, in a tree without overlaps.
[[nodiscard]] inline const SlotNode* find_containing(const SlotNode* node, u64 at) {
  while (node != nullptr) {
    if (at < node->start) {
      node = node->left;
    } else if (at >= node->end) {
      node = node->right;
    } else {
      return node;
    }
  }
  return nullptr;
}

// Any node that overlaps [start, end), except the one named `skip_id`.
[[nodiscard]] const SlotNode* find_overlap(const SlotNode* node, u64 start, u64 end,
                                           u32 skip_id = ~u32{0});

// Calls visit(slot) for each node that overlaps [start, end), in order of (start, id), until it
// says no. Nodes before (from, from_id) are left out. False: a visit said no.
template <typename F>
bool for_each_overlap_from(const SlotNode* node, u64 start, u64 end, u64 from, u64 from_id,
                           F&& visit) {
  if (node == nullptr || node->max_end <= start) return true;
  const bool before = node->start != from ? node->start < from : node->id < from_id;
  if (!before && !for_each_overlap_from(node->left, start, end, from, from_id, visit)) return false;
  if (node->start >= end) return true;  // and so is everything to the right
  if (!before && node->end > start && !visit(*node->slot)) return false;
  return for_each_overlap_from(node->right, start, end, from, from_id, visit);
}
template <typename F>
void for_each_overlap(const SlotNode* node, u64 start, u64 end, F&& visit) {
  for_each_overlap_from(node, start, end, 0, 0, [&visit](const Slot& slot) {
    visit(slot);
    return true;
  });
}

// Order, heap, max_end; with `disjoint` no overlaps. Returns the node count. Ends the process
// otherwise.
u64 check_tree(const SlotNode* root, bool disjoint);
void free_tree(const SlotNode* root);

class SlotTreeBuilder {
 public:
  explicit SlotTreeBuilder(const SlotSet* from);
  // Frees what was made and not kept, or, after keep(), what was replaced.
  ~SlotTreeBuilder();
  SlotTreeBuilder(const SlotTreeBuilder&) = delete;
  SlotTreeBuilder& operator=(const SlotTreeBuilder&) = delete;

  void insert_gfn(const Slot& slot);
  void insert_hva(const Slot& slot);
  void remove_gfn(const Slot& slot);
  void remove_hva(const Slot& slot);
  // `fresh` takes the place of the slot of the same id and frames...
  void replace_gfn(const Slot& fresh);
  // ...or host addresses.
  void replace_hva(const Slot& fresh);
  // The state so far as a set of its own; later edits do not change it. Null: no memory, now or
  // before, and then nothing of this builder may be published.
  [[nodiscard]] const SlotSet* snapshot();

  // The last snapshot was published. What it replaced is freed by the destructor: no reader may be
  // left then.
  void keep();

 private:
  SlotNode* make(u64 start, u64 end, u32 id, const Slot* slot);
  SlotNode* own(const SlotNode* node);
  void refresh(SlotNode* node);
  const SlotNode* insert(const SlotNode* root, SlotNode* fresh);
  const SlotNode* remove(const SlotNode* root, u64 start, u32 id);
  const SlotNode* replace(const SlotNode* root, u64 start, const Slot& slot);
  void split(const SlotNode* root, u64 start, u32 id, const SlotNode** left,
             const SlotNode** right);
  const SlotNode* merge(const SlotNode* left, const SlotNode* right);

  // Forgets a node of the tree: a fresh one is marked, another waits with the stale ones.
  void supersede(SlotNode* node);

  SlotSet now_;
  const SlotSet* replaced_;  // the set the builder began with
  u64 first_batch_;
  u64 batch_;  // first_batch_ + snapshots: a node in a snapshot is edited no more
  bool failed_ = false;
  bool kept_ = false;
  SlotNode* fresh_ = nullptr;  // all it made
  SlotNode* stale_ = nullptr;  // what others made and it replaced
  SlotSet* sets_ = nullptr;    // snapshots, the newest first
};

}  // namespace stagetwo::stage2
