// SPDX-License-Identifier: Apache-2.0
#pragma once

// Runs a test sequence under the machine's own /dev/kvm, inside the guest of guest_world.h, as a
// whole or one instruction at a time. Raw system calls: nothing between it and the kernel.

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/twin/guest_world.h"
#include "vcpu/vcpu.h"

struct kvm_run;

namespace stagetwo::twin {

class KvmCpu {
 public:
  KvmCpu() = default;
  ~KvmCpu();
  KvmCpu(const KvmCpu&) = delete;
  KvmCpu& operator=(const KvmCpu&) = delete;

  // False: no usable device; `reason` says why.
  [[nodiscard]] bool open(std::string* reason);

  [[nodiscard]] GuestWorld& world() { return *world_; }
  // What KVM_GET_SUPPORTED_CPUID offers and this guest has.
  [[nodiscard]] const std::vector<vcpu::CpuidEntry>& cpuid() const { return cpuid_; }

  // False: the guest left in a way no sequence should; `what` says which.
  [[nodiscard]] bool run(const CpuImage& start, unsigned cpl, CpuEnd* end, std::string* what);

  // The same with KVM_GUESTDBG_SINGLESTEP; `after` sees the registers after each instruction.
  using Observer = std::function<void(const CpuImage&)>;
  [[nodiscard]] bool step(const CpuImage& start, unsigned cpl, const Observer& after, CpuEnd* end,
                          std::string* what);

 private:
  [[nodiscard]] bool set_up_vcpu(std::string* reason);
  [[nodiscard]] bool reset();
  [[nodiscard]] bool touch_everything();
  [[nodiscard]] bool enter(const CpuImage& start, unsigned cpl);
  [[nodiscard]] bool read(CpuImage* image);
  [[nodiscard]] bool finish(CpuEnd* end, std::string* what);
  [[nodiscard]] bool debug(bool single_step);

  int device_ = -1, vm_ = -1, vcpu_ = -1;
  u8* memory_ = nullptr;
  std::optional<GuestWorld> world_;
  std::vector<vcpu::CpuidEntry> cpuid_;
  kvm_run* run_ = nullptr;
  std::size_t run_bytes_ = 0;
};

}  // namespace stagetwo::twin
