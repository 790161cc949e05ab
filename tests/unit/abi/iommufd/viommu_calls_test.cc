// SPDX-License-Identifier: Apache-2.0
// Virtual IOMMUs, their devices, what a guest invalidates by one, and hardware queues.
#include <sys/mman.h>

#include <string>

#include "base/failpoint.h"
#include "tests/unit/abi/iommufd/viommu_client.h"

namespace stagetwo {
namespace {

// ---- refusals of the four requests --------------------------------------------------------------

enum class Which { kViommu, kVdevice, kEvents, kQueue };
struct Refusal {
  const char* name;
  Which which;
  long answer;
  u32 flags, type;
  u32 object, device;  // 0: none; 1: the right one; 2: an object of another kind
  u64 words[2];        // parent; virtual id; depth; IOVA and length
};
constexpr u32 kMine = IOMMU_VIOMMU_TYPE_SELFTEST;
constexpr u32 kEvents = IOMMU_VEVENTQ_TYPE_SELFTEST;
constexpr Refusal kRefusals[] = {
    {"ViommuFlags", Which::kViommu, -EOPNOTSUPP, 1, kMine, 0, 0, {}},
    {"ViommuOfNoType", Which::kViommu, -EOPNOTSUPP, 0, 0, 0, 0, {}},
    {"ViommuOfNoDevice", Which::kViommu, -ENOENT, 0, kMine, 1, 0, {}},
    {"ViommuOfSomethingElse", Which::kViommu, -ENOENT, 0, kMine, 1, 2, {}},
    {"ViommuOfAnotherType", Which::kViommu, -EOPNOTSUPP, 0, 1, 0, 1, {}},
    {"ViommuOnNothing", Which::kViommu, -ENOENT, 0, kMine, 0, 1, {}},
    {"ViommuOnAnIoas", Which::kViommu, -ENOENT, 0, kMine, 2, 1, {}},
    {"VdeviceOfNoViommu", Which::kVdevice, -ENOENT, 0, 0, 0, 1, {5}},
    {"VdeviceOfAnIoas", Which::kVdevice, -ENOENT, 0, 0, 2, 1, {5}},
    {"VdeviceOfNoDevice", Which::kVdevice, -ENOENT, 0, 0, 1, 0, {5}},
    {"EventsFlags", Which::kEvents, -EOPNOTSUPP, 1, kEvents, 1, 0, {2}},
    {"EventsOfNoType", Which::kEvents, -EOPNOTSUPP, 0, 0, 1, 0, {2}},
    {"EventsWithoutRoom", Which::kEvents, -EINVAL, 0, kEvents, 0, 0, {0}},
    {"EventsOfNoViommu", Which::kEvents, -ENOENT, 0, kEvents, 0, 0, {2}},
    {"EventsOfAnIoas", Which::kEvents, -ENOENT, 0, kEvents, 2, 0, {2}},
    {"QueueFlags", Which::kQueue, -EOPNOTSUPP, 1, kMine, 1, 0, {kAperture, 4096}},
    {"QueueOfNoType", Which::kQueue, -EOPNOTSUPP, 0, 0, 1, 0, {kAperture, 4096}},
    {"QueueWithoutLength", Which::kQueue, -EINVAL, 0, kMine, 1, 0, {kAperture, 0}},
    {"QueueBeyondTheEnd", Which::kQueue, -EOVERFLOW, 0, kMine, 1, 0, {~u64{0}, 4096}},
    {"QueueOfNoViommu", Which::kQueue, -ENOENT, 0, kMine, 0, 0, {kAperture, 4096}},
    {"QueueOfAnotherType", Which::kQueue, -EOPNOTSUPP, 0, 1, 1, 0, {kAperture, 4096}},
    {"QueueOfWhatIsNotMapped", Which::kQueue, -ENOENT, 0, kMine, 1, 0, {kAperture, 4096}},
    {"QueueTooLong", Which::kQueue, -ERANGE, 0, kMine, 1, 0, {4095, ~u64{0} - 4095}},
    {"QueueOfTooManyPages", Which::kQueue, -ENOMEM, 0, kMine, 1, 0, {0, u64{1} << 50}},
};

class ViommuRefusal : public ViommuClient, public testing::WithParamInterface<Refusal> {
 protected:
  long ask_for(const Refusal& one) {
    const u32 object = one.object == 0 ? 0 : one.object == 1 ? viommu_ : ioas_;
    const u32 device = one.device == 0 ? 0 : one.device == 1 ? mock_.device : ioas_;
    if (one.which == Which::kViommu) {
      iommu_viommu_alloc cmd{};
      cmd.flags = one.flags;
      cmd.type = one.type;
      cmd.dev_id = device;
      cmd.hwpt_id = one.object == 1 ? parent_ : object;
      return call(IOMMU_VIOMMU_ALLOC, &cmd);
    }
    if (one.which == Which::kVdevice) {
      u32 id = 0;
      return vdevice_alloc(object, device, one.words[0], &id);
    }
    if (one.which == Which::kEvents) {
      iommu_veventq_alloc cmd{};
      cmd.flags = one.flags;
      cmd.type = one.type;
      cmd.viommu_id = object;
      cmd.veventq_depth = static_cast<u32>(one.words[0]);
      return call(IOMMU_VEVENTQ_ALLOC, &cmd);
    }
    iommu_hw_queue_alloc cmd{};
    cmd.flags = one.flags;
    cmd.type = one.type;
    cmd.viommu_id = object;
    cmd.nesting_parent_iova = one.words[0];
    cmd.length = one.words[1];
    return call(IOMMU_HW_QUEUE_ALLOC, &cmd);
  }
};

TEST_P(ViommuRefusal, IsTheKernelsAndChangesNothing) {
  const u32 next = ioas_alloc();
  ASSERT_EQ(destroy(next), 0);
  EXPECT_EQ(ask_for(GetParam()), GetParam().answer);
  EXPECT_EQ(ioas_alloc(), next) << "no object is left";
}
INSTANTIATE_TEST_SUITE_P(All, ViommuRefusal, testing::ValuesIn(kRefusals),
                         [](const auto& one) { return std::string(one.param.name); });

// ---- the virtual IOMMU --------------------------------------------------------------------------

class Viommu : public ViommuClient {
 protected:
  long queue_alloc(u32 place, u64 iova, u64 length, u32* id) {
    iommu_hw_queue_alloc cmd{};
    cmd.type = IOMMU_HW_QUEUE_TYPE_SELFTEST;
    cmd.viommu_id = viommu_;
    cmd.index = place;
    cmd.nesting_parent_iova = iova;
    cmd.length = length;
    const long answer = call(IOMMU_HW_QUEUE_ALLOC, &cmd);
    *id = cmd.out_hw_queue_id;
    return answer;
  }
  struct Invalidated {
    long answer;
    u32 done;
    bool operator==(const Invalidated&) const = default;
  };
  Invalidated invalidate(const void* entries, u32 number,
                         u32 type = IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST,
                         u32 length = sizeof(iommu_viommu_invalidate_selftest)) {
    iommu_hwpt_invalidate cmd{};
    cmd.hwpt_id = viommu_;
    cmd.data_uptr = reinterpret_cast<u64>(entries);
    cmd.data_type = type;
    cmd.entry_len = length;
    cmd.entry_num = number;
    const long answer = call(IOMMU_HWPT_INVALIDATE, &cmd);
    return {answer, cmd.entry_num};
  }
  long check_word(u32 which, u32 word) {
    auto cmd = test_cmd(IOMMU_TEST_OP_DEV_CHECK_CACHE, mock_.device);
    cmd.check_dev_cache = {which, word};
    return call(IOMMU_TEST_CMD, &cmd);
  }
  // Which words of the device's cache are still as they were.
  std::string fresh_words() {
    std::string out;
    for (u32 i = 0; i < MOCK_DEV_CACHE_NUM; ++i) {
      const bool fresh = check_word(i, IOMMU_TEST_DEV_CACHE_DEFAULT) == 0;
      EXPECT_EQ(check_word(i, 0), fresh ? -EINVAL : 0);
      out += fresh ? 'f' : '0';
    }
    return out;
  }
};
constexpr u32 kFault = IOMMU_HWPT_FAULT_ID_VALID;

TEST_F(Viommu, StandsOnANestingParent) {
  u32 other = 0, id = 0;
  ASSERT_EQ(hwpt_alloc(mock_.device, ioas_, 0, &other), 0);
  EXPECT_EQ(viommu_alloc(mock_.device, other, &id), -EINVAL);
  EXPECT_EQ(destroy(other), 0);
  EXPECT_EQ(viommu_alloc(mock_.device, nested_, &id), -ENOENT);
  EXPECT_EQ(destroy(parent_), -EBUSY);
  EXPECT_EQ(destroy(viommu_), -EBUSY) << "a page table is on it";
  EXPECT_EQ(destroy(nested_), 0);
  EXPECT_EQ(destroy(viommu_), 0);
  EXPECT_EQ(destroy(parent_), 0);
}

TEST_F(Viommu, TheNestedTableOfOneKnowsItsFlags) {
  u32 id = 0;
  EXPECT_EQ(nested_alloc(mock_.device, viommu_, kFault | 1u << 31, &id), -EOPNOTSUPP);
  EXPECT_EQ(nested_alloc(mock_.device, viommu_, IOMMU_HWPT_ALLOC_NEST_PARENT, &id), -EOPNOTSUPP);
  EXPECT_EQ(nested_alloc(mock_.device, viommu_, kFault, &id, 9999), -ENOENT);
  EXPECT_EQ(hwpt_alloc(mock_.device, viommu_, 0, &id), -EOPNOTSUPP) << "without data";
  EXPECT_EQ(nested_alloc(999, viommu_, 0, &id), -ENOENT);
  EXPECT_EQ(nested_alloc(mock_.device, viommu_, IOMMU_HWPT_ALLOC_PASID, &id), 0);
  EXPECT_EQ(destroy(id), 0);
}

TEST_F(Viommu, ADeviceNeedsANumberToUseItsTables) {
  iommu_fault_alloc faults{};
  ASSERT_EQ(call(IOMMU_FAULT_QUEUE_ALLOC, &faults), 0);
  const int fault_fd = static_cast<int>(faults.out_fault_fd);
  u32 table = 0, vdevice = 0;
  ASSERT_EQ(nested_alloc(mock_.device, viommu_, kFault, &table, faults.out_fault_id), 0);
  EXPECT_EQ(replace(mock_.test_device, table), -ENOENT);
  ASSERT_EQ(vdevice_alloc(viommu_, mock_.device, 0x99, &vdevice), 0);
  ASSERT_EQ(replace(mock_.test_device, table), 0);
  EXPECT_EQ(destroy(table), -EBUSY);
  iommu_hwpt_pgfault fault{};
  ASSERT_EQ(trigger_page_request(mock_.device, 1), 0);
  EXPECT_EQ(read_fd(fault_fd, &fault, sizeof(fault)), static_cast<long>(sizeof(fault)));
  ASSERT_EQ(replace(mock_.test_device, ioas_), 0);
  EXPECT_EQ(destroy(table), 0);
  close_fd(fault_fd);
  EXPECT_EQ(destroy(faults.out_fault_id), 0);
}

TEST_F(Viommu, ANumberIsOneDevicesAndADeviceHasOne) {
  const MockDevice second = mock_device(ioas_);
  u32 first_id = 0, id = 0, other_viommu = 0;
  ASSERT_EQ(vdevice_alloc(viommu_, mock_.device, 5, &first_id), 0);
  EXPECT_EQ(vdevice_alloc(viommu_, mock_.device, 6, &id), -EEXIST) << "it has one";
  EXPECT_EQ(vdevice_alloc(viommu_, second.device, 5, &id), -EEXIST) << "the number is taken";
  ASSERT_EQ(viommu_alloc(mock_.device, parent_, &other_viommu), 0);
  EXPECT_EQ(vdevice_alloc(other_viommu, mock_.device, 5, &id), -EEXIST) << "also there";
  ASSERT_EQ(vdevice_alloc(other_viommu, second.device, 5, &id), 0) << "numbers are a viommu's own";
  EXPECT_EQ(destroy(other_viommu), -EBUSY);
  EXPECT_EQ(destroy(id), 0);
  EXPECT_EQ(destroy(other_viommu), 0);
  EXPECT_EQ(destroy(first_id), 0);
  EXPECT_EQ(vdevice_alloc(viommu_, second.device, 5, &id), 0);
}

TEST_F(Viommu, AVdeviceGoesWithItsDeviceAndLeavesItsNumberToNobody) {
  u32 vdevice = 0;
  ASSERT_EQ(vdevice_alloc(viommu_, mock_.device, 0x99, &vdevice), 0);
  EXPECT_EQ(destroy(mock_.test_device), 0);
  EXPECT_EQ(destroy(vdevice), -ENOENT);
  for (int i = 0; i < 8; ++i) EXPECT_NE(ioas_alloc(), vdevice);
  EXPECT_EQ(destroy(nested_), 0);
  EXPECT_EQ(destroy(viommu_), 0) << "it is no user any more";
}

TEST_F(Viommu, TheDriversDataComesBack) {
  iommu_viommu_selftest data{
      .in_data = 0xbeef, .out_data = 0, .out_mmap_offset = 0, .out_mmap_length = 0};
  u32 id = 0;
  EXPECT_EQ(viommu_alloc(mock_.device, parent_, &id, kMine, &data, 7), -EINVAL);
  EXPECT_EQ(viommu_alloc(mock_.device, parent_, &id, kMine, &data, 25), -EINVAL);
  EXPECT_EQ(viommu_alloc(mock_.device, parent_, &id, kMine, nullptr, sizeof(data)), -EFAULT);
  ASSERT_EQ(viommu_alloc(mock_.device, parent_, &id, kMine, &data, 8), 0);
  EXPECT_EQ(data.out_data, 0xbeefu);
  EXPECT_EQ(data.out_mmap_length, 0u) << "no room for it";
  ASSERT_EQ(viommu_alloc(mock_.device, parent_, &id, kMine, &data, sizeof(data)), 0);
  EXPECT_EQ(data.out_mmap_length, 2 * kPageSize);
}

TEST_F(Viommu, ItsPageIsMappedWholeAndHoldsIt) {
  iommu_viommu_selftest data{
      .in_data = 0xbeef, .out_data = 0, .out_mmap_offset = 0, .out_mmap_length = 0};
  u32 id = 0;
  ASSERT_EQ(viommu_alloc(mock_.device, parent_, &id, kMine, &data, sizeof(data)), 0);
  const auto check = [&](u64 length, u64 offset, int flags = MAP_SHARED, int prot = PROT_READ) {
    const auto done =
        host::find(fd_)->check_mmap({length, prot, flags, static_cast<off_t>(offset)});
    return done ? 0 : to_int(done.error());
  };
  const u64 at = data.out_mmap_offset, length = data.out_mmap_length;
  EXPECT_EQ(check(length, at + kPageSize), ENXIO);
  EXPECT_EQ(check(length, at + 2 * kPageSize), ENXIO);
  EXPECT_EQ(check(length / 2, at), ENXIO);
  EXPECT_EQ(check(length * 2, at), ENXIO);
  EXPECT_EQ(check(length, at, MAP_PRIVATE), EINVAL);
  EXPECT_EQ(check(length, at, MAP_SHARED, PROT_READ | PROT_EXEC), EPERM);
  abi_iommufd::set_newer_requests(false);
  EXPECT_EQ(check(length, at), ENODEV);
  abi_iommufd::set_newer_requests(true);
  EXPECT_EQ(check(length, at), 0);
  void* const map =
      ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, static_cast<off_t>(at));
  ASSERT_NE(map, MAP_FAILED);
  host::find(fd_)->mapped(Hva(reinterpret_cast<u64>(map)), length);
  EXPECT_EQ(*static_cast<u32*>(map), 0xbeefu);
  EXPECT_EQ(destroy(id), -EBUSY);
  ::munmap(map, length);
  EXPECT_EQ(destroy(id), 0);
}

TEST_F(Viommu, AGuestInvalidatesByTheNumbersItKnows) {
  u32 vdevice = 0;
  ASSERT_EQ(vdevice_alloc(viommu_, mock_.device, 0x99, &vdevice), 0);
  EXPECT_EQ(fresh_words(), "ffff");
  using Entry = iommu_viommu_invalidate_selftest;
  Entry entries[2] = {{0, 0x99, 0}, {0, 0x99, 1}};
  EXPECT_EQ(invalidate(entries, 0), (Invalidated{0, 0})) << "the type alone";
  EXPECT_EQ(invalidate(entries, 0, 1), (Invalidated{-EINVAL, 0}));
  EXPECT_EQ(invalidate(entries, 1, 0xdadbeef), (Invalidated{-EINVAL, 0}));
  for (const u32 length : {0u, 1u, 13u}) {
    EXPECT_EQ(invalidate(entries, 1, IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST, length),
              (Invalidated{-EINVAL, 0}));
  }
  EXPECT_EQ(invalidate(nullptr, 1), (Invalidated{-EINVAL, 0}));
  EXPECT_EQ(invalidate(reinterpret_cast<void*>(8), 1), (Invalidated{-EFAULT, 0}));
  const Entry flags[] = {{~0u, 0x99, 0}}, words[] = {{0, 0x99, 4}}, numbers[] = {{0, 9, 0}};
  EXPECT_EQ(invalidate(flags, 1), (Invalidated{-EOPNOTSUPP, 0}));
  EXPECT_EQ(invalidate(words, 1), (Invalidated{-EINVAL, 0}));
  EXPECT_EQ(invalidate(numbers, 1), (Invalidated{-EINVAL, 0}));
  EXPECT_EQ(fresh_words(), "ffff");
  entries[1].flags = ~0u;
  EXPECT_EQ(invalidate(entries, 2), (Invalidated{-EOPNOTSUPP, 1})) << "up to what is wrong";
  EXPECT_EQ(fresh_words(), "0fff");
  const Entry rest[] = {{0, 0x99, 2}, {0, 0x99, 3}};
  EXPECT_EQ(invalidate(rest, 2), (Invalidated{0, 2}));
  EXPECT_EQ(fresh_words(), "0f00");
  const Entry all[] = {{IOMMU_TEST_INVALIDATE_FLAG_ALL, 0x99, 0}};
  EXPECT_EQ(invalidate(all, 1), (Invalidated{0, 1}));
  EXPECT_EQ(fresh_words(), "0000");
  EXPECT_EQ(check_word(MOCK_DEV_CACHE_ID_MAX + 1, 0), -EINVAL);
}

TEST_F(Viommu, AnInvalidationByAnotherObjectIsInvalid) {
  iommu_hwpt_invalidate cmd{};
  cmd.hwpt_id = parent_;
  EXPECT_EQ(call(IOMMU_HWPT_INVALIDATE, &cmd), -EINVAL);
  cmd.hwpt_id = 999;
  EXPECT_EQ(call(IOMMU_HWPT_INVALIDATE, &cmd), -ENOENT);
  abi_iommufd::set_newer_requests(false);
  cmd.hwpt_id = parent_;
  EXPECT_EQ(call(IOMMU_HWPT_INVALIDATE, &cmd), -ENOENT) << "of 6.12";
}

TEST_F(Viommu, AHardwareQueueHoldsWhatItIsIn) {
  test::GuardedPages pages(2);
  const u64 first = kAperture, second = kAperture + kPageSize;
  ASSERT_EQ(map(ioas_, pages.address(), kPageSize, first), 0);
  ASSERT_EQ(map(ioas_, pages.address() + kPageSize, kPageSize, second), 0);
  u32 queues[2] = {}, id = 0;
  EXPECT_EQ(queue_alloc(1, first, kPageSize, &id), -EIO) << "the one before comes first";
  EXPECT_EQ(queue_alloc(IOMMU_TEST_HW_QUEUE_MAX, first, kPageSize, &id), -EINVAL);
  ASSERT_EQ(queue_alloc(0, first, kPageSize, &queues[0]), 0);
  EXPECT_EQ(queue_alloc(0, first, kPageSize, &id), -EEXIST);
  EXPECT_EQ(unmap(ioas_, first, kPageSize), -EBUSY);
  EXPECT_EQ(unmap(ioas_, 0, ~u64{0}), -EBUSY) << "nor with everything";
  EXPECT_EQ(unmap(ioas_, second, kPageSize), static_cast<long>(kPageSize));
  ASSERT_EQ(queue_alloc(1, first + kPageSize / 2, kPageSize / 2, &queues[1]), 0);
  EXPECT_EQ(destroy(queues[0]), -EBUSY) << "another was made after it";
  EXPECT_EQ(destroy(viommu_), -EBUSY);
  EXPECT_EQ(destroy(queues[1]), 0);
  EXPECT_EQ(unmap(ioas_, first, kPageSize), -EBUSY);
  EXPECT_EQ(destroy(queues[0]), 0);
  EXPECT_EQ(unmap(ioas_, first, kPageSize), static_cast<long>(kPageSize));
}

TEST_F(Viommu, EveryRefusedAllocationLeavesNothing) {
  test::GuardedPages pages(1);
  ASSERT_EQ(map(ioas_, pages.address(), kPageSize, kAperture), 0);
  const u64 runs = failpoint::sweep([&] {
    iommu_viommu_selftest data{};
    u32 ids[5] = {};
    bool done = viommu_alloc(mock_.device, parent_, &ids[0], kMine, &data, sizeof(data)) == 0;
    done = done && vdevice_alloc(viommu_, mock_.device, 7, &ids[1]) == 0;
    done = done && queue_alloc(0, kAperture, kPageSize, &ids[2]) == 0;
    iommu_veventq_alloc events{};
    events.viommu_id = viommu_;
    events.type = kEvents;
    events.veventq_depth = 1;
    done = done && call(IOMMU_VEVENTQ_ALLOC, &events) == 0;
    if (done) {
      ids[3] = events.out_veventq_id;
      close_fd(static_cast<int>(events.out_veventq_fd));
    }
    done = done && nested_alloc(mock_.device, viommu_, 0, &ids[4]) == 0;
    failpoint::disarm();
    for (const u32 id : ids) {
      EXPECT_EQ(id == 0 ? 0 : destroy(id), 0);
    }
    return done;
  });
  EXPECT_GT(runs, 15u);
}

}  // namespace
}  // namespace stagetwo
