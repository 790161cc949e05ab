// SPDX-License-Identifier: Apache-2.0
// The front of /dev/iommu: which request is it, how long is its struct. kernel file:
// drivers/iommu/iommufd/main.c (iommufd_fops_ioctl).
#include <fcntl.h>

#include <utility>

#include "abi/iommufd/calls.h"
#include "abi/iommufd/iommufd.h"
#include "abi/iommufd/queue_file.h"
#include "abi/iommufd/test_commands.h"

namespace stagetwo::abi_iommufd {
namespace {

constexpr std::string_view kKind = "iommufd";
constexpr size_t kLargest = 80;  // of all structs

sync::Atomic<bool> test_commands{false};
sync::Atomic<bool> newer_requests{false};

struct Row {
  u32 request;
  u32 size;     // of the struct
  u32 minimum;  // what the first kernel that had it knew
  Outcome (*execute)(Call& call, void* cmd);
};

template <typename T, Outcome (*fn)(Call&, T&)>
Outcome execute(Call& call, void* cmd) {
  static_assert(sizeof(T) <= kLargest);
  return fn(call, *static_cast<T*>(cmd));
}

#define ST_ROW(request, type, last, fn)                                              \
  Row {                                                                              \
    request, sizeof(type), offsetof(type, last) + sizeof(std::declval<type>().last), \
        execute<type, fn>                                                            \
  }
// In the order of their numbers, from IOMMUFD_CMD_BASE on.
constexpr Row kRows[] = {
    ST_ROW(IOMMU_DESTROY, iommu_destroy, id, destroy),
    ST_ROW(IOMMU_IOAS_ALLOC, iommu_ioas_alloc, out_ioas_id, ioas_alloc),
    ST_ROW(IOMMU_IOAS_ALLOW_IOVAS, iommu_ioas_allow_iovas, allowed_iovas, allow_iovas),
    ST_ROW(IOMMU_IOAS_COPY, iommu_ioas_copy, src_iova, ioas_copy),
    ST_ROW(IOMMU_IOAS_IOVA_RANGES, iommu_ioas_iova_ranges, out_iova_alignment, iova_ranges),
    ST_ROW(IOMMU_IOAS_MAP, iommu_ioas_map, iova, ioas_map),
    ST_ROW(IOMMU_IOAS_UNMAP, iommu_ioas_unmap, length, ioas_unmap),
    ST_ROW(IOMMU_OPTION, iommu_option, val64, option),
    ST_ROW(IOMMU_VFIO_IOAS, iommu_vfio_ioas, __reserved, vfio_ioas),
    ST_ROW(IOMMU_HWPT_ALLOC, iommu_hwpt_alloc, __reserved, hwpt_alloc),
    ST_ROW(IOMMU_GET_HW_INFO, iommu_hw_info, __reserved, get_hw_info),
    ST_ROW(IOMMU_HWPT_SET_DIRTY_TRACKING, iommu_hwpt_set_dirty_tracking, __reserved,
           set_dirty_tracking),
    ST_ROW(IOMMU_HWPT_GET_DIRTY_BITMAP, iommu_hwpt_get_dirty_bitmap, data, get_dirty_bitmap),
    ST_ROW(IOMMU_HWPT_INVALIDATE, iommu_hwpt_invalidate, __reserved, hwpt_invalidate),
    ST_ROW(IOMMU_FAULT_QUEUE_ALLOC, iommu_fault_alloc, out_fault_fd, fault_queue_alloc),
    ST_ROW(IOMMU_IOAS_MAP_FILE, iommu_ioas_map_file, iova, ioas_map_file),
    ST_ROW(IOMMU_VIOMMU_ALLOC, iommu_viommu_alloc, out_viommu_id, viommu_alloc),
    ST_ROW(IOMMU_VDEVICE_ALLOC, iommu_vdevice_alloc, virt_id, vdevice_alloc),
    ST_ROW(IOMMU_IOAS_CHANGE_PROCESS, iommu_ioas_change_process, __reserved, change_process),
    ST_ROW(IOMMU_VEVENTQ_ALLOC, iommu_veventq_alloc, out_veventq_fd, veventq_alloc),
    ST_ROW(IOMMU_HW_QUEUE_ALLOC, iommu_hw_queue_alloc, length, hw_queue_alloc),
};
constexpr Row kTestRow = ST_ROW(IOMMU_TEST_CMD, iommu_test_cmd, last, test_command);
#undef ST_ROW
static_assert(std::size(kRows) == IOMMUFD_CMD_HW_QUEUE_ALLOC - IOMMUFD_CMD_BASE + 1);

// The last number of the level's own table.
u32 last_request() {
  return has_newer_requests() ? IOMMUFD_CMD_HW_QUEUE_ALLOC : IOMMUFD_CMD_FAULT_QUEUE_ALLOC;
}

// Which request a number in the table's range is; none: an empty place.
Result<const Row*> row_of(u32 request) {
  const u32 index = _IOC_NR(request) - IOMMUFD_CMD_BASE;
  const Row* row = index <= last_request() - IOMMUFD_CMD_BASE ? &kRows[index] : nullptr;
  if (index == _IOC_NR(IOMMU_TEST_CMD) - IOMMUFD_CMD_BASE) row = &kTestRow;
  if (row == nullptr || row->request != request) return refuse(ENOTTY);
  return row;
}

// Does the table reach to this number? What is beyond it is VFIO's.
bool in_table(u32 request) {
  const u32 number = _IOC_NR(request);
  const u32 last = has_test_commands() ? u32{_IOC_NR(IOMMU_TEST_CMD)} : last_request();
  return number >= IOMMUFD_CMD_BASE && number <= last;
}

Result<long> serve(Iommufd& iommufd, u32 request, u64 arg) {
  if (!in_table(request)) return vfio_request(iommufd, request, arg);
  Call call{iommufd, arg, 0};
  ST_TRY(copy_in_bytes(&call.user_size, arg, sizeof(u32), "abi_iommufd.size"));
  const Row* const row = ST_TRY(row_of(request));
  if (call.user_size < row->minimum) return refuse(EINVAL);
  alignas(8) u8 cmd[kLargest] = {};
  ST_TRY(copy_in_struct(cmd, row->size, arg, call.user_size, E2BIG));
  ST_TRY(row->execute(call, cmd));
  return 0;
}

class DeviceFile final : public host::Description, public iommu::IommufdFile {
 public:
  explicit DeviceFile(sync::Ref<Iommufd> iommufd) : iommufd_(std::move(iommufd)) {}
  long ioctl(int, unsigned long request, unsigned long arg) override {
    const auto done = serve(*iommufd_, static_cast<u32>(request), arg);
    return done ? *done : -static_cast<long>(to_int(done.error()));
  }
  Result<void> check_mmap(const host::MapRequest& request) override {
    if (!has_newer_requests()) return refuse(ENODEV);
    iommu::Locked locked(iommufd_->context());
    if (!locked.ok()) return refuse(EIO);
    return iommu::ViommuPages::check(locked, request);
  }
  void mapped(Hva at, u64) override { iommufd_->viommu_pages().note(at); }
  void last_close() override { iommufd_->closed(); }
  [[nodiscard]] sync::Ref<Iommufd> iommufd() const override { return iommufd_.clone(); }

 private:
  sync::Ref<Iommufd> iommufd_;
};

host::DescriptorSpec device_spec(int flags) {
  return host::shared_device(host::kMiscMajor, kMinor, flags);
}

Result<Box<DeviceFile>> make_file(int fd) {
  auto context = ST_TRY(iommu::Context::attach(fd));
  auto iommufd = ST_TRY(sync::Ref<Iommufd>::make("abi_iommufd.iommufd", std::move(context)));
  return make_box<DeviceFile>("abi_iommufd.device", std::move(iommufd));
}

}  // namespace

Result<void> copy_in_struct(void* to, size_t known, u64 from, size_t size, int too_long) {
  ST_TRY(copy_in_bytes(to, from, std::min(known, size)));
  for (size_t at = known; at < size;) {
    u8 rest[64];
    const size_t some = std::min(sizeof(rest), size - at);
    ST_TRY(copy_in_bytes(rest, from + at, some));
    for (size_t i = 0; i < some; ++i)
      if (rest[i] != 0) return refuse(too_long);
    at += some;
  }
  return {};
}

bool has_newer_requests() {
  return newer_requests.load(sync::kRelaxed);
}

bool has_test_commands() {
  return test_commands.load(sync::kRelaxed);
}

void set_newer_requests(bool on) {
  newer_requests.store(on, sync::kRelaxed);
}

void set_test_commands(bool on) {
  test_commands.store(on, sync::kRelaxed);
}

Result<int> open_device(int flags) {
  auto backing = ST_TRY(iommu::Context::make_file(kKind.data()));
  auto file = ST_TRY(make_file(backing.fd()));
  ST_TRY(may_fail("abi_iommufd.publish", ENFILE));
  return host::publish(std::move(file), std::move(backing), device_spec(flags));
}

Box<host::Description> attach(std::string_view kind, int fd, host::DescriptorSpec* spec) {
  if (auto file = receive_fault_file(kind, fd, spec)) return file;
  if (auto file = receive_event_file(kind, fd, spec)) return file;
  if (kind != kKind) return {};
  *spec = device_spec(O_RDWR | O_CLOEXEC);
  auto file = make_file(fd);
  if (!file) return {};
  return std::move(*file);
}

}  // namespace stagetwo::abi_iommufd
