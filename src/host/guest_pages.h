// SPDX-License-Identifier: Apache-2.0
#pragma once

// The file that holds the pages of a guest_memfd. The client has no descriptor of it: what its own
// number leads to is a stand-in without pages, so that no call on it, seen or not, meets one
// (docs/decisions/0017-guest-memfd.md). Another process finds the file among the descriptors of the
// one that made it.
//
// Analogue: the inode of a guest_memfd apart from its struct file (kernel file: guest_memfd.c).
// Lifetime: as long as the process that made it, or one that has found it, has it open.
// Context: a client's thread, in an EngineSection. Allocates nothing.

#include "base/result.h"
#include "base/types.h"
#include "host/kept_fd.h"

namespace stagetwo::host {

// Where the pages are: enough to find them from another process.
struct PagesPlace {
  u32 process = 0;
  u64 inode = 0;  // 0: the client's own file has them
};

// Makes one that `pages` holds. The size is for ever, and nobody executes it. Failure: EMFILE,
// ENFILE, EFBIG, ENOMEM; it holds none.
[[nodiscard]] Result<void> make_pages_file(u64 size, HeldFd* pages);
[[nodiscard]] Result<PagesPlace> place_of_pages(int pages_fd);

// Opens the file of another process, which lies on the same file system as what is behind
// `stand_in`. Failure: ENOENT, the process is gone, and the pages with it, or has let go of them;
// EIO: this process may not look.
[[nodiscard]] Result<int> find_pages_file(const PagesPlace& place, int stand_in);

}  // namespace stagetwo::host
