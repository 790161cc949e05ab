// SPDX-License-Identifier: Apache-2.0
#pragma once

// Runs a test sequence in the interpreter, inside the guest of guest_world.h.

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "stage2/address_space.h"
#include "tests/support/twin/guest_world.h"
#include "vcpu/vcpu.h"

namespace stagetwo::twin {

class InterpretedCpu {
 public:
  InterpretedCpu() = default;
  ~InterpretedCpu();
  InterpretedCpu(const InterpretedCpu&) = delete;
  InterpretedCpu& operator=(const InterpretedCpu&) = delete;

  // False: `reason` says what failed. The guest's CPUID is this machine's unless given.
  [[nodiscard]] bool open(std::string* reason, std::span<const vcpu::CpuidEntry> cpuid = {});

  [[nodiscard]] GuestWorld& world() { return *world_; }
  [[nodiscard]] vcpu::Vcpu& vcpu() { return *vcpu_; }

  // False: the guest left in a way no sequence should; `what` says which.
  [[nodiscard]] bool run(const CpuImage& start, unsigned cpl, CpuEnd* end, std::string* what);

  // The same, one instruction at a time; `after` sees the registers after each.
  using Observer = std::function<void(const CpuImage&)>;
  [[nodiscard]] bool step(const CpuImage& start, unsigned cpl, const Observer& after, CpuEnd* end,
                          std::string* what);

 private:
  void enter(const CpuImage& start, unsigned cpl);
  void read(CpuImage* image);
  [[nodiscard]] bool finish(const vcpu::Exit& exit, CpuEnd* end, std::string* what);
  bool reset();

  u8* memory_ = nullptr;
  std::optional<GuestWorld> world_;
  std::optional<Box<stage2::GuestMemory>> guest_memory_;
  vcpu::VmPolicy policy_;
  vcpu::Vcpu* vcpu_ = nullptr;
};

}  // namespace stagetwo::twin
