// SPDX-License-Identifier: Apache-2.0
#pragma once

// Huge pages for a machine that has none to give: mappings and files the client asks hugetlbfs for
// are served by ordinary memory, aligned to the huge page and recorded as pages of that size. What
// a program can tell apart is what the kernel's hugetlbfs says: alignment rules, refusals, the
// pool's numbers. Off unless enable() is called.
//
// Analogue: hugetlbfs (kernel files: hugetlbfs/inode.c, hugetlb.c). Differs: the pool is a number
// (the session's), use of it is counted in each process by itself and when a mapping is made, not
// when it is touched; memory may still run out.
//
// I1: a recorded range is whole pages of its level, aligned, and mapped by the stand-in's memory.
// I2: level_at() answers a large level only when every byte of the page was made present.
// Locking: one leaf lock. Context: the client's thread; no section.

#include <sys/stat.h>
#include <sys/types.h>

#include "addr/addr.h"
#include "base/result.h"
#include "base/types.h"

namespace stagetwo::host::hugetlb {

inline constexpr unsigned kLevels[] = {2, 3};
// The size a request without one gets, as on x86 with no boot option.
inline constexpr unsigned kDefaultLevel = 2;
inline constexpr u64 kDefaultPool2M = 2048;
inline constexpr u64 kDefaultPool1G = 4;

constexpr u64 page_bytes(unsigned level) {
  return u64{1} << (12 + 9 * (level - 1));
}

void enable();
// A relaxed load each. any(): is there a mapping or a file, so that calls by address must ask?
[[nodiscard]] bool enabled();
[[nodiscard]] bool any();

struct Pool {
  u64 total;
  u64 used;  // by this process
};
[[nodiscard]] Pool pool(unsigned level);
// The session's pool; never below what this process uses. Writes of nr_hugepages.
void set_pool(unsigned level, u64 pages);

// Which size the bits of MAP_HUGE_… or MFD_HUGE_… in `flags` ask for; 0: one there is none of.
[[nodiscard]] unsigned level_of_flags(unsigned flags);

// memfd_create(name, flags with MFD_HUGETLB). Failure: EINVAL for a size there is none of, the
// kernel's.
[[nodiscard]] Result<int> make_file(const char* name, unsigned flags);
// The level of a file made so; 0: another file. A file is known in this process and its children.
[[nodiscard]] unsigned level_of_file(const struct ::stat& behind);

struct MapCall {
  void* at;
  size_t size;
  int prot;
  int flags;
  int fd;
  off_t offset;
};
// Is the mmap for us (MAP_HUGETLB without a file, or a file of ours)? Its level, else 0.
[[nodiscard]] unsigned level_of_map(const MapCall& call);
// Failure: EINVAL, ENOMEM (the pool is used up), the kernel's. Pre: level_of_map(call) == level.
[[nodiscard]] Result<void*> map(const MapCall& call, unsigned level);

// Would taking or changing [start, start + size) cut a huge page in two? Then it is EINVAL.
[[nodiscard]] bool cuts(u64 start, u64 size);
// The range is no longer ours: unmapped, or replaced.
void forget(u64 start, u64 size);

// mremap: EINVAL where hugetlbfs refuses; *old_size and *new_size are rounded up to huge pages.
[[nodiscard]] Result<void> check_remap(u64 old_at, size_t* old_size, size_t* new_size, int flags,
                                       u64 new_at);
void moved(u64 old_at, size_t old_size, u64 new_at, size_t new_size);

// madvise: EINVAL where hugetlbfs refuses; *size is rounded down to whole huge pages for discards.
[[nodiscard]] Result<void> check_advice(u64 start, size_t* size, int advice);

// The level of the page at `page`: 1 if nothing is present there, else all of it is made present
// first. 0: not ours.
[[nodiscard]] unsigned level_at(Hva page);

void after_fork_child();
// For tests: off, nothing recorded.
void debug_reset();

}  // namespace stagetwo::host::hugetlb
