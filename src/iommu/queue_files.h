// SPDX-License-Identifier: Apache-2.0
#pragma once

// The descriptors of queues (of page requests, of events): what a queue holds is what poll says of
// its descriptor, in every process that has it. The descriptor is a pipe (host/ready_file.h); each
// process that knows it has an end of its own here.
//
// Locking: the arena's. Lifetime: an entry's is that of the descriptor's description in this
// process; one without any reaches the pipe through the process that made it.

#include "base/alloc.h"
#include "base/result.h"
#include "base/types.h"
#include "base/vec.h"
#include "host/ready_file.h"
#include "iommu/kept.h"

namespace stagetwo::iommu {

// In the arena: a queue's descriptor.
struct QueueFile {
  Kept<u64> device, inode;  // of the pipe
  Kept<u32> maker;          // the process
  Kept<bool> open;          // it is a user of the queue
  Kept<bool> shown;         // the kernel tells who holds it (host::is_held_anywhere)
  [[nodiscard]] bool is(const QueueFile& other) const {
    return device == other.device && inode == other.inode;
  }
};

class QueueFiles {
 public:
  // Failure: ENOMEM, EMFILE, ENFILE.
  [[nodiscard]] Result<void> hold(int fd, QueueFile* out);
  void let_go(u64 device, u64 inode);
  // One more can be read; `waited`: it is not the first.
  void rise(const QueueFile& file, bool waited);
  void fall(const QueueFile& file);  // none is left

 private:
  template <typename F>
  void with(const QueueFile& file, F&& fn);

  Vec<Box<host::ReadyFile>> ends_{"iommu.queue_files"};
};

}  // namespace stagetwo::iommu
