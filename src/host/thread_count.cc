// SPDX-License-Identifier: Apache-2.0
#include "host/thread_count.h"

#include "sync/futex.h"

namespace stagetwo::host {
namespace {

using Count = sync::Atomic<u32>;
static_assert(sizeof(Count) == sizeof(u32));

constinit Count* counted = nullptr;

[[noreturn]] void wait_for_the_end() {
  Count never(0);
  for (;;) sync::futex_wait(never, 0);
}

}  // namespace

void set_thread_count(u32* count) {
  counted = reinterpret_cast<Count*>(count);
}

void leave_thread_count() {
  if (counted != nullptr) counted->fetch_sub(1);
}

void rejoin_thread_count() {
  if (counted == nullptr) return;
  u32 clients = counted->load();
  do {
    if (clients == 0) wait_for_the_end();
  } while (!counted->compare_exchange_weak(clients, clients + 1));
}

}  // namespace stagetwo::host
