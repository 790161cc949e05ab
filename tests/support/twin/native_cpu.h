// SPDX-License-Identifier: Apache-2.0
#pragma once

// Runs a few instructions on the processor this test runs on, in this process, from a given
// register state to a register state, and turns the signals they cause back into exceptions.
//
// The code has its own stack and data areas (cpu_image.h). It must not make system calls.
// One thread of one process may use it; the arena stands at a fixed address. While it is open its
// signal handlers stand before all others: open it last.

#include <span>
#include <string>

#include "tests/support/sanitizers.h"
#include "tests/support/twin/cpu_image.h"

namespace stagetwo::twin {

// A sanitizer's shadow memory lies where random sequences may write: nothing runs beside it.
inline constexpr bool kShadowMemory = test::kAddressSanitizer || test::kThreadSanitizer;

class NativeCpu {
 public:
  NativeCpu() = default;
  ~NativeCpu();
  NativeCpu(const NativeCpu&) = delete;
  NativeCpu& operator=(const NativeCpu&) = delete;

  // False: this machine does not allow it; `reason` says why.
  [[nodiscard]] bool open(std::string* reason);

  // The areas, for filling and comparing.
  [[nodiscard]] std::span<u8> code();
  [[nodiscard]] std::span<u8> scratch();
  [[nodiscard]] std::span<u8> stack();

  // Pre: start.rip lies in code() and every path from there reaches kExit or faults; TF is clear.
  [[nodiscard]] CpuEnd run(const CpuImage& start);

 private:
  bool open_ = false;
  u8* code_ = nullptr;
  void* signal_stack_ = nullptr;
};

}  // namespace stagetwo::twin
