// SPDX-License-Identifier: Apache-2.0
#pragma once

// Shared memory that somebody else is about to have as well: its descriptor goes out in a message,
// or a program that starts inherits it. He reads the file, and would find a hole where an owner has
// taken a page: so everything of it is back before, and nothing of it is taken any more.
// Analogue: none; the kernel's swap entries are the file's own.
//
//   taker (host/shared_views.cc)             | giver
//   lock; layout n; unlock                   | marks the object
//   is the object marked? no                 | lock; layout + 1; unlock
//   lock; layout is n: record (taking)       | brings back what has a record, waits for those in
//                                            | transit; gives
//
// Either the taker sees the mark or the new layout, or the giver sees the record.
//
// Invariants: I1  after add() answered true, every byte is in the file, and stays there until the
//                 object is ours alone again.
//             I2  what was never given (the call failed) is ours alone again.
// Locking: as HeldPages. Context: the client's thread, in a section; no lock held. Also a child of
// vfork, whose exec returns to nobody: what it has added stays.

#include "base/result.h"
#include "base/types.h"
#include "host/shared_objects.h"

namespace stagetwo::host {

class GivenFiles {
 public:
  GivenFiles() = default;
  ~GivenFiles();
  GivenFiles(const GivenFiles&) = delete;
  GivenFiles& operator=(const GivenFiles&) = delete;

  // The object behind `fd`, if it is one that pages can be taken of. False: some of its bytes are
  // lost, or cannot be brought back: it is not to be given.
  [[nodiscard]] bool add(int fd, GivenTo to);
  // Nobody can say which: all there are, for good.
  void add_all();
  // They were given.
  void keep() { count_ = 0; }

 private:
  static constexpr unsigned kMost = 16;  // further ones are marked for good
  u64 objects_[kMost];
  unsigned count_ = 0;
};

}  // namespace stagetwo::host
