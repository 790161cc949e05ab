// SPDX-License-Identifier: Apache-2.0
#pragma once

// Frames for a guest's pages on their way out of the process and into it: a page's bytes between
// the process's memory and the ultravisor. A page can only be moved to an empty place, and what
// leaves secure memory is copied to one that has memory: both kinds are kept.
//
// I1: a frame is wiped before anybody else has it. Some stay as pages of zeros; the others go back
//     to the kernel.
// I2: none is dumped, none is a forked child's: they hold pages in clear on their way to secure
//     memory.
// Locking: lock_ (rank leaf), never across a system call. A frame is its holder's alone.

#include "base/result.h"
#include "base/vec.h"
#include "sync/mutex.h"

namespace stagetwo::uv {

class ProcessFrames {
 public:
  static constexpr u64 kZeros = 1;  // no frame: zeros
  // Places for neighbours that leave at once; they are emptied at once, too.
  static constexpr u64 kRun = 16;

  explicit ProcessFrames(u64 page_bytes) : bytes_(page_bytes) {}
  ProcessFrames(const ProcessFrames&) = delete;
  ProcessFrames& operator=(const ProcessFrames&) = delete;
  ~ProcessFrames();

  // A frame is a page of the guest. One of zeros, for bytes; 0: no memory.
  [[nodiscard]] u64 full() TA_EXCL(lock_);
  // One without memory, for a page to be moved to; 0: no memory.
  [[nodiscard]] u64 empty() TA_EXCL(lock_);
  // Places for `count` neighbours of 4 KiB, 2 to kRun. 0: all runs are in use, or there is no
  // memory for any.
  [[nodiscard]] u64 run(u64 count) TA_EXCL(lock_);
  // Wipes it. 0 and kZeros are allowed.
  void drop(u64 frame) TA_EXCL(lock_);
  // Places that are empty still, of a run or one of the others.
  void give_places(u64 first, u64 count) TA_EXCL(lock_);
  // Frames that hold something, for leak tests.
  [[nodiscard]] u64 in_use() TA_EXCL(lock_);

 private:
  static constexpr u64 kRuns = 32;
  [[nodiscard]] Result<void> more() TA_EXCL(lock_);
  [[nodiscard]] u64 whole_run() TA_EXCL(lock_);
  [[nodiscard]] bool give_to_run(u64 frame, u64 count) TA_EXCL(lock_);

  const u64 bytes_;
  sync::Mutex lock_{sync::Rank::kLeaf};
  Vec<u64> free_ TA_GUARDED(lock_){"uv.free_frames"};  // without memory
  Vec<u64> warm_ TA_GUARDED(lock_){"uv.warm_frames"};  // pages of zeros
  Vec<u64> chunks_ TA_GUARDED(lock_){"uv.frame_chunks"};
  u64 runs_ TA_GUARDED(lock_) = 0;           // the first of kRuns runs; 0: none yet
  u8 in_run_[kRuns] TA_GUARDED(lock_) = {};  // places of each that are in use
};

}  // namespace stagetwo::uv
