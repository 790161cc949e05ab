// SPDX-License-Identifier: Apache-2.0
#pragma once

// The names in an open folder, one after the other. Analogue: readdir(3). Differs: it allocates
// nothing and takes no lock, so that it may run anywhere in the client's process.
//
//   DirectoryNames names(folder);
//   while (const char* name = names.next()) …
//
// Whoever reads a folder twice seeks back to its start in between. Lifetime: a name until the next
// call. Failure: no more names, and error() says why.

#include <errno.h>
#include <sys/syscall.h>

#include <cstddef>
#include <cstring>

#include "base/sys.h"
#include "base/types.h"

namespace stagetwo {

class DirectoryNames {
 public:
  explicit DirectoryNames(int folder) : folder_(folder) {}
  DirectoryNames(const DirectoryNames&) = delete;
  DirectoryNames& operator=(const DirectoryNames&) = delete;

  [[nodiscard]] const char* next() {
    if (at_ == end_ && !read_more()) return nullptr;
    const char* const entry = entries_ + at_;
    u16 size = 0;
    std::memcpy(&size, entry + offsetof(Entry, size), sizeof(size));
    at_ += size;
    return entry + offsetof(Entry, name);
  }
  // 0: the folder has no more.
  [[nodiscard]] int error() const { return error_; }

 private:
  // As the kernel puts them (linux_dirent64), one behind the other; each says how long it is.
  struct Entry {
    u64 inode;
    s64 next;
    u16 size;
    u8 type;
    char name[1];
  };

  bool read_more() {
    const long got = sys::call(SYS_getdents64, folder_, sys::arg(entries_), sizeof(entries_));
    error_ = got < 0 ? static_cast<int>(-got) : 0;
    at_ = 0;
    end_ = got > 0 ? got : 0;
    return got > 0;
  }

  int folder_;
  int error_ = 0;
  long at_ = 0;
  long end_ = 0;
  alignas(Entry) char entries_[2048];
};

}  // namespace stagetwo
