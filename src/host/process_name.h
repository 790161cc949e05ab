// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which process is it, and is it still there? Asked of /proc; of other processes nothing is kept.
//
// Context: may sleep. Analogue: struct pid and the thread group's exit (kernel file: kernel/pid.c).

#include "base/types.h"

namespace stagetwo::host {

struct ProcessName {
  u32 pid = 0;
  bool alive = false;  // some thread of it runs: neither gone nor waiting to be reaped
  u64 start_time = 0;  // in the kernel's ticks
  // Where its stack begins, which exec chooses anew at random; 0: not for us to know. Where the
  // choice is switched off, the same program has the same.
  u64 stack = 0;
};
[[nodiscard]] ProcessName name_of_process(u32 pid);
[[nodiscard]] ProcessName name_of_this_process();
// The PID namespace of this process: numbers of another one mean nothing here. 0: not known.
[[nodiscard]] u32 pid_space();
// Does /proc show the processes of our namespace, under our numbers?
[[nodiscard]] bool proc_is_ours();

}  // namespace stagetwo::host
