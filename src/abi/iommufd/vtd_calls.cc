// SPDX-License-Identifier: Apache-2.0
// What the requests on page tables are for a device in VT-d's tables: what its unit can do, and a
// guest's first level nested on a second. kernel files: drivers/iommu/intel/iommu.c, nested.c.
#include "abi/iommufd/vtd_calls.h"

#include "base/bits.h"

namespace stagetwo::abi_iommufd {
namespace {

constexpr u32 kFourLevels = 48, kFiveLevels = 57;

// Shorter or longer than the kernel's own is refused.
template <typename T>
Result<T> read_payload(u64 from, u32 bytes) {
  T data{};
  if (bytes != sizeof(T)) return refuse(EINVAL);
  ST_TRY(copy_in_bytes(&data, from, sizeof(T)));
  return data;
}

// As the unit tells it at its capability registers: what this one has, and no more.
constexpr u64 capability(unsigned levels) {
  constexpr u64 kDomains64K = 6, kLargePages = 3, kMostMask = 52;
  return kDomains64K | (bit(levels - 1) - 2) << 8 | u64{levels * 9 + 12 - 1} << 16 |
         kLargePages << 34 | bit(39) | kMostMask << 48 | bit(56) | (levels == 5 ? bit(60) : 0);
}
constexpr u64 extended_capability(unsigned pasid_bits) {
  constexpr u64 kCoherent = bit(0), kQueued = bit(1), kDeviceTlb = bit(2), kSnoop = bit(7);
  constexpr u64 kNested = bit(26), kPageRequests = bit(29), kPasids = bit(40);
  constexpr u64 kScalable = bit(43), kSecondDirty = bit(45), kSecond = bit(46), kFirst = bit(47);
  const u64 pasids = pasid_bits == 0 ? 0 : kPasids | u64{pasid_bits - 1} << 35;
  return kCoherent | kQueued | kDeviceTlb | kSnoop | kNested | kPageRequests | kScalable |
         kSecondDirty | kSecond | kFirst | pasids;
}
// 48 and 39 bits of addresses, four levels: as a machine says it.
static_assert(get_field(capability(4), 12, 8) == 6 && get_field(capability(4), 21, 16) == 47);

Result<iommu::Hwpt*> find_parent(iommu::Locked& locked, const iommu_hwpt_alloc& cmd) {
  const auto* const device = ST_TRY(locked.find<iommu::Device>(cmd.dev_id));
  const auto object = locked.find(cmd.pt_id);
  if (!object) return refuse(EINVAL);
  if ((*object)->type == iommu::ObjectType::kIoas) return refuse(EOPNOTSUPP);
  if ((*object)->type != iommu::ObjectType::kHwptPaging) return refuse(EINVAL);
  auto* const parent = ST_TRY(locked.find<iommu::Hwpt>(cmd.pt_id));
  constexpr u32 kNewer = IOMMU_HWPT_FAULT_ID_VALID | IOMMU_HWPT_ALLOC_PASID;
  const u32 known = has_newer_requests() ? kNewer : u32{IOMMU_HWPT_FAULT_ID_VALID};
  if ((cmd.flags & ~known) != 0) return refuse(EOPNOTSUPP);
  if (parent->automatic || !parent->nest_parent) return refuse(EINVAL);
  ST_TRY(check_driver(*device, *parent));
  if (!device->vtd) return refuse(EOPNOTSUPP);
  return parent;
}

// Whatever it says is taken: what no unit here walks (all accesses are a user's) is refused when a
// device is attached, as in the kernel.
Result<iommu::GuestTables> guest_tables(Result<iommu_hwpt_vtd_s1> read, u32 flags) {
  const auto data = ST_TRY(std::move(read));
  u32 levels = data.addr_width == kFourLevels ? 4 : data.addr_width == kFiveLevels ? 5 : 0;
  if ((data.flags & (IOMMU_VTD_S1_SRE | IOMMU_VTD_S1_EAFE)) != 0) levels = 0;
  return iommu::GuestTables{.table = data.pgtbl_addr & kPageMask,
                            .levels = levels,
                            .pasid = (flags & IOMMU_HWPT_ALLOC_PASID) != 0};
}

}  // namespace

iommu_hw_info_vtd vtd_info(const iommu::Device& device) {
  return {.flags = 0,
          .__reserved = 0,
          .cap_reg = capability(device.levels),
          .ecap_reg = extended_capability(device.max_pasid_lg2)};
}

Result<void> alloc_guest_level(Call& call, iommu_hwpt_alloc& cmd) {
  // Read before the lock; whether it counts is found out inside.
  auto data = read_payload<iommu_hwpt_vtd_s1>(cmd.data_uptr, cmd.data_len);
  ST_LOCK_IOMMUFD(locked, call);
  auto* const parent = ST_TRY(find_parent(locked, cmd));
  const auto guest = ST_TRY(guest_tables(std::move(data), cmd.flags));
  auto* const hwpt = ST_TRY(locked.make_nested(*parent, guest));
  locked.hold_back(hwpt->object);
  cmd.out_hwpt_id = hwpt->object.id;
  return take_fault_queue(locked, *hwpt, cmd);
}

Result<bool> is_guest_level(Call& call, u32 id) {
  ST_LOCK_IOMMUFD(locked, call);
  const auto found = locked.find<iommu::Hwpt>(id);
  return found && (*found)->parent.get() != nullptr &&
         (*found)->parent->domain.format == iommu::FormatKind::kVtdSecondLevel;
}

// Each entry: which addresses of the guest no cache may know any more.
Result<void> invalidate_guest_level(Call& call, const iommu_hwpt_invalidate& cmd, u32* done) {
  if (cmd.data_type != IOMMU_HWPT_INVALIDATE_DATA_VTD_S1) return refuse(EINVAL);
  for (; *done < cmd.entry_num; ++*done) {
    const auto entry = ST_TRY(read_payload<iommu_hwpt_vtd_s1_invalidate>(
        cmd.data_uptr + u64{*done} * cmd.entry_len, cmd.entry_len));
    if ((entry.flags & ~u32{IOMMU_VTD_INV_FLAGS_LEAF}) != 0 || entry.__reserved != 0) {
      return refuse(EOPNOTSUPP);
    }
    const bool all = entry.npages == ~u64{0};
    if (entry.addr % kPageSize != 0 || (all && entry.addr != 0)) return refuse(EINVAL);
    if (entry.npages == 0) continue;
    u64 bytes = 0, last = 0;
    const bool beyond = all || __builtin_mul_overflow(entry.npages, kPageSize, &bytes) ||
                        __builtin_add_overflow(entry.addr, bytes - 1, &last);
    ST_LOCK_IOMMUFD(locked, call);
    const auto* const hwpt = ST_TRY(locked.find<iommu::Hwpt>(cmd.hwpt_id));
    if (hwpt->parent.get() == nullptr) return refuse(ENOENT);
    locked.flush_nested(*hwpt, entry.addr, beyond ? ~u64{0} : last);
  }
  return {};
}

}  // namespace stagetwo::abi_iommufd
