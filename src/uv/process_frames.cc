// SPDX-License-Identifier: Apache-2.0
#include "uv/process_frames.h"

#include <sys/mman.h>

#include "addr/addr.h"
#include "base/alloc.h"
#include "base/check.h"
#include "base/sys.h"
#include "host/page_owner.h"
#include "mem/secure_memory.h"

namespace stagetwo::uv {
namespace {

constexpr u64 kChunk = 64;                  // frames mapped at once
constexpr u64 kWarmBytes = 64 * kPageSize;  // of frames that keep their memory

}  // namespace

ProcessFrames::~ProcessFrames() {
  const sync::MutexGuard guard(lock_);
  for (const u64 chunk : chunks_) unmap_pages(reinterpret_cast<void*>(chunk), kChunk * bytes_);
  if (runs_ != 0) unmap_pages(reinterpret_cast<void*>(runs_), kRuns * kRun * kPageSize);
}

Result<void> ProcessFrames::more() {
  const auto pages = map_pages(kChunk * bytes_, "uv.frames");
  if (!pages) return refuse(pages.error());
  const u64 start = reinterpret_cast<std::uintptr_t>(*pages);
  static_cast<void>(sys::madvise(*pages, kChunk * bytes_, MADV_DONTDUMP));
  host::prepare_places(HvaRange(Hva(start), kChunk * bytes_));
  const sync::MutexGuard guard(lock_);
  // Every frame there is can be free: drop_frame() is never refused.
  auto good = chunks_.push_back(start);
  if (good) good = free_.reserve(chunks_.size() * kChunk);
  if (good) good = warm_.reserve(kWarmBytes / bytes_);
  if (!good) {
    if (chunks_.size() != 0 && chunks_.back() == start) chunks_.pop_back();
    unmap_pages(*pages, kChunk * bytes_);
    return good;
  }
  for (u64 i = 0; i < kChunk; ++i) ST_CHECK(free_.push_back(start + i * bytes_).has_value());
  return {};
}

u64 ProcessFrames::full() {
  {
    const sync::MutexGuard guard(lock_);
    if (!warm_.empty()) {
      const u64 frame = warm_.back();
      warm_.pop_back();
      return frame;
    }
  }
  return empty();
}

u64 ProcessFrames::empty() {
  for (;;) {
    {
      const sync::MutexGuard guard(lock_);
      if (!free_.empty()) {
        const u64 frame = free_.back();
        free_.pop_back();
        return frame;
      }
    }
    if (!more()) return 0;
  }
}

void ProcessFrames::drop(u64 frame) {
  if (frame == 0 || frame == kZeros) return;
  void* const at = reinterpret_cast<void*>(frame);
  mem::wipe(at, bytes_);
  if (give_to_run(frame, 1)) return;
  {
    const sync::MutexGuard guard(lock_);
    if (warm_.size() < kWarmBytes / bytes_) {
      ST_CHECK(warm_.push_back(frame).has_value());
      return;
    }
  }
  // Empty, so that a page can be moved there.
  static_cast<void>(sys::madvise(at, bytes_, MADV_DONTNEED));
  const sync::MutexGuard guard(lock_);
  ST_CHECK(free_.push_back(frame).has_value());
}

u64 ProcessFrames::in_use() {
  const sync::MutexGuard guard(lock_);
  u64 in_use = chunks_.size() * kChunk - free_.size() - warm_.size();
  for (const u8 places : in_run_) in_use += places;
  return in_use;
}

u64 ProcessFrames::run(u64 count) {
  const u64 first = whole_run();
  if (first != 0) give_places(first + count * kPageSize, kRun - count);
  return first;
}

// The places of a run, all empty.
u64 ProcessFrames::whole_run() {
  constexpr u64 kBytes = kRuns * kRun * kPageSize;
  for (bool tried = false;; tried = true) {
    {
      const sync::MutexGuard guard(lock_);
      for (u64 i = 0; runs_ != 0 && i < kRuns; ++i) {
        if (in_run_[i] != 0) continue;
        in_run_[i] = kRun;
        return runs_ + i * kRun * kPageSize;
      }
      if (runs_ != 0 || tried) return 0;
    }
    const auto pages = map_pages(kBytes, "uv.frame_runs");
    if (!pages) return 0;
    const u64 start = reinterpret_cast<std::uintptr_t>(*pages);
    static_cast<void>(sys::madvise(*pages, kBytes, MADV_DONTDUMP));
    host::prepare_places(HvaRange(Hva(start), kBytes));
    const sync::MutexGuard guard(lock_);
    if (runs_ == 0) {
      runs_ = start;
    } else {
      unmap_pages(*pages, kBytes);
    }
  }
}

// Wiped or empty. False: not of a run.
bool ProcessFrames::give_to_run(u64 frame, u64 count) {
  u64 run = 0;
  {
    const sync::MutexGuard guard(lock_);
    if (runs_ == 0 || frame - runs_ >= kRuns * kRun * kPageSize) return false;
    run = (frame - runs_) / (kRun * kPageSize);
    in_run_[run] = static_cast<u8>(in_run_[run] - count);
    if (in_run_[run] != 0) return true;
    in_run_[run] = 1;  // nobody's while it is emptied
    frame = runs_ + run * kRun * kPageSize;
  }
  static_cast<void>(sys::madvise(reinterpret_cast<void*>(frame), kRun * kPageSize, MADV_DONTNEED));
  const sync::MutexGuard guard(lock_);
  in_run_[run] = 0;
  return true;
}

void ProcessFrames::give_places(u64 first, u64 count) {
  if (count == 0 || give_to_run(first, count)) return;
  const sync::MutexGuard guard(lock_);
  ST_CHECK(free_.push_back(first).has_value());
}

}  // namespace stagetwo::uv
