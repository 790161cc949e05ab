// SPDX-License-Identifier: Apache-2.0
#include "host/pin_table.h"

#include <sys/mman.h>

#include <algorithm>
#include <climits>

#include "base/check.h"
#include "base/failpoint.h"
#include "base/guard.h"
#include "base/kernel_numbers.h"
#include "base/sys.h"
#include "base/trace.h"
#include "host/access.h"
#include "host/descriptor.h"
#include "host/faultin.h"
#include "host/pin_walk.h"
#include "host/shared_objects.h"
#include "host/userfault.h"
#include "sync/futex.h"

// A pin against a change of the same addresses:
//
//   pin                                   | change
//   lock; no change of mine open:         |
//     lists the attempt; unlock           |
//   asks what is mapped, makes it present |
//                                         | lock; lists itself, disturbs the attempt; unlock
//   lock; disturbed: nothing is entered   | (its system call)
//   waits until the change is over, again | lock; unlists itself; wakes
//
// Either the pin is entered before the change looks, and the change moves the page to the store, or
// the pin begins again and finds what is mapped then. Tried and rejected: entering first and making
// present afterwards: the change then keeps a page that was never there.
//
// A pin against a taker (host/page_owner.h):
//
//   pin                                   | taker, under the owners' lock
//   lock; lists the attempt; unlock       | asks keeps(): attempt or pin → leaves the page
//   brings the page back (owners' lock:   | else makes its record: the pin, who listed itself
//     waits for one on its way)           | after that question, finds the record
//
// Two pins of one page meet under the lock: the second raises the first one's count.

namespace stagetwo::host {
namespace {

void* pointer(Hva at) {
  return reinterpret_cast<void*>(at.raw());
}

// Is it the memory of one of our own descriptors? Its alias must not keep the client's file.
bool is_device(const Mapping& mapping) {
  if (!ever_published()) return false;
  struct ::stat behind{};
  behind.st_mode = S_IFREG;
  behind.st_dev = mapping.device;
  behind.st_ino = mapping.inode;
  return static_cast<bool>(find(-1, behind));
}

}  // namespace

// ---- attempts -------------------------------------------------------------------------------

void PinTable::turn_over() {
  turn_.fetch_add(1, sync::kRelease);
  sync::futex_wake(turn_, INT_MAX);
}

void PinTable::wait_turn(u32 seen) {
  sync::futex_wait(turn_, seen);
}

void PinTable::begin(Attempt* attempt) {
  for (;;) {
    u32 seen = 0;
    {
      const sync::MutexGuard guard(lock_);
      bool open = false;
      for (const PinnedChange* change = changes_; change != nullptr; change = change->next_) {
        open = open || change->file_.inode != 0 || change->range_.overlaps(attempt->range);
      }
      if (!open) {
        attempt->alone = changes_ == nullptr;
        attempt->follows = attempt->range.start() == last_end_;
        attempt->changes = changes_begun_;
        attempt->next = attempts_;
        attempts_ = attempt;
        return;
      }
      seen = turn_.load(sync::kAcquire);
    }
    wait_turn(seen);  // progress: a change waits for no pin
  }
}

// True: a change came between.
bool PinTable::end(Attempt* attempt) {
  const sync::MutexGuard guard(lock_);
  Attempt** link = &attempts_;
  while (*link != attempt) link = &(*link)->next;
  *link = attempt->next;
  return attempt->disturbed;
}

Result<void> PinTable::pin_some(HvaRange range, PinHow how, Sink* sink) {
  if (failpoint::should_fail("host.pin")) return refuse(ENOMEM);
  const u64 to_boundary = kBlockBytes - range.start().raw() % kBlockBytes;
  return pin_unasked(HvaRange(range.start(), std::min(range.size(), to_boundary)), how, sink);
}

Result<void> PinTable::pin_unasked(HvaRange part, PinHow how, Sink* sink) {
  if (pin_known(part, sink)) return {};
  for (;;) {
    Attempt attempt{.range = part};
    begin(&attempt);
    const Result<bool> done = try_pin(&attempt, how, sink);
    const bool disturbed = end(&attempt);
    if (done && *done) return {};
    if (!done && !disturbed) return refuse(done.error());
  }
}

// What was looked at already is entered at once, all of it or nothing; the change that would make
// it untrue takes the same lock first.
bool PinTable::pin_known(HvaRange range, Sink* sink) {
  const sync::MutexGuard guard(lock_);
  if (range.start() < known_.start() || range.end() > known_.end()) return false;
  if (owners_active()) return false;  // one that begins to take asks keeps() later than this
  const Sink before = *sink;
  const Hva end = enter_home(range, 0, sink);
  last_end_ = end;
  return sink->done.pages != before.done.pages;
}

// False: a change came between, and nothing was entered.
Result<bool> PinTable::try_pin(Attempt* attempt, PinHow how, Sink* sink) {
  if (owners_active()) bring_back_range(attempt->range);
  const Hva start = attempt->range.start();
  Wanted wanted{};
  wanted.how = how;
  wanted.mapping = ST_TRY(mapping_at(start));
  ST_TRY(may_pin(wanted.mapping, how.write, how.long_term));
  const PinRules& rules = rules_of(kind_of(wanted.mapping));
  u64 size = std::min(attempt->range.end(), wanted.mapping.range.end()) - start;
  if (rules.has_alias) {
    const u64 page = file_page(wanted.mapping, start);
    size = std::min(size, (kBlockPages - page % kBlockPages) * kPageSize);
  }
  wanted.piece = HvaRange(start, size);
  ST_TRY(make_present(&wanted, *attempt));
  if (rules.breaks_cow && !wanted.mapping.prot.write) ST_TRY(make_own(wanted.piece, *attempt));
  if (rules.has_alias) ST_TRY(make_alias(&wanted));
  return commit(attempt, &wanted, sink);
}

// Asks for the pages without touching them: POPULATE of a page that is there costs ten times as
// much. One that is still shared copy-on-write stays so: home is the client's address, and the
// first store there, the device's too, makes it the client's own. Memory that only this process can
// change is looked at ahead of who goes through it, and remembered.
bool PinTable::is_present(Wanted* wanted, const Attempt& attempt) {
  const Mapping& mapping = wanted->mapping;
  if (!mapping.prot.read || (wanted->how.write && !mapping.prot.write)) return false;
  const bool own = rules_of(kind_of(mapping)).breaks_cow;
  const bool lasts = own && !mapping.file_backed && mapping.prot.write &&
                     mapping.page_size == kPageSize && !owners_active() &&
                     !userfault::client_watches(wanted->piece.start());
  HvaRange look = wanted->piece;
  if (lasts && attempt.follows) {
    const u64 block_end = (look.start().raw() / kBlockBytes + 1) * kBlockBytes;
    look = HvaRange(look.start(), std::min(Hva(block_end), mapping.range.end()) - look.start());
  }
  const u64 there = present_pages(look, own && mapping.file_backed) * kPageSize;
  if (there < wanted->piece.size()) return false;
  if (lasts) wanted->seen = HvaRange(look.start(), there);
  return true;
}

// Cuts the piece to the pages that are there. Failure: the first is not.
Result<void> PinTable::make_present(Wanted* wanted, const Attempt& attempt) {
  if (is_present(wanted, attempt)) return {};
  const bool own = rules_of(kind_of(wanted->mapping)).breaks_cow && wanted->mapping.prot.write;
  const Access access = own || wanted->how.write ? Access::kWrite : Access::kRead;
  const int advice = access == Access::kWrite ? MADV_POPULATE_WRITE : MADV_POPULATE_READ;
  const HvaRange piece = wanted->piece;
  if (has_populate() && sys::madvise(pointer(piece.start()), piece.size(), advice)) return {};
  u64 size = 0;
  Result<void> page;
  while (size < piece.size() && (page = faultin(piece.start() + size, access))) size += kPageSize;
  // The kernel tells poison from other failures only to who asks for it (FOLL_HWPOISON).
  if (size == 0) return refuse(EFAULT);
  wanted->piece = HvaRange(piece.start(), size);
  return {};
}

// Pages that nobody may write: a byte of each is written to itself, which the kernel lets the
// process's own file of its memory do. The mover keeps changes of rights away meanwhile: a client
// that may write again could have its store undone.
Result<void> PinTable::make_own(HvaRange piece, const Attempt& attempt) {
  PageState states[kMaxPageStates];
  take_mover();
  const Result<void> made = [&]() -> Result<void> {
    {
      const sync::MutexGuard guard(lock_);
      if (attempt.disturbed) return refuse(EFAULT);  // the caller tries again
    }
    for (Hva at = piece.start(); at < piece.end();) {
      const u64 left = (piece.end() - at) / kPageSize;
      const unsigned count = static_cast<unsigned>(std::min<u64>(left, kMaxPageStates));
      ST_TRY(page_states(at, count, states));
      for (unsigned i = 0; i < count; ++i, at += kPageSize) {
        u8 byte = 0;
        if (states[i].present && states[i].anonymous && states[i].exclusive && !states[i].zero) {
          continue;
        }
        if (!pin_store::read_behind(at, &byte, 1)) return refuse(EFAULT);
        if (!pin_store::write_behind(at, &byte, 1)) return refuse(EFAULT);
      }
    }
    return {};
  }();
  give_mover();
  return made;
}

// A second mapping for the pages of the piece that have none which would do, and on to the end of
// the block, for those that are pinned next.
Result<void> PinTable::make_alias(Wanted* wanted) {
  const Mapping& mapping = wanted->mapping;
  Hva from = wanted->piece.end();
  {
    const sync::MutexGuard guard(lock_);
    for (Hva at = wanted->piece.start(); at < wanted->piece.end(); at += kPageSize) {
      const Place place = find_file(mapping, at);
      const auto word =
          place.block == nullptr ? Result<u64>(refuse(ENOENT)) : word_for(place, wanted, at);
      if (!word) from = std::min(from, at);
    }
  }
  if (from == wanted->piece.end()) return {};
  const u64 page = file_page(mapping, from);
  const u64 to_block_end = (kBlockPages - page % kBlockPages) * kPageSize;
  u64 size = std::min(mapping.range.end() - from, to_block_end);
  const bool second = rules_of(kind_of(mapping)).second_open || is_device(mapping);
  if (mapping.page_size != kPageSize) {  // whole huge pages only
    const u64 cut = (page * kPageSize) % mapping.page_size;
    from = from - cut;
    size = std::max(size + cut, mapping.page_size);
  }
  wanted->alias = ST_TRY(pin_store::make_alias(mapping, from, size, second));
  wanted->alias_page = from;
  return {};
}

// Pre: no change has come since the mapping was asked for.
void PinTable::remember(HvaRange seen, HvaRange mapping) {
  if (seen.empty()) return;
  const bool beside = seen.start() <= known_.end() && known_.start() <= seen.end();
  if (beside && mapping.start() <= known_.start() && known_.end() <= mapping.end()) {
    const Hva start = std::min(seen.start(), known_.start());
    seen = HvaRange(start, std::max(seen.end(), known_.end()) - start);
  }
  known_ = seen;
}

Result<bool> PinTable::commit(Attempt* attempt, Wanted* wanted, Sink* sink) {
  Result<bool> done = false;
  {
    const sync::MutexGuard guard(lock_);
    if (!ST_GUARD(pins_disturbed, attempt->disturbed)) {
      const Result<void> entered = enter(wanted, sink);
      last_end_ = wanted->piece.end();
      const bool quiet = attempt->alone && attempt->changes == changes_begun_;
      if (entered && quiet) remember(wanted->seen, wanted->mapping.range);
      done = entered ? Result<bool>(true) : Result<bool>(refuse(entered.error()));
    }
  }
  if (wanted->alias.bytes != 0) pin_store::drop_alias(wanted->alias);  // nobody took it
  return done;
}

u32 PinTable::pins_of(Frame frame) {
  const sync::MutexGuard guard(lock_);
  const u64 number = static_cast<u64>(frame) / kBlockPages;
  if (number >= made_numbers_) return 0;
  const PinBlock* block = block_of(static_cast<u32>(number));
  return block == nullptr ? 0 : block->counts[static_cast<u64>(frame) % kBlockPages];
}

std::optional<Frame> PinTable::frame_at(Hva at) {
  const auto mapping = mapping_at(at);
  if (!mapping) return std::nullopt;
  const sync::MutexGuard guard(lock_);
  const bool file = rules_of(kind_of(*mapping)).has_alias;
  const Place place = file ? find_file(*mapping, at) : find_home(at);
  if (place.block == nullptr || place.block->counts[place.slot] == 0) return std::nullopt;
  return frame_of(place.block->number, place.slot);
}

bool PinTable::keeps(Hva at) {
  const sync::MutexGuard guard(lock_);
  for (const Attempt* attempt = attempts_; attempt != nullptr; attempt = attempt->next) {
    if (attempt->range.contains(at)) return true;
  }
  const Place place = find_home(at);
  return place.block != nullptr && place.block->counts[place.slot] != 0;
}

bool PinTable::keeps_file(PageKey key) {
  const sync::MutexGuard guard(lock_);
  const u32 slot = static_cast<u32>(key.index % kBlockPages);
  for (u32 number = 0; number < made_numbers_; ++number) {
    const PinBlock* block = block_of(number);
    if (block == nullptr || block->object != key.object) continue;
    if (block->key.index != key.index / kBlockPages || block->counts[slot] == 0) continue;
    if ((block->words[slot].load(sync::kRelaxed) & kStored) == 0) return true;
  }
  return false;
}

HvaRange PinTable::next_unpinned(HvaRange range) {
  const sync::MutexGuard guard(lock_);
  Hva start = range.start();
  const auto pinned = [&](Hva at) TA_REQ(lock_) { return find_home(at).block != nullptr; };
  while (start < range.end() && pinned(start)) start += kPageSize;
  Hva end = range.end();
  each_home(HvaRange(start, range.end() - start), [&](PinBlock* block, u32 slot) {
    end = std::min(end, Hva(block->words[slot].load(sync::kRelaxed) & kPageMask));
  });
  return HvaRange(start, end - start);
}

PinUse PinTable::use() {
  const sync::MutexGuard guard(lock_);
  u64 pins = 0;
  for (u32 number = 0; number < made_numbers_; ++number) {
    const PinBlock* const block = block_of(number);
    for (u32 slot = 0; block != nullptr && slot < kBlockPages; ++slot) pins += block->counts[slot];
  }
  return {pinned_, stored_, u64{made_numbers_} - free_numbers_.size(), pins};
}

// ---- devices --------------------------------------------------------------------------------

// Pre: inside a section.
std::optional<Hva> PinTable::direct(Frame first, Access access, u64* pages) {
  const u64 forbids = kHeldDepth | kPageLost | (access == Access::kWrite ? kNoWrite : kNoRead);
  const u64 tells = kPageMask | forbids;  // where it is, if nothing forbids it
  const u64 number = static_cast<u64>(first), most = *pages;
  const auto words_from = [&](u64 page) {
    return block_of(static_cast<u32>(page / kBlockPages))->words + page % kBlockPages;
  };
  const u64 start = words_from(number)->load() & tells;
  if ((start & forbids) != 0) return std::nullopt;
  u64 page = 1;
  // Block by block, without a branch a page, for as long as all of it is as it should be.
  for (u64 end = page; page < most; page = end) {
    const sync::Atomic<u64>* const words = words_from(number + page);
    end = std::min(most, page + kBlockPages - (number + page) % kBlockPages);
    u64 differs = 0;
    for (u64 i = page; i < end; ++i) {
      differs |= (words[i - page].load() & tells) ^ (start + i * kPageSize);
    }
    if (differs != 0) break;
  }
  while (page < most && (words_from(number + page)->load() & tells) == start + page * kPageSize) {
    ++page;
  }
  *pages = page;
  return Hva(start);
}

// One of `to` and `from` is null.
bool PinTable::transfer(Frame frame, u64 offset, void* to, const void* from, size_t size) {
  PinBlock* block = block_of(static_cast<u32>(static_cast<u64>(frame) / kBlockPages));
  sync::Atomic<u64>& slot = block->words[static_cast<u64>(frame) % kBlockPages];
  for (;;) {
    const u32 seen = turn_.load(sync::kAcquire);
    const sync::Passage::Ticket ticket = accesses_.enter();
    const u64 word = slot.load();
    if ((word & kHeldDepth) == 0) {
      const Hva at = Hva((word & kPageMask) + offset);
      bool done = false;
      if ((word & kPageLost) != 0) {
        done = false;
      } else if (to != nullptr) {
        done = ((word & kNoRead) == 0 && copy_from(to, at, size) == size) ||
               pin_store::read_behind(at, to, size);
      } else {
        done = ((word & kNoWrite) == 0 && copy_to(at, from, size) == size) ||
               pin_store::write_behind(at, from, size);
      }
      accesses_.leave(ticket);
      return done;
    }
    accesses_.leave(ticket);
    wait_turn(seen);  // progress: the change ends whatever devices do
  }
}

}  // namespace stagetwo::host
