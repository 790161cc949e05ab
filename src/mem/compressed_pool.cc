// SPDX-License-Identifier: Apache-2.0
#include "mem/compressed_pool.h"

#include <sys/mman.h>

#include <cstring>

#include "base/alloc.h"
#include "base/check.h"
#include "base/sys.h"

// A slab is in exactly one place: the list of its class (some place is free), no list (full), or
// the list of empty ones (no memory). Address space for all slabs is reserved once, so that an
// object's address is arithmetic; slabs are committed one after another and never shrink.

namespace stagetwo::mem {
namespace {

constexpr u64 kMaxSlabs = u64{1} << 20;  // 64 GiB of address space

constexpr u32 class_of(u32 size) {
  return (size - 1) / CompressedPool::kStep;
}

}  // namespace

CompressedPool::~CompressedPool() {
  if (base_ != nullptr) unmap_pages(base_, kMaxSlabs * kSlabBytes);
}

u8* CompressedPool::place(u32 slab, u32 index) const {
  const u64 size = (u64{slabs_[slab].size_class} + 1) * kStep;
  return base_ + slab * kSlabBytes + index * size;
}

u32 CompressedPool::capacity(const Slab& slab) const {
  return static_cast<u32>(kSlabBytes / ((u64{slab.size_class} + 1) * kStep));
}

void CompressedPool::link(u32* list, u32 slab) {
  slabs_[slab].next = *list;
  slabs_[slab].previous = kNone;
  if (*list != kNone) slabs_[*list].previous = slab;
  *list = slab;
}

void CompressedPool::unlink(u32* list, u32 slab) {
  const Slab& s = slabs_[slab];
  if (s.previous == kNone) {
    *list = s.next;
  } else {
    slabs_[s.previous].next = s.next;
  }
  if (s.next != kNone) slabs_[s.next].previous = s.previous;
}

Result<u32> CompressedPool::new_slab() {
  if (empty_ != kNone) {
    const u32 slab = empty_;
    unlink(&empty_, slab);
    return slab;
  }
  if (base_ == nullptr) {
    base_ = static_cast<u8*>(ST_TRY(reserve_pages(kMaxSlabs * kSlabBytes, "mem.pool_space")));
  }
  if (slabs_.size() == kMaxSlabs) return refuse(ENOMEM);
  ST_TRY(slabs_.push_back(Slab()));
  const u32 slab = static_cast<u32>(slabs_.size() - 1);
  const auto committed = commit_pages(base_ + slab * kSlabBytes, kSlabBytes, "mem.pool_slab");
  if (!committed) {
    slabs_.pop_back();
    return refuse(committed.error());
  }
  return slab;
}

Result<u32> CompressedPool::slab_for(u32 size_class) {
  u32 head = with_room_[size_class] - 1;
  if (head != kNone) return head;
  const u32 slab = ST_TRY(new_slab());
  slabs_[slab] = Slab();
  slabs_[slab].size_class = static_cast<u16>(size_class);
  link(&head, slab);
  with_room_[size_class] = head + 1;
  ++used_slabs_;
  return slab;
}

Result<CompressedPool::Object> CompressedPool::put(const void* bytes, u32 size) {
  ST_DCHECK(size != 0 && size <= kMaxObject);
  const u32 size_class = class_of(size);
  const u32 index = ST_TRY(slab_for(size_class));
  Slab& slab = slabs_[index];
  u32 chosen = slab.first_free;
  if (chosen != kNoPlace) {
    std::memcpy(&slab.first_free, place(index, chosen), sizeof(slab.first_free));
  } else {
    chosen = slab.fresh++;
  }
  if (++slab.used == capacity(slab)) {
    u32 head = with_room_[size_class] - 1;
    unlink(&head, index);
    with_room_[size_class] = head + 1;
  }
  std::memcpy(place(index, chosen), bytes, size);
  return Object{index << kPlaceBits | chosen};
}

const u8* CompressedPool::at(Object object) const {
  const u32 raw = static_cast<u32>(object);
  return place(raw >> kPlaceBits, raw & ((1U << kPlaceBits) - 1));
}

void CompressedPool::free(Object object) {
  const u32 raw = static_cast<u32>(object);
  const u32 index = raw >> kPlaceBits;
  const u16 freed = static_cast<u16>(raw & ((1U << kPlaceBits) - 1));
  Slab& slab = slabs_[index];
  ST_DCHECK(slab.used != 0);
  u32 head = with_room_[slab.size_class] - 1;
  if (slab.used == capacity(slab)) link(&head, index);
  std::memcpy(place(index, freed), &slab.first_free, sizeof(slab.first_free));
  slab.first_free = freed;
  if (--slab.used == 0) {
    unlink(&head, index);
    // Refused: the memory stays with the slab, which is still of use.
    static_cast<void>(sys::madvise(base_ + index * kSlabBytes, kSlabBytes, MADV_DONTNEED));
    link(&empty_, index);
    --used_slabs_;
  }
  with_room_[slab.size_class] = head + 1;
}

}  // namespace stagetwo::mem
