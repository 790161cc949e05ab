// SPDX-License-Identifier: Apache-2.0
#pragma once

// The many libc functions that install a handler. libc's own versions call its internal sigaction,
// which nobody can stand in front of, so awake they are written again on top of the table
// (shim/signals.h) with the flags their manual pages give them. Asleep they go straight on.

#include <signal.h>

namespace stagetwo::shim {

int sigaction_entry(int number, const struct sigaction* set, struct sigaction* old);
sighandler_t bsd_signal_entry(int number, sighandler_t handler);
sighandler_t sysv_signal_entry(int number, sighandler_t handler);
sighandler_t sigset_entry(int number, sighandler_t handler);
int siginterrupt_entry(int number, int interrupt);
int sigignore_entry(int number);

}  // namespace stagetwo::shim
