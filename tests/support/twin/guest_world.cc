// SPDX-License-Identifier: Apache-2.0
#include "tests/support/twin/guest_world.h"

#include "base/check.h"

namespace stagetwo::twin {
namespace {

constexpr u64 kPresent = 1, kWrite = 2, kUser = 4;
constexpr u64 kPage = 0x1000;

// A flat 64-bit code or data descriptor.
constexpr u64 descriptor(bool code, u64 dpl) {
  const u64 access = 0x90 | dpl << 5 | (code ? 0xb : 3);
  const u64 flags = code ? 0xa : 0xc;
  return 0x0000'ffff | access << 40 | u64{0xf} << 48 | flags << 52;
}

vcpu::Segment flat(u16 selector, bool code) {
  vcpu::Segment s;
  s.base = 0;
  s.limit = 0xffffffff;
  s.selector = selector;
  s.type = code ? 0xb : 3;
  s.present = 1;
  s.dpl = 0;
  s.s = 1;
  s.g = 1;
  s.l = code ? 1 : 0;
  s.db = code ? 0 : 1;
  return s;
}

}  // namespace

void GuestWorld::map(u64 virtual_address, u64 physical, u64 bits) {
  u64 table = kTables;
  for (unsigned level = 3; level > 0; --level) {
    const u64 entry = table + ((virtual_address >> (12 + 9 * level)) & 511) * 8;
    if ((get<u64>(entry) & kPresent) == 0) {
      put(entry, tables_used_ | kPresent | kWrite | kUser);
      tables_used_ += kPage;
      ST_CHECK_OP(tables_used_, <=, kIdt);
    }
    table = get<u64>(entry) & ~u64{0xfff};
  }
  put(table + ((virtual_address >> 12) & 511) * 8, physical | bits);
}

void GuestWorld::build_tables() {
  for (u64 at = 0; at < kCodeSize; at += kPage) map(kCode + at, kCodePa + at, kPresent | kUser);
  for (u64 at = 0; at < kScratchSize; at += kPage)
    map(kScratch + at, kScratchPa + at, kPresent | kWrite | kUser);
  map(kStack, kStackPa, kPresent | kWrite | kUser);
  for (u64 at = kIdt; at < kCodePa; at += kPage) map(kKernelBase + at, at, kPresent | kWrite);
}

void GuestWorld::build_kernel() {
  for (u64 vector = 0; vector < 256; ++vector) {
    const u64 handler = kKernelBase + kHandlers + vector * kHandlerStride;
    // HLT all over: a device that steps past the first one stops at the next.
    std::memset(memory_ + kHandlers + vector * kHandlerStride, 0xf4, kHandlerStride);
    // Interrupt gate, DPL 0 but for #BP and #OF, IST 1.
    const u64 dpl = vector == 3 || vector == 4 ? 3 : 0;
    put(kIdt + vector * 16, (handler & 0xffff) | u64{kKernelCs} << 16 | u64{1} << 32 |
                                (u64{0x8e} | dpl << 5) << 40 | (handler >> 16 & 0xffff) << 48);
    put(kIdt + vector * 16 + 8, handler >> 32);
  }
  put(kIret - kKernelBase, u16{0xcf48});  // iretq
  put(kGdt + kKernelCs, descriptor(true, 0));
  put(kGdt + kKernelSs, descriptor(false, 0));
  put(kGdt + (kUserSs & ~7u), descriptor(false, 3));
  put(kGdt + (kUserCs & ~7u), descriptor(true, 3));
  const u64 tss = kKernelBase + kTss;
  put(kGdt + kTssSelector,
      u64{0x67} | (tss & 0xffffff) << 16 | u64{0x8b} << 40 | (tss >> 24 & 0xff) << 56);
  put(kGdt + kTssSelector + 8, tss >> 32);
  put(kTss + 36, kKernelBase + kKernelStack + kPage);  // IST 1
  put(kTss + 102, u16{0x68});                          // no I/O bitmap
}

void GuestWorld::build() {
  static_assert(kHandlers + 256 * kHandlerStride <= kIret - kKernelBase);
  build_tables();
  build_kernel();
}

u64 GuestWorld::prepare(const CpuImage& start, unsigned cpl) {
  const u64 frame = kKernelStack + kPage - 40;
  put(frame, start.rip);
  put(frame + 8, u64{cpl == 3 ? kUserCs : kKernelCs});
  put(frame + 16, start.rflags);
  put(frame + 24, start.gpr[vcpu::kRsp]);
  put(frame + 32, u64{cpl == 3 ? kUserSs : kKernelSs});
  return kKernelBase + frame;
}

bool GuestWorld::pushes_error(int vector) {
  return vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21;
}

bool GuestWorld::read_end(u64 rip, CpuEnd* end) const {
  const u64 offset = rip - 1 - (kKernelBase + kHandlers);
  if (offset >= 256 * kHandlerStride) return false;
  end->vector = static_cast<int>(offset / kHandlerStride);
  const u64 frame = kKernelStack + kPage - 40;
  end->image.rip = get<u64>(frame);
  end->image.rflags = get<u64>(frame + 16);
  end->image.gpr[vcpu::kRsp] = get<u64>(frame + 24);
  end->error = pushes_error(end->vector) ? get<u64>(frame - 8) : 0;
  if (end->vector == 14 && end->image.rip == kExit) end->vector = -1;
  return true;
}

vcpu::SystemState guest_world_system(std::span<const vcpu::CpuidEntry> cpuid) {
  vcpu::SystemState system;
  for (auto& segment : system.seg) {  // null selectors, as in 64-bit user programs
    segment = {};
    segment.unusable = 1;
    segment.present = 0;
  }
  system.seg[vcpu::kSegSs] = flat(GuestWorld::kKernelSs, false);
  system.seg[vcpu::kSegCs] = flat(GuestWorld::kKernelCs, true);
  system.tr = flat(GuestWorld::kTssSelector, true);
  system.tr.base = GuestWorld::kKernelBase + GuestWorld::kTss;
  system.tr.limit = 0x67;
  system.tr.s = 0;
  system.tr.g = 0;
  system.tr.l = 0;
  system.ldt = {};
  system.ldt.type = 2;
  system.ldt.s = 0;
  system.ldt.unusable = 1;
  system.ldt.present = 0;
  system.gdt = {GuestWorld::kKernelBase + GuestWorld::kGdt, 0x4f};
  system.idt = {GuestWorld::kKernelBase + GuestWorld::kIdt, 0xfff};
  system.cr0 = vcpu::cr0::kPe | vcpu::cr0::kMp | vcpu::cr0::kEt | vcpu::cr0::kNe | vcpu::cr0::kWp |
               vcpu::cr0::kAm | vcpu::cr0::kPg;
  system.cr3 = GuestWorld::kTables;
  system.cr4 = vcpu::cr4::kPae | vcpu::cr4::kOsfxsr | vcpu::cr4::kOsxmmexcpt;
  for (const vcpu::CpuidEntry& e : cpuid)
    if (e.function == 7 && e.index == 0 && (e.ebx & 1) != 0) system.cr4 |= vcpu::cr4::kFsgsbase;
  system.efer = vcpu::efer::kSce | vcpu::efer::kLme | vcpu::efer::kLma | vcpu::efer::kNx;
  system.apic_base = 0xfee00900;
  return system;
}

}  // namespace stagetwo::twin
