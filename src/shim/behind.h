// SPDX-License-Identifier: Apache-2.0
#pragma once

// What stands behind a descriptor, or behind a name of one in /proc, and the calls that a file of
// ours has no operation for. The memfd of the stand-in could do most of them; the kernel's file
// refuses, and so do we, with the errno it has there.
//
// Analogue: an inode without a file system behind it (kernel files: anon_inodes.c, libfs.c), and
// kvm_gmem_setattr (guest_memfd.c). Where the order of the kernel's own checks is all that matters
// the call is made on a descriptor of the kernel's that has no operations either (Asked).
//
// Context: the client's thread, awake or not; errno is the call's.

#include <fcntl.h>
#include <stdio.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/types.h>

#include <optional>

#include "base/result.h"
#include "base/types.h"
#include "host/kept_fd.h"
#include "shim/paths.h"

namespace stagetwo::shim {

enum class Behind : u8 {
  kForeign,    // not ours, or a descriptor of a place only (O_PATH)
  kDevice,     // a device
  kAnonymous,  // a VM, a vCPU, …: an anonymous inode without type
  kMemory,     // a guest_memfd
};
[[nodiscard]] Behind behind_fd(int fd);
// "/proc/self/fd/7" in any spelling, also "7" beside an open /proc/self/fd; a name that leads
// elsewhere is foreign. Links are followed.
[[nodiscard]] Behind behind_name(int directory, const char* path);
// What of ours is mapped there. A load where nothing of ours was ever mapped.
[[nodiscard]] Behind behind_address(const void* at);
void note_mapped();
[[nodiscard]] bool maps_ours();  // was anything ever
// Where in the file the client's page `page` is, of what is mapped at `at`.
[[nodiscard]] size_t page_behind(const void* at, size_t size, size_t page);
// MADV_REMOVE of the bytes there: 0 or an errno; nothing: no guest_memfd is mapped there.
[[nodiscard]] std::optional<int> remove_behind(u64 at, u64 size);
// Of a call with AT_EMPTY_PATH among its flags, or whose name may be null.
[[nodiscard]] Behind behind_either(int directory, const char* path, int flags);

// The descriptor a call is made on in the place of `fd`. Of ours: one of the kernel's without read,
// write, mmap and splice, for as long as the call lasts.
class Asked {
 public:
  explicit Asked(int fd);
  Asked(const Asked&) = delete;
  Asked& operator=(const Asked&) = delete;
  ~Asked();
  operator int() const { return blank_ ? blank_->get() : fd_; }

 private:
  int fd_;
  std::optional<host::FdUse> blank_;
};

// That descriptor of the kernel's: opened once, and nobody can do anything with it.
[[nodiscard]] Result<host::FdUse> blank_file();

// A lock on a part of a file. Ours hold one byte of each file themselves (host/descriptor.h, I2),
// the last, which the client's locks leave out.
class AskedLock {
 public:
  AskedLock(int fd, int command, long argument);
  AskedLock(const AskedLock&) = delete;
  AskedLock& operator=(const AskedLock&) = delete;
  ~AskedLock();
  operator long() const;

 private:
  struct flock lock_{};
  long client_;
  bool ours_ = false;
  bool answers_ = false;
};

// Is the call refused? Then errno is set.
bool change_refused(Behind what);  // of mode, owner or times: EINVAL of memory
bool times_refused(Behind what, const timespec* times);
bool resize_refused(Behind what);  // by name
bool syncing_refused(int fd);
bool syncing_refused(const void* at, size_t size, int flags);   // msync
bool execution_refused(const void* at, size_t size, int prot);  // mprotect
bool opening_refused(int directory, const char* path, int flags);
// As target_of(), and where the name is a descriptor's in /proc: the device behind that, which is
// opened anew.
[[nodiscard]] Target target_to_open(int directory, const char* path, int flags);
bool control_refused(int fd, int command, long argument);  // fcntl
bool seeking_refused(FILE* stream);
bool handle_refused(int directory, const char* path, int flags);  // name_to_handle_at
bool copying_refused(int from, int to, unsigned flags);           // copy_file_range
bool attribute_refused(Behind what, const char* name, int flags);
// Lists of attributes are empty.
[[nodiscard]] bool has_no_attributes(Behind what);

// The calls with an answer of their own.
// An ioctl that the kernel answers of a regular file without asking it. False: none of them.
bool ask_regular(int fd, unsigned long request, unsigned long argument, long* answer);
int preallocate(int fd, off_t offset, off_t size);  // posix_fallocate: an errno
int lock_part(int fd, int command, off_t size);     // lockf
ssize_t list_attributes(int fd, char* to, size_t size);
int filesystem_of(const char* path, struct ::statfs* out);
int filesystem_of(const char* path, struct ::statvfs* out);

}  // namespace stagetwo::shim
