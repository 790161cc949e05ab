// SPDX-License-Identifier: Apache-2.0
// A small VMM in plain C whose guest's memory is larger than it may keep, and into which the kernel
// writes by pins: it looks up the pages of a buffer and fills them later. What it fills must not be
// lost by a page that leaves meanwhile. Knows nothing but the public KVM ABI.
//
//   pinned_vmm WAY private|shared   all ways of filling it, round by round, then "whole"
#define _GNU_SOURCE
#include <aio.h>
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "small_vmm.h"

enum { kMemoryPages = 1024, kPiece = 128, kRounds = 2 };

static char* memory;
static char* source;  // what is put there
static int file;      // the same, opened with O_DIRECT

static uint64_t word_of(unsigned round, size_t page, size_t at) {
  return (round * 7919 + page * 512 + at + 1) * 0x9e3779b97f4a7c15U;
}
static void fill(char* to, unsigned round) {
  for (size_t page = 0; page < kMemoryPages; ++page) {
    for (size_t at = 0; at < 512; at += 1 + page % 3) {
      ((uint64_t*)(to + page * kPage))[at] = word_of(round, page, at);
    }
  }
}
static int wrong_pages(unsigned round) {
  int wrong = 0;
  for (size_t page = 0; page < kMemoryPages; ++page) {
    const uint64_t* words = (const uint64_t*)(memory + page * kPage);
    int right = 1;
    for (size_t at = 0; at < 512; at += 1 + page % 3)
      right &= words[at] == word_of(round, page, at);
    wrong += !right;
  }
  return wrong;
}

static void by_process(size_t at, size_t size) {
  const struct iovec from = {source + at, size};
  const struct iovec to = {memory + at, size};
  check(process_vm_writev(getpid(), &from, 1, &to, 1, 0) == (ssize_t)size, "process_vm_writev");
}
static void by_pread(size_t at, size_t size) {
  check(pread(file, memory + at, size, (off_t)at) == (ssize_t)size, "pread");
}
static void by_preadv2(size_t at, size_t size) {
  const struct iovec parts[2] = {{memory + at, size / 2}, {memory + at + size / 2, size / 2}};
  check(preadv2(file, parts, 2, (off_t)at, 0) == (ssize_t)size, "preadv2");
}

// Unbuffered, libc reads into the caller's memory, by a call of its own.
static void by_stream(size_t at, size_t size) {
  static FILE* stream;
  if (stream == NULL) {
    stream = fdopen(dup(file), "r");
    check(stream != NULL && setvbuf(stream, NULL, _IONBF, 0) == 0, "fdopen");
  }
  check(fseek(stream, (long)at, SEEK_SET) == 0, "fseek");
  check(fread(memory + at, 1, size, stream) == size, "fread");
}
// libc's own threads read.
static void by_threads_of_libc(size_t at, size_t size) {
  struct aiocb request = {.aio_fildes = file, .aio_lio_opcode = LIO_READ};
  request.aio_buf = memory + at;
  request.aio_nbytes = size;
  request.aio_offset = (off_t)at;
  struct aiocb* list[] = {&request};
  if (at % (2 * size) == 0) {
    check(aio_read(&request) == 0, "aio_read");
    const struct aiocb* one = &request;
    while (aio_error(&request) == EINPROGRESS) aio_suspend(&one, 1, NULL);
  } else {
    check(lio_listio(LIO_WAIT, list, 1, NULL) == 0, "lio_listio");
  }
  check(aio_return(&request) == (ssize_t)size, "aio_return");
}

// The least of an io_uring: one request after the other, by the program's own hand.
static int ring;
static char* rings;
static struct io_uring_sqe* entries;
static struct io_uring_params params;
// In memory of the program's own, so that no mapping tells of it (Linux 6.5; the flag, and where
// the addresses of the two parts stand, are newer than some headers).
static int make_unmapped_ring(void) {
  rings = mmap(NULL, kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  void* own = mmap(NULL, kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  check(rings != MAP_FAILED && own != MAP_FAILED, "mmap of the ring's memory");
  entries = own;
  params.flags = 1U << 14;
  const uint64_t places[] = {(uint64_t)entries, (uint64_t)rings};
  memcpy((char*)&params.sq_off + 32, &places[0], sizeof(places[0]));
  memcpy((char*)&params.cq_off + 32, &places[1], sizeof(places[1]));
  ring = (int)syscall(SYS_io_uring_setup, 4, &params);
  return ring >= 0;
}
static int make_ring(void) {
  ring = (int)syscall(SYS_io_uring_setup, 4, &params);
  if (ring < 0) return 0;
  const size_t size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
  rings = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
  entries = mmap(NULL, params.sq_entries * sizeof(*entries), PROT_READ | PROT_WRITE, MAP_SHARED,
                 ring, IORING_OFF_SQES);
  check(rings != MAP_FAILED && (char*)entries != MAP_FAILED, "mmap of the ring");
  return 1;
}
static void by_ring(size_t at, size_t size) {
  memset(&entries[0], 0, sizeof(entries[0]));
  entries[0].opcode = IORING_OP_READ;
  entries[0].fd = file;
  entries[0].addr = (uint64_t)(memory + at);
  entries[0].len = (uint32_t)size;
  entries[0].off = at;
  _Atomic uint32_t* tail = (_Atomic uint32_t*)(rings + params.sq_off.tail);
  const uint32_t mask = *(uint32_t*)(rings + params.sq_off.ring_mask);
  ((uint32_t*)(rings + params.sq_off.array))[*tail & mask] = 0;
  atomic_fetch_add(tail, 1);
  check(syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 1, "enter");
  _Atomic uint32_t* head = (_Atomic uint32_t*)(rings + params.cq_off.head);
  const uint32_t ended = *(uint32_t*)(rings + params.cq_off.ring_mask) & *head;
  const struct io_uring_cqe* cqe = (struct io_uring_cqe*)(rings + params.cq_off.cqes) + ended;
  errno = -cqe->res;
  check(cqe->res == (int)size, "the ring's read");
  atomic_fetch_add(head, 1);
}

// As a program does that brings no libc: the engine sees nothing of it.
static long own_call(long number, long a, long b, long c, long d) {
  long answer = 0;
  register long fourth __asm__("r10") = d;
  register long fifth __asm__("r8") = 0;
  __asm__ volatile("syscall"
                   : "=a"(answer)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth)
                   : "rcx", "r11", "memory");
  return answer;
}
static aio_context_t context;
static void by_context(size_t at, size_t size) {
  struct iocb request = {.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = (uint32_t)file};
  request.aio_buf = (uint64_t)(memory + at);
  request.aio_nbytes = size;
  request.aio_offset = (int64_t)at;
  struct iocb* list = &request;
  check(own_call(SYS_io_submit, (long)context, 1, (long)&list, 0) == 1, "io_submit");
  struct io_event ended;
  check(own_call(SYS_io_getevents, (long)context, 1, 1, (long)&ended) == 1, "io_getevents");
  check(ended.res == (int64_t)size, "the context's read");
}

int main(int count, char** words) {
  if (count != 3) return 2;
  const int shared = strcmp(words[2], "shared") == 0;
  void (*put)(size_t, size_t) = NULL;
  if (strcmp(words[1], "process") == 0) put = by_process;
  if (strcmp(words[1], "pread") == 0) put = by_pread;
  if (strcmp(words[1], "preadv2") == 0) put = by_preadv2;
  if (strcmp(words[1], "stream") == 0) put = by_stream;
  if (strcmp(words[1], "aio") == 0) put = by_threads_of_libc;
  if (strcmp(words[1], "ring") == 0) put = by_ring;
  const int unmapped = strcmp(words[1], "unmapped-ring") == 0;
  if (unmapped) put = by_ring;
  if (strcmp(words[1], "context") == 0) put = by_context;
  if (put == NULL) return 2;

  const size_t size = (size_t)kMemoryPages * kPage;
  source = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
                (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0);
  check(source != MAP_FAILED && memory != MAP_FAILED, "mmap");
  char name[] = "pinned.XXXXXX";
  const int plain = mkstemp(name);
  check(plain >= 0, "mkstemp");
  file = open(name, O_RDONLY | O_DIRECT | O_CLOEXEC);
  check(unlink(name) == 0, "unlink");
  if (file < 0 && put != by_process) {
    printf("skipped: this file system has no O_DIRECT\n");
    return 0;
  }
  if (put == by_ring && !(unmapped ? make_unmapped_ring() : make_ring())) {
    printf("skipped: no such io_uring here\n");
    return 0;
  }
  if (put == by_context && own_call(SYS_io_setup, 4, (long)&context, 0, 0) != 0) {
    printf("skipped: no io_context here (fs.aio-max-nr?)\n");
    return 0;
  }
  const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  check(kvm >= 0, "open /dev/kvm");
  vm = ioctl(kvm, KVM_CREATE_VM, 0);
  check(vm >= 0, "KVM_CREATE_VM");
  slot(0, 0, size, memory);
  fill(memory, 0);
  for (unsigned round = 1; round <= kRounds; ++round) {
    fill(source, round);
    check(pwrite(plain, source, size, 0) == (ssize_t)size, "pwrite");
    for (size_t at = 0; at < size; at += kPiece * kPage) put(at, kPiece * kPage);
    const int wrong = wrong_pages(round);
    if (wrong != 0) printf("%d of %d pages are not what was put there\n", wrong, kMemoryPages);
    errno = 0;
    check(wrong == 0, "every page is what was put there");
  }
  printf("whole\n");
  return 0;
}
