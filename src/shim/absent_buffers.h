// SPDX-License-Identifier: Apache-2.0
#pragma once

// System calls on buffers with absent pages (host/page_owner.h). Usually the kernel's own touch
// waits like any other. Where it cannot be held back (userfaultfd for user mode only, or none at
// all) it would answer EFAULT, and what it had taken off a socket would be lost. There the pages
// are held (host/held_pages.h) for as long as the call lasts, and brought back first.
//
//   with_buffers([&](Buffers& b) { b.bytes(to, size).value(length); }, [&] { return recv(…); });
//
// Context: the client's thread. errno is the call's. A call that is left by siglongjmp or by the
// thread's end leaves its hold to host/held_pages.h.

#include <errno.h>

#include <type_traits>

#include "host/held_pages.h"
#include "host/page_owner.h"
#include "host/run_section.h"
#include "shim/buffers.h"
#include "shim/engine.h"

namespace stagetwo::shim {

// Is it this process's /proc/PID/mem? Then some of its bytes may be absent.
[[nodiscard]] bool shows_absent_memory(int fd);
// `at` null: where the descriptor stands.
[[nodiscard]] u64 offset_of(int fd, const off_t* at);

[[nodiscard]] inline bool buffers_matter() {
  return host::kernel_meets_hidden_pages() || host::pages_copied_away();
}

template <typename T>
bool met_a_hidden_page(const T& result) {
  if constexpr (std::is_pointer_v<T>) {
    return result == nullptr && errno == EFAULT;
  } else {
    return result == static_cast<T>(-1) && errno == EFAULT;
  }
}

template <typename T>
T with_errno(int error) {
  errno = error;
  if constexpr (std::is_pointer_v<T>) {
    return nullptr;
  } else {
    return static_cast<T>(-1);
  }
}

// The long way, with handlers of the client only where nothing of it is half done.
template <typename Describe>
u64 look_at(Buffers& buffers, Describe&& describe) {
  const int error = errno;
  host::EngineSection section(host::Touches::kClientMemory);
  buffers.look(describe);
  if (in_borrowed_memory()) buffers.let_go();
  section.leave();
  errno = error;
  return buffers.fetched();
}

// Without memory for a hold, or when the first page of all was taken during the call, EFAULT may be
// none of the client's: then what came back since is tried again.
template <typename Describe, typename F>
auto with_buffers(Describe&& describe, F&& call) {
  if (!buffers_matter()) [[likely]] {
    auto result = call();
    if (!met_a_hidden_page(result) || !host::kernel_meets_hidden_pages()) [[likely]]
      return result;
  }
  Buffers buffers;
  look_at(buffers, describe);
  if (buffers.lost()) return with_errno<decltype(call())>(EIO);
  for (;;) {
    auto result = call();
    if (!met_a_hidden_page(result) || buffers.all_held()) return result;
    if (look_at(buffers, describe) == 0) return result;
  }
}

// Of a call that answers its error in place of errno.
template <typename Describe, typename F>
int with_buffers_and_error(Describe&& describe, F&& call) {
  const int before = errno;
  const int result = with_buffers(describe, [&] {
    const int error = call();
    if (error == EFAULT) errno = EFAULT;
    return error == EFAULT ? -1 : error;
  });
  errno = before;
  return result == -1 ? EFAULT : result;
}

// Whether it matters or not.
template <typename Describe, typename F>
auto with_held(Describe&& describe, F&& call) {
  Buffers buffers;
  look_at(buffers, describe);
  return call();
}

template <typename F>
auto with_buffer(const void* at, size_t size, F&& call) {
  return with_buffers([&](Buffers& buffers) { buffers.bytes(at, size); }, call);
}
// A read (`fills`) or write of a file; `offset` null: from where it stands. What a write takes its
// bytes from may go meanwhile: who has pinned it keeps it as it was.
template <typename F>
auto with_buffer(int fd, bool fills, const off_t* offset, const void* at, size_t size, F&& call) {
  return with_buffers(
      [&](Buffers& b) { b.file(fd, offset, size).filled_from(fd, fills).bytes(at, size); }, call);
}
template <typename F>
auto with_parts(int fd, bool fills, const off_t* offset, const iovec* parts, int count, F&& call) {
  return with_buffers(
      [&](Buffers& b) {
        b.file_at(fd, offset, parts, count).filled_from(fd, fills).parts(parts, count);
      },
      call);
}

}  // namespace stagetwo::shim
