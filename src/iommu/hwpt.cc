// SPDX-License-Identifier: Apache-2.0
// Page tables. kernel file: drivers/iommu/iommufd/hw_pagetable.c.
#include "base/check.h"
#include "iommu/viommu.h"

namespace stagetwo::iommu {
namespace {

constexpr u64 kMockStart = u64{1} << 24;
constexpr u64 kMockLast = (u64{1} << 31) - 1;
constexpr u64 kMockPage = 2048;
constexpr u64 kMockHugePage = 512 * kMockPage;

constexpr u16 kFirstLevelDomain = 1;  // everybody's
constexpr u32 kFirstDomainId = 2;
constexpr u32 kLastDomainId = 0xffff;
constexpr unsigned kFirstLevels = 4;

Result<DomainShape> shape_of(const Device& device, const HwptHow& how) {
  if (how.first_level) {
    const bool can = device.vtd && device.levels >= kFirstLevels && !how.dirty && !how.nest_parent;
    if (!can) return refuse(EOPNOTSUPP);
    return first_level_shape(device.levels);
  }
  if (device.vtd) return vtd_shape(device.levels);
  return DomainShape{FormatKind::kMock, kMockStart, kMockLast,
                     device.huge ? kMockPage | kMockHugePage : kMockPage};
}

// By the object's number, of which no other has it.
Result<u16> domain_id_of(const Hwpt& hwpt, FormatKind format) {
  if (format == FormatKind::kMock) return u16{0};
  if (format == FormatKind::kX86FirstLevel) return kFirstLevelDomain;
  const u32 id = hwpt.object.id + kFirstDomainId - 1;
  if (id > kLastDomainId) return refuse(ENOSPC);
  return static_cast<u16>(id);
}

}  // namespace

Result<Hwpt*> Locked::make_hwpt(Ioas& ioas, Device& device, HwptHow how) {
  const DomainShape shape = ST_TRY(shape_of(device, how));
  Hwpt* const hwpt = ST_TRY(add<Hwpt>(ObjectType::kHwptPaging, "iommu.hwpt"));
  ++ioas.object.users;
  hwpt->ioas = &ioas;
  hwpt->nest_parent = how.nest_parent;
  hwpt->pasid_compatible = how.pasid;
  const auto id = domain_id_of(*hwpt, shape.format);
  auto done = id ? make_domain(arena(), shape, &hwpt->domain) : Result<void>(refuse(id.error()));
  if (done) hwpt->domain.id = *id;
  hwpt->domain.dirty_ops = how.dirty;
  if (done && how.immediate) done = do_attach(device, 0, *hwpt);
  if (done) {
    done = add_domain(ioas, *hwpt);
    if (!done && how.immediate) {
      take_down(device.own);
      --hwpt->object.users;
    }
  }
  if (done) return hwpt;
  hwpt->ioas = nullptr;  // not listed there
  --ioas.object.users;
  destroy_hwpt(hwpt);
  return refuse(done.error());
}

Result<Hwpt*> Locked::make_nested(Hwpt& parent, GuestTables guest) {
  if (parent.automatic || !parent.nest_parent) return refuse(EINVAL);
  const bool vtd = parent.domain.format == FormatKind::kVtdSecondLevel;
  const bool possible = guest.levels == 0 || guest.levels == 4 || guest.levels == 5;
  if (vtd && (guest.table % kPageSize != 0 || !possible)) return refuse(EINVAL);
  Hwpt* const hwpt = ST_TRY(add<Hwpt>(ObjectType::kHwptNested, "iommu.nested"));
  hwpt->guest_table = guest.table;
  hwpt->guest_levels = guest.levels;
  hwpt->pasid_compatible = guest.pasid;
  hwpt->parent = &parent;
  ++parent.object.users;
  return hwpt;
}

Hwpt* Locked::find_process_table() {
  for (u64 id = 1; id < root().table_size; ++id) {
    const auto object = find(static_cast<u32>(id));
    if (!object || (*object)->type != ObjectType::kProcess) continue;
    auto* const table = reinterpret_cast<Hwpt*>(*object);
    if (is_this_process(table->process)) return table;
  }
  return nullptr;
}

// The addresses of this process: goes with the last device that is bound to them.
Result<Hwpt*> Locked::process_table() {
  if (Hwpt* const known = find_process_table()) return known;
  const u32 process = ST_TRY(this_process());
  Hwpt* const table = ST_TRY(add<Hwpt>(ObjectType::kProcess, "iommu.process"));
  table->process = process;
  use_process(process, 1);
  table->automatic = true;
  table->pasid_compatible = true;
  table->domain.format = FormatKind::kX86FirstLevel;
  table->domain.root_level = kProcessLevels;
  table->domain.id = kFirstLevelDomain;
  return table;
}

void Locked::detach_dead_processes() {
  for (u64 id = 1; id < root().table_size; ++id) {
    const auto object = find(static_cast<u32>(id));
    if (!object || (*object)->type != ObjectType::kProcess) continue;
    auto* const table = reinterpret_cast<Hwpt*>(*object);
    if (is_alive(table->process)) continue;
    for (bool more = true; more;) {  // the last one takes the table
      const Attachment& one = *table->attachments;
      more = one.next.get() != nullptr;
      detach(*one.device, one.pasid());
    }
  }
}

void Locked::destroy_hwpt(Hwpt* hwpt) {
  if (hwpt->object.type == ObjectType::kProcess) use_process(hwpt->process, -1);
  if (Ioas* const ioas = hwpt->ioas) {
    remove_domain(*ioas, *hwpt);
    --ioas->object.users;
  }
  destroy_domain(arena(), hwpt->domain);
  if (Viommu* const viommu = hwpt->viommu) {
    --viommu->object.users;
  } else if (Hwpt* const parent = hwpt->parent) {
    --parent->object.users;
  }
  if (FaultQueue* const fault = hwpt->fault) --fault->object.users;
  remove(hwpt);
}

}  // namespace stagetwo::iommu
