// SPDX-License-Identifier: Apache-2.0
#pragma once

// A file the engine opens once and keeps: a question to the kernel is then one system call. The
// client must not see its number: host/descriptor.h counts it among the engine's.
//
//   constinit KeptFd pagemap("/proc/self/pagemap");
//   const FdUse file = ST_TRY(pagemap.use());
//   sys::pread(file.get(), …);
//
// I1: what is opened before a chroot, a change of user or a lower RLIMIT_NOFILE serves after it:
//     host/process_files.h opens while the engine wakes what it will ask for.
// I2: a number is the engine's until the use of it ends, whatever the client makes of that number
//     meanwhile: vacate_kept_fd() waits (sync/kept_number.h).
//
// Lifetime: static. A child of fork opens its own (what is behind /proc/self is another there), and
// inherits the folder they are in.
// Locking: a leaf lock around opening; a use of an open one takes none.

#include "base/result.h"
#include "base/types.h"
#include "sync/atomic.h"
#include "sync/kept_number.h"

namespace stagetwo::host {

using FdUse = sync::KeptNumber::Use;

class KeptFd {
 public:
  using Open = Result<int> (*)();
  // May a call on it wait for the client (a page of memory that its own thread fills)?
  enum class Calls : u8 { kBrief, kMayWait };

  // A file of /proc, in full.
  explicit constexpr KeptFd(const char* path, int flags = 0, Calls calls = Calls::kBrief)
      : path_(path), flags_(flags), number_(sync::KeptNumber::kNone, users_of(calls)) {}
  // Anything else. Of what is the same in a child, the child has it, too.
  enum class Child : u8 { kOpensItsOwn, kHasIt };
  explicit constexpr KeptFd(Open open, Child child = Child::kOpensItsOwn,
                            Calls calls = Calls::kBrief)
      : open_(open), child_(child), number_(sync::KeptNumber::kNone, users_of(calls)) {}
  KeptFd(const KeptFd&) = delete;
  KeptFd& operator=(const KeptFd&) = delete;

  // For as long as the use lives. Failure: the kernel's; asked again next time.
  [[nodiscard]] Result<FdUse> use();
  // Opens it, for a use to come. Failure: as use().
  [[nodiscard]] Result<void> keep();
  // Closes it until keep() is called again, so that its number is free. False: it was not open.
  // Pre: nobody uses it.
  bool lend();

 protected:
  friend struct KeptFds;
  static constexpr const sync::Passage& users_of(Calls calls) {
    return calls == Calls::kBrief ? sync::KeptNumber::brief_users : sync::KeptNumber::patient_users;
  }
  int set(int fd);

  const char* path_ = nullptr;  // one of the two
  int flags_ = 0;               // beside O_CLOEXEC
  Open open_ = nullptr;
  Child child_ = Child::kOpensItsOwn;
  sync::KeptNumber number_;  // changed under the lock
  KeptFd* next_ = nullptr;   // of those that were ever open; under the lock
  bool listed_ = false;
};

// The same for a descriptor that an object owns for a while. What a child of fork has of it is
// `child`.
class HeldFd : private KeptFd {
 public:
  using KeptFd::Child;
  explicit HeldFd(Child child = Child::kOpensItsOwn) : KeptFd(Open{nullptr}, child) {}
  ~HeldFd() { close(); }

  // Takes over `fd`, wherever it is. Pre: holds none. Failure: EMFILE; `fd` is closed then.
  [[nodiscard]] Result<void> hold(int fd);
  // Calls on it are made in a use of this.
  [[nodiscard]] const sync::KeptNumber& number() const { return number_; }
  // Pre: nobody uses it.
  void close();
};

// Opens a file of /proc, `path` in full; also where a chroot since the first call has hidden /proc
// from the process. Failure: the kernel's.
[[nodiscard]] Result<int> open_proc(const char* path, int flags);
// Opens again what is behind `fd`, for reading and writing, as an engine descriptor: the client
// cannot tell. Failure: the kernel's.
[[nodiscard]] Result<int> reopen_engine_file(int fd);

// Could it be one of the engine's? No: surely not. A relaxed load.
[[nodiscard]] bool may_be_engines(int fd);
// Before an engine's number can be asked for.
void note_engine_fd(int fd);
// The lowest one >= first, or -1.
[[nodiscard]] int next_kept_fd(int first);
// One that stands for this file, or -1: the numbers are asked one by one.
[[nodiscard]] int kept_fd_of(u64 device, u64 inode);
// Moves it elsewhere. Post: no call is made on the number any more, which stays open, so that no
// other of the engine's takes it, until the caller closes or replaces it. False: none of them.
// Pre: inside no use.
bool vacate_kept_fd(int fd);
void kept_fds_after_fork_child();

}  // namespace stagetwo::host
