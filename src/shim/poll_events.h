// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a call that waits for a queue of ours is not asked for. The queue's descriptor is a pipe
// (host/ready_file.h), of which the kernel says POLLWRNORM wherever it says POLLOUT; the file it
// stands for says POLLOUT alone (kernel file: drivers/iommu/iommufd/fault.c,
// iommufd_fault_fops_poll). So POLLWRNORM of one is not handed on, and it is never there.
//
// Of poll, ppoll and epoll_ctl by their functions. Differs: a call made by its number, io_uring,
// and more than kMost descriptors at once are told of it. Context: the client's thread; errno is
// the call's. Failure: what cannot be read is the kernel's to refuse.

#include <poll.h>
#include <sys/epoll.h>

namespace stagetwo::shim {

class KernelPolls {
 public:
  static constexpr nfds_t kMost = 64;

  KernelPolls(pollfd* clients, nfds_t count);
  ~KernelPolls();  // the client hears what came
  KernelPolls(const KernelPolls&) = delete;
  KernelPolls& operator=(const KernelPolls&) = delete;
  operator pollfd*() { return changed_ ? own_ : clients_; }

 private:
  pollfd* clients_;
  nfds_t count_;
  bool changed_ = false;
  pollfd own_[kMost];  // NOLINT: written where it is used
};

class KernelEvent {
 public:
  KernelEvent(int fd, epoll_event* clients);
  operator epoll_event*() { return changed_ ? &own_ : clients_; }

 private:
  epoll_event* clients_;
  bool changed_ = false;
  epoll_event own_;
};

}  // namespace stagetwo::shim
