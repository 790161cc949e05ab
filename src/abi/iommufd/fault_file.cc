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
  Result<bool> read_one(u64 to);

  sync::Ref<Iommufd> iommufd_;
  u32 id_;
};

// False: there is none.
Result<bool> FaultFile::read_one(u64 to) {
  iommu::Locked locked(iommufd_->context());
  if (!locked.ok()) return refuse(EIO);
  auto* const queue = ST_TRY(locked.find<iommu::FaultQueue>(id_));
  if (queue->delivered.get() == nullptr) return false;
  iommu::Locked::mark_read(*queue);
  iommu::PageRequest* request = queue->read;
  while (request->next.get() != nullptr) request = request->next;
  const iommu_hwpt_pgfault fault{.flags = request->flags,
                                 .dev_id = request->device_id,
                                 .pasid = request->pasid,
                                 .grpid = request->group,
                                 .perm = request->rights,
                                 .__reserved = 0,
                                 .addr = request->address,
                                 .length = 0,
                                 .cookie = request->cookie};
  const auto told = copy_out_bytes(to, &fault, sizeof(fault));
  if (told) return true;
  iommu::Locked::mark_unread(*queue, request);
  return refuse(told.error());
}

Result<long> FaultFile::read_bytes(u64 to, u64 size) {
  if (size % sizeof(iommu_hwpt_pgfault) != 0) return refuse(ESPIPE);
  u64 done = 0;
  while (done < size) {
    const auto one = read_one(to + done);
    if (!one && done == 0) return refuse(one.error());
    if (!one || !*one) break;
    done += sizeof(iommu_hwpt_pgfault);
  }
  // A request that waits for a reader without room.
  if (size == 0) {
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
      answered = locked.answer(*queue, response.cookie);
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
