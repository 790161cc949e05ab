// SPDX-License-Identifier: Apache-2.0
#pragma once

// The file that pages go to when memory will not do: unnamed from the moment it exists, sparse,
// limited, every extent with a checksum. Analogue: a swap file and its map (kernel file:
// mm/swapfile.c). Differs: extents are of 512 bytes up to a page, so that what was compressed stays
// so; and bytes that come back are checked.
//
// Invariants: I1  no name leads to it: a process that dies in any way leaves nothing behind.
//             I2  read() answers exactly the bytes of write(), or EBADMSG or the kernel's errno.
//             I3  an extent given back is free for others at once, and found before the file is
//             made
//                 longer; its block leaves the disk with its neighbours, when somebody has the
//                 time.
// Locking: none for the map (allocate, release, begin_hole, end_hole): the caller's. write(),
// read() and punch() take no lock and may sleep: a file system may write out what it is to throw
// away. Failure of allocate: ENOSPC (the limit), ENOMEM. Of write: ENOSPC, EDQUOT, EFBIG, EIO: the
// disk; the extent is still the caller's to release.

#include "addr/addr.h"
#include "base/result.h"
#include "base/types.h"
#include "base/vec.h"

namespace stagetwo::mem {

// Bytes in the file: where, how many, and what they hash to.
struct SwapExtent {
  u64 hash = 0;
  u32 unit = 0;  // of kSwapUnit bytes
  u16 bytes = 0;
};
inline constexpr u64 kSwapUnit = 512;
inline constexpr u64 kSwapForever = ~u64{0};

class SwapFile {
 public:
  SwapFile() = default;
  SwapFile(const SwapFile&) = delete;
  SwapFile& operator=(const SwapFile&) = delete;

  // A new file where `path` says: a folder, or a name in one that does not exist yet. Answers its
  // descriptor, an engine's own. Failure: EEXIST, EISDIR never, the kernel's.
  [[nodiscard]] static Result<int> create(const char* path);

  // `limit` in bytes; may be changed later, what is beyond it stays.
  void set_limit(u64 limit) { limit_ = limit; }
  [[nodiscard]] u64 limit() const { return limit_; }

  // Pre: 0 < bytes <= kPageSize. The bytes' place, not yet written.
  [[nodiscard]] Result<SwapExtent> allocate(u16 bytes);
  void release(const SwapExtent& extent);
  // Writes extent.bytes bytes; their hash goes into *extent.
  [[nodiscard]] static Result<void> write(int fd, SwapExtent* extent, const void* bytes);
  [[nodiscard]] static Result<void> read(int fd, const SwapExtent& extent, void* bytes);

  // Blocks in a row that the disk has and nobody needs. From begin to end nobody is given one of
  // them, so the hole is made without a lock. Refused by the disk: it keeps them.
  struct Hole {
    u64 first = 0;
    u64 blocks = 0;  // 0: there are none
  };
  [[nodiscard]] Hole begin_hole();
  static void punch(int fd, const Hole& hole);
  void end_hole(const Hole& hole);

  // Bytes of extents in use; whole blocks that hold some.
  [[nodiscard]] u64 bytes() const { return used_units_ * kSwapUnit; }
  [[nodiscard]] u64 blocks() const { return used_blocks_; }
  // Of the map itself.
  [[nodiscard]] u64 map_bytes() const {
    return blocks_.capacity() + chunks_.capacity() * sizeof(Chunk);
  }

 private:
  static constexpr unsigned kUnitsPerBlock = static_cast<unsigned>(kPageSize / kSwapUnit);
  [[nodiscard]] static u8 room_in(u8 taken, unsigned units);
  [[nodiscard]] u8 search(unsigned units, u64 most);
  [[nodiscard]] Result<u32> find_block(unsigned units, u8* mask);
  [[nodiscard]] Result<void> lengthen();
  [[nodiscard]] bool find_waste();
  void forget_blocks();

  u64 limit_ = kSwapForever;
  // One byte a block of a page: which of its eight units are taken.
  Vec<u8> blocks_{"mem.swap_map"};
  // 64 blocks.
  struct Chunk {
    u8 used = 0;           // blocks of it with an extent
    bool on_disk = false;  // one was written to since the last hole
    [[nodiscard]] bool is_waste() const { return used == 0 && on_disk; }
  };
  Vec<Chunk> chunks_{"mem.swap_chunks"};
  u64 waste_ = 0;                              // chunks that are
  u64 waste_next_ = 0;                         // where the search for one begins
  u64 next_ = 0;                               // where the next search begins
  unsigned no_room_for_ = kUnitsPerBlock + 1;  // so many units, since the last release
  u64 used_units_ = 0;
  u64 used_blocks_ = 0;
};

}  // namespace stagetwo::mem
