// SPDX-License-Identifier: Apache-2.0
#pragma once

// Ringing the bell around a system call of the client (host/change.h), in a section: the client's
// handlers wait until the end has been rung. Pre: awake.

#include "base/trace.h"
#include "host/change.h"
#include "host/run_section.h"

namespace stagetwo::shim {

inline u64 number_of(const void* at) {
  return reinterpret_cast<u64>(at);
}

template <typename F>
auto announce(const void* at, u64 size, host::EventKind kind, host::Announced what, F&& system_call,
              u64 kept = host::kWholeRange) {
  host::EngineSection section(host::Touches::kNothing);
  trace::enter_room(trace::Room::shim, 1, number_of(at));
  auto result = host::change(number_of(at), size, kind, what, static_cast<F&&>(system_call), kept);
  section.leave();
  return result;
}
template <typename F>
auto announce(const void* at, u64 size, host::EventKind kind, F&& system_call) {
  return announce(at, size, kind, host::announced_by(kind), static_cast<F&&>(system_call));
}

}  // namespace stagetwo::shim
