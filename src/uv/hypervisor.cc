// SPDX-License-Identifier: Apache-2.0
#include "uv/hypervisor.h"

namespace stagetwo::uv {

Result<void> Hypervisor::add(SecureGuest* guest) {
  const sync::MutexGuard guard(lock_);
  for (const SecureGuest* known : guests_) {
    if (known->lpid() == guest->lpid()) return refuse(EEXIST);
  }
  return guests_.push_back(guest);
}

void Hypervisor::remove(SecureGuest* guest) {
  const sync::MutexGuard guard(lock_);
  for (size_t i = 0; i < guests_.size(); ++i) {
    if (guests_[i] == guest) {
      guests_.swap_erase(i);
      return;
    }
  }
}

Status Hypervisor::call(const Message& message, Caller caller) {
  SecureGuest* found = nullptr;
  {
    const sync::MutexGuard guard(lock_);
    for (SecureGuest* guest : guests_) {
      if (guest->lpid() == message.lpid) found = guest;
    }
  }
  return found != nullptr ? found->service(message, caller) : Status::kUnsupported;
}

}  // namespace stagetwo::uv
