// SPDX-License-Identifier: Apache-2.0
// Virtual IOMMUs, their devices and hardware queues, and what a guest invalidates by one. kernel
// files: drivers/iommu/iommufd/viommu.c, hw_pagetable.c (iommufd_hwpt_invalidate), main.c
// (iommufd_fops_mmap), selftest.c (what the test device's driver answers).
#include "abi/iommufd/calls.h"
#include "abi/iommufd/test_uapi.h"
#include "base/bits.h"
#include "iommu/hardware_queue.h"

namespace stagetwo::abi_iommufd {
namespace {

constexpr u32 kDefaultType = 0;

static_assert(iommu::kHardwareQueues == IOMMU_TEST_HW_QUEUE_MAX);
static_assert(iommu::kDeviceWords == MOCK_DEV_CACHE_NUM);

// The driver's own data; none: nothing was given.
Result<void> copy_in_driver_data(const iommu_viommu_alloc& cmd, iommu_viommu_selftest* data) {
  if (cmd.data_len == 0) return {};
  if (cmd.data_len < offsetof(iommu_viommu_selftest, out_mmap_offset) ||
      cmd.data_len > sizeof(*data)) {
    return refuse(EINVAL);
  }
  return copy_in_struct(data, sizeof(*data), cmd.data_uptr, cmd.data_len, EINVAL);
}

Result<iommu::Hwpt*> find_paging(iommu::Locked& locked, u32 id) {
  auto* const hwpt = ST_TRY(locked.find<iommu::Hwpt>(id));
  if (hwpt->object.type != iommu::ObjectType::kHwptPaging) return refuse(ENOENT);
  return hwpt;
}

// `read`: whether the driver's data could be read before the lock was taken.
Result<void> make_locked(Call& call, iommu_viommu_alloc& cmd, const Result<void>& read,
                         iommu_viommu_selftest* data) {
  ST_LOCK_IOMMUFD(locked, call);
  const auto* const device = ST_TRY(locked.find<iommu::Device>(cmd.dev_id));
  if (!device->side.possible || cmd.type != IOMMU_VIOMMU_TYPE_SELFTEST) return refuse(EOPNOTSUPP);
  auto* const parent = ST_TRY(find_paging(locked, cmd.hwpt_id));
  auto* const viommu = ST_TRY(iommu::make_viommu(locked, *device, *parent));
  Result<void> done = read;
  if (done && cmd.data_len != 0) done = iommu::add_page(locked, *viommu, data->in_data);
  if (!done) {
    iommu::destroy_viommu(locked, viommu);
    return done;
  }
  data->out_data = data->in_data;
  data->out_mmap_offset = viommu->page;
  data->out_mmap_length = iommu::kViommuPageBytes;
  locked.hold_back(viommu->object);
  cmd.out_viommu_id = viommu->object.id;
  return {};
}

}  // namespace

Outcome viommu_alloc(Call& call, iommu_viommu_alloc& cmd) {
  if (cmd.flags != 0 || cmd.type == kDefaultType) return refuse(EOPNOTSUPP);
  iommu_viommu_selftest data{};
  const auto read = copy_in_driver_data(cmd, &data);
  ST_TRY(make_locked(call, cmd, read, &data));
  Result<void> told;
  if (cmd.data_len != 0) told = copy_out_bytes(cmd.data_uptr, &data, cmd.data_len);
  if (told) told = call.respond(cmd);
  return finish(call, cmd.out_viommu_id, std::move(told));
}

Outcome vdevice_alloc(Call& call, iommu_vdevice_alloc& cmd) {
  {
    ST_LOCK_IOMMUFD(locked, call);
    auto* const viommu = ST_TRY(locked.find<iommu::Viommu>(cmd.viommu_id));
    auto* const device = ST_TRY(locked.find<iommu::Device>(cmd.dev_id));
    iommu::Object& object =
        ST_TRY(iommu::make_vdevice(locked, *viommu, *device, cmd.virt_id))->object;
    locked.hold_back(object);
    cmd.out_vdevice_id = object.id;
  }
  return finish(call, cmd.out_vdevice_id, call.respond(cmd));
}

Outcome hw_queue_alloc(Call& call, iommu_hw_queue_alloc& cmd) {
  if (cmd.flags != 0 || cmd.type == kDefaultType) return refuse(EOPNOTSUPP);
  if (cmd.length == 0) return refuse(EINVAL);
  if (!checked_add(cmd.nesting_parent_iova, cmd.length - 1)) return refuse(EOVERFLOW);
  {
    ST_LOCK_IOMMUFD(locked, call);
    auto* const viommu = ST_TRY(locked.find<iommu::Viommu>(cmd.viommu_id));
    if (cmd.type != IOMMU_HW_QUEUE_TYPE_SELFTEST) return refuse(EOPNOTSUPP);
    iommu::Object& object = ST_TRY(iommu::make_hardware_queue(locked, *viommu, cmd.index,
                                                              cmd.nesting_parent_iova, cmd.length))
                                ->object;
    locked.hold_back(object);
    cmd.out_hw_queue_id = object.id;
  }
  return finish(call, cmd.out_hw_queue_id, call.respond(cmd));
}

namespace {

using ViommuEntry = iommu_viommu_invalidate_selftest;

// All entries are read before the first is done.
Result<void> copy_in_entries(const iommu_hwpt_invalidate& cmd, Vec<ViommuEntry>* entries) {
  if (cmd.data_type != IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST) return refuse(EINVAL);
  if (cmd.entry_num == 0) return {};
  ST_TRY(entries->resize(cmd.entry_num));
  if (cmd.entry_len != sizeof(ViommuEntry)) return refuse(EINVAL);
  return copy_in_bytes(entries->data(), cmd.data_uptr, entries->size() * sizeof(ViommuEntry));
}

Result<void> invalidate_one(iommu::Viommu& viommu, const ViommuEntry& entry) {
  if ((entry.flags & ~u32{IOMMU_TEST_INVALIDATE_FLAG_ALL}) != 0) return refuse(EOPNOTSUPP);
  if (entry.cache_id > MOCK_DEV_CACHE_ID_MAX) return refuse(EINVAL);
  const iommu::Vdevice* const vdevice = iommu::find_vdevice(viommu, entry.vdev_id);
  if (vdevice == nullptr) return refuse(EINVAL);
  const bool all = (entry.flags & IOMMU_TEST_INVALIDATE_FLAG_ALL) != 0;
  for (u32 i = 0; i < iommu::kDeviceWords; ++i) {
    if (all || i == entry.cache_id) vdevice->device->side.cache_words[i] = 0;
  }
  return {};
}

}  // namespace

Outcome invalidate_by_viommu(Call& call, const iommu_hwpt_invalidate& cmd, u32* done) {
  Vec<ViommuEntry> entries("abi_iommufd.viommu_entries");
  ST_TRY(copy_in_entries(cmd, &entries));
  ST_LOCK_IOMMUFD(locked, call);
  auto* const viommu = ST_TRY(locked.find<iommu::Viommu>(cmd.hwpt_id));
  for (; *done < entries.size(); ++*done) ST_TRY(invalidate_one(*viommu, entries[*done]));
  return {};
}

Result<void> check_not_mapped(iommu::Locked& locked, Iommufd& iommufd, u32 id) {
  const auto viommu = locked.find<iommu::Viommu>(id);
  if (viommu && (*viommu)->mapped && iommufd.viommu_pages().is_mapped((*viommu)->page))
    return refuse(EBUSY);
  return {};
}

}  // namespace stagetwo::abi_iommufd
