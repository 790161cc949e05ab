// SPDX-License-Identifier: Apache-2.0
#pragma once

// A file the engine opens once and keeps: a question to the kernel is then one system call. The
// client must not see its number: host/descriptor.h counts it among the engine's.
//
//   constinit KeptFd pagemap("/proc/self/pagemap");
//
// I1: what is opened before a chroot, a change of user or a lower RLIMIT_NOFILE serves after it:
//     host/process_files.h opens while the engine wakes what it will ask for.
//
// Lifetime: static. A child of fork opens its own (what is behind /proc/self is another there), and
// inherits the folder they are in.
// Locking: a leaf lock around opening; get() of an open one is a load.

#include "base/result.h"
#include "base/types.h"
#include "sync/atomic.h"

namespace stagetwo::host {

class KeptFd {
 public:
  using Open = Result<int> (*)();

  // A file of /proc, in full.
  explicit constexpr KeptFd(const char* path, int flags = 0) : path_(path), flags_(flags) {}
  // Anything else. Of what is the same in a child, the child has it, too.
  enum class Child : u8 { kOpensItsOwn, kHasIt };
  explicit constexpr KeptFd(Open open, Child child = Child::kOpensItsOwn)
      : open_(open), child_(child) {}
  KeptFd(const KeptFd&) = delete;
  KeptFd& operator=(const KeptFd&) = delete;

  // Failure: the kernel's; asked again next time.
  [[nodiscard]] Result<int> get();
  // Closes it until get() is called again, so that its number is free. False: it was not open.
  bool lend();

 protected:
  friend struct KeptFds;
  const char* path_ = nullptr;  // one of the two
  int flags_ = 0;               // beside O_CLOEXEC
  Open open_ = nullptr;
  Child child_ = Child::kOpensItsOwn;
  sync::Atomic<int> fd_{-1};
  KeptFd* next_ = nullptr;  // of those that were ever open; under the lock
  bool listed_ = false;
};

// The same for a descriptor that an object owns for a while. A child of fork has none: get() is
// EBADF there.
class HeldFd : private KeptFd {
 public:
  HeldFd() : KeptFd(Open{nullptr}) {}
  ~HeldFd() { close(); }

  // Takes over `fd`, wherever it is. Pre: holds none. Failure: EMFILE; `fd` is closed then.
  [[nodiscard]] Result<void> hold(int fd);
  // Good until somebody wants its number: within one call of the engine.
  [[nodiscard]] Result<int> get() const;
  void close();
};

// Opens a file of /proc, `path` in full; also where a chroot since the first call has hidden /proc
// from the process. Failure: the kernel's.
[[nodiscard]] Result<int> open_proc(const char* path, int flags);
// The folder itself, for sys::reopen_engine_fd; -1: there is none.
[[nodiscard]] int proc_folder();

// Is any open? A relaxed load.
[[nodiscard]] bool any_kept_fd();
// The lowest one >= first, or -1.
[[nodiscard]] int next_kept_fd(int first);
// One that stands for this file, or -1: the numbers are asked one by one.
[[nodiscard]] int kept_fd_of(u64 device, u64 inode);
// Moves it elsewhere. False: none of them.
bool vacate_kept_fd(int fd);
void kept_fds_after_fork_child();

}  // namespace stagetwo::host
