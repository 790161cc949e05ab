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
  Kept<u32> id;
  Kept<ObjectType> type;
  Kept<u32> users;
  Kept<u32> untold;  // 1: its client has no answer yet, and nobody finds it (I6)
};

struct Hwpt;
struct Device;
struct Access;
struct Ioas;

// An access in the list of an IOAS.
struct AccessSeat {
  RelPtr<Access> access;
  RelPtr<Ioas> ioas;  // null: a free one
  RelPtr<AccessSeat> next;
};

struct Ioas {
  Object object;
  AreaSet nodes;         // of the areas that have one: all of them only by Locked::areas()
  Kept<u64> area_count;  // of all
  PageRowSet rows;       // of the others; there is one domain then
  IntervalSet<Reserved> reserved;
  IntervalSet<Allowed> allowed;
  Kept<u64> alignment{1};
  Kept<bool> no_large_pages;
  RelPtr<Hwpt> hwpts;  // in the order of their making
  RelPtr<AccessSeat> accesses;
};

// A device that waits for the response to its page request.
struct PageWait {
  enum class State : u32 { kWaiting, kSuccess, kInvalid };
  Kept<State> state;
};

struct PageRequest {
  RelPtr<PageRequest> next;
  RelPtr<PageRequest> rest;  // of its group: the others, in their order
  RelPtr<PageWait> wait;     // of a group's first; null: nobody waits
  Kept<u32> in_group{1};
  Kept<u32> cookie;  // 0: not yet read
  Kept<u32> device_id;
  Kept<u32> pasid;
  Kept<u32> group;
  Kept<u32> rights;
  Kept<u32> flags;
  Kept<u64> address;
  Kept<u64> attachment;
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
  Kept<u64> number;         // its own, never used again
  Kept<u32> auxiliary;      // how often it was attached as one (auxiliary.h); 0: by its PASID
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
  Kept<bool> automatic;
  Kept<bool> nest_parent;
  Kept<bool> pasid_compatible;
  Kept<u32> auxiliary_pasid;    // its number on all devices; 0: it is auxiliary nowhere
  Kept<u32> auxiliary_devices;  // on so many
  // Of a nested one for VT-d: where in the parent the guest's first level is.
  Kept<u64> guest_table;
  Kept<u32> guest_levels;               // 0: nothing that could be walked
  Kept<u32> process;                    // of a process's addresses: whose
  Kept<u32> cache_words[kNestedWords];  // a test device's nested cache
};

struct Device {
  Object object;
  Attachment own;                  // of requests without a PASID
  IntervalSet<Attachment> pasids;  // the others
  Kept<bool> no_dirty;
  Kept<bool> huge;
  Kept<u8> max_pasid_lg2;
  Kept<bool> vtd;  // in device tables, with page tables of `levels`
  Kept<u8> levels;
  Kept<u16> source;
  Kept<bool> auxiliary;        // takes auxiliary page tables, no primary one
  Kept<u32> process{kNobody};  // with which it ends
  VirtualSide side;
  Kept<u32> last_group;         // of its page requests
  RelPtr<PageRequest> partial;  // of groups whose last has not come
};

struct TestDevice {
  Object object;
  RelPtr<Device> device;
};

struct Access {
  Object object;
  RelPtr<Ioas> ioas;         // where it pins; null: in none, or in none while it changes
  RelPtr<Ioas> has_pins_in;  // where it unpins; of one that changes, the one it leaves
  AccessSeat seats[2];       // of one that changes, both
  IntervalSet<AccessPin> pins;
  Kept<u64> alignment{1};
  Kept<u32> process;  // whose Context calls back, and with which it ends; kNobody: it has no client
  Kept<u64> inode;    // of its descriptor, which may outlive that process; 0: it has none
  Kept<u32> next_pin;        // a number
  Kept<bool> is_pins_alone;  // its client holds nothing else: who is in its way lets go for it
  void enter(Ioas* to) {
    ioas = to;
    has_pins_in = to;
  }
};

struct Root {
  Kept<u64> made;           // 0: fresh
  RelPtr<Kept<u64>> table;  // offsets by id; 0: free
  Kept<u64> table_size;
  Kept<u32> first_free;  // no id below it is free
  Kept<u32> objects;
  Kept<bool> process_accounting;
  Kept<u64> last_attachment;
  Kept<u64> root_table;  // of the devices in device tables; 0: there is none
  InvalidationQueue queue;
  sync::Atomic<u32> responses;  // raised with each; sleepers of this process wait on it
  RelPtr<Ioas> vfio_ioas;
  RelPtr<u64> above;  // what the room above keeps beside it, in blocks of its own
  RelPtr<PageSet> page_sets;
  Kept<u64> orphans;
  Process processes[kProcesses];
};
static_assert(sizeof(Root) <= Arena::kRootBytes);

}  // namespace stagetwo::iommu
