// SPDX-License-Identifier: Apache-2.0
#pragma once

// The link of a descriptor in /proc, as it stands for the kernel's own file: the path of a device,
// "anon_inode:…" of what was made by one. The kernel writes the name of the stand-in, which is
// longer, so it is asked for no more than there is to show.
// Differs: what libc asks inside (realpath), and a program without the library, see the stand-in's;
// of statistics and of the kernel's own test devices everybody does.
//
// Context: the client's thread; errno is the call's.

#include <sys/types.h>

#include "base/text.h"

namespace stagetwo::shim {

class ReadLink {
 public:
  ReadLink(int directory, const char* path, size_t size);
  [[nodiscard]] size_t size() const { return size_; }
  // `length`: what the kernel has answered.
  ssize_t show(char* buffer, ssize_t length) const;

 private:
  FixedString<64> name_;  // empty: the kernel's answer stands
  size_t size_;
};

}  // namespace stagetwo::shim
