// SPDX-License-Identifier: Apache-2.0
#pragma once

// The descriptors this process has now, as /proc names them. Allocates nothing.

#include <fcntl.h>

#include "base/directory_names.h"
#include "base/sys.h"
#include "base/types.h"
#include "sync/passing_number.h"

namespace stagetwo::shim {

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

// Calls fn(fd) for every open descriptor in [first, last]. False: /proc does not say.
template <typename F>
bool for_each_open(unsigned first, unsigned last, F&& fn) {
  const sync::PassingNumber passing;
  const auto directory =
      sys::openat(AT_FDCWD, "/proc/thread-self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (!directory) return false;
  DirectoryNames names(*directory);
  while (const char* const name = names.next()) {
    const int fd = descriptor_number(name);
    const bool wanted = fd >= 0 && fd != *directory && static_cast<unsigned>(fd) >= first &&
                        static_cast<unsigned>(fd) <= last;
    if (wanted) fn(fd);
  }
  static_cast<void>(sys::close(*directory));
  return true;
}

}  // namespace stagetwo::shim
