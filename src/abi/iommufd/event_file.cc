// SPDX-License-Identifier: Apache-2.0
// The descriptor of an event queue: what a virtual IOMMU tells is read from it. kernel file:
// drivers/iommu/iommufd/eventq.c.
#include "abi/iommufd/queue_file.h"

namespace stagetwo::abi_iommufd {
namespace {

constexpr u32 kDefaultType = 0;
constexpr u32 kDeepest = 1u << 19;

class EventFile final : public QueueFile<iommu::EventQueue> {
 public:
  static constexpr std::string_view kName = "iommufd-viommu-event";
  // The kernel's has no write; it says EINVAL, and poll never that it could be written.
  static constexpr bool kReadsAlone = true;
  using QueueFile::QueueFile;
  Result<long> read_bytes(u64 to, u64 size) override;
};

// One event. What of it could be told counts in *done, also on failure, as in the kernel: a reader
// of a header whose data had no place finds the same event again.
Result<void> tell(const iommu::FirstEvent& event, u64 to, u64* done) {
  const iommufd_vevent_header header{.flags = event.lost ? u32{IOMMU_VEVENTQ_FLAG_LOST_EVENTS} : 0,
                                     .sequence = event.sequence};
  ST_TRY(copy_out_bytes(to + *done, &header, sizeof(header)));
  *done += sizeof(header);
  if (event.bytes == 0) return {};
  ST_TRY(copy_out_bytes(to + *done, event.data, event.bytes));
  *done += event.bytes;
  return {};
}

Result<long> EventFile::read_bytes(u64 to, u64 size) {
  iommu::Locked locked(iommufd_->context());
  if (!locked.ok()) return refuse(EIO);
  auto* const queue = ST_TRY(locked.find<iommu::EventQueue>(id_));
  u64 done = 0;
  for (;;) {
    const iommu::FirstEvent event = iommu::first_event(*queue);
    if (!event.any || sizeof(iommufd_vevent_header) + event.bytes > size - done) break;
    const auto told = tell(event, to, &done);
    if (!told && done == 0) return refuse(told.error());
    if (!told) break;
    iommu::drop_first(locked, *queue);
  }
  return static_cast<long>(done);
}

}  // namespace

Outcome veventq_alloc(Call& call, iommu_veventq_alloc& cmd) {
  if (cmd.flags != 0 || cmd.__reserved != 0 || cmd.type == kDefaultType) return refuse(EOPNOTSUPP);
  if (cmd.veventq_depth == 0 || cmd.veventq_depth > kDeepest) return refuse(EINVAL);
  {
    ST_LOCK_IOMMUFD(locked, call);
    auto* const viommu = ST_TRY(locked.find<iommu::Viommu>(cmd.viommu_id));
    auto* const queue =
        ST_TRY(iommu::make_event_queue(locked, *viommu, cmd.type, cmd.veventq_depth));
    queue->object.users = 1;
    locked.hold_back(queue->object);
    cmd.out_veventq_id = queue->object.id;
  }
  return hand_out<EventFile>(call, cmd, cmd.out_veventq_id, &cmd.out_veventq_fd);
}

Box<host::Description> receive_event_file(std::string_view kind, int fd,
                                          host::DescriptorSpec* spec) {
  return receive_queue<EventFile>(kind, fd, spec);
}

}  // namespace stagetwo::abi_iommufd
