// SPDX-License-Identifier: Apache-2.0
#include "iommu/arena.h"

#include <string.h>
#include <sys/mman.h>

#include "addr/addr.h"
#include "base/bits.h"
#include "base/check.h"
#include "base/failpoint.h"
#include "base/sys.h"
#include "host/descriptor.h"
#include "sync/atomic.h"

namespace stagetwo::iommu {

Result<host::Backing> Arena::make_file(const char* kind) {
  return host::Backing::create(kind, kFileBytes);
}

Result<void> Arena::attach(int fd) {
  ST_DCHECK(base_ == nullptr);
  // Not through the client's own file description: a mapping would count as its holder.
  const int own = ST_TRY(sys::reopen_engine_fd(fd, O_RDWR | O_CLOEXEC));
  // Without rights first: where the client locks all its memory nothing is made present.
  const auto mapped =
      map_file(kFileBytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE, own, 0, "iommu.arena");
  static_cast<void>(sys::close(own));
  if (!mapped) return refuse(mapped.error());
  base_ = static_cast<u8*>(*mapped);
  static_cast<void>(sys::madvise(base_, kFileBytes, MADV_DONTDUMP));
  ST_TRY(sys::mprotect(base_, kFileBytes, PROT_READ | PROT_WRITE));
  const sync::ProcessMutexGuard guard(header().lock, sync::Rank::kIoas);
  const bool fresh = header().magic == 0;
  if (fresh) {
    header().version = Header::kVersion;
    header().heap_end = kHeap;
    header().magic = Header::kMagic;
  }
  if (guard.died() && !fresh) recover();
  if (header().magic != Header::kMagic || header().version != Header::kVersion) return refuse(EIO);
  return {};
}

Arena::~Arena() {
  if (base_ != nullptr) unmap_pages(base_, kFileBytes);
}

// A block nobody has had yet. Blocks below a page fill one; the rest of it goes to the free list,
// in such an order that blocks follow each other in memory as they are taken.
void* Arena::carve(unsigned order) {
  Header& h = header();
  const u64 bytes = u64{1} << (order < kPageOrder ? kPageOrder : order);
  if (bytes > kUndo - h.heap_end - h.kept_back) return nullptr;
  u8* const first = base_ + h.heap_end;
  h.heap_end += bytes;
  for (u64 at = bytes - (u64{1} << order); at != 0; at -= u64{1} << order) {
    const u64 next = h.free_lists[order];
    memcpy(first + at, &next, sizeof(u64));
    h.free_lists[order] = offset_of(first + at);
  }
  return first;
}

void* Arena::alloc(u64 bytes, const char* site) {
  if (bytes > kFileBytes) return nullptr;
  const unsigned order = order_of(bytes);
  const bool used = header().free_lists[order] != 0;
  void* const block = take(order, site);
  if (block == nullptr) return nullptr;
  memset(block, 0, used && order < kReturned ? u64{1} << order : sizeof(u64));
  sync::made_anew(block, u64{1} << order);
  return block;
}

void* Arena::take_new(unsigned order) {
  void* const block = carve(order);
  if (block != nullptr) ++header().blocks;
  return block;
}

void Arena::free(void* block, u64 bytes) {
  if (block == nullptr) return;
  const unsigned order = order_of(bytes);
  const bool now = undo::sections.load(sync::kRelaxed) == 0;
  if (order >= kReturned && now) empty_block(block, order);
  give(block, order);
}

void Arena::empty_block(void* block, unsigned order) {
  if (sys::madvise(block, u64{1} << order, MADV_REMOVE)) return;
  memset(block, 0, u64{1} << order);
}

bool Arena::keep_back(u64 bytes) {
  Header& h = header();
  if (bytes > kUndo - h.heap_end - h.kept_back) return false;
  h.kept_back += bytes;
  return true;
}

void Arena::give_back(u64 bytes) {
  header().kept_back -= bytes;
}

s64 Arena::blocks_in_use() const {
  return header().blocks;
}

}  // namespace stagetwo::iommu
