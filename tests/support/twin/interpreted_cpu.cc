// SPDX-License-Identifier: Apache-2.0
#include "tests/support/twin/interpreted_cpu.h"

#include <cpuid.h>
#include <sys/mman.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <utility>

#include "host/backstop.h"

namespace stagetwo::twin {
namespace {

constexpr u64 kStepLimit = 16384;
constexpr u32 kFsBaseMsr = 0xc0000100, kGsBaseMsr = 0xc0000101;

// The leaves that say which instructions exist, as this machine answers them.
std::array<vcpu::CpuidEntry, 6> host_cpuid() {
  std::array<vcpu::CpuidEntry, 6> entries{};
  const std::array<std::pair<u32, u32>, 6> leaves = {
      {{0, 0}, {1, 0}, {7, 0}, {0x80000000, 0}, {0x80000001, 0}, {0x80000008, 0}}};
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    auto& e = entries[i];
    e.function = leaves[i].first;
    e.index = leaves[i].second;
    e.flags = e.function == 7 ? 1 : 0;
    __cpuid_count(e.function, e.index, e.eax, e.ebx, e.ecx, e.edx);
  }
  return entries;
}

}  // namespace

InterpretedCpu::~InterpretedCpu() {
  if (vcpu_ != nullptr) vcpu::Vcpu::destroy(vcpu_);
  guest_memory_.reset();
  if (memory_ != nullptr) munmap(memory_, kWorldBytes);
}

bool InterpretedCpu::open(std::string* reason, std::span<const vcpu::CpuidEntry> cpuid) {
  void* memory =
      mmap(nullptr, kWorldBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    *reason = "no memory";
    return false;
  }
  memory_ = static_cast<u8*>(memory);
  world_.emplace(memory_);
  if (!host::backstop::install()) {
    *reason = "no handler for guarded accesses";
    return false;
  }
  auto guest = stage2::GuestMemory::create({});
  if (!guest) {
    *reason = "GuestMemory::create refused";
    return false;
  }
  guest_memory_.emplace(std::move(*guest));
  stage2::Region region;
  region.size = kWorldBytes;
  region.hva = reinterpret_cast<u64>(memory_);
  if (!(*guest_memory_)->slots().set_region(region)) {
    *reason = "set_region refused";
    return false;
  }
  vcpu::VcpuConfig config;
  config.memory = &**guest_memory_;
  config.policy = &policy_;
  auto created = vcpu::Vcpu::create(config);
  if (!created) {
    *reason = "Vcpu::create refused";
    return false;
  }
  vcpu_ = *created;
  const auto host = host_cpuid();
  if (!vcpu_->set_cpuid(cpuid.empty() ? std::span<const vcpu::CpuidEntry>(host) : cpuid)) {
    *reason = "set_cpuid refused";
    return false;
  }
  if (reset()) return true;
  *reason = "set_system_state refused";
  return false;
}

bool InterpretedCpu::reset() {
  vcpu_->state().events = {};
  return vcpu_->set_system_state(guest_world_system(vcpu_->cpuid())).has_value();
}

void InterpretedCpu::enter(const CpuImage& start, unsigned cpl) {
  vcpu::CpuState& state = vcpu_->state();
  std::memcpy(state.gpr, start.gpr, sizeof state.gpr);
  std::memcpy(state.xmm, start.xmm, sizeof state.xmm);
  state.mxcsr = start.mxcsr;
  state.x87 = {};
  state.gpr[vcpu::kRsp] = world_->prepare(start, cpl);
  state.rip = GuestWorld::kIret;
  state.rflags = 2;
  vcpu_->registers_changed();
  (void)vcpu_->set_msr(kFsBaseMsr, start.fs_base, true);
  (void)vcpu_->set_msr(kGsBaseMsr, start.gs_base, true);
}

void InterpretedCpu::read(CpuImage* image) {
  const vcpu::CpuState& state = vcpu_->state();
  std::memcpy(image->gpr, state.gpr, sizeof state.gpr);
  std::memcpy(image->xmm, state.xmm, sizeof state.xmm);
  image->rip = state.rip;
  image->rflags = state.rflags;
  image->mxcsr = state.mxcsr;
  image->fs_base = state.sys.seg[vcpu::kSegFs].base;
  image->gs_base = state.sys.seg[vcpu::kSegGs].base;
}

bool InterpretedCpu::finish(const vcpu::Exit& exit, CpuEnd* end, std::string* what) {
  read(&end->image);
  end->cr2 = vcpu_->state().sys.cr2;
  if (exit.kind == vcpu::ExitKind::kHlt && world_->read_end(end->image.rip, end)) return true;
  char text[80];
  std::snprintf(text, sizeof text, "exit kind %d at rip %llx", static_cast<int>(exit.kind),
                static_cast<unsigned long long>(end->image.rip));
  *what = text;
  end->vector = -2;
  (void)reset();
  return false;
}

bool InterpretedCpu::run(const CpuImage& start, unsigned cpl, CpuEnd* end, std::string* what) {
  enter(start, cpl);
  return finish(vcpu_->run({}), end, what);
}

bool InterpretedCpu::step(const CpuImage& start, unsigned cpl, const Observer& after, CpuEnd* end,
                          std::string* what) {
  vcpu_->set_guest_debug({.enabled = true, .single_step = true});
  enter(start, cpl);
  const vcpu::Exit* exit = &vcpu_->run({});
  for (u64 steps = 0; steps < kStepLimit && exit->kind == vcpu::ExitKind::kDebug; ++steps) {
    CpuImage image;
    read(&image);
    if (GuestWorld::in_handlers(image.rip)) vcpu_->set_guest_debug({});
    if (!GuestWorld::in_handlers(image.rip)) after(image);
    exit = &vcpu_->run({});
  }
  vcpu_->set_guest_debug({});
  return finish(*exit, end, what);
}

}  // namespace stagetwo::twin
