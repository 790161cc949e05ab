// SPDX-License-Identifier: Apache-2.0
#pragma once

// The values of the TDP MMU (stage2/tdp_mmu.h): what decides it, what it is made of, what it
// answers.

#include "base/list.h"
#include "pt/cursor.h"
#include "stage2/table_pool.h"

namespace stagetwo::stage2 {

class TdpMmu;

using TdpCursor = pt::Cursor<Format>;

struct TdpPolicy {
  unsigned root_level = 4;     // 5 where guest addresses have more than 48 bits
  bool nx_huge_pages = false;  // huge leaves are not executable; may change: set_nx_huge_pages()
};

// A root and who uses it. Starts with two references: of the context that asked, and of the MMU,
// which keeps it until it has been invalidated and zapped. Never revived from zero.
struct TdpRoot {
  TdpMmu* mmu = nullptr;
  TablePage* page = nullptr;
  u32 address_space = 0;
  sync::Atomic<u32> refs{2};  // acquire-release; ends the root at zero
  sync::Atomic<bool> invalid{
      false};            // set under mmu_lock_ alone, relaxed: read under it, or a hint
  bool retired = false;  // invalid, and given to the epochs; under pages_lock_
  ListNode link;         // under pages_lock_
};

// What a lock-free walk found.
struct Walk {
  enum class Kind : u8 { kMiss, kHit, kMmio };
  Kind kind = Kind::kMiss;
  u8 level = Format::kMaxLevel;  // of the entry, also of one that does not permit the access
  bool writable = false;
  bool executable = false;
  bool is_private = false;
  Hva page{};  // of the frame asked for
};

// How the tables below a removed one are taken apart.
enum class Removal : u8 {
  kShared,  // others may install below: every entry is frozen until it sticks
  kQuiet,   // nobody installs below (an invalid root), others may remove
  kAlone,   // mmu_lock_ is held exclusively
};

// Which entries of a range: a frame has one of either kind at a time.
enum class Half : u8 { kBoth, kShared, kPrivate };

struct PageCounts {
  u64 pages_4k = 0;
  u64 pages_2m = 0;
  u64 pages_1g = 0;
  u64 tables = 0;  // roots included
  u64 nx_lpage_splits = 0;
};

}  // namespace stagetwo::stage2
