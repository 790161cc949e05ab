// SPDX-License-Identifier: Apache-2.0
#pragma once

// What stands behind an emulated file descriptor, and how it is found again.
//
// Every emulated descriptor is a real one: a memfd of our own, opened for the client through
// /proc/thread-self/fd so that access mode and file offset are its own. A description is found by
// the identity (device, inode) of what is behind a number, never by the number, so dup, fork,
// SCM_RIGHTS and inheritance need no help. The memfd's name ("stagetwo:1:kvm-vm") tells a process
// that receives an unknown descriptor what it holds; the contents from offset 0 are the client's.
//
// Analogue: struct file with its file_operations; `Description` is private_data with its fops.
// Differs: the kernel's f_count is replaced by a lock on the open file description (below).
//
// Where readiness is part of what the kernel's file says a pipe stands for it (host/ready_file.h).
//
// I1: an identity is in the table at most once, and only while its description lives.
// I2: the client's open file description holds an OFD lock on kHeldByte of the memfd, which is gone
//     exactly when every dup, inherited copy and client mapping is. Its own locks leave it out.
// I3: the engine maps a memfd only through another open (Backing::map), so it never keeps I2 alive.
// I4: state with a home in the process answers EIO in a child (DescriptionRef::foreign).
//
// Locking: lookups take no lock (a slot's count refuses to rise from zero); changes of the table
// take the registry lock. Lifetime: the table refs a description until its last close.
// Context: nothing here touches errno; usable before main.

#include <fcntl.h>
#include <sys/stat.h>

#include <string_view>

#include "addr/addr.h"
#include "base/alloc.h"
#include "base/result.h"
#include "base/types.h"
#include "host/description.h"

namespace stagetwo::host {

inline constexpr off_t kHeldByte = INT64_MAX;  // of I2: behind all that is mapped

struct DescriptorSpec {
  FileShape shape = FileShape::kAnonInode;
  StateHome home = StateHome::kProcess;
  int open_flags = O_RDWR | O_CLOEXEC;  // access mode, O_CLOEXEC, O_NONBLOCK of the client's fd
  u32 device_major = 0;                 // of a kCharDevice
  u32 device_minor = 0;
  // Of a kDescription: every process that has closed one hears of the last close of all.
  bool wants_last_close = false;
  // Nobody waits to write it, so it is opened for reading alone; the client hears O_RDWR.
  bool reads_alone = false;
  // Has its file a position to be set? (file_operations.llseek)
  bool seeks = true;
};

inline constexpr u32 kMiscMajor = 10;  // MISC_MAJOR
// What open() of a device heeds.
inline constexpr int kOpenFlags = O_ACCMODE | O_CLOEXEC | O_NONBLOCK;
// A device whose state is behind its descriptors, as open() with these flags hands it out. Its file
// has no position.
[[nodiscard]] inline DescriptorSpec shared_device(u32 major, u32 minor, int flags) {
  return {.shape = FileShape::kCharDevice,
          .home = StateHome::kDescription,
          .open_flags = flags & kOpenFlags,
          .device_major = major,
          .device_minor = minor,
          .wants_last_close = true,
          .seeks = false};
}

// What stands before the kind in the name of a pipe of ours.
inline constexpr std::string_view kReadyPrefix = "/stagetwo:pipe:1:";
// Could it be one of ours? A memfd is a regular file without a name, a pipe of ours has a mark;
// hardly anything else a client has is either.
[[nodiscard]] inline bool could_be_ours(const struct ::stat& behind) {
  const bool pipe = S_ISFIFO(behind.st_mode) && (behind.st_mode & S_ISVTX) != 0;
  return behind.st_nlink == 0 && (S_ISREG(behind.st_mode) || pipe);
}

// Makes the client's descriptor, the lowest free number, and enters `description` into the table.
// Failure: EMFILE, ENFILE, ENOMEM; the description is destroyed without last_close().
Result<int> publish(Box<Description> description, Backing backing, const DescriptorSpec& spec);

// A held description: borrowed by nobody else, alive until the ref goes.
class DescriptionRef {
 public:
  DescriptionRef() = default;
  DescriptionRef(DescriptionRef&& other) noexcept : slot_(other.slot_) { other.slot_ = nullptr; }
  DescriptionRef& operator=(DescriptionRef&& other) noexcept;
  ~DescriptionRef() { reset(); }

  explicit operator bool() const { return slot_ != nullptr; }
  Description* operator->() const;
  Description* get() const;
  [[nodiscard]] const DescriptorSpec& spec() const;
  // Does its state belong to another process? Then every ioctl answers EIO.
  [[nodiscard]] bool foreign() const;
  void reset();

 private:
  friend class CloseWatch;
  friend DescriptionRef find(int fd, const struct ::stat& behind);
  explicit DescriptionRef(struct DescriptorSlot* slot) : slot_(slot) {}
  struct DescriptorSlot* slot_ = nullptr;
};

// What is behind `fd`, empty: not ours. One this process has never seen is attached (set_attacher).
DescriptionRef find(int fd);
DescriptionRef find(int fd, const struct ::stat& behind);  // whose identity the caller has already

// Does the memfd behind `fd` have the name of one of ours, of a kind that begins so? The table is
// not asked: this process may never have seen it.
bool is_named_as_ours(int fd, std::string_view kind = {});

// Was anything ever in the table? One relaxed load.
bool ever_published();

// Makes the description of a received descriptor, `fd`: `kind` is what comes after "stagetwo:1:";
// nullptr: a kind whose state lives in another process.
using Attacher = Box<Description> (*)(std::string_view kind, int fd, DescriptorSpec* spec);
void set_attacher(Attacher attach);

// The identity a client sees: shape, device number, size 0.
void rewrite_stat(const DescriptionRef& ref, struct ::stat* out);

// Around a call that closes `fd` (close, dup2 over it): taken before, `closed()` after it. Runs
// last_close() of a description that nobody holds any more, of this or an earlier close.
class CloseWatch {
 public:
  explicit CloseWatch(int fd);
  CloseWatch(const CloseWatch&) = delete;
  CloseWatch& operator=(const CloseWatch&) = delete;
  ~CloseWatch();
  void closed();

 private:
  void watch_late();
  DescriptionRef ref_;
  int watch_fd_ = -1;
};

// Looks again at descriptions that were closed here while a mapping, a dup or another process
// still held them. One relaxed load when there are none.
void sweep_closed();
// The same where memory of a guest is among them: what a vCPU asks before it enters. While there is
// such memory the engine's thread asks too, every 5 ms (docs/decisions/0017-guest-memfd.md). Post:
// what nobody held before the call has ended, whoever saw it first.
void sweep_closed_memory();
// The same of everything, for who wants what it may have held. Context: no lock, no last_close().
void settle_closed();

// Does the caller run in memory it has borrowed (a child of vfork)? What is written down about
// descriptors is then not about its own. One system call.
bool in_borrowed_memory();

// Does any process still hold the descriptor whose memfd or pipe has this number (I2), or is it in
// a message on its way? Failure: the kernel does not tell (/proc/locks).
[[nodiscard]] Result<bool> is_held_anywhere(u64 inode);

// Is `fd` one of the engine's own? The client must not see, close or replace it.
bool is_engine_fd(int fd);
int next_engine_fd(int first);  // the lowest one >= first, or -1
// The client insists on this number: moves the engine's descriptor elsewhere. The number stays open
// until the caller puts the client's file there, or closes it. False: it was none of the engine's.
[[nodiscard]] bool vacate_engine_fd(int fd);

struct DescriptorCounts {
  u64 live;
  u64 watched;  // watches that are open
};
DescriptorCounts descriptor_counts();

// In a child of fork: forget what other threads of the parent were in the middle of, and close the
// copies of the engine's own descriptors. What the table holds is foreign from now on.
void descriptors_after_fork_child();

}  // namespace stagetwo::host
