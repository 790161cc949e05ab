// SPDX-License-Identifier: Apache-2.0
#pragma once

// The ioctls of a userfaultfd of the client's that change what its memory means: write-protecting a
// page takes a right, moving one takes the page, and both ring the bell as the kernel's notifiers
// do. Registering a range makes our own userfaultfd give it up (host/page_owner.h): absent pages of
// it are brought back, and later ones hidden in another way.
//
// Context: the client's thread; awake. errno is libc's.

namespace stagetwo::shim {

constexpr unsigned kUserfaultLetter = 0xAA;

long userfault_ioctl(int fd, unsigned long request, unsigned long argument);

}  // namespace stagetwo::shim
