// SPDX-License-Identifier: Apache-2.0
#include "vcpu/vcpu.h"

#include <algorithm>

#include "base/alloc.h"
#include "stage2/address_space.h"
#include "vcpu/block_cache.h"
#include "vcpu/control_regs.h"
#include "vcpu/mem.h"
#include "vcpu/paging.h"
#include "vcpu/remains.h"
#include "vcpu/run.h"

namespace stagetwo::vcpu {
namespace {

constexpr const char* kSite = "vcpu.create";
constexpr const char* kRunSite = "vcpu.run";
constexpr u64 kViewBytes = (sizeof(SoftTlb) * kViewCount + kPageSize - 1) & kPageMask;

// The caches, made at the first run: many a vCPU is created and never run.
Result<void> make_caches(Cpu& c) {
  if (c.views == nullptr) {
    auto pages = map_pages(kViewBytes, kRunSite);
    if (!pages) return refuse(pages.error());
    c.views = ::new (*pages) SoftTlb[kViewCount];
    c.look_through(*c.views);
  }
  if (c.blocks == nullptr) {
    const auto& memory = c.memory->private_memory();
    const auto code = memory.is_kept()       ? BlockCache::Code::kKept
                      : memory.has_secrets() ? BlockCache::Code::kPrivate
                                             : BlockCache::Code::kAnybodys;
    auto blocks = BlockCache::create(code);
    if (!blocks) return refuse(blocks.error());
    c.blocks = *blocks;
  }
  return {};
}

}  // namespace

Result<Vcpu*> Vcpu::create(const VcpuConfig& config) {
  Box<stage2::MmuContext> mmu = ST_TRY(config.memory->new_context());
  auto made = make<Cpu>(kSite);
  if (!made) return refuse(made.error());
  Cpu& c = **made;
  c.id = config.id;
  c.boot_cpu = config.boot_cpu;
  c.memory = config.memory;
  c.ring = config.ring;
  c.policy = config.policy;
  c.pio_page = config.pio_page;
  if (c.pio_page == nullptr) {
    auto page = map_pages(kPageSize, kSite);
    if (!page) {
      stagetwo::destroy(&c);
      return refuse(page.error());
    }
    c.pio_page = c.own_pio_page = static_cast<u8*>(*page);
  }
  const u64 origin = c.policy->tsc_origin;
  c.tsc_offset = -static_cast<s64>(origin != 0 ? origin : host_tsc());
  c.s.reset(config.boot_cpu);
  c.poll_countdown = 1;
  apply_cpuid(c);
  void* block = alloc(sizeof(Vcpu), alignof(Vcpu), kSite);
  if (block == nullptr) {
    if (c.own_pio_page != nullptr) unmap_pages(c.own_pio_page, kPageSize);
    stagetwo::destroy(&c);
    return refuse(ENOMEM);
  }
  mmu->ring = config.ring;
  c.mmu = mmu.release();
  c.memory->lines().add(c.line);
  return ::new (block) Vcpu(&c);
}

void Vcpu::destroy(Vcpu* vcpu) {
  if (vcpu == nullptr) return;
  Cpu* c = vcpu->cpu_;
  c->memory->lines().remove(c->line);
  stagetwo::destroy(c->mmu);
  BlockCache::destroy(c->blocks);
  if (c->views != nullptr) unmap_pages(c->views, kViewBytes);
  if (c->own_pio_page != nullptr) unmap_pages(c->own_pio_page, kPageSize);
  stagetwo::destroy(c);
  vcpu->~Vcpu();
  dealloc(vcpu, sizeof(Vcpu), alignof(Vcpu));
}

const Exit& Vcpu::run(const RunRequest& request) {
  Cpu& c = *cpu_;
  c.exit = Exit{};
  if (auto ready = make_caches(c); !ready) {
    c.exit.error = to_int(ready.error());
    return c.exit;
  }
  c.window_wanted = request.request_interrupt_window;
  c.set_rflags(c.s.rflags);
  // I3 of holding.h, also where the thread that ran it last died inside.
  c.holds = 1;
  c.restart_section = &c.no_section;
  wipe_stale_code(c);
  enter_section(c);
  c.update_view();
  if (complete_pending(c, request.completion) != Step::kExit) {
    if (request.immediate_exit) {
      c.exit.kind = ExitKind::kInterrupted;
      c.exit.immediate = true;
      c.exit.error = EINTR;
    } else {
      c.exit = Exit{};
      if (c.s.mp_state == MpState::kHalted && !c.policy->irqchip) {
        c.s.mp_state = MpState::kRunnable;
      }
      c.has_run = true;
      run_guest(c);
    }
  }
  leave_section(c);
  c.s.rflags = c.rflags();
  c.flags.set_exact(0);
  wipe_remains(c);
  return c.exit;
}

void Vcpu::repeat_call() {
  if (cpu_->io.kind == Pending::kHypercall) cpu_->io.kind = Pending::kNone;
}

void Vcpu::request_exit() {
  cpu_->exit_requested.store(1);
  cpu_->memory->lines().kick(cpu_->line);
}

CpuState& Vcpu::state() {
  return cpu_->s;
}
const CpuState& Vcpu::state() const {
  return cpu_->s;
}

void Vcpu::registers_changed() {
  cpu_->s.rflags |= 2;
  cpu_->s.events.exception_pending = false;
}

Result<void> Vcpu::set_system_state(const SystemState& system) {
  Cpu& c = *cpu_;
  if (!valid_system_state(c, system)) return refuse(EINVAL);
  c.s.sys = system;
  if (c.views != nullptr) c.flush_tlb();
  c.update_view();
  return {};
}

bool Vcpu::has_run() const {
  return cpu_->has_run;
}

Result<void> Vcpu::set_cpuid(std::span<const CpuidEntry> entries) {
  Cpu& c = *cpu_;
  if (entries.size() > kMaxCpuid) return refuse(E2BIG);
  if (c.has_run) return std::ranges::equal(entries, cpuid()) ? Result<void>{} : refuse(EINVAL);
  std::ranges::copy(entries, c.cpuid);
  c.cpuid_count = static_cast<u32>(entries.size());
  apply_cpuid(c);
  return {};
}

std::span<const CpuidEntry> Vcpu::cpuid() const {
  return {cpu_->cpuid, cpu_->cpuid_count};
}

CpuidEntry Vcpu::query_cpuid(u32 function, u32 index) const {
  return lookup_cpuid(*cpu_, function, index);
}

MsrOutcome Vcpu::get_msr(u32 index, u64* value, bool host_initiated) {
  return read_msr(*cpu_, index, value, host_initiated);
}
MsrOutcome Vcpu::set_msr(u32 index, u64 value, bool host_initiated) {
  return write_msr(*cpu_, index, value, host_initiated);
}

void Vcpu::interrupt(u8 vector) {
  Events& e = cpu_->s.events;
  e.interrupt_injected = true;
  e.interrupt_soft = false;
  e.interrupt_vector = vector;
}
void Vcpu::nmi() {
  ++cpu_->s.events.nmi_pending;
  bound_nmis();
}

void Vcpu::bound_nmis() {
  Events& e = cpu_->s.events;
  e.nmi_pending = std::min<u8>(e.nmi_pending, e.nmi_masked || e.nmi_injected ? 1 : 2);
}

bool Vcpu::ready_for_interrupt_injection() const {
  const Cpu& c = *cpu_;
  return interrupt_window_open(c) && !c.s.events.exception_pending &&
         !c.s.events.exception_injected;
}
bool Vcpu::interrupts_enabled() const {
  return (cpu_->s.rflags & rflags::kIf) != 0;
}

void Vcpu::set_guest_debug(const GuestDebug& debug) {
  cpu_->debug = debug;
}

bool Vcpu::translate(Gva gva, Gpa* gpa) {
  Cpu& c = *cpu_;
  if (!make_caches(c)) return false;
  enter_section(c);
  Translation t;
  const bool ok = walk(c,
                       {.linear = gva.raw(),
                        .access = Access::kRead,
                        .user = false,
                        .implicit = false,
                        .quiet = true},
                       &t);
  leave_section(c);
  if (ok) *gpa = t.gpa;
  return ok;
}

stage2::MmuContext& Vcpu::mmu() {
  return *cpu_->mmu;
}
u64 Vcpu::guest_tsc() const {
  return read_tsc(*cpu_);
}
u32 Vcpu::id() const {
  return cpu_->id;
}
u64 Vcpu::instructions() const {
  return cpu_->instructions;
}

}  // namespace stagetwo::vcpu
