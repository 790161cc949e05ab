// SPDX-License-Identifier: Apache-2.0
#pragma once

// The file behind an emulated descriptor: its operations, and the memfd that stands in for it. How
// a description becomes a descriptor and is found again: host/descriptor.h.
//
// Analogue: struct file_operations and struct file's private_data (kernel file:
// include/linux/fs.h). Context: the client's thread, in an EngineSection. Lifetime: as
// host/descriptor.h says.

#include <fcntl.h>
#include <sys/types.h>

#include "addr/addr.h"
#include "base/result.h"
#include "base/types.h"

namespace stagetwo::host {

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
  // Where in the memfd such a mapping begins, and which offset was asked for of one that begins at
  // `placed`.
  virtual off_t map_offset(const MapRequest& request) { return request.offset; }
  [[nodiscard]] virtual off_t asked_offset(off_t placed) const { return placed; }
  // Checked by the caller: writable, offset >= 0, length > 0, no overflow, mode known to the VFS.
  // A copy that fork made is asked, too; `fd` is then the child's. -1: by a mapping.
  virtual Result<void> fallocate(int /*fd*/, int /*mode*/, off_t /*offset*/, off_t /*size*/) {
    return refuse(ENODEV);
  }
  [[nodiscard]] virtual bool native_read() const { return false; }  // from the memfd (stats)
  // Does the kernel take it for a regular file, of which it answers some ioctls itself?
  [[nodiscard]] virtual bool is_regular() const { return false; }
  // Has it a read and a write of its own? Then these are they: how many bytes, or a refusal. The
  // caller has looked at the access mode.
  [[nodiscard]] virtual bool moves_bytes() const { return false; }
  virtual Result<long> read_bytes(u64 /*to*/, u64 /*size*/) { return refuse(EINVAL); }
  virtual Result<long> write_bytes(u64 /*from*/, u64 /*size*/) { return refuse(EINVAL); }
  // Before each of those in the process of the state: brings the contents up to date.
  virtual void refresh() {}
  // The last holder is gone and no call on the description is running: called once, with the last
  // DescriptionRef, before destruction. Cannot fail.
  virtual void last_close() {}
  // In a child of fork, whose copy of the object is never run again, nor destroyed: the child has
  // closed the descriptor. Gives back the descriptors that the child has by it; nothing else of the
  // object is whole.
  virtual void let_go_in_child() {}
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
  // The same for memory of the client's guest: its size is for ever, and nobody executes it. Of
  // kEmpty the pages are elsewhere (host/guest_pages.h), and nobody puts any here.
  enum class Pages : u8 { kHere, kEmpty };
  static Result<Backing> create_memory(const char* kind, u64 size, Pages pages);
  // A pipe, for what is waited for (host/ready_file.h); no other has `kind` at the same time.
  static Result<Backing> create_ready(const char* kind);

  // Shared engine mapping of [offset, offset + size), page aligned, the owner's to unmap().
  Result<void*> map(u64 offset, u64 size, int prot) const;
  static void unmap(void* at, u64 size);

  [[nodiscard]] int fd() const { return fd_; }

 private:
  static Result<Backing> make(const char* kind, u64 size, unsigned flags);

  int fd_ = -1;
};

}  // namespace stagetwo::host
