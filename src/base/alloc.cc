// SPDX-License-Identifier: Apache-2.0
#include "base/alloc.h"

#include <sys/mman.h>

#include <algorithm>

#include "base/aligned_pages.h"
#include "base/bits.h"
#include "base/check.h"
#include "base/failpoint.h"
#include "base/leaf_lock.h"
#include "base/own_memory.h"
#include "base/process_page.h"
#include "base/sys.h"

#if defined(__SANITIZE_ADDRESS__)
#define ST_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ST_ASAN 1
#endif
#endif
#if defined(ST_ASAN)
#include <sanitizer/asan_interface.h>
#define ST_POISON(at, bytes) ASAN_POISON_MEMORY_REGION(at, bytes)
#define ST_UNPOISON(at, bytes) ASAN_UNPOISON_MEMORY_REGION(at, bytes)
#else
#define ST_POISON(at, bytes) static_cast<void>(at)
#define ST_UNPOISON(at, bytes) static_cast<void>(at)
#endif

// The arena: size classes of 16, 32 … 128, then four steps a doubling up to 32 KiB. Each class
// keeps a list of free blocks; new blocks are cut from a chunk of 256 KiB. Chunks are never
// returned: the engine's small objects are slots, vCPUs and descriptors, whose number swings
// little.
//
// The whole state stands in the process page, which a child of fork finds empty:
//
//   parent, thread 1                  | parent, thread 2
//   takes the lock, unlinks a block   |
//                                     | fork()
//                                     | child: lock word 0, lists empty: a new arena
//   goes on                           | child: gives back an inherited block: one more free block
//
// What the child loses is the parent's free blocks, which stay shared copy-on-write.

namespace stagetwo {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kChunk = 256 * 1024;
constexpr unsigned kLinearClasses = 8;  // 16 … 128
constexpr unsigned kClasses = kLinearClasses + 4 * 8;

struct FreeBlock {
  FreeBlock* next;
};

struct Arena {
  u32 lock;
  u32 unused;
  u64 bump;
  u64 bump_end;
  AllocUse use;
  FreeBlock* free[kClasses];
};
constexpr size_t kArenaWord = kOwnMemoryWord + kOwnMemoryWords;
static_assert(kArenaWord * sizeof(u64) + sizeof(Arena) <= kProcessPageWords * sizeof(u64));

Arena* arena() {
  u64* page = process_page();
  return page == nullptr ? nullptr : reinterpret_cast<Arena*>(page + kArenaWord);
}

struct Class {
  unsigned index;
  size_t size;
};

// Pre: 0 < bytes <= kMaxSmall.
constexpr Class class_of(size_t bytes) {
  if (bytes <= 128) {
    const auto index = static_cast<unsigned>((bytes + 15) / 16 - 1);
    return {index, (size_t{index} + 1) * 16};
  }
  const unsigned doubling = log2_floor(bytes - 1);  // 7 for 129 … 256
  const size_t step = size_t{1} << (doubling - 2);
  const auto quarter = static_cast<unsigned>((bytes - 1 - (size_t{1} << doubling)) / step);
  return {kLinearClasses + 4 * (doubling - 7) + quarter,
          (size_t{1} << doubling) + (size_t{quarter} + 1) * step};
}
static_assert(class_of(1).size == 16 && class_of(128).index == 7 && class_of(129).size == 160);
static_assert(class_of(256).size == 256 && class_of(257).size == 320);
static_assert(class_of(kMaxSmall).size == kMaxSmall && class_of(kMaxSmall).index == kClasses - 1);

// What a request is rounded to before its class is chosen: a block aligned beyond 16 bytes is a
// power of two at least as large as its alignment, and such classes are cut aligned.
size_t rounded(size_t bytes, size_t align) {
  bytes = std::max<size_t>(bytes, 1);
  if (align <= kMinAlign) return bytes;
  return std::bit_ceil(std::max(bytes, align));
}

size_t pages_of(size_t bytes) {
  return align_up(bytes, kPage);
}

// Known to be ours before it may be touched: who takes pages away looks at the mapping first.
void* map_anonymous(size_t bytes, int prot, int flags) {
  auto mapped = map_apart(bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | flags);
  if (!mapped) return nullptr;
  const bool noted = note_own_memory(*mapped, bytes);
  if (noted && (prot == PROT_NONE || sys::mprotect(*mapped, bytes, prot))) {
    // No client's data: not dumped with it, and told apart by that from outside (smaps).
    static_cast<void>(sys::madvise(*mapped, bytes, MADV_DONTDUMP));
    return *mapped;
  }
  if (noted) forget_own_memory(*mapped, bytes);
  static_cast<void>(sys::munmap(*mapped, bytes));
  return nullptr;
}

// Refused only where the arguments were never a mapping of ours. What is apart is ours until it is
// gone, and not mapped again soon; elsewhere the place may be another thread's at once.
void unmap_own(void* at, size_t bytes) {
  const bool apart = is_apart(at);
  if (!apart) forget_own_memory(at, bytes);
  ST_CHECK(sys::munmap(at, bytes).has_value());
  if (apart) forget_own_memory(at, bytes);
}

// Under the lock. nullptr: no chunk.
void* cut(Arena& a, size_t size) {
  const size_t align = std::min(size & (~size + 1), kPage);
  u64 at = align_up(a.bump, align);
  if (at + size > a.bump_end || a.bump == 0) {
    void* chunk = map_anonymous(kChunk, PROT_READ | PROT_WRITE, 0);
    if (chunk == nullptr) return nullptr;
    ST_POISON(chunk, kChunk);
    at = reinterpret_cast<u64>(chunk);
    a.bump_end = at + kChunk;
  }
  a.bump = at + size;
  return reinterpret_cast<void*>(at);
}

void* alloc_small(Arena& a, size_t bytes) {
  const Class c = class_of(bytes);
  const LeafGuard guard(&a.lock);
  void* block = a.free[c.index];
  if (block != nullptr) {
    ST_UNPOISON(block, sizeof(FreeBlock));
    a.free[c.index] = static_cast<FreeBlock*>(block)->next;
    ST_POISON(block, sizeof(FreeBlock));
  } else {
    block = cut(a, c.size);
    if (block == nullptr) return nullptr;
  }
  ST_UNPOISON(block, bytes);
  ++a.use.blocks;
  a.use.bytes += static_cast<s64>(c.size);
  return block;
}

void count(s64 blocks, s64 bytes) {
  Arena* a = arena();
  if (a == nullptr) return;
  const LeafGuard guard(&a->lock);
  a->use.blocks += blocks;
  a->use.bytes += bytes;
}

}  // namespace

void* alloc(size_t bytes, size_t align, const char* site) {
  if (failpoint::should_fail(site)) return nullptr;
  bytes = rounded(bytes, align);
  if (bytes > kMaxSmall) {
    void* pages = bytes > ~size_t{0} - kPage
                      ? nullptr
                      : map_anonymous(pages_of(bytes), PROT_READ | PROT_WRITE, 0);
    if (pages != nullptr) count(1, static_cast<s64>(pages_of(bytes)));
    return pages;
  }
  Arena* a = arena();
  return a == nullptr ? nullptr : alloc_small(*a, bytes);
}

void dealloc(void* block, size_t bytes, size_t align) {
  if (block == nullptr) return;
  bytes = rounded(bytes, align);
  if (bytes > kMaxSmall) {
    unmap_pages(block, bytes);
    return;
  }
  Arena* a = arena();
  ST_CHECK(a != nullptr);
  const Class c = class_of(bytes);
  const LeafGuard guard(&a->lock);
  ST_UNPOISON(block, sizeof(FreeBlock));
  auto* free_block = static_cast<FreeBlock*>(block);
  free_block->next = a->free[c.index];
  a->free[c.index] = free_block;
  ST_POISON(block, c.size);
  --a->use.blocks;
  a->use.bytes -= static_cast<s64>(c.size);
}

Result<void*> map_pages(size_t bytes, const char* site) {
  if (failpoint::should_fail(site)) return refuse(ENOMEM);
  void* pages = map_anonymous(pages_of(bytes), PROT_READ | PROT_WRITE, 0);
  if (pages == nullptr) return refuse(ENOMEM);
  count(1, static_cast<s64>(pages_of(bytes)));
  return pages;
}

Result<void*> map_aligned_pages(size_t bytes, size_t align, const char* site) {
  if (failpoint::should_fail(site)) return refuse(ENOMEM);
  // As much more as the alignment may cost, and what is not needed given back at once.
  auto* const all = static_cast<u8*>(map_anonymous(bytes + align, PROT_READ | PROT_WRITE, 0));
  if (all == nullptr) return refuse(ENOMEM);
  const u64 start = reinterpret_cast<u64>(all);
  const size_t before = align_up(start, align) - start;
  if (before != 0) unmap_own(all, before);
  if (before != align) unmap_own(all + before + bytes, align - before);
  count(1, static_cast<s64>(bytes));
  return all + before;
}

Result<void*> reserve_pages(size_t bytes, const char* site) {
  if (failpoint::should_fail(site)) return refuse(ENOMEM);
  void* pages = map_anonymous(pages_of(bytes), PROT_NONE, MAP_NORESERVE);
  if (pages == nullptr) return refuse(ENOMEM);
  count(1, static_cast<s64>(pages_of(bytes)));
  return pages;
}

Result<void> commit_pages(void* at, size_t bytes, const char* site) {
  if (failpoint::should_fail(site)) return refuse(ENOMEM);
  return sys::mprotect(at, pages_of(bytes), PROT_READ | PROT_WRITE);
}

Result<void*> map_file(size_t bytes, int prot, int flags, int fd, long offset, const char* site) {
  if (failpoint::should_fail(site)) return refuse(ENOMEM);
  auto mapped = map_apart(bytes, prot, flags, fd, offset);
  if (mapped) count(1, static_cast<s64>(pages_of(bytes)));
  return mapped;
}

void unmap_pages(void* at, size_t bytes) {
  if (at == nullptr) return;
  unmap_own(at, pages_of(bytes));
  count(-1, -static_cast<s64>(pages_of(bytes)));
}

AllocUse alloc_use() {
  Arena* a = arena();
  if (a == nullptr) return {0, 0};
  const LeafGuard guard(&a->lock);
  return a->use;
}

}  // namespace stagetwo
