// SPDX-License-Identifier: Apache-2.0
#pragma once

// Descriptors of ours in a process that has opened no device: sent to it, taken by it from another
// process, inherited through exec, or about to be opened by their name in /proc. What stands in for
// the kernel's file would answer their calls, so the engine wakes as at the opening of a device. Of
// what exec leaves, for the memory of a guest alone.
//
// I1: a process that gets none pays one look at its descriptors when the library is loaded, and
//     a relaxed load and a comparison for each such call.
// Context: the client's thread, awake or not. errno is kept.

#include <sys/socket.h>

namespace stagetwo::shim {

// Pre: the call that filled them in has succeeded.
void came_in(const msghdr* message);
void came_in(const mmsghdr* messages, long count);
void came_in(long fd);

// Before `path` is opened.
void will_be_opened(int directory, const char* path);

// The last part of the path is a number, as in /proc/PID/fd.
[[nodiscard]] bool could_name_descriptor(const char* path);

}  // namespace stagetwo::shim
