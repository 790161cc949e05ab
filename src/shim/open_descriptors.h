// SPDX-License-Identifier: Apache-2.0
#pragma once

// The descriptors this process has now, as /proc names them. Allocates nothing.

#include <fcntl.h>
#include <sys/syscall.h>

#include "base/sys.h"
#include "base/types.h"

namespace stagetwo::shim {

struct [[gnu::packed]] DirectoryEntry {
  u64 inode;
  s64 offset;
  u16 size;
  u8 type;
  char name[1];
};

// The number that is all of the text, or -1.
inline int descriptor_number(const char* name) {
  int value = 0;
  if (*name == '\0') return -1;
  for (; *name != '\0'; ++name) {
    if (*name < '0' || *name > '9') return -1;
    value = value * 10 + (*name - '0');
  }
  return value;
}

// Calls fn(fd) for every open descriptor in [first, last].
template <typename F>
void for_each_open(unsigned first, unsigned last, F&& fn) {
  const auto directory =
      sys::openat(AT_FDCWD, "/proc/thread-self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (!directory) return;
  alignas(8) char entries[4096];
  for (;;) {
    const long size = sys::call(SYS_getdents64, *directory, sys::arg(entries), sizeof(entries));
    if (size <= 0) break;
    for (long at = 0; at < size;) {
      const auto* entry = reinterpret_cast<const DirectoryEntry*>(entries + at);
      const int fd = descriptor_number(entry->name);
      if (fd >= 0 && fd != *directory && static_cast<unsigned>(fd) >= first &&
          static_cast<unsigned>(fd) <= last) {
        fn(fd);
      }
      at += entry->size;
    }
  }
  static_cast<void>(sys::close(*directory));
}

}  // namespace stagetwo::shim
