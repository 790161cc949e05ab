// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the descriptors of page requests and of events have in common: how they are made, how a
// process that is sent one finds the iommufd, and what their end does. Not for other rooms.
//
// Analogue: struct iommufd_eventq (kernel file: drivers/iommu/iommufd/eventq.c).

#include <string_view>
#include <utility>

#include "abi/iommufd/calls.h"
#include "host/descriptor.h"
#include "iommu/event_queue.h"

namespace stagetwo::abi_iommufd {

// The name of a queue's descriptor says whose queue it is: NAME:id:device:inode:process, the last
// three of the iommufd and of the queue's maker.
struct QueueName {
  u32 id = 0;
  u64 device = 0, inode = 0;
  u32 maker = 0;
};
[[nodiscard]] bool parse_queue_name(std::string_view kind, std::string_view name, QueueName* out);
// Empty: neither this process nor the maker has it.
[[nodiscard]] sync::Ref<Iommufd> find_iommufd_of(const QueueName& name);

[[nodiscard]] Result<host::Backing> make_queue_backing(Call& call, std::string_view name, u32 id);
void close_untold(int fd);  // a descriptor that its client was never told of
// Does the kernel tell that it is held? (host::is_held_anywhere)
[[nodiscard]] bool is_shown(int fd);

inline bool has_waiting(const iommu::FaultQueue& queue) {
  return queue.delivered.get() != nullptr;
}
inline bool has_waiting(const iommu::EventQueue& queue) {
  return iommu::first_event(queue).any;
}
inline void destroy_queue(iommu::Locked& locked, iommu::FaultQueue* queue) {
  locked.destroy_fault_queue(queue);
}
inline void destroy_queue(iommu::Locked& locked, iommu::EventQueue* queue) {
  iommu::destroy_event_queue(locked, queue);
}

template <typename Q>
class QueueFile : public host::Description {
 public:
  using Queue = Q;
  QueueFile(sync::Ref<Iommufd> iommufd, u32 id) : iommufd_(std::move(iommufd)), id_(id) {}
  ~QueueFile() override {
    iommu::Locked locked(iommufd_->context());
    locked.queue_files().let_go(end_.device, end_.inode);
  }
  // This process's end of the pipe behind `fd`. Failure: EMFILE, ENFILE, ENOMEM, EIO.
  Result<void> hold(int fd) {
    iommu::Locked locked(iommufd_->context());
    if (!locked.ok()) return refuse(EIO);
    return locked.queue_files().hold(fd, &end_);
  }
  // The client's descriptor is to be.
  Result<void> open(int fd) {
    ST_TRY(hold(fd));
    iommu::Locked locked(iommufd_->context());
    if (!locked.ok()) return refuse(EIO);
    auto* const queue = ST_TRY(locked.template find_made<Queue>(id_));
    queue->file = end_;
    queue->file.open = true;
    if (has_waiting(*queue)) locked.queue_files().rise(queue->file, false);
    return {};
  }
  long ioctl(int, unsigned long, unsigned long) override { return -ENOTTY; }
  [[nodiscard]] bool moves_bytes() const override { return true; }
  // In the first process that finds nobody holding it.
  void last_close() override {
    iommu::Locked locked(iommufd_->context());
    if (!locked.ok()) return;
    const auto queue = locked.template find_made<Queue>(id_);
    if (!queue || !(*queue)->file.open || !(*queue)->file.is(end_)) return;
    (*queue)->file.open = false;
    --(*queue)->object.users;
  }

 protected:
  sync::Ref<Iommufd> iommufd_;
  u32 id_;

 private:
  iommu::QueueFile end_;
};

template <typename File>
host::DescriptorSpec queue_spec() {
  return {.shape = host::FileShape::kAnonInode,
          .home = host::StateHome::kDescription,
          .open_flags = O_RDWR | O_CLOEXEC,
          .wants_last_close = true,
          .reads_alone = File::kReadsAlone};
}

// Failure: EMFILE, ENFILE, ENOMEM.
template <typename File>
Result<int> make_queue_descriptor(Call& call, u32 id) {
  auto backing = ST_TRY(make_queue_backing(call, File::kName, id));
  call.iommufd.ref();
  auto file = ST_TRY(
      make_box<File>("abi_iommufd.queue_file", sync::Ref<Iommufd>::adopt(&call.iommufd), id));
  ST_TRY(file->open(backing.fd()));
  return host::publish(std::move(file), std::move(backing), queue_spec<File>());
}

// Makes the descriptor of a queue that is held back, with a user, and answers. Failure: the queue
// is gone again.
template <typename File, typename Cmd>
Outcome hand_out(Call& call, Cmd& cmd, u32 id, u32* out_fd) {
  const auto fd = make_queue_descriptor<File>(call, id);
  Result<void> told;
  if (fd) {
    *out_fd = static_cast<u32>(*fd);
    told = call.respond(cmd);
    if (!told) close_untold(*fd);
  } else {
    told = refuse(fd.error());
  }
  const bool shown = told && is_shown(*fd);
  ST_LOCK_IOMMUFD(locked, call);
  const auto queue = locked.find_made<typename File::Queue>(id);
  if (queue && told) {
    (*queue)->file.shown = shown;
    locked.told(id);
  } else if (queue) {
    destroy_queue(locked, *queue);
  }
  return told;
}

// The description of a received descriptor; empty: not of this kind, or out of reach.
template <typename File>
Box<host::Description> receive_queue(std::string_view kind, int fd, host::DescriptorSpec* spec) {
  QueueName name;
  if (!parse_queue_name(kind, File::kName, &name)) return {};
  auto iommufd = find_iommufd_of(name);
  if (!iommufd) return {};
  auto file = make_box<File>("abi_iommufd.queue_file", std::move(iommufd), name.id);
  if (!file || !(*file)->hold(fd)) return {};
  *spec = queue_spec<File>();
  return std::move(*file);
}

// ---- fault_file.cc, event_file.cc: the same, of each
[[nodiscard]] Box<host::Description> receive_fault_file(std::string_view kind, int fd,
                                                        host::DescriptorSpec* spec);
[[nodiscard]] Box<host::Description> receive_event_file(std::string_view kind, int fd,
                                                        host::DescriptorSpec* spec);

}  // namespace stagetwo::abi_iommufd
