// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which shared memory is this process's alone: unnamed files (memfd_create, MAP_SHARED with
// MAP_ANONYMOUS) whose whole life passed under our eyes. Only of these may an owner take pages
// (host/page_owner.h): another process that maps the same file would read zeros where we took one.
//
// I1: alone_with() answers an object only if it was announced when it was made, no descriptor of it
//     was sent away or inherited by a program, and no fork has happened since. When in doubt it is
//     not.
// Differs from the kernel, which finds every mapping of a page by the file's own tree.
//
// Locking: a leaf. Context: any thread, no signal handler. The announcements are the shim's, after
// the call succeeded and before the client has its result; errno is kept.

#include "addr/addr.h"
#include "base/types.h"

namespace stagetwo::host {

// `pages`: the file that holds what `fd` stands for, which goes where that goes; -1: itself.
void shared_file_made(int fd, int pages = -1);
void shared_memory_mapped(Hva at);
// Nobody has it any more, nor its pages: room for others. Pre: `fd` is still open; it may be none.
void shared_file_gone(int fd);
// Somebody else may have it from now on (host/given_files.h). Answers its id, 0: nothing could be
// taken of it anyway.
enum class GivenTo : u8 {
  kReceiver,  // of a message
  // Who inherits it. Of a guest_memfd that cannot be mapped that is nobody: nothing reads it, and
  // no other VM takes it.
  kProgram,
};
u64 shared_file_escapes(int fd, GivenTo to);
// He has not got it.
void shared_file_returns(u64 object);
// Is there any object that somebody could get? Racy.
[[nodiscard]] bool any_shared_objects();

// The id of the object a mapping shows, or a descriptor leads to; 0: not known, or not ours alone.
[[nodiscard]] u64 alone_with(u64 device, u64 inode);
// The same, whoever else has it.
[[nodiscard]] u64 object_behind(u64 device, u64 inode);
[[nodiscard]] u64 object_behind(int fd);

// fork: around it, so that what is made meanwhile is not taken for ours.
void shared_objects_fork_turn();
void shared_objects_after_fork_child();

}  // namespace stagetwo::host
