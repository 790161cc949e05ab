// SPDX-License-Identifier: Apache-2.0
#pragma once

// Descriptors in the control messages of a socket (SCM_RIGHTS), going out or come in.
// Context: an EngineSection that touches the client's memory.

#include <sys/socket.h>

#include "addr/addr.h"
#include "base/types.h"
#include "host/access.h"

namespace stagetwo::shim {

// Calls fn(fd) for each; ends where the message cannot be read.
template <typename F>
void for_each_right(const msghdr* message, F&& fn) {
  msghdr copy{};
  if (message == nullptr) return;
  if (!host::read_struct(Hva(reinterpret_cast<u64>(message)), &copy)) return;
  const u64 size = copy.msg_controllen;
  u64 offset = 0;
  while (offset + sizeof(cmsghdr) <= size) {
    const Hva here(reinterpret_cast<u64>(copy.msg_control) + offset);
    cmsghdr head{};
    if (!host::read_struct(here, &head)) return;
    if (head.cmsg_len < sizeof(cmsghdr) || head.cmsg_len > size - offset) return;
    const bool rights = head.cmsg_level == SOL_SOCKET && head.cmsg_type == SCM_RIGHTS;
    const u64 count = rights ? (head.cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;
    for (u64 i = 0; i < count; ++i) {
      int fd = -1;
      if (!host::read_struct(here + CMSG_LEN(0) + i * sizeof(int), &fd)) return;
      fn(fd);
    }
    offset += CMSG_ALIGN(head.cmsg_len);
  }
}

}  // namespace stagetwo::shim
