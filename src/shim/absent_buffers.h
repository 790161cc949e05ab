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
#include <linux/aio_abi.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <type_traits>

#include "host/held_pages.h"
#include "host/page_owner.h"
#include "host/run_section.h"
#include "shim/engine.h"

namespace stagetwo::shim {

// What a call hands to the kernel. Looked at twice: to hold, and to bring back what is held.
// I1: nothing the client owns is written; what it points to is read by guarded accesses.
class Buffers {
 public:
  Buffers& none() { return *this; }  // of a call that stands in the table for its file alone
  Buffers& bytes(const void* at, u64 size);
  template <typename T>
  Buffers& value(const T* at) {
    return bytes(at, at == nullptr ? 0 : sizeof(T));
  }
  template <typename T>
  Buffers& array(const T* at, s64 count) {
    return bytes(at, count <= 0 ? 0 : static_cast<u64>(count) * sizeof(T));
  }
  // As long as the word at `length` says.
  Buffers& sized(const void* at, const socklen_t* length);
  Buffers& address(const sockaddr* at, const socklen_t* length) { return sized(at, length); }
  Buffers& text(const char* at);
  Buffers& parts(const iovec* at, s64 count);
  Buffers& parts(const iovec* at, int count) { return parts(at, s64{count}); }
  Buffers& parts(const iovec* at, unsigned long count) {
    return parts(at, count > kMostParts ? kMostParts : static_cast<s64>(count));
  }
  Buffers& message(const msghdr* at);
  Buffers& messages(const mmsghdr* at, u64 count);
  // Memory of the process `who`, which may be this one.
  Buffers& remote(pid_t who, const iovec* at, unsigned long count);
  // A number that may be a pointer to something small.
  Buffers& word(unsigned long at) { return bytes(reinterpret_cast<const void*>(at), 16); }
  // What ptrace reads or fills, the largest of its structs or a vector.
  Buffers& traced(int what, const void* data);
  // Pointers to texts up to a null one.
  Buffers& texts(char* const* at);
  // What a child reads before it is another program.
  Buffers& steps(const posix_spawn_file_actions_t* at);
  // The requests of io_submit, and what they are to move.
  Buffers& requests(const iocb* const* at, long count);
  // This process's memory by its file in /proc, where the kernel waits for no absent page at all.
  Buffers& own_memory(u64 at, u64 size);
  Buffers& own_memory(u64 at, const iovec* parts, int count);
  // Bytes of a file that the call reads or writes; `at` null: from where it stands. Of shared
  // memory (host/page_owner.h) what is absent comes back: the kernel would find a hole.
  Buffers& file(int fd, const off_t* at, u64 size);
  Buffers& file(int fd);

  // What was brought back may go again: exec would leave the hold behind for ever. Then EFAULT is
  // tried again, as below.
  void let_go();

  // How many pages came back in the last look.
  [[nodiscard]] u64 fetched() const { return fetched_; }
  // Some of the file's bytes are gone for good: EIO.
  [[nodiscard]] bool lost() const { return lost_; }
  // Nothing more can be taken away until the end of the call.
  [[nodiscard]] bool all_held() const;

  template <typename Describe>
  void look(Describe&& describe) {
    begin(false);
    describe(*this);
    hold();
    begin(true);
    describe(*this);
  }

 private:
  // Further ranges share the last place, which then is the hull of theirs.
  static constexpr unsigned kPlaces = 8;
  static constexpr s64 kMostParts = 1024;  // the kernel takes no more

  void begin(bool fetching);
  void hold();
  void add(const void* at, u64 size);
  void add(HvaRange pages);

  static constexpr unsigned kFiles = 2;
  host::HeldPages held_[kPlaces];
  host::HeldPages files_[kFiles];
  HvaRange ranges_[kPlaces];
  unsigned used_ = 0;
  bool fetching_ = false;
  u64 fetched_ = 0;
  unsigned used_files_ = 0;
  bool lost_ = false;
};

// Is it this process's /proc/PID/mem? Then some of its bytes may be absent.
[[nodiscard]] bool shows_absent_memory(int fd);
// `at` null: where the descriptor stands.
[[nodiscard]] u64 offset_of(int fd, const off_t* at);

[[nodiscard]] inline bool buffers_matter() {
  return host::kernel_meets_hidden_pages() || host::shared_pages_taken();
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
// A read or write of a file; `offset` null: from where it stands.
template <typename F>
auto with_buffer(int fd, const off_t* offset, const void* at, size_t size, F&& call) {
  return with_buffers([&](Buffers& b) { b.bytes(at, size).file(fd, offset, size); }, call);
}
template <typename F>
auto with_parts(int fd, const iovec* parts, int count, F&& call) {
  return with_buffers([&](Buffers& b) { b.parts(parts, count).file(fd); }, call);
}

}  // namespace stagetwo::shim
