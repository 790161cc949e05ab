// SPDX-License-Identifier: Apache-2.0
#pragma once

// Where compressed pages stand in memory: objects of up to kMaxObject bytes, packed by size.
// Analogue: zsmalloc (kernel file: mm/zsmalloc.c). Differs: an object never crosses a slab, and
// nothing is moved to make slabs empty.
//
// A slab is kSlabBytes of one size class; classes are kStep apart. A slab without objects gives its
// memory back to the kernel and may become one of any class.
//
// Locking: none: the caller's. Lifetime: objects until freed; the pool may go before them.
// Failure: ENOMEM, nothing changed. Freeing cannot fail.

#include "base/result.h"
#include "base/types.h"
#include "base/vec.h"

namespace stagetwo::mem {

class CompressedPool {
 public:
  static constexpr u32 kStep = 64;
  static constexpr u32 kMaxObject = 3072;  // more saves too little to be worth the work
  static constexpr u64 kSlabBytes = 64 * 1024;

  // An object: its slab and its place there.
  enum class Object : u32 {};

  CompressedPool() = default;
  CompressedPool(const CompressedPool&) = delete;
  CompressedPool& operator=(const CompressedPool&) = delete;
  ~CompressedPool();

  // A copy of `size` bytes. Pre: 0 < size <= kMaxObject.
  [[nodiscard]] Result<Object> put(const void* bytes, u32 size);
  // Good until it is freed.
  [[nodiscard]] const u8* at(Object object) const;
  void free(Object object);

  // Memory that objects keep from the kernel, their slabs' unused ends included.
  [[nodiscard]] u64 bytes() const { return used_slabs_ * kSlabBytes; }

 private:
  static constexpr u32 kClasses = kMaxObject / kStep;
  static constexpr u32 kNone = ~u32{0};
  static constexpr unsigned kPlaceBits = 10;
  static_assert(kSlabBytes / kStep == u64{1} << kPlaceBits, "a place fits its bits");

  struct Slab {
    u16 size_class = 0;
    u16 used = 0;
    u16 fresh = 0;              // places from here on were never used
    u16 first_free = kNoPlace;  // of those given back; the next one stands in each
    u32 next = kNone;           // of the list it is in
    u32 previous = kNone;
  };
  static constexpr u16 kNoPlace = 0xffff;

  [[nodiscard]] Result<u32> slab_for(u32 size_class);
  [[nodiscard]] Result<u32> new_slab();
  [[nodiscard]] u8* place(u32 slab, u32 index) const;
  [[nodiscard]] u32 capacity(const Slab& slab) const;
  void link(u32* list, u32 slab);
  void unlink(u32* list, u32 slab);

  u8* base_ = nullptr;  // address space for kMaxSlabs, made at the first put
  Vec<Slab> slabs_{"mem.pool_slabs"};
  u64 used_slabs_ = 0;
  u32 empty_ = kNone;             // slabs without memory
  u32 with_room_[kClasses] = {};  // list heads plus one; 0: none
};

}  // namespace stagetwo::mem
