// SPDX-License-Identifier: Apache-2.0
#include "vcpu/fx_image.h"

#include <cstring>

// Offsets of SDM table 10-2:
//
//     0 FCW  2 FSW  4 FTW (abridged)  5 -  6 FOP   8 FIP (4 + CS, or 8)  16 FDP (4 + DS, or 8)
//    24 MXCSR  28 MXCSR_MASK   32 ST0..ST7, 16 bytes each   160 XMM0..XMM15   416 not written

namespace stagetwo::vcpu {
namespace {

constexpr std::size_t kFcw = 0, kFsw = 2, kFtw = 4, kFop = 6, kFip = 8, kFdp = 16, kMxcsr = 24,
                      kMxcsrMask = 28, kSt = 32, kXmm = 160;
constexpr std::size_t kSlot = 16, kStBytes = 10;

template <typename T>
void put(u8* image, std::size_t offset, T value) {
  std::memcpy(image + offset, &value, sizeof value);
}
template <typename T>
T get(const u8* image, std::size_t offset) {
  T value;
  std::memcpy(&value, image + offset, sizeof value);
  return value;
}

std::size_t xmm_count(const FxFormat& format) {
  return !format.xmm ? 0 : format.sixteen ? 16 : 8;
}

}  // namespace

std::size_t fx_save(const CpuState& state, const FxFormat& format, u8* image) {
  const X87& x87 = state.x87;
  put(image, kFcw, x87.fcw);
  put(image, kFsw, x87.fsw);
  put(image, kFtw, u16{x87.ftw});
  put(image, kFop, x87.fop);
  // The narrow form keeps 32 bits of each pointer; the selectors are deprecated and read as zero.
  put(image, kFip, format.wide ? x87.fip : x87.fip & 0xffff'ffff);
  put(image, kFdp, format.wide ? x87.fdp : x87.fdp & 0xffff'ffff);
  put(image, kMxcsr, state.mxcsr);
  put(image, kMxcsrMask, kMxcsrValid);
  std::memset(image + kSt, 0, 8 * kSlot);
  for (std::size_t i = 0; i < 8; ++i) std::memcpy(image + kSt + i * kSlot, x87.st[i], kStBytes);
  const std::size_t count = xmm_count(format);
  std::memcpy(image + kXmm, state.xmm, count * kSlot);
  return kXmm + count * kSlot;
}

void settle_x87(X87* x87) {
  constexpr u16 kControl = 0x1f3f, kAlwaysSet = 0x0040, kExceptions = 0x3f, kPending = 0x8080;
  x87->fcw = static_cast<u16>((x87->fcw & kControl) | kAlwaysSet);
  const bool pending = (x87->fsw & ~x87->fcw & kExceptions) != 0;
  x87->fsw = static_cast<u16>((x87->fsw & ~kPending) | (pending ? kPending : 0));
}

bool fx_restore(CpuState* state, const FxFormat& format, const u8* image) {
  const u32 mxcsr = get<u32>(image, kMxcsr);
  if ((mxcsr & ~kMxcsrValid) != 0) return false;
  X87& x87 = state->x87;
  x87.fcw = get<u16>(image, kFcw);
  x87.fsw = get<u16>(image, kFsw);
  x87.ftw = image[kFtw];
  x87.fop = get<u16>(image, kFop) & 0x7ff;
  x87.fip = format.wide ? get<u64>(image, kFip) : get<u32>(image, kFip);
  x87.fdp = format.wide ? get<u64>(image, kFdp) : get<u32>(image, kFdp);
  for (std::size_t i = 0; i < 8; ++i) std::memcpy(x87.st[i], image + kSt + i * kSlot, kStBytes);
  settle_x87(&x87);
  state->mxcsr = mxcsr;
  std::memcpy(state->xmm, image + kXmm, xmm_count(format) * kSlot);
  return true;
}

}  // namespace stagetwo::vcpu
