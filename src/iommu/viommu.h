// SPDX-License-Identifier: Apache-2.0
#pragma once

// Virtual IOMMUs: the part of one that a guest is given. Its devices have numbers of the guest's,
// by which it names them; page tables of the guest's nest on it. What it tells the guest goes to
// event queues (event_queue.h), what the guest tells it may go by hardware queues
// (hardware_queue.h).
//
//   Viommu ── parent     the nesting page table that all of it stands on
//     ├── Vdevice ── Device      a number of the guest's; at most one a device
//     ├── nested page tables, event queues, hardware queues
//     └── page       what the client may map of it
//
// Analogue: struct iommufd_viommu, iommufd_vdevice (kernel file: drivers/iommu/iommufd/viommu.c).
// I1  Each of the second column counts as a user of the virtual IOMMU, which counts as one of its
//     parent. A Vdevice is no user of its device: it goes with it, and its number is then nobody's
//     for good.
// Locking: the arena's.

#include "iommu/locked.h"

namespace stagetwo::iommu {

struct EventQueue;
struct HardwareQueue;

inline constexpr unsigned kHardwareQueues = 2;

struct Viommu {
  Object object;
  RelPtr<Hwpt> parent;
  RelPtr<Vdevice> vdevices;
  RelPtr<EventQueue> queues;
  RelPtr<HardwareQueue> hardware[kHardwareQueues];
  Kept<u64> page;     // its place in the arena's file; 0: there is none
  Kept<bool> mapped;  // by a client, now or once: stays while the iommufd does
};

struct Vdevice {
  Object object;
  RelPtr<Viommu> viommu;
  RelPtr<Device> device;
  RelPtr<Vdevice> next;
  Kept<u64> virtual_id;
};

template <>
struct TypeOf<Viommu> {
  static bool is(ObjectType t) { return t == ObjectType::kViommu; }
};
template <>
struct TypeOf<Vdevice> {
  static bool is(ObjectType t) { return t == ObjectType::kVdevice; }
};

inline constexpr u64 kViommuPageBytes = 2 * kPageSize;

// Failure: EOPNOTSUPP (the device's driver has none), EINVAL (not a nesting parent), ENOMEM.
Result<Viommu*> make_viommu(Locked& locked, const Device& device, Hwpt& parent);
// What the client may map, with a word at its beginning. Failure: ENOMEM.
Result<void> add_page(Locked& locked, Viommu& viommu, u32 word);
// Whose page that is: any of its bytes. Null: nobody's.
Viommu* find_by_page(Locked& locked, u64 offset);
void destroy_viommu(Locked& locked, Viommu* viommu);  // pre: no users

// Failure: EINVAL (a device of another driver), EEXIST (it has one, or the number is taken),
// ENOMEM.
Result<Vdevice*> make_vdevice(Locked& locked, Viommu& viommu, Device& device, u64 virtual_id);
void destroy_vdevice(Locked& locked, Vdevice* vdevice);
// Goes with its device: nobody gets its number any more.
void bury_vdevice(Locked& locked, Vdevice* vdevice);
Vdevice* find_vdevice(Viommu& viommu, u64 virtual_id);  // null: none

// A guest's page table. Failure: ENOMEM.
Result<Hwpt*> make_nested_on(Locked& locked, Viommu& viommu, bool pasid);

// May the device's own requests use this page table? Failure: ENOENT (it has no number there).
Result<void> check_has_number(const Device& device, const Hwpt& hwpt);
// They do from now on; null: none.
void note_viommu(Device& device, const Hwpt* hwpt);
// A test device's driver at work. Failure: ENOMEM, every second time.
Result<void> set_pasid_table(Device& device, u32 pasid);

}  // namespace stagetwo::iommu
