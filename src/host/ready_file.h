// SPDX-License-Identifier: Apache-2.0
#pragma once

// Behind a descriptor that is read when something has come: a pipe in the place of a memfd, so that
// poll, select and epoll wait for it as for the kernel's own file, in every process that has it.
// The client never sees a byte of the pipe; there is one in it exactly while something waits to be
// read, and each thing that comes wakes who waits, edge-triggered or not.
//
// Analogue: the wait queue and the poll operation of a file. Differs: a pipe with a reader and a
// writer is writable, too; DescriptorSpec::reads_alone takes that away.
// Locking: rise() and fall() under the lock of what waits there. Lifetime: an end is the process's;
// a child of fork has it, too.

#include "base/result.h"
#include "base/types.h"
#include "host/kept_fd.h"

namespace stagetwo::host {

class ReadyFile {
 public:
  // Opens the pipe again, by a descriptor of it. Failure: EMFILE, ENFILE.
  [[nodiscard]] Result<void> hold(int fd);
  // Something has come; `waited`: so had something before it.
  void rise(bool waited);
  void fall();  // nothing waits any more

  [[nodiscard]] u64 device() const { return device_; }
  [[nodiscard]] u64 inode() const { return inode_; }

 private:
  HeldFd own_{HeldFd::Child::kHasIt};
  u64 device_ = 0, inode_ = 0;
};

}  // namespace stagetwo::host
