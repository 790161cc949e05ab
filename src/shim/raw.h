// SPDX-License-Identifier: Apache-2.0
#pragma once

// syscall(2) by number: the calls that may concern us take the same way as their libc functions,
// everything else goes on. Arguments are as the kernel takes them; the result is libc's.

namespace stagetwo::shim {

long raw_call(long number, long a, long b, long c, long d, long e, long f);
// Of files and their names. False: not one of those, or not ours (raw_files.cc). Pre: awake.
bool file_call(long number, const long (&words)[6], long* result);

}  // namespace stagetwo::shim
