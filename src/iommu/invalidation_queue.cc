// SPDX-License-Identifier: Apache-2.0
#include "iommu/invalidation_queue.h"

#include "base/guard.h"
#include "iommu/other_process.h"
#include "sync/futex.h"
#include "sync/process_mutex.h"

namespace stagetwo::iommu {
namespace {

constexpr unsigned kSpins = 200;  // some microseconds: what is left of a piece
// Between two looks whether its thread lives: on a busy machine each turn is another's time slice.
constexpr unsigned kLooks = 16;

}  // namespace

void InvalidationQueue::post(const Invalidation& what) {
  const u64 tail = tail_.load(sync::kRelaxed);
  Slot& slot = ring_[tail % kLength];
  slot.low.store(what.low, sync::kRelease);
  slot.high.store(what.high, sync::kRelease);
  tail_.store(tail + 1, sync::kSeqCst);
}

void InvalidationQueue::wait_for(DmaLine& line, u64 tail) {
  for (unsigned turns = 0;; ++turns) {
    u32 tid = line.inside.load(sync::kSeqCst);
    if (tid == 0 || line.heeded.load(sync::kAcquire) >= tail) return;
    if (turns < kSpins) {
      sync::spin_hint();
      continue;
    }
    sync::yield_thread();
    if (turns % kLooks != 0) continue;
    // A number of another PID namespace says nothing here.
    const u32 space = line.space;
    if ((space != 0 && space != pid_space()) || !sync::is_thread_gone(tid)) continue;
    line.inside.compare_exchange(tid, 0, sync::kSeqCst);
  }
}

void InvalidationQueue::wait() {
  if (!ST_GUARD(iommu_wait, lines_ != 0)) return;
  const u64 tail = tail_.load(sync::kRelaxed);
  for_each_line([tail](DmaLine& line) { wait_for(line, tail); });
}

DmaLine* InvalidationQueue::add(u32 process, u32 space) {
  for (DmaLine& line : line_) {
    if (line.used.load(sync::kRelaxed) != 0) continue;
    line.process = process;
    line.space = space;
    undo::note(&line, sizeof(line.inside) + sizeof(line.used));
    line.inside.store(0, sync::kRelaxed);
    line.heeded.store(tail_.load(sync::kRelaxed), sync::kRelaxed);
    line.used.store(1, sync::kRelaxed);
    ++lines_;
    return &line;
  }
  return nullptr;
}

void InvalidationQueue::remove(DmaLine* line) {
  undo::note(line, sizeof(line->inside) + sizeof(line->used));
  line->used.store(0, sync::kRelaxed);
  --lines_;
}

}  // namespace stagetwo::iommu
