// SPDX-License-Identifier: Apache-2.0
#pragma once

// The buffers of a system call that is made by its number (shim/raw_calls.def).
//
// Context: the client's thread, awake or not; errno is the call's.

namespace stagetwo::shim {

// Makes the call with its buffers held where that matters; the result is libc's. Every call that
// nobody else has answered comes here.
long call_with_buffers(long number, const long (&arguments)[6]);

}  // namespace stagetwo::shim
