// SPDX-License-Identifier: Apache-2.0
#pragma once

// The tables behind host/pin.h. Not for other rooms.
//
// Blocks and their slots: host/pin_block.h. A device reads a slot's word inside a section of
// `accesses_`; who makes a slot held waits for them.

#include "base/hash_map.h"
#include "base/vec.h"
#include "host/pin.h"
#include "host/pin_block.h"
#include "host/pin_kinds.h"
#include "host/pin_store.h"
#include "sync/mutex.h"
#include "sync/passage.h"

namespace stagetwo::host {

class PinTable {
 public:
  PinTable() = default;

  // Collects runs for a caller of pin_pages.
  struct Sink {
    FrameRun* runs;
    unsigned room;
    PinBatch done;
    [[nodiscard]] bool add(Frame frame, u64 pages = 1);
  };

  // Pins pages from range.start() on, up to the next boundary of a block or mapping.
  [[nodiscard]] Result<void> pin_some(HvaRange range, PinHow how, Sink* sink);
  // The same after the failpoint was asked. Pre: within a block.
  [[nodiscard]] Result<void> pin_unasked(HvaRange range, PinHow how, Sink* sink);
  // A page of known memory that has a slot of its own in the block entered last. None: it is
  // another.
  std::optional<Frame> pin_known_page(Hva at);
  void unpin(FrameRun run);
  u32 pins_of(Frame frame);
  std::optional<Frame> frame_at(Hva at);
  bool keeps(Hva at);
  bool keeps_file(PageKey key);
  // The part of `range` up to the first pinned page, or the pinned pages it begins with.
  HvaRange next_unpinned(HvaRange range);
  PinnedPages pinned_in(HvaRange range);
  PinUse use();

  std::optional<Hva> direct(Frame first, Access access, u64* pages);
  bool transfer(Frame frame, u64 offset, void* to, const void* from, size_t size);
  sync::Passage& accesses() { return accesses_; }
  [[nodiscard]] u64 moves() const { return moves_.load(); }

  void open_change(PinnedChange* change), close_change(PinnedChange* change);
  void before_fork();
  void after_fork_parent();

 private:
  // A pin under way.
  struct Attempt {
    HvaRange range;
    bool disturbed = false;
    bool alone = false;    // no change was open when it began,
    bool follows = false;  // it begins where the one before ended,
    u32 changes = 0;       // and so many had begun
    Attempt* next = nullptr;
  };
  struct Place {
    PinBlock* block = nullptr;
    u32 slot = 0;
  };
  // Slots of a change, neighbours in every respect.
  struct Piece {
    PinBlock* block;
    u32 first;
    u32 pages;
    u64 word;
  };
  // What a pin is about to enter.
  struct Wanted {
    HvaRange piece;
    Mapping mapping;
    PinHow how;
    pin_store::Alias alias;  // made for it, from alias_page on
    Hva alias_page;
    HvaRange seen;  // what was found present, if it may be remembered
  };

  void begin(Attempt* attempt);
  bool end(Attempt* attempt);
  Result<bool> try_pin(Attempt* attempt, PinHow how, Sink* sink);
  bool pin_known(HvaRange range, Sink* sink);
  bool is_present(Wanted* wanted, const Attempt& attempt);
  Result<void> make_present(Wanted* wanted, const Attempt& attempt);
  Result<void> make_own(HvaRange piece, const Attempt& attempt);
  Result<void> make_alias(Wanted* wanted);
  Result<bool> commit(Attempt* attempt, Wanted* wanted, Sink* sink);
  Result<void> enter(Wanted* wanted, Sink* sink) TA_REQ(lock_);
  void remember(HvaRange seen, HvaRange mapping) TA_REQ(lock_);
  Hva enter_home(HvaRange piece, u64 bits, Sink* sink) TA_REQ(lock_);
  Result<Place> free_place(PinKey key, u32 slot) TA_REQ(lock_);
  Result<u64> word_for(const Place& place, Wanted* wanted, Hva at) TA_REQ(lock_);
  Place find_home(Hva at) TA_REQ(lock_);
  Place find_file(const Mapping& mapping, Hva at) TA_REQ(lock_);
  Result<PinBlock*> make_block(PinKey key) TA_REQ(lock_);
  sync::Atomic<PinBlock*>& entry_of(u32 number) const {
    return directories_[number / kDirectoryBlocks]
        .load(sync::kAcquire)
        ->blocks[number % kDirectoryBlocks];
  }
  void unlink(PinBlock* block) TA_REQ(lock_);
  void release(PinBlock* block, u32 slot) TA_REQ(lock_);
  void free_block(PinBlock* block) TA_REQ(lock_);
  PinBlock* block_of(u32 number) const { return entry_of(number).load(sync::kAcquire); }
  // fn(block, slot) for each slot in use whose page the client has in `range`.
  template <typename F>
  void each_home(HvaRange range, F&& fn) TA_REQ(lock_);
  // fn(block, slot) for each slot whose page `change` is about.
  template <typename F>
  void each_of(const PinnedChange& change, F&& fn) TA_REQ(lock_);
  bool meets(const PinnedChange& change) TA_REQ(lock_);
  void hold(PinnedChange& change);
  void put_aside(PinnedChange& change);
  void keep_piece(PinnedChange& change, const Piece& piece);
  void keep_part(PinnedChange& change, const Piece& piece);
  void settle_piece(const PinnedChange& change, const Piece& piece);
  void settle_failed(const PinnedChange& change, const Piece& piece);
  static u32 see_home(const Piece& piece, u32 done, bool* stands);
  void put_back(const Piece& piece), keep_for_device(const Piece& piece);
  void refresh(const Piece& piece);
  // What the change holds and `wanted(word)`; answers how many pieces.
  template <typename F>
  unsigned collect(const PinnedChange& change, Piece* out, unsigned room, F&& wanted);
  void publish(const Piece& piece, u64 word);
  void take_mover(), give_mover();
  void turn_over() TA_REQ(lock_);
  void wait_turn(u32 seen);

  sync::Mutex lock_{sync::Rank::kPins};
  HashMap<PinKey, PinBlock*> blocks_ TA_GUARDED(lock_){"host.pin_blocks"};
  Vec<u32> free_numbers_ TA_GUARDED(lock_){"host.pin_numbers"};
  u32 made_numbers_ TA_GUARDED(lock_) = 0;
  u64 pinned_ TA_GUARDED(lock_) = 0;
  u64 stored_ TA_GUARDED(lock_) = 0;
  u64 strays_ TA_GUARDED(lock_) = 0;
  PinnedChange* changes_ TA_GUARDED(lock_) = nullptr;
  Attempt* attempts_ TA_GUARDED(lock_) = nullptr;
  u32 changes_begun_ TA_GUARDED(lock_) = 0;
  // Private anonymous memory of one mapping, readable and writable, of which every page was there
  // when the kernel was asked last; it is not asked again. A change of any of it ends that. It
  // grows by what is looked at beside it: to look costs as much as all else of a pin.
  HvaRange known_ TA_GUARDED(lock_);
  PinBlock* last_home_ TA_GUARDED(lock_) = nullptr;  // enter_home() entered last; alone of its key
  Hva last_end_ TA_GUARDED(lock_);   // of the last pin: who goes through memory is asked for ahead
  int mover_ TA_GUARDED(lock_) = 0;  // the thread that has pinned pages to see to
  u32 mover_depth_ TA_GUARDED(lock_) = 0;
  // Raised under the lock; sleepers read it there and sleep on it (futex).
  sync::Atomic<u32> turn_{0};
  // Blocks by number. Directories appear under the lock and stay.
  static constexpr u32 kDirectories = 1024, kDirectoryBlocks = 1024;
  struct Directory {
    sync::Atomic<PinBlock*> blocks[kDirectoryBlocks] = {};
  };
  sync::Atomic<Directory*> directories_[kDirectories] = {};
  pin_store::Windows windows_;
  sync::Passage accesses_;
  // Raised (seq_cst) when slots were made held, before those inside are waited for; read (seq_cst)
  // inside, before words: who finds it as it was is waited for, who finds it raised sees them held.
  sync::Atomic<u64> moves_{0};
};

// The one of this process, or null.
[[nodiscard]] PinTable* pin_table();

}  // namespace stagetwo::host
