// SPDX-License-Identifier: Apache-2.0
// x87 and SSE state, as KVM_GET_FPU shows it and as an XSAVE image of the two legacy components.
// Specification: Intel SDM volume 1, "XSAVE area"; FXSAVE in volume 2.
#include "abi/kvm/processor.h"

#include <algorithm>
#include <cstring>

#include "abi/kvm/client.h"
#include "abi/kvm/vm.h"

namespace stagetwo::abi_kvm {
namespace {

constexpr u32 kMxcsrMask = 0xffff;
constexpr u64 kX87AndSse = 3;
// Byte offsets in the image.
constexpr size_t kFcw = 0, kFsw = 2, kFtw = 4, kFop = 6, kFip = 8, kFdp = 16, kMxcsr = 24,
                 kMxcsrMaskAt = 28, kSt = 32, kXmm = 160, kXstateBv = 512, kXcompBv = 520,
                 kReserved = 528, kHeaderEnd = 576;

template <typename T>
void put(u8* image, size_t at, T value) {
  std::memcpy(image + at, &value, sizeof(T));
}
template <typename T>
T take(const u8* image, size_t at) {
  T value;
  std::memcpy(&value, image + at, sizeof(T));
  return value;
}

}  // namespace

Result<long> Processor::get_fpu(u64 arg) {
  const vcpu::CpuState& s = cpu_->state();
  kvm_fpu fpu{};
  std::memcpy(fpu.fpr, s.x87.st, sizeof(fpu.fpr));
  fpu.fcw = s.x87.fcw;
  fpu.fsw = s.x87.fsw;
  fpu.ftwx = s.x87.ftw;
  fpu.last_opcode = s.x87.fop;
  fpu.last_ip = s.x87.fip;
  fpu.last_dp = s.x87.fdp;
  std::memcpy(fpu.xmm, s.xmm, sizeof(fpu.xmm));
  // The kernel's call leaves MXCSR out, in both directions.
  ST_TRY(copy_out(arg, fpu));
  return 0;
}

Result<long> Processor::set_fpu(u64 arg) {
  const auto fpu = ST_TRY(copy_in<kvm_fpu>(arg));
  vcpu::CpuState& s = cpu_->state();
  std::memcpy(s.x87.st, fpu.fpr, sizeof(fpu.fpr));
  s.x87.fcw = fpu.fcw;
  s.x87.fsw = fpu.fsw;
  s.x87.ftw = fpu.ftwx;
  s.x87.fop = fpu.last_opcode;
  s.x87.fip = fpu.last_ip;
  s.x87.fdp = fpu.last_dp;
  std::memcpy(s.xmm, fpu.xmm, sizeof(fpu.xmm));
  return 0;
}

Result<long> Processor::get_xsave(u64 arg) {
  const vcpu::CpuState& s = cpu_->state();
  u8 image[sizeof(kvm_xsave)] = {};
  put(image, kFcw, s.x87.fcw);
  put(image, kFsw, s.x87.fsw);
  put(image, kFtw, s.x87.ftw);
  put(image, kFop, s.x87.fop);
  put(image, kFip, s.x87.fip);
  put(image, kFdp, s.x87.fdp);
  put(image, kMxcsr, s.mxcsr);
  put(image, kMxcsrMaskAt, kMxcsrMask);
  std::memcpy(image + kSt, s.x87.st, sizeof(s.x87.st));
  std::memcpy(image + kXmm, s.xmm, sizeof(s.xmm));
  put(image, kXstateBv, kX87AndSse);
  ST_TRY(copy_out_bytes(arg, image, sizeof(image)));
  return 0;
}

Result<long> Processor::set_xsave(u64 arg) {
  u8 image[sizeof(kvm_xsave)];
  ST_TRY(copy_in_bytes(image, arg, sizeof(image)));
  const u64 present = take<u64>(image, kXstateBv);
  if ((present & ~kX87AndSse) != 0 || take<u64>(image, kXcompBv) != 0) return refuse(EINVAL);
  if (std::any_of(image + kReserved, image + kHeaderEnd, [](u8 byte) { return byte != 0; }))
    return refuse(EINVAL);
  const u32 mxcsr = take<u32>(image, kMxcsr);
  if (present != 0 && (mxcsr & ~kMxcsrMask) != 0) return refuse(EINVAL);

  // A component that is absent from the image goes to its initial state.
  vcpu::CpuState& s = cpu_->state();
  s.x87 = vcpu::X87{};
  if ((present & 1) != 0) {
    s.x87.fcw = take<u16>(image, kFcw);
    s.x87.fsw = take<u16>(image, kFsw);
    s.x87.ftw = take<u8>(image, kFtw);
    s.x87.fop = take<u16>(image, kFop);
    s.x87.fip = take<u64>(image, kFip);
    s.x87.fdp = take<u64>(image, kFdp);
    std::memcpy(s.x87.st, image + kSt, sizeof(s.x87.st));
  }
  s.mxcsr = (present & 2) != 0 ? mxcsr : 0x1f80;
  if ((present & 2) != 0) {
    std::memcpy(s.xmm, image + kXmm, sizeof(s.xmm));
  } else {
    for (auto& reg : s.xmm) reg = {};
  }
  return 0;
}

// No XSAVE in the guest's processor: there is no XCR.
Result<long> Processor::get_xcrs(u64 arg) {
  const kvm_xcrs none{};
  ST_TRY(copy_out(arg, none));
  return 0;
}

Result<long> Processor::set_xcrs(u64 arg) {
  ST_TRY(copy_in<kvm_xcrs>(arg));
  return refuse(EINVAL);
}

}  // namespace stagetwo::abi_kvm
