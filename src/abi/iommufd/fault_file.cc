// SPDX-License-Identifier: Apache-2.0
// The descriptor of a fault queue: page requests are read from it, answers written to it. kernel
// file: drivers/iommu/iommufd/fault.c.
#include <fcntl.h>

#include <utility>

#include "abi/iommufd/calls.h"
#include "base/sys.h"
#include "host/descriptor.h"

namespace stagetwo::abi_iommufd {
namespace {

class FaultFile final : public host::Description {
 public:
  FaultFile(sync::Ref<Iommufd> iommufd, u32 id) : iommufd_(std::move(iommufd)), id_(id) {}
  long ioctl(int, unsigned long, unsigned long) override { return -ENOTTY; }
  [[nodiscard]] bool moves_bytes() const override { return true; }
  Result<long> read_bytes(u64 to, u64 size) override;
  Result<long> write_bytes(u64 from, u64 size) override;
  // In the first process that finds nobody holding it.
  void last_close() override {
    iommu::Locked locked(iommufd_->context());
    if (!locked.ok()) return;
    const auto queue = locked.find<iommu::FaultQueue>(id_);
    if (!queue || !(*queue)->open) return;
    (*queue)->open = false;
    --(*queue)->object.users;
  }

 private:
  Result<u64> read_group(u64 to, u64 room);

  sync::Ref<Iommufd> iommufd_;
  u32 id_;
};

// Tells all requests of the next group, or none for want of room; how many bytes.
Result<u64> FaultFile::read_group(u64 to, u64 room) {
  iommu::Locked locked(iommufd_->context());
  if (!locked.ok()) return refuse(EIO);
  auto* const queue = ST_TRY(locked.find<iommu::FaultQueue>(id_));
  iommu::PageRequest* const first = queue->delivered;
  if (first == nullptr || first->in_group * sizeof(iommu_hwpt_pgfault) > room) return u64{0};
  iommu::Locked::mark_read(*queue);
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
      iommu::Locked::mark_unread(*queue, first);
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

// Makes the descriptor of a queue that is there. Failure: EMFILE, ENFILE, ENOMEM.
Result<int> open_queue(Call& call, u32 id) {
  auto backing = ST_TRY(host::Backing::create("iommufd-pgfault", 0));
  call.iommufd.ref();
  auto file = ST_TRY(
      make_box<FaultFile>("abi_iommufd.fault", sync::Ref<Iommufd>::adopt(&call.iommufd), id));
  return host::publish(std::move(file), std::move(backing),
                       {.shape = host::FileShape::kAnonInode,
                        .home = host::StateHome::kDescription,
                        .open_flags = O_RDWR | O_CLOEXEC,
                        .wants_last_close = true});
}

}  // namespace

Outcome fault_queue_alloc(Call& call, iommu_fault_alloc& cmd) {
  if (cmd.flags != 0) return refuse(EOPNOTSUPP);
  {
    ST_LOCK_IOMMUFD(locked, call);
    auto* const queue = ST_TRY(locked.make_fault_queue());
    queue->open = true;
    queue->object.users = 1;
    cmd.out_fault_id = queue->object.id;
  }
  const auto fd = open_queue(call, cmd.out_fault_id);
  Result<void> told;
  if (fd) {
    cmd.out_fault_fd = static_cast<u32>(*fd);
    told = call.respond(cmd);
    if (told) return {};
    host::CloseWatch watch(*fd);
    static_cast<void>(sys::close(*fd));
    watch.closed();
  } else {
    told = refuse(fd.error());
  }
  ST_LOCK_IOMMUFD(locked, call);
  if (const auto queue = locked.find<iommu::FaultQueue>(cmd.out_fault_id)) {
    locked.destroy_fault_queue(*queue);
  }
  return told;
}

}  // namespace stagetwo::abi_iommufd
