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
//   kUndo …      what the section under way overwrites (kept.h)
//
// I1  Memory of a fresh file reads as zero, and so does every block that alloc() returns.
// I2  Nothing in it points into a process: no address, no descriptor, no vtable, no thread's
//     belongings but the lock word.
// I3  Where a process dies inside the lock everything is put back as its section found it, and the
//     next holder is told (Guard::recovered). Only in a section that did not note, because nobody
//     else had ever had the lock, it leaves the arena broken: every later lock says so.
// Locking: everything but attach() under lock(). Lifetime: the file's; this object is one
// process's view of it. Failure: ENOMEM.

#include <stddef.h>
#include <string.h>

#include <bit>

#include "base/alloc.h"
#include "base/check.h"
#include "base/failpoint.h"
#include "base/process_stamp.h"
#include "base/result.h"
#include "base/types.h"
#include "host/description.h"
#include "iommu/rel_ptr.h"
#include "sync/process_mutex.h"

namespace stagetwo::iommu {

class Arena {
 public:
  static constexpr u64 kFileBytes = u64{1} << 34;
  static constexpr u64 kNodes = u64{1} << 20;
  static constexpr u64 kHeap = u64{1} << 26;
  static constexpr u64 kUndo = kFileBytes - (u64{1} << 30);

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
  // Heap that is kept for blocks to come, so that make_kept() cannot fail: so many bytes for each
  // T. No failpoint is asked. False: there is not so much.
  [[nodiscard]] bool keep_back(u64 bytes);
  void give_back(u64 bytes);
  template <typename T>
  static constexpr u64 block_bytes() {
    return u64{1} << order_of(sizeof(T));
  }
  template <typename T>
  T* make_kept() {
    static_assert(order_of(sizeof(T)) < kReturned);
    void* const block = take_unasked(order_of(sizeof(T)));
    ST_CHECK(block != nullptr);
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
  class Section;

  // For tests: called at the beginning and at the end of each section that notes; every one does.
  struct DebugHooks {
    void (*begin)(const Arena&);
    void (*end)(const Arena&);
  };
  static constinit inline DebugHooks debug_hooks{nullptr, nullptr};
  static constinit inline bool debug_note_always = false;
  // Puts back what was noted, and keeps the notes.
  void debug_restore() const { restore_notes(); }
  // fn(offset, bytes) of every free block.
  template <typename F>
  void debug_each_free(F&& fn) const;
  [[nodiscard]] u64 debug_heap_end() const;
  // Of the head of the file what is put back; the root behind it is.
  static u64 debug_kept_from(), debug_kept_end();

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
  void *take(unsigned order, const char* site), *take_unasked(unsigned order);
  void *take_new(unsigned order), *carve(unsigned order);
  void give(void* block, unsigned order), give_later(void* block, unsigned order);
  void note_taken(const void* block, unsigned order) const;
  static void empty_block(void* block, unsigned order);
  void settle_limbo();
  static constexpr u64 kUndoKept = u64{1} << 20;  // of the notes' memory, for the next section
  void note_process(u32 stamp) const;
  void recover() const;
  void put_back() const, restore_notes() const;

  u8* base_ = nullptr;
  mutable sync::Atomic<u32> stamp_{0};  // of the process that was counted
};

}  // namespace stagetwo::iommu

#include "iommu/arena_sections.h"
