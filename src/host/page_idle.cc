// SPDX-License-Identifier: Apache-2.0
#include "host/page_idle.h"

#include <memory>

#include "base/alloc.h"
#include "base/hash_map.h"
#include "host/mapping_level.h"
#include "host/mmu_notifier.h"
#include "sync/mutex.h"

namespace stagetwo::host::page_idle {
namespace {

// Words of marks by their first frame; a word of zeros is not kept.
using Marks = HashMap<u64, u64>;

constinit sync::Mutex lock{sync::Rank::kLeaf};
constinit Marks* marks = nullptr;  // made with the first mark, kept for good

HvaRange page_of(u64 frame) {
  return {Hva((frame - kFirstFrame) << kPageShift), kPageSize};
}

u64 marks_of(u64 first) {
  const sync::MutexGuard guard(lock);
  const u64* const word = marks == nullptr ? nullptr : marks->find(first);
  return word == nullptr ? 0 : *word;
}

void change_marks(u64 first, u64 set, u64 clear) {
  const sync::MutexGuard guard(lock);
  if (marks == nullptr) marks = make<Marks>("host.page_idle_marks").value_or(nullptr);
  if (marks == nullptr) return;
  u64* const word = marks->find(first);
  const u64 value = ((word == nullptr ? 0 : *word) | set) & ~clear;
  if (value == 0) {
    marks->erase(first);
  } else {
    static_cast<void>(marks->put(first, value));
  }
}

}  // namespace

u64 read_word(u64 first) {
  const u64 marked = marks_of(first);
  u64 used = 0;
  for (u64 left = marked; left != 0; left &= left - 1) {
    const unsigned bit = static_cast<unsigned>(__builtin_ctzll(left));
    const HvaRange page = page_of(first + bit);
    if (test_young(page) || !borrows(page)) used |= u64{1} << bit;
  }
  if (used != 0) change_marks(first, 0, used);
  return marked & ~used;
}

// A huge page has one frame that can be idle, its first: one accessed bit stands for all of it.
u64 markable(u64 first, u64 bits) {
  const Hva start = page_of(first).start();
  const unsigned level =
      mapping_level(page_of(first + static_cast<u64>(__builtin_ctzll(bits))).start());
  if (level == 1) return bits;
  const u64 page = kPageSize << (9 * (level - 1));
  return (start.raw() & (page - 1)) == 0 ? bits & 1 : 0;
}

// Cleared before it is marked: a use in between is seen, one before is not wanted.
void write_word(u64 first, u64 bits) {
  u64 set = 0;
  if (bits == 0) return;
  for (u64 left = markable(first, bits); left != 0; left &= left - 1) {
    const unsigned bit = static_cast<unsigned>(__builtin_ctzll(left));
    const HvaRange page = page_of(first + bit);
    if (!borrows(page)) continue;
    clear_young(page);
    set |= u64{1} << bit;
  }
  if (set != 0) change_marks(first, set, 0);
}

void note_young(HvaRange range, const u64* bits) {
  const sync::MutexGuard guard(lock);
  if (marks == nullptr) return;
  const u64 pages = range.size() >> kPageShift;
  for (u64 i = 0; i < pages; ++i) {
    if ((bits[i / 64] >> (i % 64) & 1) == 0) continue;
    const u64 frame = frame_of(range.start() + (i << kPageShift));
    u64* const word = marks->find(frame & ~u64{63});
    if (word == nullptr) continue;
    *word &= ~(u64{1} << (frame % 64));
    if (*word == 0) marks->erase(frame & ~u64{63});
  }
}

void after_fork_child() {
  std::construct_at(&lock, sync::Rank::kLeaf);
  marks = nullptr;  // the child borrows nothing
}

}  // namespace stagetwo::host::page_idle
