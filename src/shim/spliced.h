// SPDX-License-Identifier: Apache-2.0
#pragma once

// sendfile and splice. Into a virtual file the bytes are taken as its writes, a page's at most at
// once, as kernfs takes what iter_file_splice_write() gives it. What is refused stays in the
// source.
//
// Analogue: kernfs_file_fops.splice_write. Differs: the bytes stand in the source until they are
// written, and who reads the same pipe or moves the same position meanwhile has them, too; a
// descriptor that its client opened to append, which the kernel does not splice to, is as any
// other. Context: the client's thread. errno is the call's.

#include <sys/types.h>

namespace stagetwo::shim {

ssize_t send_file(int to, int from, off_t* at, size_t size);
ssize_t splice_bytes(int from, off_t* from_at, int to, off_t* to_at, size_t size, unsigned flags);

}  // namespace stagetwo::shim
