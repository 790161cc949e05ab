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
// I1: an identity is in the table at most once, and only while its description lives.
// I2: the client's open file description holds an OFD lock on one byte of the memfd (kHeldByte);
//     the lock is gone exactly when every dup, every inherited copy and every client mapping of it
//     is gone. The client's own locks leave that byte out.
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

namespace stagetwo::host {

// Of I2: behind everything a client can map or lock for a purpose.
inline constexpr off_t kHeldByte = INT64_MAX;

// What fstat and the calls without a file operation of their own say.
enum class FileShape : u8 {
  kCharDevice,  // /dev/...: S_IFCHR, mode 0600
  kAnonInode,   // anon_inode_getfile: no file type, mode 0600
  kMemory,      // guest_memfd: S_IFREG of the memfd's own size, without a position
};

// Where the state lives.
enum class StateHome : u8 {
  kProcess,      // hangs off the address space: EIO in every other process
  kDescription,  // nothing of this process: whoever receives the descriptor may use it
};

// A client's mmap of a descriptor, as it was asked.
struct MapRequest {
  u64 size;
  int prot;
  int flags;
  off_t offset;
};

// The file operations. Every answer is the kernel's: >= 0 or -errno, Result for the rest.
class Description {
 public:
  Description() = default;
  Description(const Description&) = delete;
  Description& operator=(const Description&) = delete;
  virtual ~Description() = default;

  // `fd` is the number the client used, for operations that hand it on.
  virtual long ioctl(int fd, unsigned long request, unsigned long arg) = 0;
  // Post: on success the client's own mmap of the memfd is what the kernel would have mapped.
  virtual Result<void> check_mmap(const MapRequest&) { return refuse(ENODEV); }
  virtual void mapped(Hva /*at*/, u64 /*size*/) {}  // the client's mmap has succeeded
  // Where in the memfd such a mapping begins.
  virtual off_t map_offset(const MapRequest& request) { return request.offset; }
  // Checked by the caller: writable, offset >= 0, length > 0, no overflow, mode known to the VFS.
  // A copy that fork made is asked, too; `fd` is then the child's.
  virtual Result<void> fallocate(int /*fd*/, int /*mode*/, off_t /*offset*/, off_t /*size*/) {
    return refuse(ENODEV);
  }
  [[nodiscard]] virtual bool native_read() const { return false; }  // from the memfd (stats)
  // Before each of those in the process of the state: brings the contents up to date.
  virtual void refresh() {}
  // The last holder is gone and no call on the description is running: called once, with the last
  // DescriptionRef, before destruction. Cannot fail.
  virtual void last_close() {}
};

// The memfd before anybody can see it.
class Backing {
 public:
  Backing() = default;
  Backing(Backing&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  Backing& operator=(Backing&&) = delete;
  ~Backing();

  // `kind` is what comes after "stagetwo:1:", at most 200 characters; size may be 0.
  // Failure: EMFILE, ENFILE, ENOMEM; nothing is left behind.
  static Result<Backing> create(const char* kind, u64 size);
  // The same for memory of the client's guest: its size is for ever, and nobody executes it.
  static Result<Backing> create_memory(const char* kind, u64 size);

  // Shared engine mapping of [offset, offset + size), page aligned, the owner's to unmap().
  Result<void*> map(u64 offset, u64 size, int prot) const;
  static void unmap(void* at, u64 size);

  [[nodiscard]] int fd() const { return fd_; }

 private:
  static Result<Backing> make(const char* kind, u64 size, unsigned flags);

  int fd_ = -1;
};

struct DescriptorSpec {
  FileShape shape = FileShape::kAnonInode;
  StateHome home = StateHome::kProcess;
  int open_flags = O_RDWR | O_CLOEXEC;  // access mode, O_CLOEXEC, O_NONBLOCK of the client's fd
  u32 device_major = 0;                 // of a kCharDevice
  u32 device_minor = 0;
};

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

// What is behind `fd`; empty when it is not ours. A descriptor of ours that this process has never
// seen is attached first (see set_attacher).
DescriptionRef find(int fd);
// The same for a caller that has the identity already.
DescriptionRef find(int fd, const struct ::stat& behind);

// Was anything ever in the table? One relaxed load.
bool ever_published();

// Makes the description for a received descriptor whose state is in the description. `kind` is
// what comes after "stagetwo:1:"; nullptr: a kind whose state lives in another process.
using Attacher = Box<Description> (*)(std::string_view kind, DescriptorSpec* spec);
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
  DescriptionRef ref_;
  int watch_fd_ = -1;
};

// Looks again at descriptions that were closed here while a mapping, a dup or another process
// still held them. One relaxed load when there are none.
void sweep_closed();

// Does the caller run in memory it has borrowed (a child of vfork, with descriptors of its own)?
// What is written down about descriptors is then not about its own. One system call.
bool in_borrowed_memory();

// Is `fd` one of the engine's own? The client must not see, close or replace it.
bool is_engine_fd(int fd);
int next_engine_fd(int first);  // the lowest one >= first, or -1
// The client insists on this number: moves the engine's descriptor elsewhere.
void vacate_engine_fd(int fd);

// How many descriptions live, and how many watches are open.
struct DescriptorCounts {
  u64 live;
  u64 watched;
};
DescriptorCounts descriptor_counts();

// In a child of fork: forget what other threads of the parent were in the middle of, and close the
// copies of the engine's own descriptors. What the table holds is foreign from now on.
void descriptors_after_fork_child();

}  // namespace stagetwo::host
