// SPDX-License-Identifier: Apache-2.0
// Every test program of a sanitizer's preset is run with these, however it is started.
// ASAN_OPTIONS, TSAN_OPTIONS and UBSAN_OPTIONS in the environment come after them.
//
// allow_user_segv_handler: the engine handles the faults of its guarded accesses.
// detect_stack_use_after_return: a hold (host/held_pages.h) knows the frames a thread has left by
// their addresses; locals of an invented stack have none that say so.
// handle_sigbus, handle_segv: they are what a process gets for a page that is lost, or that it may
// not store to; a test dies of them.
// die_after_fork: a child of a process with threads makes threads of its own; the sanitizer sees no
// races there, and would otherwise end it.

extern "C" {

const char* __asan_default_options() {
  return "detect_leaks=1:abort_on_error=1:allow_user_segv_handler=1:handle_sigbus=0:handle_segv=0:"
         "detect_stack_use_after_return=0";
}

const char* __ubsan_default_options() {
  return "print_stacktrace=1";
}

const char* __tsan_default_options() {
  return "halt_on_error=1:die_after_fork=0:handle_sigbus=0:handle_segv=0";
}
}
