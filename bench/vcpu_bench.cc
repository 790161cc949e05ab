// SPDX-License-Identifier: Apache-2.0
// Guest instructions a second of the executor, on several kinds of guest code; one decode.
#include <Zydis/Zydis.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <random>
#include <vector>

#include "bench/report.h"
#include "host/backstop.h"
#include "stage2/address_space.h"
#include "vcpu/decoder.h"
#include "vcpu/mem.h"
#include "vcpu/soft_tlb.h"
#include "vcpu/vcpu.h"

namespace stagetwo::bench {
namespace {

using vcpu::Segment;
using vcpu::SystemState;

constexpr u64 kCode = 0x1000, kTables = 0x10000, kStream = 0x200000, kMemory = 64 << 20;

// A long-mode guest over 64 MiB, mapped by 2 MiB pages.
class Machine {
 public:
  Machine() {
    (void)host::backstop::install();
    ram_ = static_cast<u8*>(
        mmap(nullptr, kMemory, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    memory_ = std::move(*stage2::GuestMemory::create(stage2::SlotPolicy{}));
    stage2::Region region;
    region.size = kMemory;
    region.hva = reinterpret_cast<u64>(ram_);
    (void)memory_->slots().set_region(region);
    vcpu::VcpuConfig config;
    config.memory = memory_.get();
    config.policy = &policy_;
    cpu_ = *vcpu::Vcpu::create(config);
    enter_long_mode();
  }
  ~Machine() {
    vcpu::Vcpu::destroy(cpu_);
    memory_.reset();
    munmap(ram_, kMemory);
  }
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  void code(std::initializer_list<u8> bytes) {
    std::memcpy(ram_ + kCode, bytes.begin(), bytes.size());
  }
  // Runs to HLT with rcx as given and rbx at the stream.
  void run(u64 count) {
    cpu_->state().rip = kCode;
    cpu_->state().gpr[vcpu::kRcx] = count;
    cpu_->state().gpr[vcpu::kRbx] = kStream;
    cpu_->state().gpr[vcpu::kRsp] = 0x8000;
    if (cpu_->run({}).kind != vcpu::ExitKind::kHlt) std::abort();
  }

 private:
  void put(u64 at, u64 value) { std::memcpy(ram_ + at, &value, sizeof(value)); }
  void enter_long_mode() {
    put(kTables, (kTables + 0x1000) | 3);
    put(kTables + 0x1000, (kTables + 0x2000) | 3);
    for (u64 i = 0; i < kMemory >> 21; ++i) put(kTables + 0x2000 + 8 * i, (i << 21) | 0x83);
    const vcpu::CpuidEntry table[] = {{0x80000008, 0, 0, 0x3030, 0, 0, 0},
                                      {0x80000001, 0, 0, 0, 0, 0, 0x20100800}};
    (void)cpu_->set_cpuid(table);
    SystemState sys = cpu_->state().sys;
    for (Segment& s : sys.seg) s.limit = 0xffffffff;
    Segment& cs = sys.seg[vcpu::kSegCs];
    cs.type = 11;
    cs.base = 0;
    cs.l = 1;
    sys.cr0 = vcpu::cr0::kPe | vcpu::cr0::kPg | vcpu::cr0::kEt;
    sys.cr3 = kTables;
    sys.cr4 = vcpu::cr4::kPae;
    sys.efer = vcpu::efer::kLme | vcpu::efer::kLma;
    if (!cpu_->set_system_state(sys)) std::abort();
  }

  vcpu::VmPolicy policy_;
  u8* ram_;
  Box<stage2::GuestMemory> memory_;
  vcpu::Vcpu* cpu_ = nullptr;
};

// Of this thread: a machine shared with others does not change the figure.
double cpu_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

// Millions of guest instructions a second of processor time; `each` instructions a loop turn.
void measure(benchmark::State& state, std::initializer_list<u8> code, u64 turns, u64 each,
             double at_least) {
  Machine machine;
  machine.code(code);
  machine.run(turns);
  const double start = cpu_seconds();
  u64 executed = 0;
  for (auto _ : state) {
    machine.run(turns);
    executed += turns * each;
  }
  const double elapsed = cpu_seconds() - start;
  report(state, {.unit = "M instructions/s",
                 .value = static_cast<double>(executed) / elapsed / 1e6,
                 .at_least = at_least});
}

void Arithmetic(benchmark::State& state) {
  // add rax, rcx; xor rdx, rax; lea rsi, [rax+rdx*2]; sub rdi, rsi; dec rcx; jne
  measure(state,
          {0x48, 0x01, 0xc8, 0x48, 0x31, 0xc2, 0x48, 0x8d, 0x34, 0x50, 0x48, 0x29, 0xf7, 0x48, 0xff,
           0xc9, 0x75, 0xee, 0xf4},
          1 << 20, 6, 100);
}

void LoadAddStore(benchmark::State& state) {
  // mov rax, [rbx]; add rax, 1; mov [rbx], rax; add rbx, 8; dec rcx; jne
  measure(state, {0x48, 0x8b, 0x03, 0x48, 0x83, 0xc0, 0x01, 0x48, 0x89, 0x03,
                  0x48, 0x83, 0xc3, 0x08, 0x48, 0xff, 0xc9, 0x75, 0xed, 0xf4},
          1 << 17, 6, 100);
}

void StorePerPage(benchmark::State& state) {
  // mov [rbx], rax; add rbx, 4096; dec rcx; jne
  measure(state,
          {0x48, 0x89, 0x03, 0x48, 0x81, 0xc3, 0x00, 0x10, 0x00, 0x00, 0x48, 0xff, 0xc9, 0x75, 0xf1,
           0xf4},
          15 << 10, 4, kNone);
}

void CallReturn(benchmark::State& state) {
  // l: call f; dec rcx; jne l; hlt; f: push rax; pop rax; ret
  measure(state,
          {0xe8, 0x06, 0x00, 0x00, 0x00, 0x48, 0xff, 0xc9, 0x75, 0xf6, 0xf4, 0x50, 0x58, 0xc3},
          1 << 18, 6, kNone);
}

void ByteLoop(benchmark::State& state) {
  // mov byte [rbx], al; add rbx, 1; cmp ..: what a compiler makes of a plain memset
  measure(state, {0x88, 0x03, 0x48, 0x83, 0xc3, 0x01, 0x48, 0xff, 0xc9, 0x75, 0xf5, 0xf4}, 1 << 20,
          4, 100);
}

// What a compiler mostly emits, one of each.
constexpr u8 kCommon[][vcpu::kMaxInsnLength] = {{0x48, 0x89, 0xd8},
                                                {0x8b, 0x44, 0x24, 0x10},
                                                {0x83, 0xc0, 0x01},
                                                {0x74, 0x05},
                                                {0x48, 0x8d, 0x05},
                                                {0x0f, 0xb6, 0xc0},
                                                {0xe8},
                                                {0x81, 0xc0},
                                                {0x55},
                                                {0xc3},
                                                {0x66, 0x0f, 0x6f, 0x00},
                                                {0xf0, 0x0f, 0xb1, 0x0b}};
constexpr int kCommonCount = sizeof kCommon / sizeof kCommon[0];

void Decode(benchmark::State& state) {
  const auto one = [](int round) {
    vcpu::Insn insn;
    benchmark::DoNotOptimize(vcpu::decode(kCommon[round % kCommonCount], vcpu::Mode::k64, &insn));
    benchmark::DoNotOptimize(insn);
  };
  int round = 0;
  for (auto _ : state) one(round++);
  ZydisDecoder zydis;
  ZydisDecoderInit(&zydis, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
  constexpr int kRounds = 1'000'000;
  const double start = cpu_seconds();
  for (int i = 0; i < kRounds; ++i) {
    ZydisDecodedInstruction insn;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    benchmark::DoNotOptimize(ZydisDecoderDecodeFull(&zydis, kCommon[i % kCommonCount],
                                                    vcpu::kMaxInsnLength, &insn, operands));
  }
  report(state, {.unit = "ns",
                 .yardstick = "Zydis",
                 .yardstick_value = (cpu_seconds() - start) / kRounds * 1e9,
                 .at_most = 1});
}

// A chain of loads, each address the value before it, through the software TLB and plainly: so
// neither hides behind the other's waiting. In one page, the entry is the one of the load before;
// in random order over eight pages, mostly another one.
void TlbHit(benchmark::State& state) {
  constexpr u64 kMostPages = 8;
  constexpr u64 kLinear = 0x40'0000;
  constexpr int kRounds = 20'000;
  alignas(kPageSize) static u64 words[kMostPages * 512];
  static vcpu::SoftTlb tlb;
  auto cpu = make_box<vcpu::Cpu>("bench.cpu");
  (*cpu)->look_through(tlb);
  const auto at = reinterpret_cast<u64>(words);
  const auto pages = static_cast<u64>(state.range(0));
  std::vector<u64> order(512 * pages);
  for (u64 i = 0; i < order.size(); ++i) order[i] = i;
  if (pages > 1) std::shuffle(order.begin(), order.end(), std::mt19937(1));
  for (u64 i = 0; i < order.size(); ++i) {
    words[order[i]] = order[(i + 1) % order.size()] * sizeof(u64);
  }
  for (u64 page = 0; page < pages; ++page) {
    vcpu::TlbEntry& entry = tlb.slot(kLinear + page * kPageSize);
    entry.read_tag = kLinear + page * kPageSize;
    entry.addend = at - kLinear;
  }
  const auto loads = static_cast<int>(order.size());
  const auto plain = [&] {
    u64 offset = 0;
    for (int i = 0; i < loads; ++i) {
      offset = *reinterpret_cast<const volatile u64*>(at + offset);
    }
    benchmark::DoNotOptimize(offset);
  };
  const auto through = [&] {
    u64 offset = 0;
    for (int i = 0; i < loads; ++i) {
      if (!vcpu::load_hit(**cpu, kLinear + offset, &offset)) std::abort();
    }
    benchmark::DoNotOptimize(offset);
  };
  const auto ns_each = [&](auto&& f) {
    const double start = cpu_seconds();
    const int rounds = kRounds * 512 / loads;
    for (int i = 0; i < rounds; ++i) f();
    return (cpu_seconds() - start) / rounds / loads * 1e9;
  };
  std::vector<double> more;
  for (auto _ : state) more.push_back(ns_each(through) - ns_each(plain));
  std::sort(more.begin(), more.end());
  report(state,
         {.unit = "ns over a plain load, median", .value = more[more.size() / 2], .at_most = 2});
}

BENCHMARK(TlbHit)->Arg(1)->Arg(8)->ArgName("pages")->Iterations(9);
BENCHMARK(Arithmetic)->Unit(benchmark::kMillisecond);
BENCHMARK(LoadAddStore)->Unit(benchmark::kMillisecond);
BENCHMARK(StorePerPage)->Unit(benchmark::kMillisecond);
BENCHMARK(CallReturn)->Unit(benchmark::kMillisecond);
BENCHMARK(ByteLoop)->Unit(benchmark::kMillisecond);
BENCHMARK(Decode);

}  // namespace
}  // namespace stagetwo::bench
