// SPDX-License-Identifier: Apache-2.0
#pragma once

// What an IOAS is made of: processes, their memory, the IOVAs it is mapped at, and tables that say
// so. Part of objects.h, whose rules hold here.

#include "base/types.h"
#include "iommu/interval_set.h"

namespace stagetwo::iommu {

// A process that has taken part: frames and addresses are of one of them. After exec it is another
// one: what it had mapped, and pinned, went with its memory.
struct Process {
  Kept<u32> pid;         // 0: a free place
  Kept<u32> space;       // whose number that is: the PID namespace
  Kept<u64> start_time;  // with the pid: which process of that number
  Kept<u64> image;       // with both: which program it runs (image_of_this_process())
  Kept<u64> stack;       // the same as others see it; 0: not known
  Kept<u64> uses;        // page sets and pinned pages that name it
};

// A frame as a page table holds it: whose pin table, and the number there (host::Frame).
inline constexpr unsigned kFrameBits = 29;
inline constexpr u32 kProcesses = 512, kNobody = kProcesses;

inline constexpr u64 kFewPages = 2;  // a page, wherever it begins

inline constexpr u32 kOrphan = ~u32{0};  // in holds: nobody's, and still pinned by another process

struct PageSet {
  Kept<u32> users;    // areas, and calls under way
  Kept<u32> process;  // whose addresses
  Kept<bool> writable;
  Kept<bool> process_charge;  // which account, if any (host/pin_account.h)
  Kept<bool> no_charge;
  Kept<bool> file_asked;
  Kept<bool> file_known;
  Kept<bool> engine_maps;  // `start` is a mapping of the engine's, of a file (file_map.h)
  Kept<u64> start;         // page aligned
  Kept<u64> pages;
  RelPtr<Kept<u64>> frames;  // (process << kFrameBits | frame), where holds != 0
  RelPtr<Kept<u32>> holds;
  Kept<u64> orphans;  // pages that only another process can unpin (pages.cc)
  // Of shared memory: what is behind `start`, so that other processes reach the same bytes.
  Kept<u64> device;
  Kept<u64> inode;
  Kept<u64> file_page;
  RelPtr<PageSet> previous, next;   // all of the arena
  Kept<u64> few_frames[kFewPages];  // what `frames` and `holds` lead to where there are so few
  Kept<u32> few_holds[kFewPages];
};
static_assert(sizeof(PageSet) <= 128, "a block of the arena");

enum Rights : u32 { kMayRead = 1, kMayWrite = 2 };

struct Area {
  IntervalNode node;  // IOVAs
  RelPtr<PageSet> pages;
  Kept<u64> start_byte;  // in the page set
  Kept<u32> rights;
  Kept<u32> accesses;  // pins of accesses
  Kept<u32> locks;     // hardware queues in it: not to be unmapped
  // Who pins its pages just now, and 1; 0: nobody. Until then it only keeps its IOVAs (map.cc).
  Kept<u32> filler;
  Kept<bool> prevent_access;
  Kept<bool> filled;  // its pages are held for domains
  [[nodiscard]] u64 iova() const { return node.start; }
  [[nodiscard]] u64 last() const { return node.last; }
  [[nodiscard]] u64 length() const { return node.last - node.start + 1; }
  [[nodiscard]] u64 byte_at(u64 iova) const { return start_byte + (iova - node.start); }
  [[nodiscard]] u64 page_at(u64 iova) const { return byte_at(iova) / 4096; }
  [[nodiscard]] u64 page_count() const { return (start_byte % 4096 + length() - 1) / 4096 + 1; }
};

using AreaSet = IntervalSet<Area, Intervals::kDisjoint>;

// Pages that were mapped one by one, each an area of its own, but with one thing to say of all:
// they follow each other in memory as they do in IOVAs. A bit tells which are there, the page table
// where. Who wants more of one than to unmap it makes areas with a node of them first
// (page_rows.cc).
inline constexpr u64 kRowPages = 512, kRowBytes = kRowPages * 4096;
struct PageRow {
  IntervalNode node;  // kRowBytes of IOVAs, aligned
  Kept<u64> address;  // of what stands, or would, at the first of them
  Kept<u32> rights;   // of each page: filled, charged to nobody, held by no access
  Kept<u32> process;  // that has pinned them
  Kept<u32> pages;    // that are there
  Kept<u64> there[kRowPages / 64];
};

struct PageRowSet {
  IntervalSet<PageRow, Intervals::kDisjoint> tree;
  RelPtr<PageRow> near;  // used last
};

// What an access has pinned at once.
struct AccessPin {
  IntervalNode node;
  Kept<u32> number;  // of its access
};

struct Reserved {
  IntervalNode node;
  Kept<u32> owner;  // the page table whose aperture it bounds; 0: nobody
};

struct Allowed {
  IntervalNode node;
};

enum class FormatKind : u32 { kMock, kVtdSecondLevel, kX86FirstLevel };

// The tables of one page table, in the arena.
struct Domain {
  Kept<FormatKind> format;
  Kept<u32> root_level;
  RelPtr<void*> root;
  Kept<u64> aperture_start;
  Kept<u64> aperture_last;
  Kept<u64> page_sizes;
  Kept<bool> dirty_ops;  // can tell what was written
  Kept<bool> tracking;
  Kept<u16> id;  // by which caches know what is of it; 0: a test device's
  // The last table used for a frame alone, or null. Who frees tables forgets it.
  RelPtr<void*> near_table;
  Kept<u64> near_frames;
};

}  // namespace stagetwo::iommu
