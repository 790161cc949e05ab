// SPDX-License-Identifier: Apache-2.0
#pragma once

// Who may hold a change up, each played by a thread that does nothing else: a fault in its last
// part, which shares mmu_lock; a vCPU in a block; a change of the client's addresses that has
// begun.

#include <chrono>
#include <thread>

#include "host/change.h"
#include "stage2/address_space.h"
#include "sync/futex.h"
#include "tests/support/tdp_world.h"

namespace stagetwo::test {

namespace detail {
// Begins `change`, and says whether it is still under way after a while.
class Attempt {
 public:
  template <typename F>
  explicit Attempt(F&& change)
      : thread_([this, &change] {
          change();
          done_.store(true);
        }) {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    waited_ = !done_.load();
  }
  void join() { thread_.join(); }
  [[nodiscard]] bool waited() const { return waited_; }

 private:
  sync::Atomic<bool> done_{false};
  bool waited_ = false;
  std::thread thread_;
};

// Runs `hold(held, release)` in a thread: it sets `held` and stays until `release`.
template <typename H, typename F>
bool waits_for(H&& hold, F&& change) {
  sync::Atomic<bool> held{false};
  sync::Atomic<bool> release{false};
  std::thread holder([&] { hold(held, release); });
  while (!held.load()) sync::yield_thread();
  Attempt attempt(change);
  release.store(true);
  holder.join();
  attempt.join();
  return attempt.waited();
}
inline void stay(sync::Atomic<bool>& held, const sync::Atomic<bool>& release) {
  held.store(true);
  while (!release.load()) sync::yield_thread();
}
}  // namespace detail

// Is `change` held up by a fault that has passed the gate and installs?
template <typename F>
bool waits_for_installers(stage2::GuestMemory& memory, F&& change) {
  return detail::waits_for(
      [&](auto& held, auto& release) {
        const sync::BigReaderGuard installing(TdpTestAccess::mmu_lock(memory.tdp()));
        detail::stay(held, release);
      },
      change);
}

// By a vCPU that runs, and may use what it translated before?
template <typename F>
bool waits_for_vcpus(stage2::GuestMemory& memory, F&& change) {
  sync::AckLine line;
  memory.lines().add(line);
  const bool waited = detail::waits_for(
      [&](auto& held, auto& release) {
        static_cast<void>(line.enter());
        detail::stay(held, release);
        line.leave();
      },
      change);
  memory.lines().remove(line);
  return waited;
}

// By a change of the client's pages that is under way?
template <typename F>
bool waits_for_changes(u64 address, u64 bytes, F&& change) {
  return detail::waits_for(
      [&](auto& held, auto& release) {
        host::change(address, bytes, host::EventKind::kUnmap, [&] { detail::stay(held, release); });
      },
      change);
}

}  // namespace stagetwo::test
