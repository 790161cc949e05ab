// SPDX-License-Identifier: Apache-2.0
#pragma once

// A fault in its last part, which shares mmu_lock, played by a thread that shares it.

#include <chrono>
#include <thread>

#include "stage2/address_space.h"
#include "tests/support/tdp_world.h"

namespace stagetwo::test {

// Is `change` held up by a fault that has passed the gate and installs?
template <typename F>
bool waits_for_installers(stage2::GuestMemory& memory, F&& change) {
  sync::Atomic<bool> done{false};
  std::thread changing;
  bool waited = false;
  {
    const sync::BigReaderGuard installing(TdpTestAccess::mmu_lock(memory.tdp()));
    changing = std::thread([&] {
      change();
      done.store(true);
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    waited = !done.load();
  }
  changing.join();
  return waited;
}

}  // namespace stagetwo::test
