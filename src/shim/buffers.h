// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a system call hands to the kernel: the buffers that shim/absent_buffers.h holds for as long
// as the call lasts.

#include <linux/aio_abi.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "addr/addr.h"
#include "host/access.h"
#include "host/held_pages.h"

namespace stagetwo::shim {

// The buffers of one call. Looked at twice: to hold, and to bring back what is held.
// I1: nothing the client owns is written; what it points to is read by guarded accesses.
class Buffers {
 public:
  Buffers& none() { return *this; }  // of a call that stands in the table for its file alone
  // The kernel writes what is named from here on, and may pin it for that, of which a descriptor
  // says nothing: a file's driver (O_DIRECT behind a stream, FUSE with FOPEN_DIRECT_IO, 9p without
  // a cache, a device), a socket that decrypts into the buffer itself.
  Buffers& pinned();
  // The same of what is read from `fd`, if it is: not from pipes and from files whose file system
  // is known to copy.
  Buffers& filled_from(int fd, bool fills = true);
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
  // The same for the kernel to write: it pins the pages, some at a time.
  Buffers& remote_written(pid_t who, const iovec* at, unsigned long count);
  // A number that may be a pointer to something small.
  Buffers& word(unsigned long at) { return bytes(reinterpret_cast<const void*>(at), 16); }
  // What ptrace reads or fills, the largest of its structs or a vector.
  Buffers& traced(int what, const void* data);
  // What semctl reads or fills: a number for some of what it does, up to a word for each of a set.
  Buffers& semaphores(int what, unsigned long data);
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
  // memory (host/page_owner.h) what is absent comes back: the kernel would find a hole. Stands
  // before the buffers: those of a file opened with O_DIRECT are pinned.
  Buffers& file(int fd, const off_t* at, u64 size);
  Buffers& file(int fd);
  // The same at the offset the call is given. Where it stands (null, or -1) is not relied on: the
  // descriptor may be moved by others before the kernel looks.
  Buffers& file_at(int fd, const off_t* at, u64 size);
  Buffers& file_at(int fd, const off_t* at, const iovec* parts, s64 count);

  // Where a write with these flags (of pwritev2) begins.
  static const off_t* place_of(const off_t* at, int flags) {
    constexpr int kAppends = 0x10;  // RWF_APPEND
    return (flags & kAppends) != 0 ? nullptr : at;
  }

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
  bool pins_ = false;  // the kernel pins what is named from here on (host::pages_copied_away())
};

// What a child of posix_spawn does before it is the program, as glibc keeps it: how many there are,
// how many are used, then where; each is a word that says what it is and three of arguments, of
// which the first or the second may be a name.
struct SpawnStep {
  static constexpr u32 kDup = 1;  // spawn_do_dup2 (glibc: posix/spawn_int.h)
  u32 kind;
  u32 unused;
  const char* first;
  const char* second;
  u64 rest;
  // Of kDup: what is duplicated. What is in the descriptor's place has its number only.
  [[nodiscard]] int descriptor() const {
    return static_cast<int>(reinterpret_cast<u64>(first) & 0xffffffff);
  }
};
// Calls fn(step) for each, null for none; ends where the list cannot be read.
template <typename F>
void for_each_spawn_step(const posix_spawn_file_actions_t* at, F&& fn) {
  posix_spawn_file_actions_t all{};
  if (at == nullptr || !host::read_struct(Hva(reinterpret_cast<u64>(at)), &all)) return;
  const auto* const list = reinterpret_cast<const SpawnStep*>(all.__actions);
  for (int i = 0; i < all.__used; ++i) {
    SpawnStep step{};
    if (!host::read_struct(Hva(reinterpret_cast<u64>(list + i)), &step)) return;
    fn(step);
  }
}

}  // namespace stagetwo::shim
