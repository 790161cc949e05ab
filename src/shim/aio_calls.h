// SPDX-License-Identifier: Apache-2.0
#pragma once

// libc's asynchronous reads and writes (aio_read and its kin), which its own threads make: those on
// a file of ours end at once, refused as the same call at the moment would be.
//
// Analogue: sysdeps/pthread/aio_misc.c of glibc. Context: the client's thread; errno is the call's.

#include <aio.h>

namespace stagetwo::shim {

int aio_transfer(aiocb* request, bool writes);
int aio_list(int mode, aiocb* const* list, int count, sigevent* when_all);

}  // namespace stagetwo::shim
