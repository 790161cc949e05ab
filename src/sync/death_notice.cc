// SPDX-License-Identifier: Apache-2.0
#include "sync/death_notice.h"

#include <linux/futex.h>
#include <sys/syscall.h>

#include <cstddef>

namespace stagetwo::sync {

static_assert(sizeof(robust_list_head) == 24);
static_assert(offsetof(robust_list_head, futex_offset) == 8 &&
              offsetof(robust_list_head, list_op_pending) == 16);
static_assert(offsetof(RobustLinks, next) == 8);
static_assert(FUTEX_WAITERS == DeathNotice::kWaiters && FUTEX_OWNER_DIED == DeathNotice::kDied);
static_assert((FUTEX_TID_MASK & DeathNotice::kOwner) == DeathNotice::kOwner);

void DeathNotice::use_own_list() {
  others_ = head_;
  own_.first = &own_;
  own_.word_offset = kWordOffset;
  own_.pending = nullptr;
  const long done = sys::call(SYS_set_robust_list, sys::arg(&own_), sizeof(own_));
  head_ = done == 0 ? &own_ : nullptr;
}

// A handler of the client's may have told the kernel of another one meanwhile.
void DeathNotice::drop_own_list() {
  void* now = nullptr;
  size_t size = 0;
  if (sys::call(SYS_get_robust_list, 0, sys::arg(&now), sys::arg(&size)) != 0 || now != &own_) {
    return;
  }
  sys::call(SYS_set_robust_list, sys::arg(others_), sizeof(own_));
}

// As libc enters a lock of its own: the entry before is the head, whose links begin one word
// earlier.
void DeathNotice::enter(RobustLinks* links) {
  void* const next = head_->first;
  links->next = next;
  links->previous = &head_->first;
  // The lowest bit says of which kind the other lock is.
  auto* const following = reinterpret_cast<void**>(reinterpret_cast<u64>(next) & ~u64{1});
  if (following != &head_->first) following[-1] = &links->next;
  barrier();
  head_->first = &links->next;
  barrier();
  head_->pending = outer_;
  listed_ = true;
}

void DeathNotice::remove(RobustLinks* links) {
  head_->pending = &links->next;
  barrier();
  auto* const next = reinterpret_cast<void**>(reinterpret_cast<u64>(links->next) & ~u64{1});
  auto* const previous = reinterpret_cast<void**>(reinterpret_cast<u64>(links->previous) & ~u64{1});
  if (next != &head_->first) next[-1] = links->previous;
  *previous = links->next;
  barrier();
}

}  // namespace stagetwo::sync
