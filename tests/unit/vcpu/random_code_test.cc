// SPDX-License-Identifier: Apache-2.0
// Whatever stands in guest memory, the executor survives it: random code in every mode, random
// descriptor tables and page tables, several vCPUs on one memory.
#include <unistd.h>

#include <atomic>
#include <thread>

#include "tests/support/random_source.h"
#include "tests/support/seeds.h"
#include "tests/unit/vcpu/guest.h"

namespace stagetwo::vcpu::testing {
namespace {

using test::RandomSource;

bool known(ExitKind kind) {
  return kind <= ExitKind::kMemoryFault;
}

// Leaves the guest at the next look: what a pending masked signal does.
bool always(void*, u32) {
  return true;
}

void random_state(Guest& g, RandomSource& random) {
  CpuState& s = g.state();
  for (u64& r : s.gpr) r = random.one_in(2) ? random.below(kMemory) : random.next();
  s.gpr[kRcx] &= 0xff;
  s.gpr[kRsp] = random.below(kMemory);
  s.rflags = (random.next() & 0x240dd5) | 2;
  SystemState sys = s.sys;
  switch (random.small(4)) {
    case 0:  // real mode
      sys = SystemState{};
      for (Segment& seg : sys.seg) seg.base = random.small(16) << 12;
      sys.seg[kSegCs].type = 11;
      break;
    case 1:  // 32-bit protected mode
      sys.cr0 = cr0::kPe | cr0::kEt;
      sys.cr4 = 0;
      sys.efer = 0;
      sys.seg[kSegCs].l = 0;
      sys.seg[kSegCs].db = 1;
      break;
    case 2:  // 64-bit, user
      for (Segment& seg : sys.seg) seg.dpl = 3;
      break;
    default:
      break;
  }
  EXPECT_TRUE(g.cpu().set_system_state(sys).has_value());
}

TEST(RandomCode, EveryExitIsAKnownOneAndTheLoopAlwaysComesBack) {
  const u64 seed = test::announced_seed("random_code_test");
  const test::Deadline deadline;
  u64 runs = 0;
  while (deadline.running()) {
    RandomSource random(seed + runs++);
    SCOPED_TRACE(runs - 1);
    Guest g;
    g.long_mode(random.one_in(3));
    g.policy.signal_pending = always;
    for (unsigned i = 0; i < 256; ++i)
      g.gate(i, kCode + random.below(0x6000), static_cast<u8>(random.small(2)), 3);
    for (u64 at = 0x800; at < kIdt; ++at) g.ram(at)[0] = random.byte();
    if (random.one_in(8)) {
      for (u64 i = 0; i < 64; ++i)
        g.write<u64>(kTables + 0x3000 + 8 * random.below(1024), random.next());
    }
    random_state(g, random);
    g.state().rip = kCode + random.below(0x1000);
    for (unsigned exits = 0; exits < 4; ++exits) {
      const Exit& exit = g.run();
      ASSERT_TRUE(known(exit.kind));
      ASSERT_EQ(g.state().rflags & 2, 2u);
      if (exit.kind == ExitKind::kShutdown || exit.kind == ExitKind::kInternalError) break;
    }
  }
  std::printf("%llu guests\n", static_cast<unsigned long long>(runs));
}

// --- Several vCPUs on one memory
// -------------------------------------------------------------------

class SecondCpu {
 public:
  explicit SecondCpu(Guest& g) {
    VcpuConfig config;
    config.id = 1;
    config.memory = &g.memory();
    config.policy = &g.policy;
    cpu_ = *Vcpu::create(config);
    (void)cpu_->set_cpuid(g.cpu().cpuid());
    EXPECT_TRUE(cpu_->set_system_state(g.state().sys).has_value());
    cpu_->state().rip = kCode;
    cpu_->state().rflags = 2;
  }
  ~SecondCpu() { Vcpu::destroy(cpu_); }
  SecondCpu(const SecondCpu&) = delete;
  SecondCpu& operator=(const SecondCpu&) = delete;
  Vcpu& operator*() { return *cpu_; }
  Vcpu* operator->() { return cpu_; }

 private:
  Vcpu* cpu_;
};

TEST(TwoCpus, LockedAdditionsAreAllCounted) {
  Guest g;
  g.long_mode();
  // l: lock inc qword [rbx]; lock xadd [rbx+8], rdx; mov edx, 1; dec rcx; jne l; hlt
  g.code({0xf0, 0x48, 0xff, 0x03, 0xf0, 0x48, 0x0f, 0xc1, 0x53, 0x08, 0xba,
          1,    0,    0,    0,    0x48, 0xff, 0xc9, 0x75, 0xec, 0xf4});
  SecondCpu other(g);
  constexpr u64 kTurns = 100000;
  const auto prepare = [](CpuState& s) {
    s.gpr[kRbx] = kData;
    s.gpr[kRcx] = kTurns;
    s.gpr[kRdx] = 1;
  };
  prepare(g.state());
  prepare(other->state());
  std::thread thread([&] { EXPECT_EQ(other->run({}).kind, ExitKind::kHlt); });
  g.run_to_hlt();
  thread.join();
  EXPECT_EQ(g.read<u64>(kData), 2 * kTurns);
  EXPECT_EQ(g.read<u64>(kData + 8), 2 * kTurns);
}

TEST(TwoCpus, ChangedCodeOfARunningLoopIsSeenByTheOther) {
  Guest g;
  g.long_mode();
  g.code({0xeb, 0xfe});  // jmp self
  std::thread changer([&] {
    usleep(20000);
    // One aligned store of two bytes: nop; hlt.
    __atomic_store_n(reinterpret_cast<u16*>(g.ram(kCode)), u16{0xf490}, __ATOMIC_RELEASE);
  });
  g.run_to_hlt();
  changer.join();
  EXPECT_EQ(g.state().rip, kCode + 2);
}

TEST(TwoCpus, RequestFromAnotherThreadEndsARunningGuest) {
  Guest g;
  g.long_mode();
  g.code({0xeb, 0xfe});
  for (int i = 0; i < 20; ++i) {
    std::thread kicker([&] { g.cpu().request_exit(); });
    const Exit& exit = g.run();
    kicker.join();
    ASSERT_EQ(exit.kind, ExitKind::kInterrupted);
  }
}

TEST(TwoCpus, DeletedSlotIsGoneWhenTheCallReturns) {
  Guest g;
  g.long_mode();
  constexpr u64 kWindow = 0x300000, kGpa = 0x40000000;
  g.write<u64>(kTables + 0x3000 + 8 * (kWindow >> 12), kGpa | 3);
  void* page = mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  g.add_slot(1, kGpa, kPageSize, page);
  g.code({0x48, 0xff, 0xc0, 0x48, 0x89, 0x03, 0xeb, 0xf8});  // l: inc rax; mov [rbx], rax; jmp l
  g.reg(kRbx) = kWindow;
  std::atomic<u64> last{0};
  std::thread remover([&] {
    auto* word = static_cast<u64*>(page);
    while (__atomic_load_n(word, __ATOMIC_RELAXED) < 1000) {
    }
    stage2::Region gone;
    gone.slot = 1;
    gone.gpa = kGpa;
    EXPECT_TRUE(g.memory().slots().set_region(gone).has_value());
    last = __atomic_load_n(word, __ATOMIC_RELAXED);
    usleep(2000);
    EXPECT_EQ(__atomic_load_n(word, __ATOMIC_RELAXED), last.load());
  });
  const Exit& exit = g.run();
  remover.join();
  ASSERT_EQ(exit.kind, ExitKind::kMmio);
  EXPECT_TRUE(exit.mmio.write);
  EXPECT_GE(g.reg(kRax), last.load() + 1);
  munmap(page, kPageSize);
}

}  // namespace
}  // namespace stagetwo::vcpu::testing
