// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the kernel still reads and writes after the call that asked for it has returned. Such a page
// may be moved, since what is under way moves with it or the kernel refuses, but not copied: the
// copy would miss what arrives later. Analogue: folio_maybe_dma_pinned(). Differs: the kernel tells
// a process of no page whether it is pinned, only how many are pinned for long.
//
// Seen are buffers registered with an io_uring (VmPin of /proc/self/status, as the memory of real
// devices); that there is an io_uring at all, by any mapping of it: requests begin and end in it
// without a call, so while it lasts nothing is copied; the requests of io_submit that are told of
// here; and an io_context that was not told of, or of which more have ended than were told of: a
// program submits to it by its own instruction, so while it lasts nothing is copied; and the reads
// of libc's aio_read. Not seen is a
// ring without a mapping (IORING_SETUP_NO_MMAP) that a program made by its own instruction, nor the
// first requests it submits so to a context that was told of.
//
// Locking: a leaf lock. Context: an EngineSection of the client's thread; kernel_pins_memory() any.

#include "addr/addr.h"
#include "base/types.h"

namespace stagetwo::host {

// May the kernel be at work in memory of this process? It does not say in which. True also where it
// says nothing.
[[nodiscard]] bool kernel_pins_memory();

// An io_context came to be, by a call we saw: so its requests will.
void requests_made(u64 context);

// Requests of an io_context: before the call that submits them; when that took fewer; when their
// ends were fetched; when the context is no more. Which have ended is read from the ring that the
// kernel shows the program, whether it fetches them by a call or from there.
void requests_begin(u64 context, u64 count);
void requests_refused(u64 context, u64 count);
void requests_fetched(u64 context, u64 count);
void requests_forget(u64 context);

// A read that threads of libc make by themselves (aio_read): under way as long as the word that
// tells of it is EINPROGRESS, which it is from before this call on. Another one with the same word
// takes its place.
void read_begins(Hva word);
void read_refused(Hva word);

// There is, or was, an io_uring of which no mapping tells. Also where the engine is asleep.
void ring_without_mapping();

void requests_after_fork_child();

}  // namespace stagetwo::host
