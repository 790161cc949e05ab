// SPDX-License-Identifier: Apache-2.0
#pragma once

// System calls on buffers with absent pages (host/page_owner.h). Usually the kernel's own touch
// waits like any other. Where it cannot be held back (userfaultfd for user mode only, or none at
// all) it would answer EFAULT, so that the pages are brought back first.
//
// Context: the client's thread. errno is the call's.

#include <errno.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "host/page_owner.h"

namespace stagetwo::shim {

// Brings back what is absent of it; answers how many pages came.
unsigned long fetch_buffer(const void* buffer, size_t size);
unsigned long fetch_buffers(const iovec* parts, int count);

// A page may be taken again before the kernel gets there: EFAULT after which pages came back is
// none of the client's.
template <typename Fetch, typename F>
ssize_t call_with(Fetch&& fetch, F&& call) {
  if (!host::kernel_meets_hidden_pages()) [[likely]]
    return call();
  fetch();
  for (;;) {
    const ssize_t result = call();
    if (result >= 0 || errno != EFAULT || fetch() == 0) return result;
  }
}

template <typename F>
ssize_t with_buffer(const void* buffer, size_t size, F&& call) {
  return call_with([&] { return fetch_buffer(buffer, size); }, call);
}
template <typename F>
ssize_t with_buffers(const iovec* parts, int count, F&& call) {
  return call_with([&] { return fetch_buffers(parts, count); }, call);
}

}  // namespace stagetwo::shim
