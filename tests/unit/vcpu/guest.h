// SPDX-License-Identifier: Apache-2.0
#pragma once

// A small machine for executor tests: memory, page tables, one vCPU, hand-assembled code.
//
// Physical layout of a long-mode guest (all of it identity-mapped by 4 KiB pages):
//   0x1000  code       0x2000 data       0x5000 IDT       0x6000 GDT, 0x6800 TSS
//   0x8000  stack top  0x10000 page tables

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <initializer_list>
#include <vector>

#include "host/backstop.h"
#include "stage2/address_space.h"
#include "vcpu/vcpu.h"

namespace stagetwo::vcpu::testing {

inline constexpr u64 kCode = 0x1000, kData = 0x2000, kIdt = 0x5000, kGdt = 0x6000, kTss = 0x6800;
inline constexpr u64 kStackTop = 0x8000, kTables = 0x10000, kMemory = 0x400000;

using Bytes = std::vector<u8>;

class Guest {
 public:
  explicit Guest(u64 size = kMemory) : size_(size) {
    EXPECT_TRUE(host::backstop::install().has_value());
    ram_ = static_cast<u8*>(mmap(nullptr, size, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    auto memory = stage2::GuestMemory::create(stage2::SlotPolicy{});
    EXPECT_TRUE(memory.has_value());
    memory_ = std::move(*memory);
    add_slot(0, 0, size, ram_);
    VcpuConfig config;
    config.memory = memory_.get();
    config.policy = &policy;
    config.pio_page = pio;
    auto made = Vcpu::create(config);
    EXPECT_TRUE(made.has_value());
    cpu_ = *made;
    offer_features();
  }
  ~Guest() {
    Vcpu::destroy(cpu_);
    memory_.reset();
    munmap(ram_, size_);
  }
  Guest(const Guest&) = delete;
  Guest& operator=(const Guest&) = delete;

  void add_slot(u32 id, u64 gpa, u64 size, void* at, u32 flags = 0) {
    stage2::Region region;
    region.slot = id;
    region.gpa = gpa;
    region.size = size;
    region.flags = flags;
    region.hva = reinterpret_cast<u64>(at);
    EXPECT_TRUE(memory_->slots().set_region(region).has_value());
  }

  // CPUID of a full processor with 48 physical address bits.
  void offer_features() {
    const CpuidEntry table[] = {
        {0, 0, 0, 13, 0x68747541, 0x444d4163, 0x69746e65},
        {1, 0, 0, 0x800f12, 0, 0x4fd83209, 0x178bfbff},
        {7, 0, 1, 0, 0x219c07ab, 0x00410014, 0},
        {0x80000000, 0, 0, 0x80000008, 0, 0, 0},
        {0x80000001, 0, 0, 0, 0, 0x121, 0x2e500800},
        {0x80000008, 0, 0, 0x3030, 0, 0, 0},
    };
    EXPECT_TRUE(cpu_->set_cpuid(table).has_value());
  }

  u8* ram(u64 gpa) { return ram_ + gpa; }
  template <typename T>
  T read(u64 gpa) {
    T value;
    std::memcpy(&value, ram_ + gpa, sizeof(T));
    return value;
  }
  template <typename T>
  void write(u64 gpa, T value) {
    std::memcpy(ram_ + gpa, &value, sizeof(T));
  }
  void code(const Bytes& bytes, u64 at = kCode) {
    std::memcpy(ram_ + at, bytes.data(), bytes.size());
  }

  CpuState& state() { return cpu_->state(); }
  u64& reg(unsigned r) { return cpu_->state().gpr[r]; }
  Vcpu& cpu() { return *cpu_; }
  stage2::GuestMemory& memory() { return *memory_; }

  // 64-bit mode, everything flat, CPL 0, at kCode. `user` maps with U set and runs at CPL 3.
  void long_mode(bool user = false) {
    const u64 flags = user ? 7 : 3;
    write<u64>(kTables, (kTables + 0x1000) | flags);
    write<u64>(kTables + 0x1000, (kTables + 0x2000) | flags);
    write<u64>(kTables + 0x2000, (kTables + 0x3000) | flags);
    write<u64>(kTables + 0x2008, (kTables + 0x4000) | flags);
    for (u64 i = 0; i < 1024; ++i) write<u64>(kTables + 0x3000 + 8 * i, (i << 12) | flags);
    write<u64>(kGdt + 8, 0x00af9b000000ffff);    // 0x08 kernel code
    write<u64>(kGdt + 16, 0x00cf93000000ffff);   // 0x10 kernel data
    write<u64>(kGdt + 24, 0x00affb000000ffff);   // 0x1b user code
    write<u64>(kGdt + 32, 0x00cff3000000ffff);   // 0x23 user data
    write<u64>(kTss + 4, kStackTop);             // RSP0
    write<u64>(kTss + 0x24, kStackTop - 0x800);  // IST1
    SystemState sys = state().sys;
    const u8 dpl = user ? 3 : 0;
    for (Segment& s : sys.seg) {
      s = Segment{};
      s.selector = user ? 0x23 : 0x10;
      s.limit = 0xffffffff;
      s.dpl = dpl;
      s.g = s.db = 1;
    }
    Segment& cs = sys.seg[kSegCs];
    cs.selector = user ? 0x1b : 0x08;
    cs.type = 11;
    cs.l = 1;
    cs.db = 0;
    sys.tr.base = kTss;
    sys.tr.limit = 0x67;
    sys.tr.type = 11;
    sys.tr.selector = 0x28;
    sys.gdt = {.base = kGdt, .limit = 0x3f};
    sys.idt = {.base = kIdt, .limit = 0xfff};
    sys.cr0 = cr0::kPe | cr0::kPg | cr0::kNe | cr0::kEt | cr0::kWp;
    sys.cr3 = kTables;
    sys.cr4 = cr4::kPae | cr4::kOsfxsr | cr4::kOsxmmexcpt;
    sys.efer = efer::kLme | efer::kLma | efer::kNx | efer::kSce;
    ASSERT_TRUE(cpu_->set_system_state(sys).has_value());
    state().rip = kCode;
    state().rflags = 2;
    reg(kRsp) = kStackTop;
  }

  // A 64-bit interrupt gate to `handler`.
  void gate(unsigned vector, u64 handler, u8 ist = 0, u8 dpl = 0) {
    write<u64>(kIdt + 16 * vector, (handler & 0xffff) | u64{8} << 16 | u64{ist} << 32 |
                                       u64{0x8eu | unsigned{dpl} << 5} << 40 |
                                       (handler >> 16 & 0xffff) << 48);
    write<u64>(kIdt + 16 * vector + 8, handler >> 32);
  }

  const Exit& run(const RunRequest& request = {}) { return cpu_->run(request); }
  const Exit& run_immediate() {
    RunRequest request;
    request.immediate_exit = true;
    return cpu_->run(request);
  }
  const Exit& run_with_mmio(u64 data) {
    RunRequest request;
    request.completion.mmio_data = reinterpret_cast<const u8*>(&data);
    return cpu_->run(request);
  }
  // Runs until HLT, which every straight test ends with.
  void run_to_hlt() { ASSERT_EQ(run().kind, ExitKind::kHlt); }

  VmPolicy policy;
  alignas(4096) u8 pio[4096] = {};

 private:
  u64 size_;
  u8* ram_;
  Box<stage2::GuestMemory> memory_;
  Vcpu* cpu_ = nullptr;
};

}  // namespace stagetwo::vcpu::testing
