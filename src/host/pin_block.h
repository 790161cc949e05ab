// SPDX-License-Identifier: Apache-2.0
#pragma once

// Where a pinned page is: blocks of slots. Part of host/pin_table.h, under whose lock they are.
//
// A block stands for 2 MiB of the process's private memory, or of a file; it has 512 slots, a frame
// each. A slot is found by its frame, without a lock, or by its key under the lock. One key may
// have several blocks: a page that went to the store keeps its slot, and what is pinned at its
// address afterwards is another page.
//
//   slot            word                                  who may change it
//   free            0                                     a pin
//   at home         the client's address                  pins and unpins (count), a change (held)
//   held            the same, with the change's depth     the change that holds it
//   in the store    its place in the window, kStored      the last unpin
//   alias           the engine's address, kAlias          as at home; changes pass it by

#include "base/hash_map.h"
#include "base/vec.h"
#include "host/pin.h"
#include "host/pin_store.h"
#include "host/process_map.h"
#include "sync/atomic.h"

namespace stagetwo::host {

inline constexpr u32 kBlockPages = 512;
inline constexpr u64 kBlockBytes = kBlockPages * kPageSize;

// The low bits of a slot's word.
inline constexpr u64 kHeldDepth = 7;    // 0: not held
inline constexpr u64 kStored = 1 << 3;  // its address is the store's
inline constexpr u64 kNoRead = 1 << 4;  // not by a load
inline constexpr u64 kNoWrite = 1 << 5;
inline constexpr u64 kAlias = 1 << 6;
inline constexpr u64 kAside = 1 << 7;     // held, and the page is in the store already
inline constexpr u64 kCopied = 1 << 8;    // kAside, and the client's page is still there
inline constexpr u64 kPageLost = 1 << 9;  // nobody could read it

struct PinKey {
  u64 device = 0;  // 0, 0: private memory of the process
  u64 inode = 0;
  u64 index = 0;  // in units of kBlockBytes
  friend constexpr bool operator==(PinKey, PinKey) = default;
  [[nodiscard]] u64 hash() const { return hash_u64(index ^ hash_u64(device ^ hash_u64(inode))); }
  [[nodiscard]] bool is_private() const { return inode == 0; }
};

// A second mapping of file pages, from `page` of the file on.
struct PinAlias {
  pin_store::Alias map;
  u64 page;
};

struct PinBlock {
  PinBlock(PinKey of, u32 n, Hva window_at) : key(of), number(n), window(window_at) {}

  PinKey key;
  u64 object = 0;  // of a file: its id where owners may take its pages (host/shared_objects.h)
  u32 number;
  u32 used = 0;    // slots that are not free
  u32 strays = 0;  // at home, but not at the address of their slot: mremap
  Hva window;
  PinBlock* next_same = nullptr;  // of the same key, older
  Vec<PinAlias> aliases{"host.pin_aliases"};
  // Written under the lock; read by devices, seq_cst (see accesses_).
  sync::Atomic<u64> words[kBlockPages] = {};
  u32 counts[kBlockPages] = {};
};

constexpr Frame frame_of(u32 number, u32 slot) {
  return Frame{u64{number} * kBlockPages + slot};
}
// The page of the file that `mapping` has at `at`.
inline u64 file_page(const Mapping& mapping, Hva at) {
  return (mapping.offset + (at - mapping.range.start())) / kPageSize;
}

}  // namespace stagetwo::host
