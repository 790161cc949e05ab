// SPDX-License-Identifier: Apache-2.0
#pragma once

// Opening by name, asking by name, and the calls on a descriptor. Each function is what the libc
// function of that name does when the name or the descriptor may be ours; the entry points
// (entry.cc) only spell the many names libc has for it.
//
// Context: the client's thread, any; errno is libc's.

#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "base/result.h"

namespace stagetwo::shim {

struct Target;
// Failure: as the kernel's open of such a file.
[[nodiscard]] Result<int> open_target(const Target& target, int flags);
int open_at(int directory, const char* path, int flags, mode_t mode);
FILE* open_stream(const char* path, const char* mode);
FILE* reopen_stream(const char* path, const char* mode, FILE* stream);
// Is an existing file empty after an open with these flags?
// With O_PATH the kernel forgets the flag; who asks for a new file gets no other.
constexpr bool truncates(int flags) {
  const bool makes_new = (flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL);
  return (flags & O_TRUNC) != 0 && (flags & O_PATH) == 0 && !makes_new;
}

int stat_at(int directory, const char* path, struct stat* out, int flags);
int stat_fd(int fd, struct stat* out);
int statx_at(int directory, const char* path, int flags, unsigned mask, struct statx* out);
int access_at(int directory, const char* path, int mode, int flags);
ssize_t readlink_at(int directory, const char* path, char* buffer, size_t size);
// Extended attributes: what is ours has none, as a node of devtmpfs.
enum class Link { kFollowed, kItself };
ssize_t attribute_at(const char* path, const char* name, void* to, size_t size, Link link);
ssize_t attributes_at(const char* path, char* to, size_t size, Link link);

int close_fd(int fd);
int close_stream(FILE* stream);
// Is what the stream reads and writes ours?
bool holds_ours(FILE* stream);
int close_fds(unsigned first, unsigned last, int flags);
int dup_to(int from, int to, int flags, bool dup3);

// fcntl, dup: the engine's own numbers are not open.
bool engines_refused(int fd);

long ioctl_fd(int fd, unsigned long request, unsigned long argument);

enum class Io { kRead, kWrite };
// Does a read or write of `fd` fail because of what is behind it? Then errno is set; else the
// kernel does it. `offset` is of the p-forms, or nullptr.
bool io_refused(int fd, Io io, const off_t* offset);
// The same of the vector forms with flags, where an offset of -1 is the file's position, and of
// devices in calls that move bytes from one descriptor to another.
bool parts_refused(int fd, Io io, off_t offset);
bool transfer_refused(int from, int to);
// io_submit: how many of the requests stand before one that is refused; -1 and errno for none.
long requests_allowed(const iocb* const* requests, long count);
off_t seek_fd(int fd, off_t offset, int whence);
int truncate_fd(int fd, off_t size);
int truncate_at(const char* path, off_t size);
int fallocate_fd(int fd, int mode, off_t offset, off_t size);

}  // namespace stagetwo::shim
