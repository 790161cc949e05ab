// SPDX-License-Identifier: Apache-2.0
#pragma once

// The requests of a userfaultfd that are newer than Debian 12's headers: own definitions (Linux's
// uapi/linux/userfaultfd.h is the reference). For the one that asks and the one that listens.

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include "base/types.h"

namespace stagetwo::host::userfault {

// UFFDIO_MOVE (Linux 6.8): pages, not their bytes, from one place to another of this process.
struct MoveRequest {
  u64 to;
  u64 from;
  u64 size;
  u64 mode;
  s64 moved;
};
static_assert(sizeof(MoveRequest) == 40);
inline constexpr unsigned long kMove = _IOWR(UFFDIO, 0x05, MoveRequest);
inline constexpr u64 kMoveAllowsHoles = 2;

// UFFDIO_POISON (Linux 6.6): whoever touches the missing page gets SIGBUS.
struct PoisonRequest {
  u64 start;
  u64 size;
  u64 mode;
  s64 done;
};
static_assert(sizeof(PoisonRequest) == 32);
inline constexpr unsigned long kPoison = _IOWR(UFFDIO, 0x08, PoisonRequest);

// The client registers memory with a userfaultfd of its own, from now on.
void note_client();

}  // namespace stagetwo::host::userfault
