// SPDX-License-Identifier: Apache-2.0
#include "vfio/container.h"

#include <algorithm>

#include "iommu/auxiliary.h"
#include "vfio/container_state.h"

namespace stagetwo::vfio {
namespace {

// Where a message-signalled interrupt is written to: no memory of anybody's.
constexpr u64 kUnmapAll = 9;  // VFIO_UNMAP_ALL
constexpr u64 kMessages = 0xfee00000, kMessagesLast = 0xfeefffff;

bool is_known(u64 type) {
  return type == static_cast<u64>(IommuType::kType1) ||
         type == static_cast<u64>(IommuType::kType1v2) ||
         type == static_cast<u64>(IommuType::kNesting);
}

// What does not fit into the domain's window is a bad request of a client's (EINVAL).
template <typename T>
Result<T> as_refusal(Result<T> done) {
  if (!done && to_int(done.error()) == EADDRINUSE) return refuse(EINVAL);
  return done;
}

}  // namespace

Result<sync::Ref<Container>> Container::attach(int fd) {
  auto context = ST_TRY(iommu::Context::attach(fd));
  return sync::Ref<Container>::make("vfio.container", std::move(context));
}

Container::~Container() {
  if (closed_.load(sync::kAcquire)) context_->release_all();
}

// Null: there is none yet, and none was wanted.
Result<ContainerState*> Container::state(iommu::Locked& locked, bool make) {
  if (!locked.ok()) return refuse(EIO);
  if (auto* const known = reinterpret_cast<ContainerState*>(locked.root().above.get())) {
    return known;
  }
  if (!make) return nullptr;
  auto* const fresh = ST_TRY(locked.arena().make<ContainerState>("vfio.container_state"));
  locked.root().above = reinterpret_cast<u64*>(fresh);
  return fresh;
}

IommuType Container::type() {
  iommu::Locked locked(*context_);
  const auto found = state(locked, false);
  return found && *found != nullptr ? (*found)->type : IommuType::kNone;
}

Result<void> Container::set_type(u64 type) {
  const sync::MutexGuard changing(changing_);
  iommu::Locked locked(*context_);
  auto* const found = ST_TRY(state(locked, false));
  if (found == nullptr || found->groups == 0 || found->type != IommuType::kNone) {
    return refuse(EINVAL);
  }
  // It is an extension, so a driver is asked, and refuses it as a type.
  if (type == kUnmapAll) return refuse(EINVAL);
  if (!is_known(type)) return refuse(ENODEV);
  const auto has_device = [](const Member& member) { return member.pasid_bits != 0; };
  const bool nests = type == static_cast<u64>(IommuType::kNesting);
  if (nests && std::ranges::any_of(found->members, has_device)) return refuse(EINVAL);
  found->ioas = ST_TRY(locked.make_ioas())->object.id;
  locked.root().process_accounting = true;  // as vfio_lock_acct() does
  Result<void> done;
  for (u32 slot = 0; done && slot < kSlots; ++slot) {
    if (found->members[slot].born != 0) done = attach_group(locked, *found, slot);
  }
  if (done) {
    found->type = static_cast<IommuType>(type);
    return {};
  }
  for (u32 slot = 0; slot < kSlots; ++slot) detach_group(locked, *found, slot);
  static_cast<void>(locked.destroy(found->ioas));
  found->ioas = 0;
  return done;
}

Result<void> Container::add_group(const Listed& device) {
  const sync::MutexGuard changing(changing_);
  iommu::Locked locked(*context_);
  ContainerState& found = *ST_TRY(state(locked, true));
  Member& member = found.members[device.slot];
  if (member.born != 0) return refuse(EINVAL);
  if (!found.moving.empty()) return refuse(EBUSY);  // its maps could not be replayed
  member.born = device.born;
  member.source = device.type.parent->source;
  member.pasid_bits = device.type.parent->pasid_bits;
  member.mediated = device.type.parent->function == nullptr;
  if (found.type != IommuType::kNone) {
    if (const auto done = attach_group(locked, found, device.slot); !done) {
      member = {};
      return done;
    }
  }
  ++found.groups;
  return {};
}

// The seed's choice: an IOMMU device means a domain.
Result<void> Container::attach_group(iommu::Locked& locked, ContainerState& found, u32 slot) {
  Member& member = found.members[slot];
  if (member.pasid_bits == 0) return {};
  if (found.type == IommuType::kNesting) return refuse(EINVAL);  // its domains do not nest
  iommu::Device* device = nullptr;
  for (const Member& other : found.members) {
    if (other.device != 0 && other.source == member.source) {
      device = ST_TRY(locked.find<iommu::Device>(other.device));
    }
  }
  const bool fresh = device == nullptr;
  if (fresh) {
    device = ST_TRY(locked.make_vtd_device(
        {.source = SourceId{member.source.get()}, .max_pasid_lg2 = member.pasid_bits}));
  }
  const auto done = as_refusal(join_domain(locked, found, *device, slot));
  if (done) {
    member.device = device->object.id;
  } else if (fresh) {
    static_cast<void>(locked.destroy(device->object.id));
  }
  return done;
}

// The devices of the domain that goes may have written everywhere. Analogue: update_dirty_scope.
void Container::note_all_dirty(iommu::Locked& locked, ContainerState& found) {
  const auto ioas = locked.find<iommu::Ioas>(found.ioas);
  if (!ioas) return;
  for (const iommu::Area* area = locked.areas(**ioas).first(); area != nullptr;
       area = (*ioas)->nodes.next(area)) {
    if (!note_dirty(locked, found, area->iova(), area->last())) found.all_dirty = true;
  }
}

void Container::detach_group(iommu::Locked& locked, ContainerState& found, u32 slot) {
  Member& member = found.members[slot];
  if (member.device == 0) return;
  const u32 id = std::exchange(member.device, 0u).get();
  leave_domain(locked, found, id);
  for (const Member& other : found.members) {
    if (other.device == id) return;
  }
  static_cast<void>(locked.destroy(id));
  for (const Member& other : found.members) {
    if (other.device != 0) return;
  }
  if (found.tracking) note_all_dirty(locked, found);
  static_cast<void>(locked.destroy(std::exchange(found.hwpt, 0u).get()));
}

// The number is that of the first slot, so that two containers' devices of one parent differ in it.
Result<void> join_domain(iommu::Locked& locked, ContainerState& found, iommu::Device& device,
                         u32 slot) {
  ST_TRY(iommu::enable_auxiliary(device));
  if (found.hwpt != 0) {
    return iommu::attach_auxiliary(locked, device, **locked.find<iommu::Hwpt>(found.hwpt));
  }
  iommu::Ioas& ioas = *ST_TRY(locked.find<iommu::Ioas>(found.ioas));
  iommu::Hwpt* const hwpt = ST_TRY(locked.make_hwpt(ioas, device, {.pasid = true}));
  hwpt->auxiliary_pasid = slot + 1;
  auto done = locked.reserve(ioas, kMessages, kMessagesLast, hwpt->object.id);
  if (done) done = iommu::attach_auxiliary(locked, device, *hwpt);
  if (done) {
    found.hwpt = hwpt->object.id;
  } else {
    static_cast<void>(locked.destroy(hwpt->object.id));
  }
  return done;
}

void leave_domain(iommu::Locked& locked, ContainerState& found, u32 device_id) {
  const auto device = locked.find<iommu::Device>(device_id);
  const auto hwpt = locked.find<iommu::Hwpt>(found.hwpt);
  if (device && hwpt) iommu::detach_auxiliary(locked, **device, **hwpt);
}

bool Container::has_group(const Listed& device) {
  iommu::Locked locked(*context_);
  const auto found = state(locked, false);
  return found && *found != nullptr && (*found)->members[device.slot].born == device.born;
}

std::optional<Container::Tag> Container::tag_of(const Listed& device) {
  iommu::Locked locked(*context_);
  const auto found = state(locked, false);
  if (!found || *found == nullptr || (*found)->members[device.slot].born != device.born) return {};
  const auto source = locked.find<iommu::Device>((*found)->members[device.slot].device);
  const auto hwpt = locked.find<iommu::Hwpt>((*found)->hwpt);
  if (!source || !hwpt) return {};
  const auto pasid = iommu::auxiliary_pasid(**source, **hwpt);
  if (!pasid) return {};
  return Tag{(*source)->object.id, *pasid};
}

void Container::remove_group(const Listed& device) {
  const sync::MutexGuard changing(changing_);
  bool last = false;
  {
    iommu::Locked locked(*context_);
    const auto found = state(locked, false);
    if (!found || *found == nullptr || (*found)->members[device.slot].born != device.born) return;
    detach_group(locked, **found, device.slot);
    (*found)->members[device.slot] = {};
    last = --(*found)->groups == 0 && (*found)->type != IommuType::kNone;
  }
  if (last) drop_type();
}

// I3. Drivers that have pinned are asked, so the lock is not held.
void Container::drop_type() {
  u32 ioas = 0;
  {
    iommu::Locked locked(*context_);
    const auto found = state(locked, false);
    if (!found || *found == nullptr) return;
    ioas = (*found)->ioas;
  }
  u64 bytes = 0;
  static_cast<void>(context_->unmap(ioas, 0, ~u64{0}, &bytes));
  iommu::Locked locked(*context_);
  const auto found = state(locked, false);
  if (!found || *found == nullptr) return;
  clear(locked, (*found)->dirty, 0, ~u64{0});
  clear(locked, (*found)->moving, 0, ~u64{0});
  static_cast<void>(locked.destroy(ioas));
  (*found)->type = IommuType::kNone;
  (*found)->ioas = 0;
  (*found)->tracking = (*found)->all_dirty = false;
}

}  // namespace stagetwo::vfio
