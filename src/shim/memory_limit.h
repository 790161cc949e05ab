// SPDX-License-Identifier: Apache-2.0
#pragma once

// --memory-limit, --swap, --wss and --stats of `stagetwo run`, as the engine sees them.
//
//   memory-limit=256M    guests' memory of this process stays under it (reclaim/reclaim.h); none
//   vm-limit=64M         that of each VM, too
//   swap=FILE  swap-size=1G  compressed=32M
//   wss=1s     wss-file=FILE    the working set: a line each interval, and one of JSON in the file
//   stats=1    stats=FILE       at exit: lines for the user, or JSON in the file
//
// A value that makes no sense, or cannot be had, is one line and then as if it were not given: the
// program is not ours to end.
// Where none of these is given nothing is started, but in a session that has a name: `stagetwo
// limit` may say one at any time, so the first guest there starts what a limit needs, with none.
// Context: the end of waking; at exit.

namespace stagetwo::shim {

void start_memory_limit();
// Does the command line give a limit? Context: any; the engine may be asleep.
[[nodiscard]] bool limited_from_the_start();
// Pre: the process that woke, before its address space is released.
void say_statistics();

}  // namespace stagetwo::shim
