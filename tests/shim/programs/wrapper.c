// SPDX-License-Identifier: Apache-2.0
// Another library that is preloaded and stands in front of the same functions.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>

unsigned long wrapped_calls;

int munmap(void* at, size_t size) {
  int (*const next)(void*, size_t) = (int (*)(void*, size_t))dlsym(RTLD_NEXT, "munmap");
  __atomic_add_fetch(&wrapped_calls, 1, __ATOMIC_RELAXED);
  return next(at, size);
}

int madvise(void* at, size_t size, int advice) {
  int (*const next)(void*, size_t, int) = (int (*)(void*, size_t, int))dlsym(RTLD_NEXT, "madvise");
  __atomic_add_fetch(&wrapped_calls, 1, __ATOMIC_RELAXED);
  return next(at, size, advice);
}
