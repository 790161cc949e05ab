// SPDX-License-Identifier: Apache-2.0
#include "shim/poll_events.h"

#include <stddef.h>

#include "base/sys.h"
#include "host/access.h"
#include "host/descriptor.h"

namespace stagetwo::shim {
namespace {

bool is_queue(int fd) {
  struct ::stat behind{};
  return sys::fstat(fd, &behind) && S_ISFIFO(behind.st_mode) && host::could_be_ours(behind) &&
         host::find(fd, behind);
}

Hva address(const void* at) {
  return Hva(reinterpret_cast<u64>(at));
}

}  // namespace

KernelPolls::KernelPolls(pollfd* clients, nfds_t count) : clients_(clients), count_(count) {
  const size_t bytes = count * sizeof(pollfd);
  if (!host::ever_published() || count > kMost ||
      host::copy_from(own_, address(clients), bytes) != bytes) {
    return;
  }
  for (pollfd* one = own_; one != own_ + count; ++one) {
    if ((one->events & POLLWRNORM) == 0 || !is_queue(one->fd)) continue;
    one->events = static_cast<short>(one->events & ~POLLWRNORM);
    changed_ = true;
  }
}

KernelPolls::~KernelPolls() {
  for (nfds_t i = 0; changed_ && i < count_; ++i) {
    static_cast<void>(host::write_struct(address(&clients_[i].revents), own_[i].revents));
  }
}

KernelEvent::KernelEvent(int fd, epoll_event* clients) : clients_(clients) {
  if (!host::ever_published() || !host::read_struct(address(clients), &own_)) return;
  if ((own_.events & EPOLLWRNORM) == 0 || !is_queue(fd)) return;
  own_.events &= ~static_cast<u32>(EPOLLWRNORM);
  changed_ = true;
}

}  // namespace stagetwo::shim
