// SPDX-License-Identifier: Apache-2.0
#pragma once

// Memory behind a file description: the state of an iommufd lives here and nowhere else, so that
// whoever receives the descriptor (fork, SCM_RIGHTS, exec) maps it and goes on (DESIGN.md, rule
// 11). Blocks of powers of two from 16 bytes on; links are relative (RelPtr), so every process may
// have the arena at another address.
//
//   0            header: magic, version, lock, free lists, the user's root object
//   kNodes       a word for each page of the heap: the link of a page table in a gather
//   kHeap …      blocks: below a page carved from one, from a page on in runs of 2^n pages
//
// I1  Memory of a fresh file reads as zero, and so does every block that alloc() returns.
// I2  Nothing in it points into a process: no address, no descriptor, no vtable, no thread's
//     belongings but the lock word.
// I3  A process that dies inside the lock leaves the arena broken: every later lock says so.
// Locking: everything but attach() under lock(). Lifetime: the file's; this object is one
// process's view of it. Failure: ENOMEM.

#include <string.h>

#include <bit>

#include "base/alloc.h"
#include "base/failpoint.h"
#include "base/result.h"
#include "base/types.h"
#include "host/description.h"
#include "sync/process_mutex.h"

namespace stagetwo::iommu {

// A link inside an arena: the distance from itself. Not to be copied but by get().
template <typename T>
class RelPtr {
 public:
  constexpr RelPtr() = default;
  RelPtr(const RelPtr&) = delete;
  RelPtr& operator=(const RelPtr&) = delete;
  RelPtr& operator=(T* to) {
    delta_ = to == nullptr ? 0 : address(to) - address(this);
    return *this;
  }
  [[nodiscard]] T* get() const {
    if (delta_ == 0) return nullptr;
    return reinterpret_cast<T*>(static_cast<std::uintptr_t>(address(this) + delta_));
  }
  operator T*() const { return get(); }
  T* operator->() const { return get(); }

 private:
  template <typename U>
  static s64 address(const U* at) {
    return static_cast<s64>(reinterpret_cast<std::uintptr_t>(at));
  }
  s64 delta_ = 0;
};

// Blocks that are used one after the other stand one behind the other, as a rule: asks the
// processor for those that come after `next` does, which were last used long ago. A wrong guess
// costs nothing.
inline void prefetch_ahead(const void* block, const void* next) {
  constexpr u64 kBlocks = 8, kLine = 64;
  const u64 at = reinterpret_cast<u64>(block), stride = reinterpret_cast<u64>(next) - at;
  __builtin_prefetch(reinterpret_cast<const void*>(at + kBlocks * stride), 1);
  __builtin_prefetch(reinterpret_cast<const void*>(at + kBlocks * stride + kLine), 1);
}

class Arena {
 public:
  static constexpr u64 kFileBytes = u64{1} << 34;
  static constexpr u64 kNodes = u64{1} << 20;
  static constexpr u64 kHeap = u64{1} << 26;

  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();

  // A fresh file for one: to be published by its user. Failure: as Backing::create.
  static Result<host::Backing> make_file(const char* kind);
  // Maps the file behind `fd`, which make_file() made in this process or another. Pre: not yet
  // attached. Failure: ENOMEM, EMFILE; EIO: it is none of ours, or of another version.
  Result<void> attach(int fd);

  // The root object of the user, `bytes` long, zero in a fresh file.
  [[nodiscard]] void* root() const { return base_ + kRoot; }
  static constexpr u64 kRoot = 1024;
  static constexpr u64 kRootBytes = kNodes - kRoot;

  // A zeroed block; nullptr: no memory. `site` names the failpoint.
  [[nodiscard]] void* alloc(u64 bytes, const char* site);
  void free(void* block, u64 bytes);
  template <typename T>
  [[nodiscard]] Result<T*> make(const char* site) {
    static_assert(order_of(sizeof(T)) < kReturned);
    void* const block = take(order_of(sizeof(T)), site);
    if (block == nullptr) return refuse(ENOMEM);
    return ::new (block) T();
  }
  template <typename T>
  void destroy(T* object) {
    if (object != nullptr) give(object, order_of(sizeof(T)));
  }

  // For page tables: an offset is what an entry holds.
  [[nodiscard]] u64 offset_of(const void* block) const {
    return static_cast<u64>(static_cast<const u8*>(block) - base_);
  }
  [[nodiscard]] void* at(u64 offset) const { return base_ + offset; }
  // The word of the page that `block` begins at, and back.
  [[nodiscard]] void* node_of(const void* block) const {
    return base_ + kNodes + (offset_of(block) - kHeap) / kPageBytes * kNodeBytes;
  }
  [[nodiscard]] void* block_of(const void* node) const {
    return base_ + kHeap + (offset_of(node) - kNodes) / kNodeBytes * kPageBytes;
  }

  // What is allocated, for leak tests: 0 when everything was given back.
  [[nodiscard]] s64 blocks_in_use() const;

  // The lock of everything in it. `ok()` false: broken (I3); touch nothing.
  class Guard;

 private:
  struct Header;
  static constexpr u64 kPageBytes = 4096, kNodeBytes = 8;
  static constexpr unsigned kSmallest = 4;  // 16 bytes
  static constexpr unsigned kPageOrder = 12;
  static constexpr unsigned kReturned = 16;  // from 64 KiB on a free block gives its memory back

  static constexpr unsigned order_of(u64 bytes) {
    const unsigned order = bytes <= 1 ? 0 : static_cast<unsigned>(std::bit_width(bytes - 1));
    return order < kSmallest ? kSmallest : order;
  }
  Header& header() const;
  // A block; what is in it may be anything unless it is new.
  void *take(unsigned order, const char* site), *take_new(unsigned order), *carve(unsigned order);
  void give(void* block, unsigned order);

  u8* base_ = nullptr;
};

struct Arena::Header {
  static constexpr u64 kMagic = 0x756d6d6f69327473;  // "st2iommu"
  static constexpr u64 kVersion = 3;
  static constexpr unsigned kOrders = 34;
  u64 magic;
  u64 version;
  sync::ProcessMutex lock;
  u32 broken;
  u64 heap_end;  // the first byte never used
  s64 blocks;
  u64 free_lists[kOrders];  // offsets; a free block's first word is the next one's
};

inline Arena::Header& Arena::header() const {
  static_assert(sizeof(Header) <= kRoot);
  return *reinterpret_cast<Header*>(base_);
}

// Whoever takes one takes the next one soon, and it was last used long ago.
inline void* Arena::take(unsigned order, const char* site) {
  if (failpoint::should_fail(site)) [[unlikely]]
    return nullptr;
  Header& h = header();
  const u64 offset = h.free_lists[order];
  if (offset == 0) [[unlikely]]
    return take_new(order);
  u8* const block = base_ + offset;
  u64 next = 0;
  memcpy(&next, block, sizeof(u64));
  h.free_lists[order] = next;
  prefetch_ahead(block, base_ + next);
  ++h.blocks;
  return block;
}

inline void Arena::give(void* block, unsigned order) {
  Header& h = header();
  memcpy(block, &h.free_lists[order], sizeof(u64));
  h.free_lists[order] = offset_of(block);
  --h.blocks;
}

class TA_SCOPED Arena::Guard {
 public:
  explicit Guard(const Arena& arena) TA_ACQ(arena.header().lock)
      : guard_(arena.header().lock, sync::Rank::kIoas), broken_(arena.header().broken) {
    if (guard_.died()) broken_ = 1;
  }
  ~Guard() TA_REL() = default;
  [[nodiscard]] bool ok() const { return broken_ == 0; }

 private:
  sync::ProcessMutexGuard guard_;
  u32& broken_;
};

}  // namespace stagetwo::iommu
