// SPDX-License-Identifier: Apache-2.0
#pragma once

// Decoded code of one vCPU: blocks of instructions up to the next branch or the end of the page,
// found by the host address of their first byte.
//
// When is a block still right? Three writers can change code; each is noticed in its own way:
//   the host or another vCPU   the bytes are compared when a block is entered (a few words)
//   this vCPU, another block   the same
//   this vCPU, this very block stores go to pages with cached code by the slow path only (I1),
//   which
//                              looks whether the running block was hit and then ends it
// A change by somebody else becomes visible at the next block boundary, which the architecture
// allows: cross-modifying code has to serialise.
//
// I1  A host page that holds cached code has no write tag in the soft TLB: `code_filter` knows such
//     pages by hash; entering a page's code takes its write tags away.
// I2  A block never leaves its page; an instruction that does is decoded anew each time.
// I3  Blocks hold no host address that is used without the exec translation of this entry: the
//     address is only the name, and a part of what is compared.
// I4  What stands here of a guest's code is in one mapping, which is not dumped, also while it is
//     being decoded. Of a guest with private memory it has a name in /proc/PID/maps:
//     /memfd:stagetwo:1:vcpu; of one whose frames somebody keeps it is memory for secrets.
// Analogue: none in KVM. Locking: none; one vCPU's thread.

#include "base/result.h"
#include "mem/secure_memory.h"
#include "vcpu/cpu.h"

namespace stagetwo::vcpu {

struct Uop;
// Runs instructions from `uop` on. nullptr: the block is done, RIP is set. Else: that instruction
// has to be executed by its operation, and the ones before it are done.
using Handler = const Uop* (*)(Cpu& c, const Uop* uop);

// One instruction made ready for the fast path. What the fields mean is the handler's business.
struct Uop {
  Handler run;
  u64 imm;
  i64 disp;
  u8 dst;
  u8 src;
  u8 base;
  u8 index;
  u8 scale_lg2;
  u8 aux;
  u16 offset;  // of the instruction from the block's start
};

struct Block;

// Where control went from here the last time. Good while the cache's epoch is the same: no
// translation was dropped, no mode changed, no block was freed since.
struct Link {
  Block* block;
  u64 epoch;
};

struct Block {
  u64 rip;
  u64 host;
  u16 size;   // bytes of code
  u16 count;  // instructions
  Mode mode;
  i8 lead;  // first compared byte, relative to host: 0, or negative at the end of a page
  u16 word_count;
  u64 mask;   // of the only word of a block shorter than a word
  Uop* uops;  // count + 1: the last one ends the block
  Insn* insns;
  u64* words;
  Link link[2];  // behind the last instruction; elsewhere
};

inline constexpr unsigned kMaxBlockInsns = 48;

class BlockCache {
 public:
  // Whose code it will be (I4).
  enum class Code : u8 { kAnybodys, kPrivate, kKept };
  // Failure: ENOMEM; of kKept what mem::SecureMemory::map() says, where not even a block's memory
  // may be locked.
  [[nodiscard]] static Result<BlockCache*> create(Code code);
  static void destroy(BlockCache* cache);

  [[nodiscard]] Block* find(u64 host, u64 rip, Mode mode) const {
    Block* block = table_[index_of(host)];
    if (block == nullptr || block->host != host || block->rip != rip || block->mode != mode) {
      return nullptr;
    }
    return block;
  }
  // Decodes what stands at `bytes` (a copy of the code up to the end of its page). Not `cached`:
  // one instruction, forgotten at the next build. Post: nullptr only if the first instruction needs
  // bytes of the next page.
  [[nodiscard]] Block* build(u64 host, u64 rip, Mode mode, const u8* bytes, u64 size, bool cached);
  void clear();
  // Code of private pages is, or was, among what is decoded: of these frames, and of others that
  // share their bits.
  void note_private(Gfn frame) {
    holds_private_ = true;
    private_frames_[bit_of(frame) >> 6] |= u64{1} << (bit_of(frame) & 63);
  }
  [[nodiscard]] bool holds_private() const { return holds_private_; }
  [[nodiscard]] bool holds_private(Gfn frame) const {
    return (private_frames_[bit_of(frame) >> 6] >> (bit_of(frame) & 63) & 1) != 0;
  }
  // Post: nothing of any code stands here. Context: nothing is being run, and the exec translations
  // go, too: a page that is fetched again says again whose it is.
  void wipe();
  // For bytes that go through the host on their way: a page, where they do not stay on a stack.
  [[nodiscard]] u8* scratch() {
    scratch_used_ = true;
    return arena_ + arena_size_;
  }
  void wipe_scratch();
  // Translations, privilege or mode changed: links are no shorter way any more.
  void unlink() { ++epoch_; }
  [[nodiscard]] u64 epoch() const { return epoch_; }

 private:
  static constexpr unsigned kTableLg2 = 12;
  static constexpr u64 kArenaSize = u64{4} << 20;
  static constexpr u64 kLeastArena = 2 * kPageSize;  // where little memory may be locked
  // Behind the arena: the scratch page, and one for what is being decoded.
  static constexpr u64 kBehind = 2 * kPageSize;

  static u64 index_of(u64 host) { return (host * 0x9e3779b97f4a7c15) >> (64 - kTableLg2); }
  static u64 bit_of(Gfn frame) { return (frame.raw() * 0x9e3779b97f4a7c15) >> 52; }
  [[nodiscard]] Result<void> map(Code code);
  [[nodiscard]] Result<void> map_secret();
  [[nodiscard]] void* take(u64 bytes);
  [[nodiscard]] Insn* decoding();

  Block* table_[u64{1} << kTableLg2] = {};
  u8* arena_ = nullptr;
  u64 arena_size_ = kArenaSize;
  mem::SecureMemory secret_;  // the arena, if it is one; else it is mapped by itself
  u64 used_ = 0;
  u64 most_used_ = 0;
  u64 epoch_ = 1;
  bool holds_private_ = false;
  u64 private_frames_[64] = {};
  bool scratch_used_ = false;
};

// The host address of the code at RIP, through the exec TLB. False: c.stop.
[[nodiscard]] bool fetch_page(Cpu& c, u64 linear, Hva* at, bool* backed);

// The block at RIP, verified. nullptr: c.stop; kAgain after a flush. Context: a block boundary.
[[nodiscard]] Block* find_block(Cpu& c);
// The same after `last` ran to its end, by its link if that still leads here.
[[nodiscard]] Block* follow_block(Cpu& c, Block* last);

// Chooses the handler of an instruction and fills its fields (hot_ops.cc).
void prepare_uop(const Insn& insn, Mode mode, u64 rip, u64 next_rip, Uop* uop);
// Joins neighbours that are often seen together; the second one stays in place for the slow path.
void fuse_uops(const Insn* insns, Uop* uops, unsigned count);
[[nodiscard]] Uop ending_uop(u64 rip);

// I1: the filter of host pages with code.
[[nodiscard]] inline u64 code_bit(Hva page) {
  return ((page.raw() >> kPageShift) * 0x9e3779b97f4a7c15) >> 52;
}
[[nodiscard]] inline bool holds_code(const Cpu& c, Hva page) {
  const u64 bit = code_bit(page);
  return (c.code_filter[bit >> 6] >> (bit & 63) & 1) != 0;
}
void note_code_page(Cpu& c, Hva page);

static_assert(sizeof(Uop) == 32, "two to a cache line");

}  // namespace stagetwo::vcpu
