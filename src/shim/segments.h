// SPDX-License-Identifier: Apache-2.0
#pragma once

// Two old ways to have memory that also take it away: the program's break and System V shared
// segments. As in shim/memory.h the bell rings first; asleep they go straight on.

#include <sys/types.h>

#include "base/types.h"

namespace stagetwo::shim {

int set_break(void* at);
void* move_break(ssize_t by);
// The system call: answers the break there is now, whatever was asked. Pre: awake.
long kernel_break(u64 at);

void* attach(int id, const void* at, int flags);
int detach(const void* at);

}  // namespace stagetwo::shim
