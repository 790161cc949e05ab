// SPDX-License-Identifier: Apache-2.0
#pragma once

// The memfd behind a descriptor of ours (host/descriptor.h, I1 and I2): its name, which says what
// it is, and the lock by which an open description of it is known to be held.
//
// Context: any; system calls. Locking: none. Failure: the system call's errno.

#include <string_view>

#include "base/result.h"
#include "base/text.h"
#include "base/types.h"

namespace stagetwo::host {

inline constexpr std::string_view kNamePrefix = "stagetwo:1:";  // of the kind
inline constexpr size_t kMaxKind = 200;
inline constexpr size_t kMaxLink = 768;  // with the folder a pipe was made in

struct ProcPath : FixedString<48> {
  explicit ProcPath(int fd) { append("/proc/thread-self/fd/").append_int(fd); }
};

// Does any open file description still hold the memfd (I2)? On doubt, yes.
[[nodiscard]] bool is_held(int watch_fd);

// The client's own open of the memfd, locked (I2). Where the kernel's file has no position ours is
// at the last one, from which the kernel reads and writes nothing and says EINVAL: what libc does
// inside (streams, dprintf) is refused as it would be there.
[[nodiscard]] Result<int> open_for_client(int backing_fd, int flags, bool has_position);

// The kind in a memfd's name, in `buffer`; empty: not one of ours.
[[nodiscard]] std::string_view kind_behind(int fd, char* buffer, size_t capacity);

}  // namespace stagetwo::host
