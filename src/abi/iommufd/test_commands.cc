// SPDX-License-Identifier: Apache-2.0
// The test command: devices, and looking into page tables. kernel file:
// drivers/iommu/iommufd/selftest.c.
#include "abi/iommufd/test_commands.h"

#include "host/faultin.h"
#include "host/mapping_level.h"
#include "host/pin.h"

namespace stagetwo::abi_iommufd {
namespace {

constexpr u64 kMockPage = kPageSize / 2;
constexpr u64 kLeastBatch = 12;  // a frame and a count
constexpr u64 kMostDirtyBits = (u64{16} << 20) * 8;

Outcome add_reserved(Call& call, const iommu_test_cmd& cmd) {
  u64 last = 0;
  if (cmd.add_reserved.length == 0) return refuse(EINVAL);
  if (__builtin_add_overflow(cmd.add_reserved.start, cmd.add_reserved.length - 1, &last)) {
    return refuse(EOVERFLOW);
  }
  ST_LOCK_IOMMUFD(locked, call);
  auto* const ioas = ST_TRY(locked.find<iommu::Ioas>(cmd.id));
  return locked.reserve(*ioas, cmd.add_reserved.start, last, 0);
}

// A device of the test's own, attached. Everything undone on failure.
Result<iommu::TestDevice*> make_test_device(iommu::Locked& locked, u32 flags, u32* pt_id) {
  constexpr u32 kKnown =
      MOCK_FLAGS_DEVICE_NO_DIRTY | MOCK_FLAGS_DEVICE_HUGE_IOVA | MOCK_FLAGS_DEVICE_PASID;
  auto* const test =
      ST_TRY(locked.add<iommu::TestDevice>(iommu::ObjectType::kTestDevice, "iommu.test_device"));
  Result<iommu::Device*> device = refuse(EINVAL);
  if ((flags & ~kKnown) == 0) {
    device = locked.make_device((flags & MOCK_FLAGS_DEVICE_NO_DIRTY) != 0,
                                (flags & MOCK_FLAGS_DEVICE_HUGE_IOVA) != 0,
                                (flags & MOCK_FLAGS_DEVICE_PASID) != 0 ? MOCK_PASID_WIDTH : 0);
  }
  if (!device) {
    locked.remove(test);
    return refuse(device.error());
  }
  (*device)->object.users = 1;  // the test device
  (*device)->side.possible = true;
  (*device)->side.refusing_pasid = IOMMU_TEST_PASID_RESERVED;
  for (auto& word : (*device)->side.cache_words) word = IOMMU_TEST_DEV_CACHE_DEFAULT;
  test->device = *device;
  if (const auto attached = locked.attach(**device, pt_id); !attached) {
    locked.remove(*device);
    locked.remove(test);
    return refuse(attached.error());
  }
  return test;
}

Outcome mock_domain(Call& call, iommu_test_cmd& cmd) {
  const bool has_flags = cmd.op == IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS;
  const u32 flags = has_flags ? cmd.mock_domain_flags.dev_flags : 0;
  u32 pt_id = cmd.id;
  {
    ST_LOCK_IOMMUFD(locked, call);
    auto* const test = ST_TRY(make_test_device(locked, flags, &pt_id));
    locked.hold_back(test->object);
    cmd.mock_domain_flags.out_stdev_id = test->object.id;
    cmd.mock_domain_flags.out_idev_id = test->device->object.id;
    cmd.mock_domain_flags.out_hwpt_id = pt_id;
  }
  return finish(call, cmd.mock_domain_flags.out_stdev_id, call.respond(cmd));
}

Outcome mock_domain_replace(Call& call, iommu_test_cmd& cmd) {
  {
    ST_LOCK_IOMMUFD(locked, call);
    const auto* const test = ST_TRY(locked.find<iommu::TestDevice>(cmd.id));
    u32 pt_id = cmd.mock_domain_replace.pt_id;
    ST_TRY(locked.replace(*test->device, &pt_id));
    cmd.mock_domain_replace.pt_id = pt_id;
  }
  return call.respond(cmd);
}

// One of a test device's. Failure: ENOENT; EINVAL, another unit's.
Result<iommu::Hwpt*> find_table(iommu::Locked& locked, u32 id, iommu::ObjectType type) {
  auto* const hwpt = ST_TRY(locked.find<iommu::Hwpt>(id));
  if (hwpt->object.type != type) return refuse(ENOENT);
  const iommu::Hwpt* const parent = hwpt->parent;
  const iommu::Domain& domain = parent == nullptr ? hwpt->domain : parent->domain;
  if (domain.format != iommu::FormatKind::kMock) return refuse(EINVAL);
  return hwpt;
}
Result<iommu::Hwpt*> find_paging(iommu::Locked& locked, u32 id) {
  return find_table(locked, id, iommu::ObjectType::kHwptPaging);
}

// Every IOVA leads to the very frame the caller has at the address beside it.
Outcome check_map(Call& call, const iommu_test_cmd& cmd) {
  u64 end = 0;
  const auto& c = cmd.check_map;
  if ((c.iova | c.length | c.uptr) % kMockPage != 0 ||
      __builtin_add_overflow(c.uptr, c.length, &end)) {
    return refuse(EINVAL);
  }
  {
    ST_LOCK_IOMMUFD(locked, call);
    ST_TRY(find_paging(locked, cmd.id));
  }
  for (u64 done = 0; done < c.length; done += kMockPage) {
    const Hva at(c.uptr + done);
    ST_TRY(host::faultin(page_floor(at), Access::kRead));
    ST_LOCK_IOMMUFD(locked, call);
    const auto* const hwpt = ST_TRY(find_paging(locked, cmd.id));
    const auto found = iommu::translate(locked.arena(), hwpt->domain, c.iova + done);
    const auto frame = locked.frame_at(page_floor(at));
    if (!found || !frame || found->address != *frame * kPageSize + page_offset(at)) {
      return refuse(EINVAL);
    }
  }
  return {};
}

// Each small page is pinned exactly so often.
Outcome check_refs(const iommu_test_cmd& cmd) {
  u64 end = 0;
  const auto& c = cmd.check_refs;
  if ((c.length | c.uptr) % kPageSize != 0 || __builtin_add_overflow(c.uptr, c.length, &end)) {
    return refuse(EINVAL);
  }
  for (u64 done = 0; done < c.length; done += kPageSize) {
    const Hva page(c.uptr + done);
    ST_TRY(host::faultin(page, Access::kRead));
    if (host::mapping_level(page) != 1) continue;
    const auto frame = host::frame_at(page);
    if ((frame ? host::pins_of(*frame) : 0) != c.refs) return refuse(EIO);
  }
  return {};
}

Outcome check_iotlb(Call& call, const iommu_test_cmd& cmd) {
  ST_LOCK_IOMMUFD(locked, call);
  const auto* const hwpt = ST_TRY(find_table(locked, cmd.id, iommu::ObjectType::kHwptNested));
  if (cmd.check_iotlb.id > MOCK_NESTED_DOMAIN_IOTLB_ID_MAX ||
      hwpt->cache_words[cmd.check_iotlb.id] != cmd.check_iotlb.iotlb) {
    return refuse(EINVAL);
  }
  return {};
}

// What a device would have written, as a bitmap.
Outcome dirty(Call& call, iommu_test_cmd& cmd) {
  const auto& c = cmd.dirty;
  if (c.page_size == 0 || c.length == 0 || c.iova % c.page_size != 0 ||
      c.length % c.page_size != 0 || c.uptr == 0) {
    return refuse(EINVAL);
  }
  const u64 bits = c.length / c.page_size;
  if (bits > kMostDirtyBits) return refuse(EOVERFLOW);
  {
    ST_LOCK_IOMMUFD(locked, call);
    const auto* const hwpt = ST_TRY(find_paging(locked, cmd.id));
    if (!hwpt->domain.tracking) return refuse(EINVAL);
  }
  Vec<u8> bitmap("abi_iommufd.dirty");
  ST_TRY(bitmap.resize((bits + 7) / 8));
  ST_TRY(copy_in_bytes(bitmap.data(), c.uptr, bitmap.size()));
  u64 hits = 0;
  {
    ST_LOCK_IOMMUFD(locked, call);
    auto* const hwpt = ST_TRY(find_paging(locked, cmd.id));
    for (u64 i = 0; i < bits; ++i) {
      if ((bitmap[i / 8] >> i % 8 & 1) == 0) continue;
      if (iommu::set_dirty(locked.arena(), hwpt->domain, c.iova + i * c.page_size)) ++hits;
    }
  }
  cmd.dirty.out_nr_dirty = hits;
  return call.respond(cmd);
}

Outcome trigger_fault(Call& call, const iommu_test_cmd& cmd) {
  ST_LOCK_IOMMUFD(locked, call);
  const auto& c = cmd.trigger_iopf;
  iommu::Device& device = *ST_TRY(locked.find<iommu::Device>(c.dev_id));
  if (device.vtd) return refuse(EINVAL);  // no test device
  locked.report(device, c.pasid, c.grpid, c.perm, c.addr);
  return {};
}

Outcome set_memory_limit(const iommu_test_cmd& cmd) {
  if (cmd.memory_limit.limit < kLeastBatch) return refuse(EINVAL);
  iommu::Context::set_batch_limit(cmd.memory_limit.limit);
  return {};
}

}  // namespace

Outcome test_command(Call& call, iommu_test_cmd& cmd) {
  switch (cmd.op) {
    case IOMMU_TEST_OP_ADD_RESERVED:
      return add_reserved(call, cmd);
    case IOMMU_TEST_OP_MOCK_DOMAIN:
    case IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS:
      return mock_domain(call, cmd);
    case IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE:
      return mock_domain_replace(call, cmd);
    case IOMMU_TEST_OP_MD_CHECK_MAP:
      return check_map(call, cmd);
    case IOMMU_TEST_OP_MD_CHECK_REFS:
      return check_refs(cmd);
    case IOMMU_TEST_OP_MD_CHECK_IOTLB:
      return check_iotlb(call, cmd);
    case IOMMU_TEST_OP_CREATE_ACCESS:
      return create_access(call, cmd);
    case IOMMU_TEST_OP_ACCESS_REPLACE_IOAS:
      return replace_access_ioas(cmd);
    case IOMMU_TEST_OP_ACCESS_PAGES:
      return access_pages(call, cmd);
    case IOMMU_TEST_OP_ACCESS_RW:
      return access_rw(call, cmd);
    case IOMMU_TEST_OP_DESTROY_ACCESS_PAGES:
      return destroy_access_pages(cmd);
    case IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT:
      return set_memory_limit(cmd);
    case IOMMU_TEST_OP_DIRTY:
      return dirty(call, cmd);
    case IOMMU_TEST_OP_TRIGGER_IOPF:
      return trigger_fault(call, cmd);
    default:
      return has_newer_requests() ? newer_test_command(call, cmd) : refuse(EOPNOTSUPP);
  }
}

}  // namespace stagetwo::abi_iommufd
