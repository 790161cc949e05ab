// SPDX-License-Identifier: Apache-2.0
#pragma once

// A message of one byte with descriptors (SCM_RIGHTS), or room for one.

#include <sys/socket.h>

#include <cstddef>
#include <cstring>

namespace stagetwo::test {

template <size_t kCount>
class FdMessage {
 public:
  FdMessage() {
    header_.msg_iov = &data_;
    header_.msg_iovlen = 1;
    header_.msg_control = control_;
    header_.msg_controllen = sizeof(control_);
  }
  explicit FdMessage(const int (&fds)[kCount]) : FdMessage() {
    cmsghdr* const head = CMSG_FIRSTHDR(&header_);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(fds));
    std::memcpy(CMSG_DATA(head), &fds, sizeof(fds));
  }
  FdMessage(const FdMessage&) = delete;
  FdMessage& operator=(const FdMessage&) = delete;

  [[nodiscard]] const msghdr* header() const { return &header_; }
  [[nodiscard]] bool send(int socket) const { return ::sendmsg(socket, &header_, 0) == 1; }
  [[nodiscard]] bool receive(int socket, int (&fds)[kCount]) {
    if (::recvmsg(socket, &header_, 0) != 1) return false;
    std::memcpy(&fds, CMSG_DATA(CMSG_FIRSTHDR(&header_)), sizeof(fds));
    return true;
  }

 private:
  char byte_ = 'x';
  iovec data_{&byte_, 1};
  alignas(cmsghdr) char control_[CMSG_SPACE(kCount * sizeof(int))] = {};
  msghdr header_{};
};

}  // namespace stagetwo::test
