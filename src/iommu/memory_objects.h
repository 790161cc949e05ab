// SPDX-License-Identifier: Apache-2.0
#pragma once

// What an IOAS is made of: processes, their memory, and the IOVAs it is mapped at. Part of
// objects.h, whose rules hold here.

#include "base/types.h"
#include "iommu/interval_set.h"

namespace stagetwo::iommu {

// A process that has taken part: frames and addresses are of one of them.
struct Process {
  u32 pid = 0;  // 0: a free place
  u32 unused = 0;
  u64 start_time = 0;  // with the pid: which process of that number
  u64 uses = 0;        // page sets and pinned pages that name it
};

// A frame as a page table holds it: whose pin table, and the number there (host::Frame).
inline constexpr unsigned kFrameBits = 29;
inline constexpr u32 kProcesses = 512;

inline constexpr u64 kFewPages = 2;  // a page, wherever it begins

inline constexpr u32 kOrphan = ~u32{0};  // in holds: nobody's, and still pinned by another process

struct PageSet {
  u32 users = 0;    // areas, and calls under way
  u32 process = 0;  // whose addresses
  bool writable = false;
  bool process_charge = false;  // which account, if any (host/pin_account.h)
  bool no_charge = false;
  bool file_asked = false;
  bool file_known = false;
  bool engine_maps = false;  // `start` is a mapping of the engine's, of a file (file_map.h)
  u64 start = 0;             // page aligned
  u64 pages = 0;
  RelPtr<u64> frames;  // (process << kFrameBits | frame), where holds != 0
  RelPtr<u32> holds;
  u64 orphans = 0;  // pages that only another process can unpin (pages.cc)
  // Of shared memory: what is behind `start`, so that other processes reach the same bytes.
  u64 device = 0;
  u64 inode = 0;
  u64 file_page = 0;
  RelPtr<PageSet> previous, next;  // all of the arena
  u64 few_frames[kFewPages] = {};  // what `frames` and `holds` lead to where there are so few
  u32 few_holds[kFewPages] = {};
};
static_assert(sizeof(PageSet) <= 128, "a block of the arena");

enum Rights : u32 { kMayRead = 1, kMayWrite = 2 };

struct Area {
  IntervalNode node;  // IOVAs
  RelPtr<PageSet> pages;
  u64 start_byte = 0;  // in the page set
  u32 rights = 0;
  u32 accesses = 0;  // pins of accesses
  u32 locks = 0;     // hardware queues in it: not to be unmapped
  bool prevent_access = false;
  bool filled = false;  // its pages are held for domains
  [[nodiscard]] u64 iova() const { return node.start; }
  [[nodiscard]] u64 last() const { return node.last; }
  [[nodiscard]] u64 length() const { return node.last - node.start + 1; }
  [[nodiscard]] u64 byte_at(u64 iova) const { return start_byte + (iova - node.start); }
  [[nodiscard]] u64 page_at(u64 iova) const { return byte_at(iova) / 4096; }
};

struct Reserved {
  IntervalNode node;
  u32 owner = 0;  // the page table whose aperture it bounds; 0: nobody
};

struct Allowed {
  IntervalNode node;
};

}  // namespace stagetwo::iommu
