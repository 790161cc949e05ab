// SPDX-License-Identifier: Apache-2.0
#include "mem/swap_file.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstring>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/bits.h"
#include "base/check.h"
#include "base/failpoint.h"
#include "base/sys.h"

// The map has a byte a block. An extent lies within one block, so looking for room is looking at
// bytes. The search begins where the last extent was given back and gives up soon; then 64 blocks
// are used again of which none has an extent, before the file is made longer. Only a file that has
// reached its limit is looked through from end to end, once for whatever is given back.
//
// The hash is seeded with the place: bytes that the disk put elsewhere do not pass for those that
// belong here.

namespace stagetwo::mem {
namespace {

constexpr u64 kLookedAt = 64;     // before the file is made longer
constexpr u64 kChunkBlocks = 64;  // given back to the disk together
constexpr u64 kMostChunks = 64;   // in one hole

constexpr unsigned units_of(u16 bytes) {
  return static_cast<unsigned>((bytes + kSwapUnit - 1) / kSwapUnit);
}
constexpr u8 mask_of(unsigned units, unsigned first) {
  return static_cast<u8>(((1U << units) - 1) << first);
}
constexpr off_t offset_of(const SwapExtent& extent) {
  return static_cast<off_t>(extent.unit * kSwapUnit);
}

u64 hash_of(const SwapExtent& extent, const void* bytes) {
  return XXH3_64bits_withSeed(bytes, extent.bytes, extent.unit);
}

// What the kernel would say with a signal (SIGXFSZ), which is the client's.
bool beyond_the_limit(u64 end) {
  rlimit limit{};
  const long asked = sys::call(SYS_prlimit64, 0, RLIMIT_FSIZE, 0, sys::arg(&limit));
  return asked == 0 && end > limit.rlim_cur;
}

Result<int> unnamed_in(const char* folder) {
  return sys::openat(AT_FDCWD, folder, O_TMPFILE | O_RDWR | O_EXCL | O_CLOEXEC, 0600);
}

bool exists(const char* path, bool* folder) {
  struct ::stat found{};
  const long asked = sys::call(SYS_newfstatat, AT_FDCWD, sys::arg(path), sys::arg(&found), 0);
  *folder = asked == 0 && S_ISDIR(found.st_mode);
  return asked == 0;
}

}  // namespace

Result<int> SwapFile::create(const char* path) {
  bool folder = false;
  const bool there = exists(path, &folder);
  if (there && !folder) return refuse(EEXIST);
  if (folder) return sys::raise_engine_fd(ST_TRY(unnamed_in(path)));
  char parent[4096];
  const size_t length = strlen(path);
  if (length >= sizeof(parent)) return refuse(ENAMETOOLONG);
  std::memcpy(parent, path, length + 1);
  char* const slash = strrchr(parent, '/');
  if (slash == nullptr) {
    std::memcpy(parent, ".", 2);
  } else {
    slash[slash == parent ? 1 : 0] = '\0';
  }
  auto made = unnamed_in(parent);
  if (!made && (to_int(made.error()) == EOPNOTSUPP || to_int(made.error()) == EISDIR)) {
    // A file system without unnamed files: a name for as long as two calls take.
    made = sys::openat(AT_FDCWD, path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (made) sys::call(SYS_unlinkat, AT_FDCWD, sys::arg(path), 0);
  }
  if (!made) return refuse(made.error());
  return sys::raise_engine_fd(*made);
}

// Where in `taken` there is room for `units`; 0: nowhere.
u8 SwapFile::room_in(u8 taken, unsigned units) {
  for (unsigned first = 0; first + units <= kUnitsPerBlock; ++first) {
    if ((taken & mask_of(units, first)) == 0) return mask_of(units, first);
  }
  return 0;
}

// Looks at `most` blocks. Answers the mask of the one in next_, 0: none of them has room.
u8 SwapFile::search(unsigned units, u64 most) {
  for (u64 i = 0; i < most; ++i, next_ = next_ + 1 < blocks_.size() ? next_ + 1 : 0) {
    if (const u8 mask = room_in(blocks_[next_], units)) return mask;
  }
  return 0;
}

// A block more.
Result<void> SwapFile::lengthen() {
  const u64 count = blocks_.size();
  if (count == blocks_.capacity()) ST_TRY(blocks_.reserve(2 * count + 1024));
  if (chunks_.size() * kChunkBlocks == count) ST_TRY(chunks_.push_back({}));
  return blocks_.push_back(0);
}

// Goes on at a chunk that the disk has for nothing, all of it free. False: there is none.
bool SwapFile::find_waste() {
  if (waste_ == 0) return false;
  while (!chunks_[waste_next_].is_waste()) {
    waste_next_ = waste_next_ + 1 < chunks_.size() ? waste_next_ + 1 : 0;
  }
  next_ = waste_next_ * kChunkBlocks;
  return true;
}

// A block with room for `units`; *mask says where in it.
Result<u32> SwapFile::find_block(unsigned units, u8* mask) {
  const u64 count = blocks_.size();
  *mask = search(units, std::min(count, kLookedAt));
  if (*mask == 0 && find_waste()) *mask = search(units, 1);
  if (*mask != 0) return static_cast<u32>(next_);
  if ((count + 1) * kPageSize <= limit_ && count < ~u32{0} / kUnitsPerBlock) {
    ST_TRY(lengthen());
    next_ = count;
    *mask = mask_of(units, 0);
    return static_cast<u32>(count);
  }
  // Of a full file every block was looked at since something was given back.
  if (units >= no_room_for_) return refuse(ENOSPC);
  *mask = search(units, count);
  if (*mask != 0) return static_cast<u32>(next_);
  no_room_for_ = units;
  return refuse(ENOSPC);
}

Result<SwapExtent> SwapFile::allocate(u16 bytes) {
  ST_DCHECK(bytes != 0 && bytes <= kPageSize);
  const unsigned units = units_of(bytes);
  u8 mask = 0;
  const u32 block = ST_TRY(find_block(units, &mask));
  if (blocks_[block] == 0) {
    ++used_blocks_;
    Chunk& chunk = chunks_[block / kChunkBlocks];
    if (chunk.is_waste()) --waste_;
    ++chunk.used;
    chunk.on_disk = true;
  }
  blocks_[block] |= mask;
  used_units_ += units;
  SwapExtent extent;
  extent.unit = block * kUnitsPerBlock + static_cast<unsigned>(std::countr_zero(mask));
  extent.bytes = bytes;
  return extent;
}

void SwapFile::release(const SwapExtent& extent) {
  const u64 block = extent.unit / kUnitsPerBlock;
  const unsigned units = units_of(extent.bytes);
  blocks_[block] &= static_cast<u8>(~mask_of(units, extent.unit % kUnitsPerBlock));
  used_units_ -= units;
  next_ = block;
  no_room_for_ = kUnitsPerBlock + 1;
  if (blocks_[block] != 0) return;
  --used_blocks_;
  Chunk& chunk = chunks_[block / kChunkBlocks];
  --chunk.used;
  if (chunk.is_waste()) ++waste_;
}

SwapFile::Hole SwapFile::begin_hole() {
  if (!find_waste()) return {};
  const u64 first = waste_next_;
  u64 end = first;
  while (end < chunks_.size() && end < first + kMostChunks && chunks_[end].is_waste()) {
    chunks_[end].on_disk = false;
    --waste_;
    ++end;
  }
  Hole hole{first * kChunkBlocks, 0};
  hole.blocks = std::min(end * kChunkBlocks, blocks_.size()) - hole.first;
  std::fill_n(blocks_.data() + hole.first, hole.blocks, mask_of(kUnitsPerBlock, 0));
  return hole;
}

void SwapFile::punch(int fd, const Hole& hole) {
  static_cast<void>(sys::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                   static_cast<off_t>(hole.first * kPageSize),
                                   static_cast<off_t>(hole.blocks * kPageSize)));
}

void SwapFile::end_hole(const Hole& hole) {
  std::fill_n(blocks_.data() + hole.first, hole.blocks, u8{0});
  no_room_for_ = kUnitsPerBlock + 1;
  if (used_blocks_ == 0 && waste_ == 0) forget_blocks();
}

// Nothing is in the file: the map begins anew.
void SwapFile::forget_blocks() {
  Vec<u8> blocks{"mem.swap_map"};
  Vec<Chunk> chunks{"mem.swap_chunks"};
  blocks_.swap(blocks);
  chunks_.swap(chunks);
  waste_next_ = 0;
  next_ = 0;
}

Result<void> SwapFile::write(int fd, SwapExtent* extent, const void* bytes) {
  extent->hash = hash_of(*extent, bytes);
  if (failpoint::should_fail("mem.swap_write")) return refuse(ENOSPC);
  if (beyond_the_limit(static_cast<u64>(offset_of(*extent)) + extent->bytes)) return refuse(EFBIG);
  for (u16 done = 0; done < extent->bytes;) {
    const auto put =
        sys::pwrite(fd, static_cast<const u8*>(bytes) + done,
                    static_cast<size_t>(extent->bytes - done), offset_of(*extent) + done);
    if (!put && to_int(put.error()) != EINTR) return refuse(put.error());
    if (put && *put == 0) return refuse(EIO);
    if (put) done = static_cast<u16>(done + *put);
  }
  return {};
}

Result<void> SwapFile::read(int fd, const SwapExtent& extent, void* bytes) {
  if (failpoint::should_fail("mem.swap_read")) return refuse(EIO);
  for (u16 done = 0; done < extent.bytes;) {
    const auto got = sys::pread(fd, static_cast<u8*>(bytes) + done,
                                static_cast<size_t>(extent.bytes - done), offset_of(extent) + done);
    if (!got && to_int(got.error()) != EINTR) return refuse(got.error());
    if (got && *got == 0) return refuse(EBADMSG);  // shorter than it was
    if (got) done = static_cast<u16>(done + *got);
  }
  if (hash_of(extent, bytes) != extent.hash) return refuse(EBADMSG);
  return {};
}

}  // namespace stagetwo::mem
