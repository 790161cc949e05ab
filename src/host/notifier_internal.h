// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the two halves of the registry, mmu_notifier.cc and interval_notifier.cc, ask each other.

#include "host/mmu_notifier.h"

namespace stagetwo::host {

enum class IntervalStart : u8 {
  kNone,       // no subscription overlaps: no end is owed
  kEngaged,    // end_intervals() is owed
  kWouldWait,  // of an event that is not blockable; nothing is owed
};

// Rings every subscription that overlaps. Pre: inside a change.
[[nodiscard]] IntervalStart start_intervals(const InvalidateEvent& event);
void end_intervals();
// The address space ends: every subscription is told once, and never again. Pre: no change runs.
void release_intervals();
void intervals_after_fork_child();

// Does this thread stand in a callback of the registry?
[[nodiscard]] bool in_notifier_callback();
// Is the address space of this process over?
[[nodiscard]] bool address_space_released();

// For tests. Is a change under way that a subscription of an interval matched?
[[nodiscard]] bool debug_intervals_changing();
// Runs fn with every lock of the registry held.
void debug_with_intervals_locked(void (*fn)(void*), void* context);
void debug_with_registry_locked(void (*fn)(void*), void* context);
template <typename F>
void debug_with_registry_locked(F&& fn) {
  debug_with_registry_locked([](void* context) { (*static_cast<F*>(context))(); }, &fn);
}

// For as long as it lives the thread stands in a callback.
class CallbackScope {
 public:
  CallbackScope();
  ~CallbackScope();
  CallbackScope(const CallbackScope&) = delete;
  CallbackScope& operator=(const CallbackScope&) = delete;

 private:
  bool outer_;
};

}  // namespace stagetwo::host
