// SPDX-License-Identifier: Apache-2.0
#pragma once

// What stands in the arena of one iommufd (iommu/arena.h): the table of objects and everything they
// are made of. Plain data and relative links; the functions over it are Context's.
//
//   IOAS ── areas ── page set          a window of IOVAs over the memory of one process
//     └── page tables (HWPT) ── domain a format's tables, filled with all areas
//           └── devices attached
//   accesses: who reads, writes or pins through an IOAS without a page table
//
// Analogue: struct iommufd_object and its kinds (drivers/iommu/iommufd/iommufd_private.h).
// I1  An object is in the table from its making to its destruction; `users` counts those that lean
//     on it, the table not among them: it can be destroyed at 0 only.
// I2  Areas of an IOAS do not overlap each other nor reserved ranges; reserved and allowed ranges
//     do not overlap.
// I3  A page of a page set is pinned iff holds[page] > 0, exactly once, by the process that
//     frames[page] names.
// I4  Every area is in every domain of its IOAS, or the domain is not listed.
// Locking: the arena's. Lifetime: the description's.

#include "base/types.h"
#include "iommu/interval_set.h"

namespace stagetwo::iommu {

enum class ObjectType : u32 {
  kNone,
  kDevice,
  kHwptPaging,
  kHwptNested,
  kIoas,
  kAccess,
  kFault,
  kTestDevice,  // a device that only the test command knows
};

struct Object {
  u32 id = 0;
  ObjectType type = ObjectType::kNone;
  u32 users = 0;
  u32 unused = 0;
};

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

struct PageSet {
  u32 users = 0;    // areas, and calls under way
  u32 process = 0;  // whose addresses
  bool writable = false;
  bool process_charge = false;  // which account, if any (host/pin_account.h)
  bool no_charge = false;
  bool file_asked = false;
  bool file_known = false;
  u64 start = 0;  // page aligned
  u64 pages = 0;
  RelPtr<u64> frames;  // (process << kFrameBits | frame), where holds != 0
  RelPtr<u32> holds;
  u64 orphans = 0;  // pages that only another process can unpin (pages.cc)
  // Of shared memory: what is behind `start`, so that other processes reach the same bytes.
  u64 device = 0;
  u64 inode = 0;
  u64 file_page = 0;
  RelPtr<PageSet> previous, next;  // all of the arena
};

enum Rights : u32 { kMayRead = 1, kMayWrite = 2 };

struct Area {
  IntervalNode node;  // IOVAs
  RelPtr<PageSet> pages;
  u64 start_byte = 0;  // in the page set
  u32 rights = 0;
  u32 accesses = 0;  // pins of accesses
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

enum class FormatKind : u32 { kMock };

// The tables of one page table, in the arena.
struct Domain {
  FormatKind format = FormatKind::kMock;
  u32 root_level = 0;
  RelPtr<void*> root;
  u64 aperture_start = 0;
  u64 aperture_last = 0;
  u64 page_sizes = 0;
  bool dirty_ops = false;  // can tell what was written
  bool tracking = false;
};

struct Hwpt;
struct Access;

struct Ioas {
  Object object;
  IntervalSet<Area> areas;
  IntervalSet<Reserved> reserved;
  IntervalSet<Allowed> allowed;
  u64 alignment = 1;
  bool no_large_pages = false;
  RelPtr<Hwpt> hwpts;  // in the order of their making
  RelPtr<Access> accesses;
};

struct PageRequest {
  RelPtr<PageRequest> next;
  u32 cookie = 0;  // 0: not yet read
  u32 device_id = 0;
  u32 pasid = 0;
  u32 group = 0;
  u32 rights = 0;
  u32 flags = 0;
  u64 address = 0;
  u64 attachment = 0;
};

struct FaultQueue {
  Object object;
  RelPtr<PageRequest> delivered, read;  // waiting to be read; waiting for an answer
  bool open = false;                    // its descriptor is a user
};

inline constexpr unsigned kNestedWords = 4;

struct Hwpt {
  Object object;
  RelPtr<Ioas> ioas;    // of a paging one
  RelPtr<Hwpt> next;    // in the IOAS
  RelPtr<Hwpt> parent;  // of a nested one
  RelPtr<FaultQueue> fault;
  Domain domain;
  bool automatic = false;
  bool nest_parent = false;
  u32 cache_words[kNestedWords] = {};  // a test device's nested cache
};

struct Device {
  Object object;
  RelPtr<Hwpt> attached;
  u64 attachment = 0;  // a number of its own for each attachment
  bool no_dirty = false;
  bool huge = false;
  u8 max_pasid_lg2 = 0;
};

struct TestDevice {
  Object object;
  RelPtr<Device> device;
};

struct Access {
  Object object;
  RelPtr<Ioas> ioas;
  RelPtr<Access> next;
  u64 alignment = 1;
  u32 process = 0;  // whose Context calls back
};

struct Root {
  u64 made;           // 0: fresh
  RelPtr<u64> table;  // offsets by id; 0: free
  u64 table_size;
  u32 first_free;  // no id below it is free
  u32 objects;
  bool process_accounting;
  u64 last_attachment;
  RelPtr<Ioas> vfio_ioas;
  RelPtr<PageSet> page_sets;
  u64 orphans;
  Process processes[kProcesses];
};
static_assert(sizeof(Root) <= Arena::kRootBytes);

}  // namespace stagetwo::iommu
