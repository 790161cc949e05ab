// SPDX-License-Identifier: Apache-2.0
// Counts every allocation from before the first library is initialised, and says how many there
// were when main began. Preloaded after the engine, so it sees what the engine asks of libc.
#include <stddef.h>
#include <stdio.h>

extern void* __libc_malloc(size_t size);
extern void* __libc_calloc(size_t count, size_t size);
extern void* __libc_realloc(void* block, size_t size);

static volatile unsigned allocations;

void* malloc(size_t size) {
  allocations++;
  return __libc_malloc(size);
}
void* calloc(size_t count, size_t size) {
  allocations++;
  return __libc_calloc(count, size);
}
void* realloc(void* block, size_t size) {
  allocations++;
  return __libc_realloc(block, size);
}

int main(void) {
  const unsigned at_load = allocations;
  printf("%u\n", at_load);
  return 0;
}
