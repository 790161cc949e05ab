// SPDX-License-Identifier: Apache-2.0
// KVM_RUN: exits, their completion, the run page's rules.
#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <thread>

#include "tests/abi/kvm_client.h"

namespace kvm_client {
namespace {

class Run : public Machine {
 protected:
  void SetUp() override {
    Machine::SetUp();
    add_memory();
    add_vcpu();
  }
  long run() { return call(vcpu_, KVM_RUN); }
};

TEST_F(Run, TakesNoArgument) {
  EXPECT_EQ(call(vcpu_, KVM_RUN, 1UL), -EINVAL);
}

TEST_F(Run, ImmediateExitIsEintrAndRunsNothing) {
  load_code({0xf4});
  run_->immediate_exit = 1;
  EXPECT_EQ(run(), -EINTR);
  EXPECT_EQ(regs().rip, 0x1000U);
}
TEST_F(Run, HaltExits) {
  load_code({0xf4});
  ASSERT_EQ(run(), 0);
  EXPECT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_HLT));
  EXPECT_EQ(regs().rip, 0x1001U);
}
TEST_F(Run, OutShowsPortSizeAndData) {
  load_code({0xb8, 0x34, 0x12, 0xe7, 0x80, 0xf4});  // mov ax, 0x1234; out 0x80, ax; hlt
  ASSERT_EQ(run(), 0);
  ASSERT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_IO));
  EXPECT_EQ(run_->io.direction, KVM_EXIT_IO_OUT);
  EXPECT_EQ(run_->io.size, 2U);
  EXPECT_EQ(run_->io.port, 0x80U);
  EXPECT_EQ(run_->io.count, 1U);
  EXPECT_EQ(run_->io.data_offset, 4096U);
  EXPECT_EQ(pio()[0], 0x34);
  EXPECT_EQ(pio()[1], 0x12);
  ASSERT_EQ(run(), 0);
  EXPECT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_HLT));
}
TEST_F(Run, InIsCompletedByTheNextRunEvenAnImmediateOne) {
  load_code({0xe4, 0x60, 0xf4});  // in al, 0x60; hlt
  ASSERT_EQ(run(), 0);
  ASSERT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_IO));
  EXPECT_EQ(run_->io.direction, KVM_EXIT_IO_IN);
  EXPECT_EQ(regs().rip, 0x1000U) << "still at the instruction";
  pio()[0] = 0x5a;
  run_->immediate_exit = 1;
  EXPECT_EQ(run(), -EINTR);
  EXPECT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_IO)) << "left alone";
  EXPECT_EQ(run_->io.port, 0x60U);
  EXPECT_EQ(regs().rip, 0x1002U);
  EXPECT_EQ(regs().rax & 0xff, 0x5aU);
  run_->immediate_exit = 0;
  ASSERT_EQ(run(), 0);
  EXPECT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_HLT));
}
TEST_F(Run, MmioReadIsCompletedWithTheClientsData) {
  load_code({0xa1, 0x00, 0x80, 0xf4});  // mov ax, [0x8000]; hlt
  ASSERT_EQ(run(), 0);
  ASSERT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_MMIO));
  EXPECT_EQ(run_->mmio.phys_addr, 0x8000U);
  EXPECT_EQ(run_->mmio.len, 2U);
  EXPECT_EQ(run_->mmio.is_write, 0U);
  run_->mmio.data[0] = 0xcd;
  run_->mmio.data[1] = 0xab;
  ASSERT_EQ(run(), 0);
  EXPECT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_HLT));
  EXPECT_EQ(regs().rax & 0xffff, 0xabcdU);
}
TEST_F(Run, MmioWriteShowsTheData) {
  load_code({0xb8, 0x34, 0x12, 0xa3, 0x00, 0x80, 0xf4});  // mov ax, 0x1234; mov [0x8000], ax; hlt
  ASSERT_EQ(run(), 0);
  ASSERT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_MMIO));
  EXPECT_EQ(run_->mmio.is_write, 1U);
  EXPECT_EQ(run_->mmio.data[0], 0x34U);
  ASSERT_EQ(run(), 0);
  EXPECT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_HLT));
}
TEST_F(Run, CoalescedWriteDoesNotExit) {
  kvm_coalesced_mmio_zone zone{};
  zone.addr = 0x8000;
  zone.size = 0x100;
  ASSERT_EQ(call(vm_, KVM_REGISTER_COALESCED_MMIO, &zone), 0);
  load_code({0xb8, 0x34, 0x12, 0xa3, 0x00, 0x80, 0xf4});
  ASSERT_EQ(run(), 0);
  EXPECT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_HLT));
  auto* ring = reinterpret_cast<kvm_coalesced_mmio_ring*>(reinterpret_cast<u8*>(run_) + 2 * 4096);
  ASSERT_EQ(ring->last, 1U);
  EXPECT_EQ(ring->coalesced_mmio[0].phys_addr, 0x8000U);
  EXPECT_EQ(ring->coalesced_mmio[0].len, 2U);
}
TEST_F(Run, FetchWithoutMemoryIsAnInternalError) {
  load_code({0xea, 0x00, 0x00, 0x00, 0xa0});  // jmp 0xa000:0
  ASSERT_EQ(run(), 0);
  EXPECT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_INTERNAL_ERROR));
  EXPECT_EQ(run_->internal.suberror, static_cast<u32>(KVM_INTERNAL_ERROR_EMULATION));
}
TEST_F(Run, VanishedBackingIsEfault) {
  load_code({0xf4});
  ASSERT_EQ(::mprotect(memory_, kMemory, PROT_NONE), 0);
  EXPECT_EQ(run(), -EFAULT);
  ASSERT_EQ(::mprotect(memory_, kMemory, PROT_READ | PROT_WRITE), 0);
}

TEST_F(Run, UnknownSyncRegistersAreEinval) {
  load_code({0xf4});
  run_->kvm_valid_regs = 0x80000000;
  EXPECT_EQ(run(), -EINVAL);
  run_->kvm_valid_regs = 0;
  run_->kvm_dirty_regs = 0x80000000;
  EXPECT_EQ(run(), -EINVAL);
}
TEST_F(Run, SyncRegistersAreReadAndWritten) {
  load_code({0x43, 0xe4, 0x60, 0xf4});  // inc bx; in al, 0x60; hlt
  run_->kvm_valid_regs = KVM_SYNC_X86_VALID_FIELDS;
  ASSERT_EQ(run(), 0);
  EXPECT_EQ(run_->s.regs.regs.rbx, 1U);
  run_->s.regs.regs.rbx = 0x40;
  run_->s.regs.regs.rip = 0x1000;
  run_->kvm_dirty_regs = KVM_SYNC_X86_REGS;
  ASSERT_EQ(run(), 0);
  EXPECT_EQ(run_->s.regs.regs.rbx, 0x41U);
  EXPECT_EQ(run_->kvm_dirty_regs, 0U);
  run_->s.regs.sregs.cr0 = 0x80000000;
  run_->kvm_dirty_regs = KVM_SYNC_X86_SREGS;
  EXPECT_EQ(run(), -EINVAL);
}
TEST_F(Run, TaskPriorityComesFromTheRunPageWithoutAnApic) {
  load_code({0xf4});
  run_->cr8 = 16;
  EXPECT_EQ(run(), -EINVAL);
  run_->cr8 = 3;
  ASSERT_EQ(run(), 0);
  EXPECT_EQ(run_->cr8, 3U);
  EXPECT_EQ(run_->apic_base, 0xfee00900U);
}
TEST_F(Run, CpuidIsFixedAfterTheFirstRun) {
  Table<kvm_cpuid_entry2, 100> cpuid;
  ASSERT_EQ(call(device_, KVM_GET_SUPPORTED_CPUID, &cpuid), 0);
  ASSERT_EQ(call(vcpu_, KVM_SET_CPUID2, &cpuid), 0);
  load_code({0xf4});
  ASSERT_EQ(run(), 0);
  EXPECT_EQ(call(vcpu_, KVM_SET_CPUID2, &cpuid), 0) << "the same";
  cpuid.entry[1].eax ^= 1;
  EXPECT_EQ(call(vcpu_, KVM_SET_CPUID2, &cpuid), -EINVAL);
}
// Memory that goes while stage 2 has it, unheard: this program has no shim.
class RunUnheard : public Run {
 protected:
  // Runs the code twice: the second time without its page `n`; then with it again.
  template <size_t N>
  void expect_efault_while_gone(const u8 (&code)[N], u64 n, u64 rip = 0x1000) {
    load_code(code);
    std::memcpy(memory_ + (rip - 0x1000), code, N);
    const auto start = [&] {
      kvm_regs r{};
      r.rip = rip;
      r.rflags = 2;
      EXPECT_EQ(call(vcpu_, KVM_SET_REGS, &r), 0);
      return run();
    };
    ASSERT_EQ(start(), 0);
    ASSERT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_HLT));
    u8 kept[4096];
    u8* const page = memory_ + n * sizeof(kept);
    std::memcpy(kept, page, sizeof(kept));
    ASSERT_EQ(::munmap(page, sizeof(kept)), 0);
    EXPECT_EQ(start(), -EFAULT);
    EXPECT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_UNKNOWN));
    EXPECT_EQ(regs().rip, rip);
    ASSERT_EQ(::mmap(page, sizeof(kept), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
              page);
    std::memcpy(page, kept, sizeof(kept));
    EXPECT_EQ(start(), 0);
    EXPECT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_HLT));
  }
};

TEST_F(RunUnheard, DataThatIsReadIsABareEfault) {
  expect_efault_while_gone({0xa1, 0x00, 0x20, 0xf4}, 1);  // mov ax, [0x2000]; hlt
}
TEST_F(RunUnheard, DataThatIsChangedIsABareEfault) {
  expect_efault_while_gone({0xff, 0x06, 0x00, 0x20, 0xf4}, 1);  // inc word [0x2000]; hlt
}
TEST_F(RunUnheard, DataThatIsChangedAtomicallyIsABareEfault) {
  expect_efault_while_gone({0xf0, 0xff, 0x06, 0x00, 0x20, 0xf4}, 1);
}
TEST_F(RunUnheard, CodeIsABareEfault) {
  expect_efault_while_gone({0x90, 0xf4}, 1, 0x2000);
}
TEST_F(RunUnheard, CodeOfWhichTheRestGoesIsABareEfault) {
  expect_efault_while_gone({0xb8, 0x00, 0x00, 0xf4}, 2, 0x2ffe);  // mov ax, 0 over two pages
}

TEST_F(Run, CpuidMayChangeUntilTheGuestWasEntered) {
  Table<kvm_cpuid_entry2, 100> cpuid;
  ASSERT_EQ(call(device_, KVM_GET_SUPPORTED_CPUID, &cpuid), 0);
  ASSERT_EQ(call(vcpu_, KVM_SET_CPUID2, &cpuid), 0);
  load_code({0xf4});
  run_->immediate_exit = 1;
  ASSERT_EQ(run(), -EINTR);
  cpuid.entry[0].function = 0x40001234;
  EXPECT_EQ(call(vcpu_, KVM_SET_CPUID2, &cpuid), 0);
}
TEST_F(Run, WindowIsReportedWhenInterruptsAreOn) {
  load_code({0xfb, 0x90, 0x90, 0xf4});  // sti; nop; nop; hlt
  run_->request_interrupt_window = 1;
  ASSERT_EQ(run(), 0);
  EXPECT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_IRQ_WINDOW_OPEN));
  EXPECT_EQ(run_->if_flag, 1U);
  EXPECT_EQ(run_->ready_for_interrupt_injection, 1U);
}
TEST_F(Run, TripleFaultIsAShutdown) {
  load_code({0x0f, 0x01, 0x1e, 0x00, 0x30, 0x0f, 0x0b});  // lidt [0x3000]; ud2
  ASSERT_EQ(run(), 0);
  EXPECT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_SHUTDOWN));
}
TEST_F(Run, FilteredMsrExitsWithTheReasonAsked) {
  kvm_enable_cap cap{};
  cap.cap = KVM_CAP_X86_USER_SPACE_MSR;
  cap.args[0] = KVM_MSR_EXIT_REASON_FILTER;
  ASSERT_EQ(call(vm_, KVM_ENABLE_CAP, &cap), 0);
  u8 bits[8] = {};
  kvm_msr_filter filter{};
  filter.ranges[0] = {.flags = KVM_MSR_FILTER_READ, .nmsrs = 1, .base = 0x174, .bitmap = bits};
  ASSERT_EQ(call(vm_, KVM_X86_SET_MSR_FILTER, &filter), 0);
  load_code({0x66, 0xb9, 0x74, 0x01, 0x00, 0x00, 0x0f, 0x32, 0xf4});  // mov ecx, 0x174; rdmsr; hlt
  ASSERT_EQ(run(), 0);
  ASSERT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_X86_RDMSR));
  EXPECT_EQ(run_->msr.index, 0x174U);
  EXPECT_EQ(run_->msr.reason, static_cast<u32>(KVM_MSR_EXIT_REASON_FILTER));
  run_->msr.data = 0x0000000512345678;
  ASSERT_EQ(run(), 0);
  EXPECT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_HLT));
  EXPECT_EQ(regs().rax & 0xffffffff, 0x12345678U);
  EXPECT_EQ(regs().rdx & 0xffffffff, 5U);
}

// The vCPU spins; a signal that the mask lets through ends the run and stays pending.
TEST_F(Run, MaskedSignalEndsTheRunAndStaysPending) {
  load_code({0xeb, 0xfe});
  struct {
    u32 length = 8;
    u8 set[8] = {};
  } __attribute__((packed)) mask;
  ASSERT_EQ(call(vcpu_, KVM_SET_SIGNAL_MASK, &mask), 0);
  std::atomic<pthread_t> runner{};
  std::atomic<bool> ready{false};
  std::thread thread([&] {
    sigset_t block;
    sigemptyset(&block);
    sigaddset(&block, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &block, nullptr);
    runner = pthread_self();
    ready = true;
    EXPECT_EQ(run(), -EINTR);
    EXPECT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_INTR));
    sigset_t pending;
    sigpending(&pending);
    EXPECT_TRUE(sigismember(&pending, SIGUSR1));
    int taken = 0;
    sigwait(&block, &taken);
    EXPECT_EQ(taken, SIGUSR1);
  });
  while (!ready) sched_yield();
  usleep(20000);
  pthread_kill(runner, SIGUSR1);
  thread.join();
}

// A request in flight holds what it works on: every descriptor goes while the guest spins, which
// ends by a signal like any other run.
TEST_F(Run, ClosedDescriptorsLetTheRunGoOn) {
  load_code({0xeb, 0xfe});
  struct {
    u32 length = 8;
    u8 set[8] = {};
  } __attribute__((packed)) mask;
  ASSERT_EQ(call(vcpu_, KVM_SET_SIGNAL_MASK, &mask), 0);
  std::atomic<pthread_t> runner{};
  std::atomic<bool> ready{false};
  const int fd = vcpu_;
  std::thread thread([&] {
    sigset_t block;
    sigemptyset(&block);
    sigaddset(&block, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &block, nullptr);
    runner = pthread_self();
    ready = true;
    EXPECT_EQ(call(fd, KVM_RUN), -EINTR);
  });
  while (!ready) sched_yield();
  usleep(20000);
  ::munmap(run_, 3 * 4096);
  run_ = nullptr;
  vcpu_.close();
  vm_.close();
  device_.close();
  usleep(20000);
  pthread_kill(runner, SIGUSR1);
  thread.join();
}

}  // namespace
}  // namespace kvm_client
