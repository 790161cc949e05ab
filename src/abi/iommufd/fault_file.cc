// SPDX-License-Identifier: Apache-2.0
// The descriptor of a fault queue: page requests are read from it, answers written to it. kernel
// file: drivers/iommu/iommufd/fault.c.
#include "abi/iommufd/queue_file.h"

namespace stagetwo::abi_iommufd {
namespace {

class FaultFile final : public QueueFile<iommu::FaultQueue> {
 public:
  static constexpr std::string_view kName = "iommufd-pgfault";
  static constexpr bool kReadsAlone = false;
  using QueueFile::QueueFile;
  Result<long> read_bytes(u64 to, u64 size) override;
  Result<long> write_bytes(u64 from, u64 size) override;

 private:
  Result<u64> read_group(u64 to, u64 room);
};

// Tells all requests of the next group, or none for want of room; how many bytes.
Result<u64> FaultFile::read_group(u64 to, u64 room) {
  iommu::Locked locked(iommufd_->context());
  if (!locked.ok()) return refuse(EIO);
  auto* const queue = ST_TRY(locked.find<iommu::FaultQueue>(id_));
  iommu::PageRequest* const first = queue->delivered;
  if (first == nullptr || first->in_group * sizeof(iommu_hwpt_pgfault) > room) return u64{0};
  locked.mark_read(*queue);
  u64 done = 0;
  for (const iommu::PageRequest* one = first; one != nullptr; one = one->rest) {
    const iommu_hwpt_pgfault fault{.flags = one->flags,
                                   .dev_id = one->device_id,
                                   .pasid = one->pasid,
                                   .grpid = one->group,
                                   .perm = one->rights,
                                   .__reserved = 0,
                                   .addr = one->address,
                                   .length = 0,
                                   .cookie = first->cookie};
    const auto told = copy_out_bytes(to + done, &fault, sizeof(fault));
    if (!told) {
      locked.mark_unread(*queue, first);
      return refuse(told.error());
    }
    done += sizeof(fault);
  }
  return done;
}

Result<long> FaultFile::read_bytes(u64 to, u64 size) {
  if (size % sizeof(iommu_hwpt_pgfault) != 0) return refuse(ESPIPE);
  u64 done = 0;
  while (done < size) {
    const auto group = read_group(to + done, size - done);
    if (!group && done == 0) return refuse(group.error());
    if (!group || *group == 0) break;
    done += *group;
  }
  // A group that waits for a reader without room for it.
  if (done == 0) {
    iommu::Locked locked(iommufd_->context());
    if (!locked.ok()) return refuse(EIO);
    const auto* const queue = ST_TRY(locked.find<iommu::FaultQueue>(id_));
    if (queue->delivered.get() != nullptr) return refuse(EINVAL);
  }
  return static_cast<long>(done);
}

Result<long> FaultFile::write_bytes(u64 from, u64 size) {
  if (size % sizeof(iommu_hwpt_page_response) != 0) return refuse(ESPIPE);
  u64 done = 0;
  for (; done < size; done += sizeof(iommu_hwpt_page_response)) {
    iommu_hwpt_page_response response{};
    Result<void> answered = copy_in_bytes(&response, from + done, sizeof(response));
    if (answered && response.code > IOMMUFD_PAGE_RESP_INVALID) answered = refuse(EINVAL);
    if (answered) {
      iommu::Locked locked(iommufd_->context());
      if (!locked.ok()) return refuse(EIO);
      auto* const queue = ST_TRY(locked.find<iommu::FaultQueue>(id_));
      answered = locked.answer(*queue, response.cookie, response.code == IOMMUFD_PAGE_RESP_SUCCESS);
    }
    if (!answered && done == 0) return refuse(answered.error());
    if (!answered) break;
  }
  return static_cast<long>(done);
}

}  // namespace

Outcome fault_queue_alloc(Call& call, iommu_fault_alloc& cmd) {
  if (cmd.flags != 0) return refuse(EOPNOTSUPP);
  {
    ST_LOCK_IOMMUFD(locked, call);
    auto* const queue = ST_TRY(locked.make_fault_queue());
    queue->object.users = 1;
    locked.hold_back(queue->object);
    cmd.out_fault_id = queue->object.id;
  }
  return hand_out<FaultFile>(call, cmd, cmd.out_fault_id, &cmd.out_fault_fd);
}

Box<host::Description> receive_fault_file(std::string_view kind, int fd,
                                          host::DescriptorSpec* spec) {
  return receive_queue<FaultFile>(kind, fd, spec);
}

}  // namespace stagetwo::abi_iommufd
