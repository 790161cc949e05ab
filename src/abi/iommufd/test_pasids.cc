// SPDX-License-Identifier: Apache-2.0
// The test command's operations of later kernels: PASIDs of a test device, its cache behind a
// virtual IOMMU, and what that tells its guest. kernel file: drivers/iommu/iommufd/selftest.c.
#include "abi/iommufd/test_commands.h"
#include "iommu/event_queue.h"

namespace stagetwo::abi_iommufd {
namespace {

Outcome check_device_cache(Call& call, const iommu_test_cmd& cmd) {
  ST_LOCK_IOMMUFD(locked, call);
  const auto* const device = ST_TRY(locked.find<iommu::Device>(cmd.id));
  const auto& c = cmd.check_dev_cache;
  if (c.id > MOCK_DEV_CACHE_ID_MAX || device->side.cache_words[c.id] != c.cache) {
    return refuse(EINVAL);
  }
  return {};
}

// Of a device whose own requests use a page table on a virtual IOMMU; its number there is told.
Outcome trigger_event(Call& call, const iommu_test_cmd& cmd) {
  ST_LOCK_IOMMUFD(locked, call);
  const auto* const device = ST_TRY(locked.find<iommu::Device>(cmd.trigger_vevent.dev_id));
  iommu::Viommu* const viommu = device->side.viommu;
  if (viommu == nullptr || device->side.virtual_id == 0) return refuse(ENOENT);
  const iommu_viommu_event_selftest event{.virt_id = static_cast<u32>(device->side.virtual_id)};
  return iommu::report_event(locked, *viommu, IOMMU_VEVENTQ_TYPE_SELFTEST, &event, sizeof(event));
}

Outcome attach_pasid(Call& call, iommu_test_cmd& cmd) {
  auto& c = cmd.pasid_attach;
  {
    ST_LOCK_IOMMUFD(locked, call);
    const auto* const test = ST_TRY(locked.find<iommu::TestDevice>(cmd.id));
    ST_TRY(locked.attach(*test->device, &c.pt_id, c.pasid));
  }
  const auto told = call.respond(cmd);
  if (told) return {};
  ST_LOCK_IOMMUFD(locked, call);
  const auto test = locked.find<iommu::TestDevice>(cmd.id);
  if (test) locked.detach(*(*test)->device, c.pasid);
  return told;
}

Outcome replace_pasid(Call& call, iommu_test_cmd& cmd) {
  {
    ST_LOCK_IOMMUFD(locked, call);
    const auto* const test = ST_TRY(locked.find<iommu::TestDevice>(cmd.id));
    ST_TRY(locked.replace(*test->device, &cmd.pasid_replace.pt_id, cmd.pasid_replace.pasid));
  }
  return call.respond(cmd);
}

Outcome detach_pasid(Call& call, const iommu_test_cmd& cmd) {
  ST_LOCK_IOMMUFD(locked, call);
  const auto* const test = ST_TRY(locked.find<iommu::TestDevice>(cmd.id));
  locked.detach(*test->device, cmd.pasid_detach.pasid);
  return {};
}

Outcome check_pasid(Call& call, const iommu_test_cmd& cmd) {
  ST_LOCK_IOMMUFD(locked, call);
  const auto* const test = ST_TRY(locked.find<iommu::TestDevice>(cmd.id));
  const iommu::Attachment* const attached =
      iommu::Locked::find_attachment(*test->device, cmd.pasid_check.pasid);
  const iommu::Hwpt* const now = attached == nullptr ? nullptr : attached->hwpt.get();
  const iommu::Hwpt* wanted = nullptr;
  if (cmd.pasid_check.hwpt_id != 0) {
    iommu::Object* const object = ST_TRY(locked.find(cmd.pasid_check.hwpt_id));
    if (!iommu::TypeOf<iommu::Hwpt>::is(object->type)) return refuse(EINVAL);
    wanted = reinterpret_cast<const iommu::Hwpt*>(object);
  }
  if (now != wanted) return refuse(EINVAL);
  return {};
}

}  // namespace

Outcome newer_test_command(Call& call, iommu_test_cmd& cmd) {
  switch (cmd.op) {
    case IOMMU_TEST_OP_DEV_CHECK_CACHE:
      return check_device_cache(call, cmd);
    case IOMMU_TEST_OP_TRIGGER_VEVENT:
      return trigger_event(call, cmd);
    case IOMMU_TEST_OP_PASID_ATTACH:
      return attach_pasid(call, cmd);
    case IOMMU_TEST_OP_PASID_REPLACE:
      return replace_pasid(call, cmd);
    case IOMMU_TEST_OP_PASID_DETACH:
      return detach_pasid(call, cmd);
    case IOMMU_TEST_OP_PASID_CHECK_HWPT:
      return check_pasid(call, cmd);
    default:
      return refuse(EOPNOTSUPP);
  }
}

}  // namespace stagetwo::abi_iommufd
