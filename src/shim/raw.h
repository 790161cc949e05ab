// SPDX-License-Identifier: Apache-2.0
#pragma once

// syscall(2) by number: the calls that may concern us take the same way as their libc functions,
// everything else goes on. Arguments are as the kernel takes them; the result is libc's.

namespace stagetwo::shim {

long raw_call(long number, long a, long b, long c, long d, long e, long f);

}  // namespace stagetwo::shim
