// SPDX-License-Identifier: Apache-2.0
// Devices, and which page table each of their PASIDs means. kernel files:
// drivers/iommu/iommufd/device.c, drivers/iommu/intel/pasid.c. Every device is its own group.
//
//   attach    what the page table's IOAS may not use is reserved; then whether the device takes the
//             page table, which in the kernel its driver says; the entry; the list
//   detach    the entry is hidden, caches are flushed, the entry is wiped; the list
#include "base/check.h"
#include "base/guard.h"
#include "iommu/device_tables.h"
#include "iommu/viommu.h"

namespace stagetwo::iommu {
namespace {

// The page table that holds what the device reaches.
const Hwpt& paging_of(const Hwpt& hwpt) {
  return hwpt.parent.get() == nullptr ? hwpt : *hwpt.parent;
}

bool is_process(const Hwpt& hwpt) {
  return hwpt.object.type == ObjectType::kProcess;
}

PasidEntry entry_of(const Arena& arena, const Hwpt& hwpt) {
  const Domain& domain = paging_of(hwpt).domain;
  if (is_process(hwpt)) {
    return make_pasid_entry(TranslationType::kFirstLevel, domain.id)
        .with_first(process_root(hwpt.process), kProcessLevels);
  }
  const u64 root = arena.offset_of(domain.root.get());
  if (domain.format == FormatKind::kX86FirstLevel) {
    return make_pasid_entry(TranslationType::kFirstLevel, domain.id)
        .with_first(root, domain.root_level);
  }
  const bool nested = hwpt.object.type == ObjectType::kHwptNested;
  PasidEntry entry =
      make_pasid_entry(nested ? TranslationType::kNested : TranslationType::kSecondLevel, domain.id)
          .with_second(root, domain.root_level, domain.dirty_ops);
  if (nested) entry.with_first(hwpt.guest_table, hwpt.guest_levels);
  return entry;
}

// Can the device walk these tables, and tell what it wrote? The test device's driver looks at the
// table alone, VT-d's at the parent of a nested one, too. Failure: EINVAL; ENODEV, of a nested one.
Result<void> check_walks(const Device& device, const Hwpt& hwpt) {
  const Domain& domain = paging_of(hwpt).domain;
  if (device.vtd == (domain.format == FormatKind::kMock)) return refuse(EINVAL);
  const bool nested = hwpt.object.type == ObjectType::kHwptNested;
  if (device.vtd && domain.root_level > device.levels) return refuse(nested ? ENODEV : EINVAL);
  const bool tells = device.vtd ? domain.dirty_ops : hwpt.domain.dirty_ops;
  if (tells && device.no_dirty) return refuse(EINVAL);
  const bool of_guest = device.vtd && nested;
  const bool walks = hwpt.guest_levels != 0 && hwpt.guest_levels <= device.levels;
  if (of_guest && !walks) return refuse(EINVAL);
  return {};
}

// Does a PASID of the device mean a page table that a client gave it?
bool has_given_pasid(Device& device) {
  for (const Attachment* one = device.pasids.first(); one != nullptr;
       one = device.pasids.next(one)) {
    if (!is_process(*one->hwpt)) return true;
  }
  return false;
}

// Either all page tables that clients gave a device are for PASIDs, or its own is its only one. The
// addresses of a process (sva.h) are not given, and stand beside whatever is.
bool fits_the_others(Device& device, u32 pasid, const Hwpt& hwpt) {
  if (is_process(hwpt)) return true;
  if (pasid == 0) return hwpt.pasid_compatible || !has_given_pasid(device);
  const Hwpt* const own = device.own.hwpt;
  return hwpt.pasid_compatible && (own == nullptr || own->pasid_compatible);
}

}  // namespace

Result<Device*> Locked::make_device(bool no_dirty, bool huge, u8 max_pasid_lg2) {
  Device* const device = ST_TRY(add<Device>(ObjectType::kDevice, "iommu.device"));
  device->own.device = device;
  device->no_dirty = no_dirty;
  device->huge = huge;
  device->max_pasid_lg2 = max_pasid_lg2;
  return device;
}

Result<Device*> Locked::make_vtd_device(const VtdHow& how) {
  if (how.levels < 3 || how.levels > 5 || how.max_pasid_lg2 > kMostPasidBits) {
    return refuse(EINVAL);
  }
  Device* const device = ST_TRY(make_device(how.no_dirty, false, how.max_pasid_lg2));
  const auto add = [&] {
    return add_context(arena(), &root().root_table, how.source, how.max_pasid_lg2);
  };
  Result<void> done;
  if (how.ends_with_process) {
    const auto process = this_process();
    if (process) device->process = *process;
    if (!process) done = refuse(process.error());
  }
  if (done) done = add();
  if (!done && to_int(done.error()) == EBUSY && drop_closed_files()) done = add();
  if (!done) {
    remove(device);
    return refuse(done.error());
  }
  device->vtd = true;
  device->levels = how.levels;
  device->source = static_cast<u16>(how.source);
  if (how.ends_with_process) use_process(device->process, 1);
  return device;
}

void Locked::destroy_device(Device* device) {
  ST_DCHECK(device->own.hwpt.get() == nullptr && device->pasids.empty());
  drop_partial(*device, 0);
  if (device->vtd) remove_context(arena(), &root().root_table, SourceId{device->source.get()});
  if (device->process != kNobody) use_process(device->process, -1);
  remove(device);
}

Attachment* Locked::find_attachment(Device& device, u32 pasid) {
  if (pasid != 0) return device.pasids.first(pasid, pasid);
  return device.own.hwpt.get() == nullptr ? nullptr : &device.own;
}

// What a device of its own accord never uses as memory. Asked of its own requests only.
Result<void> Locked::reserve_for(Device& device, u32 pasid, const Hwpt& hwpt) {
  if (pasid != 0 || !device.vtd) return {};
  return reserve(*paging_of(hwpt).ioas, kInterruptStart, kInterruptLast, device.object.id);
}

void Locked::unreserve_for(Device& device, u32 pasid, const Hwpt& hwpt) {
  if (pasid == 0 && device.vtd) remove_reserved(*paging_of(hwpt).ioas, device.object.id);
}

Result<void> Locked::check_takes(Device& device, u32 pasid, const Hwpt& hwpt) {
  // The kernel's test device without PASIDs takes any, as from 6.16 on, and sends none.
  const bool limited = pasid == 0 || device.max_pasid_lg2 != 0 || !device.side.possible;
  if (limited && pasid >> device.max_pasid_lg2 != 0) return refuse(EINVAL);
  ST_TRY(check_walks(device, hwpt));
  if (ST_GUARD(iommu_pasid_fits, !fits_the_others(device, pasid, hwpt))) return refuse(EINVAL);
  return pasid == 0 ? check_has_number(device, hwpt) : Result<void>();
}

void Locked::link(Attachment& attachment, Hwpt& hwpt) {
  attachment.hwpt = &hwpt;
  attachment.next = hwpt.attachments.get();
  hwpt.attachments = &attachment;
  attachment.number = ++root().last_attachment;
  ++hwpt.object.users;
  if (attachment.pasid() == 0) note_viommu(*attachment.device, &hwpt);
}

void Locked::unlink(Attachment& attachment) {
  RelPtr<Attachment>* at = &attachment.hwpt->attachments;
  while (at->get() != &attachment) at = &at->get()->next;
  *at = attachment.next.get();
  attachment.next = nullptr;
  if (attachment.auxiliary != 0 && --attachment.hwpt->auxiliary_devices == 0) {
    attachment.hwpt->auxiliary_pasid = 0;
  }
  attachment.auxiliary = 0;
  attachment.hwpt = nullptr;
}

Result<void> Locked::do_attach(Device& device, u32 pasid, Hwpt& hwpt) {
  if (find_attachment(device, pasid) != nullptr) detach_dead_processes();
  if (const Attachment* const now = find_attachment(device, pasid)) {
    return refuse(pasid == 0 && now->hwpt.get() != &hwpt ? EINVAL : EBUSY);
  }
  ST_TRY(reserve_for(device, pasid, hwpt));
  const auto done = enter(device, pasid, hwpt);
  if (!done) unreserve_for(device, pasid, hwpt);
  return done;
}

// By the device's driver. Pre: nothing is attached.
Result<void> Locked::enter(Device& device, u32 pasid, Hwpt& hwpt) {
  ST_TRY(check_takes(device, pasid, hwpt));
  Attachment* fresh = &device.own;
  if (pasid != 0) {
    fresh = ST_TRY(arena().make<Attachment>("iommu.attachment"));
    fresh->node.start = fresh->node.last = pasid;
    fresh->device = &device;
  }
  Result<void> done;
  if (device.vtd) {
    done = set_pasid_entry(arena(), root().root_table, SourceId{device.source.get()}, pasid,
                           entry_of(arena(), hwpt));
  }
  if (done) done = set_pasid_table(device, pasid);
  if (!done) {
    if (pasid != 0) arena().destroy(fresh);
    return done;
  }
  if (pasid != 0) device.pasids.insert(fresh);
  link(*fresh, hwpt);
  return {};
}

// The device reaches nothing by this PASID any more. Its page table has a user less to be.
void Locked::take_down(Attachment& attachment) {
  Device& device = *attachment.device;
  const u32 pasid = attachment.pasid();
  Hwpt& hwpt = *attachment.hwpt;
  if (FaultQueue* const fault = hwpt.fault) answer_all(*fault, attachment.number);
  drop_partial(device, attachment.number);
  if (device.vtd && ST_GUARD(iommu_hide_entry, true)) {
    const SourceId source{device.source.get()};
    hide_pasid_entry(arena(), root().root_table, source, pasid);
    flush_attachment(attachment);
    wipe_pasid_entry(arena(), root().root_table, source, pasid);
  }
  unreserve_for(device, pasid, hwpt);
  unlink(attachment);
  if (pasid == 0) return note_viommu(device, nullptr);
  if (pasid == device.side.refusing_pasid) device.side.refuses_next = false;
  device.pasids.erase(&attachment);
  arena().destroy(&attachment);
}

// Yields the page table that was replaced, still used by the caller; null: it is the same.
Result<Hwpt*> Locked::do_replace(Device& device, u32 pasid, Hwpt& hwpt) {
  Attachment* const attachment = find_attachment(device, pasid);
  if (attachment == nullptr) return refuse(EINVAL);
  Hwpt* const old = attachment->hwpt;
  if (old == &hwpt) return nullptr;
  const bool moves = paging_of(*old).ioas.get() != paging_of(hwpt).ioas.get();
  if (moves) ST_TRY(reserve_for(device, pasid, hwpt));
  auto taken = check_takes(device, pasid, hwpt);
  if (taken) taken = set_pasid_table(device, pasid);
  if (moves) unreserve_for(device, pasid, taken ? *old : hwpt);
  if (!taken) return refuse(taken.error());
  if (FaultQueue* const fault = old->fault) answer_all(*fault, attachment->number);
  drop_partial(device, attachment->number);
  if (device.vtd) {
    replace_pasid_entry(arena(), root().root_table, SourceId{device.source.get()}, pasid,
                        entry_of(arena(), hwpt));
    flush_attachment(*attachment);
  }
  unlink(*attachment);
  link(*attachment, hwpt);
  return old;
}

// A device no longer leans on it. One that was made for devices goes with the last of them.
void Locked::put_hwpt(Hwpt* hwpt) {
  if (--hwpt->object.users == 0 && hwpt->automatic) destroy_hwpt(hwpt);
}

// Any automatic page table of the IOAS that takes the device, or a new one. None is for PASIDs.
Result<void> Locked::attach_ioas(Device& device, Ioas& ioas, u32* pt_id) {
  for (Hwpt* hwpt = ioas.hwpts; hwpt != nullptr; hwpt = hwpt->next) {
    if (!hwpt->automatic) continue;
    const auto done = do_attach(device, 0, *hwpt);
    if (!done && to_int(done.error()) == EINVAL) continue;  // incompatible: the next one
    if (done) *pt_id = hwpt->object.id;
    return done;
  }
  Hwpt* const hwpt = ST_TRY(make_hwpt(ioas, device, {.immediate = true}));
  hwpt->automatic = true;
  *pt_id = hwpt->object.id;
  return {};
}

Result<void> Locked::replace_by_ioas(Device& device, Ioas& ioas, u32* pt_id) {
  for (Hwpt* hwpt = ioas.hwpts; hwpt != nullptr; hwpt = hwpt->next) {
    if (!hwpt->automatic) continue;
    const auto old = do_replace(device, 0, *hwpt);
    if (!old && to_int(old.error()) == EINVAL) continue;
    if (!old) return refuse(old.error());
    *pt_id = hwpt->object.id;
    if (*old != nullptr) put_hwpt(*old);
    return {};
  }
  Hwpt* const hwpt = ST_TRY(make_hwpt(ioas, device, {}));
  const auto old = do_replace(device, 0, *hwpt);
  if (!old) {
    destroy_hwpt(hwpt);
    return refuse(old.error());
  }
  hwpt->automatic = true;
  *pt_id = hwpt->object.id;
  if (*old != nullptr) put_hwpt(*old);
  return {};
}

Result<void> Locked::attach(Device& device, u32* pt_id, u32 pasid) {
  Object* const object = ST_TRY(find(*pt_id));
  if (pasid == 0 && device.auxiliary) return refuse(EPERM);
  if (TypeOf<Hwpt>::is(object->type)) {
    return attach_table(device, *reinterpret_cast<Hwpt*>(object), pasid);
  } else if (object->type != ObjectType::kIoas) {
    return refuse(EINVAL);
  } else if (pasid != 0) {
    return refuse(find_attachment(device, pasid) != nullptr ? EBUSY : EINVAL);
  } else {
    ST_TRY(attach_ioas(device, *reinterpret_cast<Ioas*>(object), pt_id));
  }
  ++device.object.users;
  return {};
}

Result<void> Locked::attach_table(Device& device, Hwpt& hwpt, u32 pasid) {
  ST_TRY(do_attach(device, pasid, hwpt));
  ++device.object.users;
  return {};
}

Result<void> Locked::replace(Device& device, u32* pt_id, u32 pasid) {
  Object* const object = ST_TRY(find(*pt_id));
  if (object->type == ObjectType::kIoas && pasid == 0) {
    return replace_by_ioas(device, *reinterpret_cast<Ioas*>(object), pt_id);
  }
  if (!TypeOf<Hwpt>::is(object->type)) return refuse(EINVAL);
  if (Hwpt* const old = ST_TRY(do_replace(device, pasid, *reinterpret_cast<Hwpt*>(object)))) {
    put_hwpt(old);
  }
  return {};
}

void Locked::detach(Device& device, u32 pasid) {
  Attachment* const attachment = find_attachment(device, pasid);
  if (attachment == nullptr) return;
  Hwpt* const hwpt = attachment->hwpt;
  take_down(*attachment);
  put_hwpt(hwpt);
  --device.object.users;
}

void Locked::detach_all(Device& device) {
  while (const Attachment* const one = device.pasids.first()) detach(device, one->pasid());
  detach(device);
}

}  // namespace stagetwo::iommu
