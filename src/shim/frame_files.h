// SPDX-License-Identifier: Apache-2.0
#pragma once

// The files that speak of pages: /sys/kernel/mm/page_idle/bitmap and this process's pagemap and
// clear_refs. What is written to the last is the kernel's; when it is to make the next store to
// each page count, the bell is rung around it. In pagemap a present page that somebody borrows (a
// VM's slot) has a frame number of ours (host/page_idle.h), everything else is as the kernel says;
// the bitmap knows those numbers. Other numbers of the bitmap are passed on to the machine's own,
// where there is one and it may be used.
//
// Analogue: page_idle_bitmap_read and _write (kernel file: page_idle.c), pagemap_read,
// clear_refs_write (task_mmu.c). Context: pagemap and clear_refs are ours while the engine is
// awake, the bitmap always; its first word wakes the engine.

#include <sys/types.h>

#include "base/result.h"
#include "shim/files.h"
#include "shim/virtual_files.h"

namespace stagetwo::shim {

// Failure: the kernel's for pagemap and clear_refs.
[[nodiscard]] Result<int> open_frame_file(Source source, int flags);

// A read or write as the file does it; *answer is >= 0 or -errno. False: the kernel does it alone.
[[nodiscard]] bool frame_file_io(Source source, int fd, Io io, void* buffer, size_t size,
                                 const off_t* at, long* answer);

}  // namespace stagetwo::shim
