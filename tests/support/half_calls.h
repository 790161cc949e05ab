// SPDX-License-Identifier: Apache-2.0
#pragma once

// Calls that the kernel makes mapping by mapping and refuses in the middle, or makes with a gap in
// it: one table for whoever makes them, a program under the shim (tests/shim/programs/half_calls.c)
// or the library (tests/unit/host/piecewise_test.cc). What must come of each is what comes of it
// natively. C and C++.

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#if !defined(MREMAP_DONTUNMAP)
#define MREMAP_DONTUNMAP 4
#endif
enum { kHalfPage = 4096, kHalfRange = 8, kHalfPages = 2 * kHalfRange };
enum { kHalfDontneedLocked = 24, kHalfGuard = 102, kHalfSeal = 462 };

// How the calls are made.
struct half_calls {
  int (*unmap)(void* at, size_t size);
  int (*advise)(void* at, size_t size, int advice);
  int (*protect)(void* at, size_t size, int prot);
  void* (*map)(void* at, size_t size, int prot, int flags, int fd, off_t offset);
  void* (*remap)(void* at, size_t size, size_t new_size, int flags, void* to);
};

// `area` is sixteen pages of memory: eight the call is about, then eight it may have for its
// target. `lay` maps some of them anew, before any page is anything but resident; `cut` puts into
// the way what makes the call fail.
struct half_case {
  const char* name;
  void (*lay)(char* area);
  void (*cut)(const struct half_calls* by, char* area);
  long (*call)(const struct half_calls* by, char* area);
};

static inline char* half_page(char* area, size_t i) {
  return area + i * kHalfPage;
}
// Whose bytes a page has.
static inline char half_letter(size_t i) {
  return "abcdefghijklmnop"[i];
}
static inline void half_fill(char* area, size_t first, size_t pages) {
  for (size_t i = first; i < first + pages; i++) {
    memset(half_page(area, i), half_letter(i), kHalfPage);
  }
}
static inline void half_map(char* area, size_t first, size_t pages, int flags) {
  mmap(half_page(area, first), pages * kHalfPage, PROT_READ | PROT_WRITE, flags | MAP_FIXED, -1, 0);
  half_fill(area, first, pages);
}
// Four pages of a file, 'F' in each.
static inline void half_map_file(char* area, size_t first, int prot, int flags, int mode) {
  char path[64];
  const int fd = memfd_create("half", MFD_CLOEXEC);
  for (off_t end = kHalfPage; end <= 4 * kHalfPage; end += kHalfPage) {
    if (ftruncate(fd, end) != 0 || pwrite(fd, "F", 1, end - kHalfPage) != 1) return;
  }
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  const int again = open(path, mode | O_CLOEXEC);
  mmap(half_page(area, first), 4 * kHalfPage, prot, flags | MAP_FIXED, again, 0);
  close(again);
  close(fd);
}
static inline long half_seal(char* area, size_t first, size_t pages) {
  return syscall(kHalfSeal, half_page(area, first), pages * kHalfPage, 0UL);
}

// ---- what is in the way -----------------------------------------------------------------------

static inline void half_lay_nothing(char* area) {
  (void)area;
}
static inline void half_lay_shared(char* area) {
  half_map(area, 0, 4, MAP_SHARED | MAP_ANONYMOUS);
}
static inline void half_lay_shared_twice(char* area) {
  half_map(area, 0, 2, MAP_SHARED | MAP_ANONYMOUS);
  half_map(area, 2, 2, MAP_SHARED | MAP_ANONYMOUS);
}
static inline void half_lay_file_behind(char* area) {
  half_map_file(area, 4, PROT_READ | PROT_WRITE, MAP_PRIVATE, O_RDWR);
}
static inline void half_lay_read_only_file_behind(char* area) {
  half_map_file(area, 4, PROT_READ, MAP_SHARED, O_RDONLY);
  mprotect(area, 4 * kHalfPage, PROT_READ);
}

static inline void half_lay_segment_behind(char* area) {
  const int id = shmget(IPC_PRIVATE, 4 * kHalfPage, 0600);
  shmat(id, half_page(area, 4), SHM_REMAP);
  shmctl(id, IPC_RMID, NULL);
  half_fill(area, 4, 4);
}

static inline void half_cut_nothing(const struct half_calls* by, char* area) {
  (void)by;
  (void)area;
}
static inline void half_cut_locked(const struct half_calls* by, char* area) {
  (void)by;
  mlock(half_page(area, 4), 4 * kHalfPage);
}
static inline void half_cut_hole(const struct half_calls* by, char* area) {
  by->unmap(half_page(area, 4), kHalfPage);
}
static inline void half_cut_hole_and_locked(const struct half_calls* by, char* area) {
  by->unmap(half_page(area, 1), kHalfPage);
  half_cut_locked(by, area);
}
static inline void half_cut_sealed(const struct half_calls* by, char* area) {
  by->protect(half_page(area, 4), 4 * kHalfPage, PROT_READ);
  half_seal(area, 4, 4);
}
static inline void half_cut_rights(const struct half_calls* by, char* area) {
  by->protect(half_page(area, 2), 2 * kHalfPage, PROT_READ);
}
static inline void half_cut_holes(const struct half_calls* by, char* area) {
  by->protect(half_page(area, 2), kHalfPage, PROT_READ);
  by->unmap(half_page(area, 3), 2 * kHalfPage);
  by->unmap(half_page(area, 7), kHalfPage);
}
static inline void half_cut_hole_first(const struct half_calls* by, char* area) {
  by->unmap(area, kHalfPage);
}
static inline void half_cut_target_hole(const struct half_calls* by, char* area) {
  half_cut_rights(by, area);
  by->unmap(half_page(area, 10), kHalfPage);
  half_cut_hole(by, area);
}

// ---- the calls --------------------------------------------------------------------------------

static inline long half_answer(const void* mapped) {
  return mapped == MAP_FAILED ? -1 : 0;
}
static inline char* half_target(char* area) {
  return half_page(area, kHalfRange);
}

#define HALF_ADVISE(name, advice)                                           \
  static inline long half_##name(const struct half_calls* by, char* area) { \
    return by->advise(area, kHalfRange * kHalfPage, advice);                \
  }
HALF_ADVISE(dontneed, MADV_DONTNEED)
HALF_ADVISE(dontneed_locked, kHalfDontneedLocked)
HALF_ADVISE(remove, MADV_REMOVE)
HALF_ADVISE(guard, kHalfGuard)
HALF_ADVISE(cold, 20)
#undef HALF_ADVISE

static inline long half_protect_read(const struct half_calls* by, char* area) {
  return by->protect(area, kHalfRange * kHalfPage, PROT_READ);
}
static inline long half_protect_none(const struct half_calls* by, char* area) {
  return by->protect(area, kHalfRange * kHalfPage, PROT_NONE);
}
static inline long half_protect_all(const struct half_calls* by, char* area) {
  return by->protect(area, kHalfRange * kHalfPage, PROT_READ | PROT_WRITE);
}
static inline long half_unmap(const struct half_calls* by, char* area) {
  return by->unmap(area, kHalfRange * kHalfPage);
}
// The kernel unmaps first and asks the file then.
static inline long half_map_socket(const struct half_calls* by, char* area) {
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const long answer = half_answer(
      by->map(area, kHalfRange * kHalfPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0));
  const int error = errno;
  close(fd);
  errno = error;
  return answer;
}
static inline long half_map_nothing(const struct half_calls* by, char* area) {
  return half_answer(
      by->map(area, kHalfRange * kHalfPage, PROT_READ, MAP_SHARED | MAP_FIXED, -1, 0));
}
static inline long half_map_memory(const struct half_calls* by, char* area) {
  return half_answer(by->map(area, kHalfRange * kHalfPage, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
}
static inline long half_remap_by(const struct half_calls* by, char* area, size_t pages,
                                 size_t new_pages, int flags) {
  return half_answer(by->remap(area, pages * kHalfPage, new_pages * kHalfPage,
                               MREMAP_MAYMOVE | MREMAP_FIXED | flags, half_target(area)));
}
static inline long half_remap(const struct half_calls* by, char* area) {
  return half_remap_by(by, area, kHalfRange, kHalfRange, 0);
}
static inline long half_remap_leaving(const struct half_calls* by, char* area) {
  return half_remap_by(by, area, kHalfRange, kHalfRange, MREMAP_DONTUNMAP);
}
static inline long half_remap_smaller(const struct half_calls* by, char* area) {
  return half_remap_by(by, area, kHalfRange, kHalfRange - 1, 0);
}
static inline long half_remap_head(const struct half_calls* by, char* area) {
  return half_remap_by(by, area, kHalfRange, 3, 0);
}
// The kernel rounds both sizes up: the page that is kept in part is kept.
static inline long half_remap_in_place(const struct half_calls* by, char* area) {
  return half_answer(by->remap(area, kHalfRange * kHalfPage - 50, 4 * kHalfPage - 100, 0, NULL));
}
static inline long half_remap_same_pages(const struct half_calls* by, char* area) {
  return half_answer(by->remap(area, 2 * kHalfPage - 50, 2 * kHalfPage - 100, 0, NULL));
}
static inline long half_remap_over_itself(const struct half_calls* by, char* area) {
  return half_answer(by->remap(area, kHalfRange * kHalfPage, kHalfRange * kHalfPage,
                               MREMAP_MAYMOVE | MREMAP_FIXED, half_page(area, 4)));
}

static const struct half_case kHalfCases[] = {
    {"DONTNEED, then EINVAL", half_lay_nothing, half_cut_locked, half_dontneed},
    {"DONTNEED over a hole", half_lay_nothing, half_cut_hole, half_dontneed},
    {"DONTNEED over a hole, then EINVAL", half_lay_nothing, half_cut_hole_and_locked,
     half_dontneed},
    {"DONTNEED, then EPERM", half_lay_nothing, half_cut_sealed, half_dontneed},
    {"DONTNEED of several mappings", half_lay_nothing, half_cut_rights, half_dontneed},
    {"DONTNEED of shared and private", half_lay_shared, half_cut_locked, half_dontneed},
    {"DONTNEED_LOCKED over a hole", half_lay_nothing, half_cut_hole_and_locked,
     half_dontneed_locked},
    {"REMOVE, then EINVAL", half_lay_shared, half_cut_nothing, half_remove},
    {"REMOVE of several files, then EINVAL", half_lay_shared_twice, half_cut_nothing, half_remove},
    {"REMOVE, EINVAL at once", half_lay_nothing, half_cut_locked, half_remove},
    {"GUARD_INSTALL, then EINVAL", half_lay_nothing, half_cut_locked, half_guard},
    {"COLD, then EINVAL", half_lay_nothing, half_cut_locked, half_cold},
    {"mprotect, then ENOMEM", half_lay_nothing, half_cut_hole, half_protect_read},
    {"mprotect to nothing, then ENOMEM", half_lay_nothing, half_cut_hole, half_protect_none},
    {"mprotect, then EPERM", half_lay_nothing, half_cut_sealed, half_protect_none},
    {"mprotect that gives, then EACCES", half_lay_read_only_file_behind, half_cut_nothing,
     half_protect_all},
    {"munmap, EPERM", half_lay_nothing, half_cut_sealed, half_unmap},
    {"munmap over a hole", half_lay_nothing, half_cut_hole, half_unmap},
    {"mmap over it, ENODEV", half_lay_nothing, half_cut_locked, half_map_socket},
    {"mmap over a hole, ENODEV", half_lay_nothing, half_cut_hole, half_map_socket},
    {"mmap over it, EBADF", half_lay_nothing, half_cut_locked, half_map_nothing},
    {"mmap over it, EPERM", half_lay_nothing, half_cut_sealed, half_map_memory},
    {"mremap of several mappings", half_lay_file_behind, half_cut_rights, half_remap},
    {"mremap, then EFAULT of a segment", half_lay_segment_behind, half_cut_rights, half_remap},
    {"mremap over a gap", half_lay_nothing, half_cut_hole, half_remap},
    {"mremap over gaps", half_lay_nothing, half_cut_holes, half_remap},
    {"mremap over a gap to a gap", half_lay_nothing, half_cut_target_hole, half_remap},
    {"mremap over a gap, leaving", half_lay_nothing, half_cut_holes, half_remap_leaving},
    {"mremap, then EPERM", half_lay_nothing, half_cut_sealed, half_remap},
    {"mremap, gap first", half_lay_nothing, half_cut_hole_first, half_remap},
    {"mremap over itself", half_lay_nothing, half_cut_holes, half_remap_over_itself},
    {"mremap of several to less", half_lay_nothing, half_cut_holes, half_remap_smaller},
    {"mremap of the first to less", half_lay_nothing, half_cut_hole, half_remap_head},
    {"mremap of the first to less, EPERM", half_lay_nothing, half_cut_sealed, half_remap_head},
    {"mremap in place to less, uneven", half_lay_nothing, half_cut_nothing, half_remap_in_place},
    {"mremap in place, uneven, same pages", half_lay_nothing, half_cut_nothing,
     half_remap_same_pages},
    {"mremap of locked memory", half_lay_nothing, half_cut_hole_and_locked, half_remap},
};
enum { kHalfCount = sizeof kHalfCases / sizeof kHalfCases[0] };

// ---- what came of it --------------------------------------------------------------------------

// How a page is looked at: the byte at its start, if it may be read; and whether it may be written.
struct half_look {
  int (*read)(const char* at, char* byte);
  int (*may_write)(char* at);
};

// A letter a page: '-' nothing mapped, 'x' not readable, '0' zeros, and whose bytes it has; with a
// ' behind it: not writable.
static inline void half_describe(const struct half_look* look, char* area, char* out) {
  for (size_t i = 0; i < kHalfPages; i++) {
    char* const at = half_page(area, i);
    unsigned char there = 0;
    char byte = 0;
    const int readable = look->read(at, &byte);
    if (mincore(at, kHalfPage, &there) != 0) {
      *out++ = '-';
      continue;
    }
    *out++ = !readable ? 'x' : byte == 0 ? '0' : byte;
    if (readable && !look->may_write(at)) *out++ = '\'';
  }
  *out = '\0';
}
