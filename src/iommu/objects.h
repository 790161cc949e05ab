// SPDX-License-Identifier: Apache-2.0
#pragma once

// What stands in the arena of one iommufd (iommu/arena.h): the table of objects and everything they
// are made of. Plain data and relative links; the functions over it are Context's.
//
//   IOAS ── areas ── page set          a window of IOVAs over the memory of one process
//     └── page tables (HWPT) ── domain a format's tables, filled with all areas
//           └── attachments ── device  one for each PASID of it; its own requests are PASID 0
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
// I5  Which domain a PASID of a device means is said by its attachment; the device tables
//     (device_tables.h) of a device that has such say the same.
// I6  What a request makes has its number at once and is found by it when its client was told, so
//     that nobody has what may be taken back. Analogue: iommufd_object_finalize().
// Locking: the arena's. Lifetime: the description's.

#include "iommu/invalidation_queue.h"
#include "iommu/memory_objects.h"
#include "iommu/queue_files.h"
#include "iommu/virtual_side.h"

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
  kProcess,     // a page table that is the addresses of a process (sva.h)
  kViommu,      // viommu.h, event_queue.h, hardware_queue.h:
  kVdevice,
  kEventQueue,
  kHardwareQueue,
};

struct Object {
  u32 id = 0;
  ObjectType type = ObjectType::kNone;
  u32 users = 0;
  u32 untold = 0;  // 1: its client has no answer yet, and nobody finds it (I6)
};

enum class FormatKind : u32 { kMock, kVtdSecondLevel, kX86FirstLevel };

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
  u16 id = 0;  // by which caches know what is of it; 0: a test device's
  // The last table used for a frame alone, and of which frames it is; null: none. Who frees tables
  // forgets it.
  RelPtr<void*> near_table;
  u64 near_frames = 0;
};

struct Hwpt;
struct Device;
struct Access;

struct Ioas {
  Object object;
  IntervalSet<Area, Intervals::kDisjoint> areas;
  u64 area_count = 0;
  IntervalSet<Reserved> reserved;
  IntervalSet<Allowed> allowed;
  u64 alignment = 1;
  bool no_large_pages = false;
  RelPtr<Hwpt> hwpts;  // in the order of their making
  RelPtr<Access> accesses;
};

// A device that waits for the response to its page request.
struct PageWait {
  enum class State : u32 { kWaiting, kSuccess, kInvalid };
  State state = State::kWaiting;
};

struct PageRequest {
  RelPtr<PageRequest> next;
  RelPtr<PageRequest> rest;  // of its group: the others, in their order
  RelPtr<PageWait> wait;     // of a group's first; null: nobody waits
  u32 in_group = 1;
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
  QueueFile file;
};

inline constexpr unsigned kNestedWords = 4;

// What one PASID of a device means.
struct Attachment {
  IntervalNode node;  // the PASID
  RelPtr<Device> device;
  RelPtr<Hwpt> hwpt;        // null: a device's own, and nothing is attached
  RelPtr<Attachment> next;  // of the page table's
  u64 number = 0;           // its own, never used again
  u32 auxiliary = 0;        // how often it was attached as one (auxiliary.h); 0: by its PASID
  [[nodiscard]] u32 pasid() const { return static_cast<u32>(node.start); }
};

struct Hwpt {
  Object object;
  RelPtr<Ioas> ioas;      // of a paging one
  RelPtr<Hwpt> next;      // in the IOAS
  RelPtr<Hwpt> parent;    // of a nested one
  RelPtr<Viommu> viommu;  // it is on; null: on the parent itself
  RelPtr<FaultQueue> fault;
  Domain domain;
  RelPtr<Attachment> attachments;
  bool automatic = false;
  bool nest_parent = false;
  bool pasid_compatible = false;
  u32 auxiliary_pasid = 0;    // its number on all devices; 0: it is auxiliary nowhere
  u32 auxiliary_devices = 0;  // on so many
  // Of a nested one for VT-d: where in the parent the guest's first level is.
  u64 guest_table = 0;
  u32 guest_levels = 0;                // 0: nothing that could be walked
  u32 process = 0;                     // of a process's addresses: whose
  u32 cache_words[kNestedWords] = {};  // a test device's nested cache
};

struct Device {
  Object object;
  Attachment own;                  // of requests without a PASID
  IntervalSet<Attachment> pasids;  // the others
  bool no_dirty = false;
  bool huge = false;
  u8 max_pasid_lg2 = 0;
  bool vtd = false;  // in device tables, with page tables of `levels`
  u8 levels = 0;
  u16 source = 0;
  bool auxiliary = false;  // takes auxiliary page tables, no primary one
  VirtualSide side;
  u32 last_group = 0;           // of its page requests
  RelPtr<PageRequest> partial;  // of groups whose last has not come
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
  u64 root_table;  // of the devices in device tables; 0: there is none
  InvalidationQueue queue;
  sync::Atomic<u32> responses;  // raised with each; sleepers of this process wait on it
  RelPtr<Ioas> vfio_ioas;
  RelPtr<u64> above;  // what the room above keeps beside it, in blocks of its own
  RelPtr<PageSet> page_sets;
  u64 orphans;
  Process processes[kProcesses];
};
static_assert(sizeof(Root) <= Arena::kRootBytes);

}  // namespace stagetwo::iommu
