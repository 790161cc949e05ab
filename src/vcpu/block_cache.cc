// SPDX-License-Identifier: Apache-2.0
#include "vcpu/block_cache.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "base/alloc.h"
#include "base/sys.h"
#include "host/access.h"
#include "host/description.h"
#include "vcpu/decoder.h"
#include "vcpu/mem.h"
#include "vcpu/ops.h"
#include "vcpu/remains.h"

namespace stagetwo::vcpu {
namespace {

constexpr const char* kSite = "vcpu.blocks";

// An instruction of more than 15 bytes is #GP, not #UD: the length tells ops::ud.
constexpr u8 kTooLongMark = kMaxInsnLength + 1;

u64 load_word(const u8* bytes) {
  u64 word = 0;
  std::memcpy(&word, bytes, sizeof(word));
  return word;
}

// What is_unchanged() will compare; `after` bytes follow up to the end of the page.
void record_words(Block* block, const u8* bytes, u64 after) {
  block->mask = ~u64{0};
  block->lead = 0;
  if (block->size >= 8) {
    for (unsigned i = 0; i + 1 < block->word_count; ++i) block->words[i] = load_word(bytes + 8 * i);
    block->words[block->word_count - 1] = load_word(bytes + block->size - 8);
    return;
  }
  // Shorter than a word: one masked word that ends inside the page.
  const unsigned back = after >= 8 ? 0 : static_cast<unsigned>(8 - after);
  u8 word[8] = {};
  u8 mask[8] = {};
  std::memcpy(word + back, bytes, block->size);
  std::memset(mask + back, 0xff, block->size);
  block->lead = static_cast<i8>(-static_cast<int>(back));
  block->mask = load_word(mask);
  block->words[0] = load_word(word);
}

u64 wrap_rip(Mode mode, u64 rip) {
  return mode == Mode::k64 ? rip : mode == Mode::k32 ? static_cast<u32>(rip) : rip & 0xffffffff;
}

// Decodes up to a branch, the room's end or kMaxBlockInsns. What does not decode is one undefined
// instruction if it is the first, else the end.
unsigned decode_run(Mode mode, const u8* bytes, u64 size, unsigned limit, Insn* insns,
                    bool* needs_more) {
  unsigned count = 0;
  u64 at = 0;
  *needs_more = false;
  while (count < limit && at < size) {
    Insn& insn = insns[count];
    const u64 room = std::min<u64>(size - at, kMaxInsnLength);
    const DecodeStatus status = decode({bytes + at, room}, mode, &insn);
    if (status == DecodeStatus::kNeedMoreBytes) {
      *needs_more = count == 0;
      return count;
    }
    if (status != DecodeStatus::kOk) {
      if (count != 0) return count;
      insn = Insn{};
      insn.op = Op::kUd2;
      insn.length = status == DecodeStatus::kTooLong ? kTooLongMark : 1;
      return 1;
    }
    ++count;
    at += insn.length;
    if (ends_block(insn.op)) break;
  }
  return count;
}

// A file gives the mapping its name, and no kernel lacks files. Where there is no room for one the
// mapping has none.
Result<void*> map_arena(u64 bytes, bool named) {
  if (named) {
    if (const auto file = host::Backing::create("vcpu", bytes)) {
      auto mapped = file->map(0, bytes, PROT_READ | PROT_WRITE);
      if (mapped) {
        static_cast<void>(sys::madvise(*mapped, bytes, MADV_DONTFORK));
        return mapped;
      }
    }
  }
  return map_pages(bytes, kSite);
}

// A block, its parts each at their own border.
constexpr u64 block_bytes(u64 instructions, u64 words) {
  return ((sizeof(Block) + 31) & ~u64{31}) + sizeof(Uop) * (instructions + 1) +
         sizeof(u64) * words + sizeof(Insn) * instructions;
}

}  // namespace

// What is kept is locked, whole, as the pool it comes from is. Where little may be, fewer blocks
// are decoded at a time: what is left for others is to be as much as several times this.
Result<void> BlockCache::map_secret() {
  constexpr u64 kOthers = 16;
  const auto lock = [](u64 bytes) {
    return mem::SecureMemory::map(bytes, mem::SecureMemory::Want::kSecretOrLocked, kSite);
  };
  while (arena_size_ > kLeastArena && !lock(kOthers * arena_size_)) arena_size_ /= 2;
  secret_ = ST_TRY(lock(arena_size_ + kBehind));
  arena_ = secret_.data();
  return {};
}

Result<void> BlockCache::map(Code code) {
  static_assert(block_bytes(kMaxBlockInsns, kMaxBlockInsns * kMaxInsnLength / 8) <= kLeastArena);
  static_assert(sizeof(Insn) * kMaxBlockInsns <= kPageSize);
  if (code == Code::kKept) return map_secret();
  void* const arena = ST_TRY(map_arena(arena_size_ + kBehind, code == Code::kPrivate));
  // Code of private pages stands here, too: not for a core dump. Refused: it is in the dump.
  static_cast<void>(sys::madvise(arena, arena_size_ + kBehind, MADV_DONTDUMP));
  arena_ = static_cast<u8*>(arena);
  return {};
}

Result<BlockCache*> BlockCache::create(Code code) {
  auto made = make<BlockCache>(kSite);
  if (!made) return refuse(made.error());
  if (const auto mapped = (*made)->map(code); !mapped) {
    stagetwo::destroy(*made);
    return refuse(mapped.error());
  }
  return *made;
}

void BlockCache::destroy(BlockCache* cache) {
  if (cache == nullptr) return;
  if (cache->secret_.data() == nullptr) {
    unmap_pages(cache->arena_, cache->arena_size_ + kBehind);
  }
  stagetwo::destroy(cache);
}

void BlockCache::clear() {
  std::fill(std::begin(table_), std::end(table_), nullptr);
  used_ = 0;
  unlink();
}

void BlockCache::wipe() {
  clear();
  std::memset(arena_, 0, most_used_);
  most_used_ = 0;
  holds_private_ = false;
  std::fill(std::begin(private_frames_), std::end(private_frames_), u64{0});
}

void BlockCache::wipe_scratch() {
  if (!scratch_used_) return;
  std::memset(scratch(), 0, kBehind);
  scratch_used_ = false;
}

Insn* BlockCache::decoding() {
  return reinterpret_cast<Insn*>(scratch() + kPageSize);
}

void* BlockCache::take(u64 bytes) {
  bytes = (bytes + 63) & ~u64{63};
  if (used_ + bytes > arena_size_) clear();
  void* at = arena_ + used_;
  used_ += bytes;
  most_used_ = std::max(most_used_, used_);
  return at;
}

Block* BlockCache::build(u64 host, u64 rip, Mode mode, const u8* bytes, u64 size, bool cached) {
  Insn* const insns = decoding();
  bool needs_more = false;
  const unsigned count =
      decode_run(mode, bytes, size, cached ? kMaxBlockInsns : 1, insns, &needs_more);
  if (needs_more) return nullptr;
  u64 code = 0;
  for (unsigned i = 0; i < count; ++i) code += insns[i].length;
  const u64 word_count = code < 8 ? 1 : (code + 7) / 8;
  auto* at = static_cast<u8*>(take(block_bytes(count, word_count)));
  auto* block = ::new (at) Block{};
  at += (sizeof(Block) + 31) & ~u64{31};
  block->uops = reinterpret_cast<Uop*>(at);
  at += sizeof(Uop) * (count + 1);
  block->words = reinterpret_cast<u64*>(at);
  at += sizeof(u64) * word_count;
  block->insns = reinterpret_cast<Insn*>(at);
  block->rip = rip;
  block->host = host;
  block->size = static_cast<u16>(code);
  block->count = static_cast<u16>(count);
  block->mode = mode;
  block->word_count = cached ? static_cast<u16>(word_count) : u16{0};
  std::memcpy(block->insns, insns, sizeof(Insn) * count);
  u64 offset = 0;
  for (unsigned i = 0; i < count; ++i) {
    const u64 here = wrap_rip(mode, rip + offset);
    prepare_uop(insns[i], mode, here, wrap_rip(mode, here + insns[i].length), &block->uops[i]);
    block->uops[i].offset = static_cast<u16>(offset);
    offset += insns[i].length;
  }
  block->uops[count] = ending_uop(wrap_rip(mode, rip + offset));
  block->uops[count].offset = static_cast<u16>(offset);
  fuse_uops(block->insns, block->uops, count);
  if (cached) {
    record_words(block, bytes, size);
    table_[index_of(host)] = block;
  }
  return block;
}

namespace {

// Are the bytes of the block still what was decoded? Pre: block.host is what the exec translation
// says now. With `restart`: a restartable access; false also if it does not happen.
template <typename... Restart>
[[gnu::always_inline]] inline bool is_unchanged(const Block& block, const Restart&... restart) {
  if (block.size >= 8) {
    return host::equal(Hva(block.host), block.words, block.word_count, block.size, restart...);
  }
  u64 word = 0;
  const Hva at(block.host + static_cast<u64>(static_cast<i64>(block.lead)));
  return host::load(at, &word, restart...) && (word & block.mask) == block.words[0];
}

}  // namespace

void note_code_page(Cpu& c, Hva page) {
  if (holds_code(c, page)) return;
  const u64 bit = code_bit(page);
  c.code_filter[bit >> 6] |= u64{1} << (bit & 63);
  for (unsigned i = 0; i < kViewCount; ++i) c.views[i].forbid_writes(page.raw());
}

namespace {

// An instruction that crosses its page: decoded from a copy, used once. Clears *served if the host
// does not give what stage 2 has; there is no c.stop then.
Block* straddling_block(Cpu& c, u64 linear, Hva first, u64 room, bool* served) {
  u8* const bytes = c.blocks->scratch();
  const u64 section = c.section;
  Hva second;
  bool backed = false;
  const u64 next = c.long64() ? linear + room : (linear + room) & 0xffffffff;
  if (!fetch_page(c, next, &second, &backed)) return nullptr;
  if (!backed) {
    c.stop = c.emulation_failure();
    return nullptr;
  }
  if (c.section != section) {  // `first` may be gone: start again, both pages are in the TLB now
    c.stop = Step::kAgain;
    return nullptr;
  }
  if (host::copy_from(bytes, first, room) != room ||
      host::copy_from(bytes + room, second, kMaxInsnLength - room) != kMaxInsnLength - room) {
    c.flush_tlb();
    *served = false;
    return nullptr;
  }
  c.code_start = first.raw();
  c.code_size = room;
  return c.blocks->build(first.raw(), c.s.rip, c.mode, bytes, kMaxInsnLength, false);
}

}  // namespace

namespace {

// The block at `linear` by way of host addresses: translated, and decoded if it is not what it was.
// *served as above.
Block* translate_once(Cpu& c, u64 linear, bool* served) {
  Hva at;
  bool backed = false;
  if (!fetch_page(c, linear, &at, &backed)) return nullptr;
  if (!backed) {
    c.stop = c.emulation_failure();
    return nullptr;
  }
  Block* const known = c.blocks->find(at.raw(), c.s.rip, c.mode);
  if (known != nullptr && is_unchanged(*known)) return known;
  u8* const bytes = c.blocks->scratch();
  const u64 room = std::min<u64>(kPageSize - page_offset(at), kMaxBlockInsns * kMaxInsnLength);
  if (host::copy_from(bytes, at, room) != room) {
    c.flush_tlb_page(linear);
    *served = false;
    return nullptr;
  }
  Block* block = c.blocks->build(at.raw(), c.s.rip, c.mode, bytes, room, true);
  return block != nullptr ? block : straddling_block(c, linear, at, room, served);
}

Block* translate_block(Cpu& c, u64 linear) {
  const Hold hold(c);
  for (unsigned tries = 0; tries < kBackstopTries; ++tries) {
    bool served = true;
    Block* const block = translate_once(c, linear, &served);
    if (served) return block;
  }
  give_up(c);
  return nullptr;
}

}  // namespace

// Of private pages that were given up nothing stays decoded while the guest runs on: the flush that
// came with it emptied the TLB and cut all links, so after the block that was running then, or that
// was being looked for, the next one is found here. Nothing is run just now.
Block* find_block(Cpu& c) {
  if (c.blocks->holds_private()) [[unlikely]]
    wipe_stale_code(c);
  const u64 linear = c.linear_rip();
  if (c.long64()) {
    if (!is_canonical(linear, (c.s.sys.cr4 & cr4::kLa57) != 0)) {
      c.gp0();
      return nullptr;
    }
  } else if (c.s.rip > c.s.sys.seg[kSegCs].limit) {
    c.gp0();
    return nullptr;
  }
  const TlbEntry& e = c.tlb->slot(linear);
  Block* block = nullptr;
  if (e.exec_tag == (linear & kPageMask)) {
    block = c.blocks->find(linear + e.addend, c.s.rip, c.mode);
  }
  if (block == nullptr || !is_unchanged(*block, restartable(c))) {
    if (c.line.pending()) {
      answer_request(c);
      c.stop = Step::kAgain;
      return nullptr;
    }
    block = translate_block(c, linear);
    if (block == nullptr || block->word_count == 0) return block;
  }
  c.code_start = block->host;
  c.code_size = block->size;
  return block;
}

namespace {

// Finds the block and links it.
[[gnu::noinline]] Block* link_block(Cpu& c, Link& link) {
  const u64 epoch = c.blocks->epoch();
  Block* found = find_block(c);
  // A new epoch may mean that the block of the link is no more.
  if (found != nullptr && found->word_count != 0 && c.blocks->epoch() == epoch) {
    link = {found, epoch};
  }
  return found;
}

}  // namespace

Block* follow_block(Cpu& c, Block* last) {
  Link& link = last->link[c.s.rip == last->uops[last->count].imm ? 0 : 1];
  Block* const next = link.block;
  if (link.epoch != c.blocks->epoch() || next->rip != c.s.rip ||
      !is_unchanged(*next, restartable(c))) [[unlikely]] {
    return link_block(c, link);
  }
  c.code_start = next->host;
  c.code_size = next->size;
  return next;
}

}  // namespace stagetwo::vcpu
