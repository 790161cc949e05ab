// SPDX-License-Identifier: Apache-2.0
#pragma once

// Descriptors of virtual files: opening, and the reads and writes that are not the kernel's own.
//
// Reading a text: a memfd with what it said when it was opened. Writing: a file of the session
// directory that is only ever appended to, so that a write we do not see (libc's own inside stdio,
// a program that inherited the descriptor) is not lost: whoever looks next takes it. A write we see
// is taken at once, and a refusal is its errno. The bitmap of idle pages and pagemap are answered
// read by read (shim/frame_files.h).
//
// Analogue: kernfs_file_operations. Differs: what stdio wrote is judged at fflush, fclose, close.
// Locking: a leaf around the table of what is open; host::SessionLock around taking.

#include <stdio.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/result.h"
#include "shim/files.h"
#include "shim/virtual_files.h"

namespace stagetwo::shim {

// Failure: EACCES as for the file's mode, the kernel's for the rest.
[[nodiscard]] Result<int> open_virtual(const VirtualFile& file, int flags);

// Behind `fd`, whose reads are the kernel's own, is `file` from now on.
void note_virtual(int fd, const VirtualFile& file);

// Was one opened in this process, other than to read a text? A relaxed load.
[[nodiscard]] bool any_virtual_io();
// Which one is behind `fd`? Pre: any_virtual_io().
[[nodiscard]] VirtualFile virtual_behind(int fd);

// One read or write, when it is not the kernel's: true, and *result is libc's, errno set.
// `at`: of the p-forms, or nullptr.
[[nodiscard]] bool virtual_io(int fd, Io io, const iovec* parts, int count, const off_t* at,
                              ssize_t* result);
inline bool virtual_io(int fd, Io io, const void* buffer, size_t size, const off_t* at,
                       ssize_t* result) {
  const iovec part{const_cast<void*>(buffer), size};
  return virtual_io(fd, io, &part, 1, at, result);
}

// Takes what was appended. 0 or the errno of the last write that was refused.
int take_appended(const VirtualFile& file);

// Of every file that can be written.
void take_all_appended();

int flush_stream(FILE* stream);

// fdopen. Of a file that speaks of pages the stream reads and writes through us, not by libc's own
// calls; its fileno is the descriptor all the same.
FILE* stream_on(int fd, const char* mode);

}  // namespace stagetwo::shim
