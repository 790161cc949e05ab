// SPDX-License-Identifier: Apache-2.0
// The requests on page tables and devices. kernel files: drivers/iommu/iommufd/hw_pagetable.c,
// device.c (iommufd_get_hw_info), selftest.c (what the test device answers).
#include "abi/iommufd/calls.h"
#include "abi/iommufd/test_uapi.h"
#include "abi/iommufd/vtd_calls.h"
#include "iommu/viommu.h"

namespace stagetwo::abi_iommufd {
namespace {

constexpr u32 kMostEntries = 1u << 19;

// A payload of the device's own: never longer than it knows.
Result<void> copy_in_payload(void* to, size_t known, size_t least, u64 from, size_t size) {
  if (size < least || size > known) return refuse(EINVAL);
  return copy_in_struct(to, known, from, size, EINVAL);
}

Result<iommu::Hwpt*> alloc_paging(iommu::Locked& locked, iommu::Ioas& ioas, iommu::Device& device,
                                  const iommu_hwpt_alloc& cmd) {
  constexpr u32 kKnown = IOMMU_HWPT_ALLOC_NEST_PARENT | IOMMU_HWPT_ALLOC_DIRTY_TRACKING;
  constexpr u32 kNewer = IOMMU_HWPT_FAULT_ID_VALID | IOMMU_HWPT_ALLOC_PASID;
  const u32 known = has_newer_requests() ? kKnown | kNewer : kKnown;
  if ((cmd.flags & ~known) != 0) return refuse(EOPNOTSUPP);
  const bool dirty = (cmd.flags & IOMMU_HWPT_ALLOC_DIRTY_TRACKING) != 0;
  if (dirty && device.no_dirty) return refuse(EOPNOTSUPP);
  const bool nest_parent = (cmd.flags & IOMMU_HWPT_ALLOC_NEST_PARENT) != 0;
  if (nest_parent && (cmd.flags & IOMMU_HWPT_FAULT_ID_VALID) != 0) return refuse(EOPNOTSUPP);
  if (cmd.data_len != 0) return refuse(EOPNOTSUPP);
  return locked.make_hwpt(ioas, device,
                          {.nest_parent = nest_parent,
                           .dirty = dirty,
                           .pasid = (cmd.flags & IOMMU_HWPT_ALLOC_PASID) != 0});
}

// On a parent, or on a virtual IOMMU (whose parent is one).
Result<iommu::Hwpt*> alloc_nested(iommu::Locked& locked, const iommu::Device& device,
                                  iommu::Hwpt* parent, iommu::Viommu* viommu,
                                  const iommu_hwpt_alloc& cmd, Result<u32> word) {
  constexpr u32 kNewer = IOMMU_HWPT_FAULT_ID_VALID | IOMMU_HWPT_ALLOC_PASID;
  const u32 known = has_newer_requests() ? kNewer : u32{IOMMU_HWPT_FAULT_ID_VALID};
  if ((cmd.flags & ~known) != 0 || cmd.data_len == 0) return refuse(EOPNOTSUPP);
  if (viommu == nullptr) {
    if (parent->automatic || !parent->nest_parent) return refuse(EINVAL);
    ST_TRY(check_driver(device, *parent));
  }
  if (cmd.data_type != IOMMU_HWPT_DATA_SELFTEST || device.vtd) return refuse(EOPNOTSUPP);
  const u32 first = ST_TRY(std::move(word));
  const bool pasid = (cmd.flags & IOMMU_HWPT_ALLOC_PASID) != 0;
  iommu::Hwpt* const hwpt = viommu != nullptr
                                ? ST_TRY(iommu::make_nested_on(locked, *viommu, pasid))
                                : ST_TRY(locked.make_nested(*parent, {.pasid = pasid}));
  std::fill(std::begin(hwpt->cache_words), std::end(hwpt->cache_words), first);
  return hwpt;
}

Result<void> alloc_locked(Call& call, iommu_hwpt_alloc& cmd, Result<u32> word) {
  ST_LOCK_IOMMUFD(locked, call);
  auto* const device = ST_TRY(locked.find<iommu::Device>(cmd.dev_id));
  const auto object = locked.find(cmd.pt_id);
  if (!object) return refuse(EINVAL);
  iommu::Hwpt* hwpt = nullptr;
  if ((*object)->type == iommu::ObjectType::kIoas) {
    hwpt = ST_TRY(alloc_paging(locked, *ST_TRY(locked.find<iommu::Ioas>(cmd.pt_id)), *device, cmd));
  } else if ((*object)->type == iommu::ObjectType::kHwptPaging) {
    auto* const parent = ST_TRY(locked.find<iommu::Hwpt>(cmd.pt_id));
    hwpt = ST_TRY(alloc_nested(locked, *device, parent, nullptr, cmd, std::move(word)));
  } else if ((*object)->type == iommu::ObjectType::kViommu && device->side.possible) {
    auto* const viommu = ST_TRY(locked.find<iommu::Viommu>(cmd.pt_id));
    hwpt = ST_TRY(alloc_nested(locked, *device, nullptr, viommu, cmd, std::move(word)));
  } else {
    return refuse(EINVAL);
  }
  locked.hold_back(hwpt->object);
  cmd.out_hwpt_id = hwpt->object.id;
  return take_fault_queue(locked, *hwpt, cmd);
}

}  // namespace

Result<void> check_driver(const iommu::Device& device, const iommu::Hwpt& parent) {
  const bool of_test = parent.domain.format == iommu::FormatKind::kMock;
  return of_test == device.vtd ? refuse(EINVAL) : Result<void>();
}

Result<void> take_fault_queue(iommu::Locked& locked, iommu::Hwpt& hwpt,
                              const iommu_hwpt_alloc& cmd) {
  if ((cmd.flags & IOMMU_HWPT_FAULT_ID_VALID) == 0) return {};
  const auto fault = locked.find<iommu::FaultQueue>(cmd.fault_id);
  if (!fault) {
    locked.destroy_hwpt(&hwpt);
    return refuse(ENOENT);
  }
  hwpt.fault = *fault;
  ++(*fault)->object.users;
  return {};
}

Outcome hwpt_alloc(Call& call, iommu_hwpt_alloc& cmd) {
  if (cmd.__reserved != 0) return refuse(EOPNOTSUPP);
  if ((cmd.data_type == IOMMU_HWPT_DATA_NONE) != (cmd.data_len == 0)) return refuse(EINVAL);
  // Read before the lock; whether it counts is found out inside.
  iommu_hwpt_selftest data{};
  const auto read = copy_in_payload(&data, sizeof(data), sizeof(data), cmd.data_uptr, cmd.data_len);
  Result<u32> word = data.iotlb;
  if (!read) word = refuse(read.error());
  if (cmd.data_type == IOMMU_HWPT_DATA_VTD_S1) {
    ST_TRY(alloc_guest_level(call, cmd));
  } else {
    ST_TRY(alloc_locked(call, cmd, std::move(word)));
  }
  return finish(call, cmd.out_hwpt_id, call.respond(cmd));
}

Outcome get_hw_info(Call& call, iommu_hw_info& cmd) {
  const bool asks = (cmd.flags & IOMMU_HW_INFO_FLAG_INPUT_TYPE) != 0;
  // Of 6.12 the suite asks for it, and the kernel refuses it: docs/decisions/0050.
  const bool may_ask = has_newer_requests() || has_test_commands();
  if ((cmd.flags & ~(may_ask ? u32{IOMMU_HW_INFO_FLAG_INPUT_TYPE} : 0)) != 0 ||
      cmd.__reserved[0] != 0 || cmd.__reserved[1] != 0 || cmd.__reserved[2] != 0) {
    return refuse(EOPNOTSUPP);
  }
  union {
    iommu_test_hw_info test;
    iommu_hw_info_vtd vtd;
  } info{.test = {0, IOMMU_HW_INFO_SELFTEST_REGVAL}};
  u32 has = IOMMU_HW_INFO_TYPE_SELFTEST, bytes = sizeof(info.test);
  {
    ST_LOCK_IOMMUFD(locked, call);
    const auto* const device = ST_TRY(locked.find<iommu::Device>(cmd.dev_id));
    cmd.out_capabilities = device->no_dirty ? 0 : IOMMU_HW_CAP_DIRTY_TRACKING;
    cmd.out_max_pasid_log2 = device->max_pasid_lg2;
    if (device->vtd) {
      info.vtd = vtd_info(*device);
      has = IOMMU_HW_INFO_TYPE_INTEL_VTD;
      bytes = sizeof(info.vtd);
    }
  }
  const u32 type = asks ? cmd.in_data_type : u32{IOMMU_HW_INFO_TYPE_DEFAULT};
  if (type != IOMMU_HW_INFO_TYPE_DEFAULT && type != has) return refuse(EOPNOTSUPP);
  cmd.out_data_type = has;
  const u32 known = std::min<u32>(cmd.data_len, bytes);
  ST_TRY(copy_out_bytes(cmd.data_uptr, &info, known));
  constexpr u8 kZeros[64] = {};
  for (u32 at = known; at < cmd.data_len;) {
    const u32 some = std::min<u32>(cmd.data_len - at, sizeof(kZeros));
    ST_TRY(copy_out_bytes(cmd.data_uptr + at, kZeros, some));
    at += some;
  }
  cmd.data_len = bytes;
  return call.respond(cmd);
}

namespace {

// The page table of an id that has an IOAS.
Result<iommu::Hwpt*> find_paging(iommu::Locked& locked, u32 id) {
  auto* const hwpt = ST_TRY(locked.find<iommu::Hwpt>(id));
  if (hwpt->object.type != iommu::ObjectType::kHwptPaging) return refuse(ENOENT);
  return hwpt;
}

}  // namespace

Outcome set_dirty_tracking(Call& call, iommu_hwpt_set_dirty_tracking& cmd) {
  if ((cmd.flags & ~u32{IOMMU_HWPT_DIRTY_TRACKING_ENABLE}) != 0) return refuse(EOPNOTSUPP);
  ST_LOCK_IOMMUFD(locked, call);
  auto* const hwpt = ST_TRY(find_paging(locked, cmd.hwpt_id));
  return locked.set_dirty_tracking(*hwpt, (cmd.flags & IOMMU_HWPT_DIRTY_TRACKING_ENABLE) != 0);
}

namespace {

Result<void> check_dirty_range(const iommu::Ioas& ioas, const iommu_hwpt_get_dirty_bitmap& cmd) {
  u64 last = 0;
  if (cmd.length == 0) return refuse(EINVAL);
  if (__builtin_add_overflow(cmd.iova, cmd.length - 1, &last)) return refuse(EOVERFLOW);
  if (((cmd.iova | (last + 1)) & (ioas.alignment - 1)) != 0) return refuse(EINVAL);
  if (cmd.page_size == 0) return refuse(EINVAL);
  if (((cmd.iova | (last + 1)) & (cmd.page_size - 1)) != 0) return refuse(EINVAL);
  return {};
}

// Bits of one part of the bitmap, collected under the lock and written without it.
struct DirtyBits {
  static constexpr u64 kBits = 32768;
  static constexpr unsigned kBitsLg2 = 15;
  static_assert(kBits == u64{1} << kBitsLg2);
  // How many bytes of IOVA so many bits are at most.
  static constexpr u64 span(unsigned shift) {
    return shift >= 64 - kBitsLg2 ? ~u64{0} : kBits << shift;
  }
  u64 start;  // IOVA of the first bit
  unsigned shift;
  u8 bytes[kBits / 8];

  static void add(void* self, u64 first, u64 last) {
    auto& bits = *static_cast<DirtyBits*>(self);
    const u64 end = (last - bits.start) >> bits.shift;
    for (u64 bit = (first - bits.start) >> bits.shift; bit <= end && bit < kBits; ++bit) {
      bits.bytes[bit / 8] = static_cast<u8>(bits.bytes[bit / 8] | 1u << bit % 8);
    }
  }
  // Other bits are left alone. What cannot be written is lost, as in the kernel.
  void write(u64 to) const {
    for (u64 i = 0; i < sizeof(bytes); ++i) {
      u8 old = 0;
      if (bytes[i] == 0 || !host::is_user_range(Hva(to + i), 1)) continue;
      static_cast<void>(host::fetch_or(Hva(to + i), bytes[i], &old));
    }
  }
};

}  // namespace

Outcome get_dirty_bitmap(Call& call, iommu_hwpt_get_dirty_bitmap& cmd) {
  if ((cmd.flags & ~u32{IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR}) != 0 || cmd.__reserved != 0) {
    return refuse(EOPNOTSUPP);
  }
  const bool clear = (cmd.flags & IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR) == 0;
  DirtyBits bits{};
  bool goes_on = true;
  for (u64 done = 0; goes_on;) {
    {
      ST_LOCK_IOMMUFD(locked, call);
      auto* const hwpt = ST_TRY(find_paging(locked, cmd.hwpt_id));
      ST_TRY(check_dirty_range(*hwpt->ioas, cmd));
      if (!hwpt->domain.dirty_ops) return refuse(EOPNOTSUPP);
      bits.shift = static_cast<unsigned>(__builtin_ctzll(cmd.page_size));
      bits.start = cmd.iova + done;
      std::fill(std::begin(bits.bytes), std::end(bits.bytes), u8{0});
      const u64 part = std::min<u64>(cmd.length - done, DirtyBits::span(bits.shift));
      goes_on = locked.read_dirty(*hwpt, bits.start, bits.start + (part - 1), clear, DirtyBits::add,
                                  &bits);
      goes_on = goes_on && part < cmd.length - done;
      done += part;
    }
    bits.write(cmd.data + ((bits.start - cmd.iova) >> bits.shift) / 8);
  }
  return {};
}

namespace {

// One entry: which words of the nested cache go. Failure: EFAULT, EINVAL, EOPNOTSUPP.
Result<iommu_hwpt_invalidate_selftest> read_entry(const iommu_hwpt_invalidate& cmd, u32 index) {
  iommu_hwpt_invalidate_selftest entry{};
  ST_TRY(copy_in_payload(&entry, sizeof(entry), sizeof(entry),
                         cmd.data_uptr + u64{index} * cmd.entry_len, cmd.entry_len));
  if ((entry.flags & ~u32{IOMMU_TEST_INVALIDATE_FLAG_ALL}) != 0) return refuse(EOPNOTSUPP);
  if (entry.iotlb_id > MOCK_NESTED_DOMAIN_IOTLB_ID_MAX) return refuse(EINVAL);
  return entry;
}

Result<iommu::Hwpt*> find_nested(iommu::Locked& locked, u32 id) {
  auto* const hwpt = ST_TRY(locked.find<iommu::Hwpt>(id));
  if (hwpt->object.type != iommu::ObjectType::kHwptNested) return refuse(ENOENT);
  return hwpt;
}

// Else a nested page table. Failure: ENOENT; EINVAL (another object), of 6.12 ENOENT.
Result<bool> names_viommu(Call& call, u32 id) {
  ST_LOCK_IOMMUFD(locked, call);
  const auto type = ST_TRY(locked.find(id))->type;
  if (type == iommu::ObjectType::kHwptNested) return false;
  if (type == iommu::ObjectType::kViommu) return true;
  return refuse(has_newer_requests() ? EINVAL : ENOENT);
}

Result<void> invalidate(Call& call, const iommu_hwpt_invalidate& cmd, u32* done) {
  if (cmd.__reserved != 0) return refuse(EOPNOTSUPP);
  const bool bad = cmd.data_uptr == 0 || cmd.entry_len == 0 || cmd.entry_len > kPageSize ||
                   cmd.entry_num > kMostEntries;
  if (cmd.entry_num != 0 && bad) return refuse(EINVAL);
  if (ST_TRY(names_viommu(call, cmd.hwpt_id))) return invalidate_by_viommu(call, cmd, done);
  if (ST_TRY(is_guest_level(call, cmd.hwpt_id))) return invalidate_guest_level(call, cmd, done);
  if (cmd.data_type != IOMMU_HWPT_INVALIDATE_DATA_SELFTEST) return refuse(EINVAL);
  for (; *done < cmd.entry_num; ++*done) {
    const auto entry = ST_TRY(read_entry(cmd, *done));
    ST_LOCK_IOMMUFD(locked, call);
    iommu::Hwpt* const hwpt = ST_TRY(find_nested(locked, cmd.hwpt_id));
    const bool all = (entry.flags & IOMMU_TEST_INVALIDATE_FLAG_ALL) != 0;
    for (u32 i = 0; i < iommu::kNestedWords; ++i) {
      if (all || i == entry.iotlb_id) hwpt->cache_words[i] = 0;
    }
  }
  return {};
}

}  // namespace

Outcome hwpt_invalidate(Call& call, iommu_hwpt_invalidate& cmd) {
  u32 done = 0;
  const auto result = invalidate(call, cmd, &done);
  cmd.entry_num = done;
  if (!call.respond(cmd)) return refuse(EFAULT);
  return result;
}

}  // namespace stagetwo::abi_iommufd
