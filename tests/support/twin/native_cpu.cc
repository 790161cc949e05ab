// SPDX-License-Identifier: Apache-2.0
#include "tests/support/twin/native_cpu.h"

#include <cpuid.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <csignal>
#include <cstring>

#include <array>
#include <cerrno>

// The way in (st_native_enter) loads every register from the frame page and jumps; the way out is a
// copy of st_native_leave at kExit, which stores every register there. Both use absolute addresses,
// so that they need no register. A faulting sequence comes out through the signal handler, which
// stores what the kernel saved and resumes at st_native_resume on the host's stack.
//
// FS and GS bases are the sequence's own while it runs: the handler restores the host's FS base
// before it does anything that may use thread-local storage.

namespace stagetwo::twin {
namespace {

struct Frame {
  u64 gpr[16];         // 0x000
  u64 rip;             // 0x080
  u64 rflags;          // 0x088
  u32 mxcsr, pad0;     // 0x090
  u64 host_rsp;        // 0x098
  u32 host_mxcsr, p1;  // 0x0a0
  u64 fs_base;         // 0x0a8
  u64 gs_base;         // 0x0b0
  u64 host_fs;         // 0x0b8
  u64 host_gs;         // 0x0c0
  u64 inside;          // 0x0c8: 1 between the load and the store of the registers
  u64 vector;          // 0x0d0
  u64 error;           // 0x0d8
  u64 cr2;             // 0x0e0
  u64 pad2[3];
  Xmm xmm[16];          // 0x100
  u8 gap[0x200];        // 0x200
  u8 clean_fpu[0x200];  // 0x400: the image of an x87 unit after reset
};
static_assert(offsetof(Frame, host_rsp) == 0x98 && offsetof(Frame, cr2) == 0xe0);
static_assert(offsetof(Frame, xmm) == 0x100 && offsetof(Frame, clean_fpu) == 0x400);
static_assert(kFrame == 0x35d9b000, "written out in the assembly below");

Frame& frame() {
  return *reinterpret_cast<Frame*>(kFrame);
}

}  // namespace
}  // namespace stagetwo::twin

extern "C" {
void st_native_enter();
void st_native_resume();
extern const char st_native_leave[], st_native_leave_end[];
}

// clang-format off
asm(R"(
.pushsection .text
.set F, 0x35d9b000
.macro xmms op
  .irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
  \op \n
  .endr
.endm
.macro load_xmm n
  movups F+0x100+16*\n, %xmm\n
.endm
.macro store_xmm n
  movups %xmm\n, F+0x100+16*\n
.endm

.globl st_native_enter
.type st_native_enter, @function
st_native_enter:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  pushfq
  mov %rsp, F+0x98
  stmxcsr F+0xa0
  rdfsbase %rax
  mov %rax, F+0xb8
  rdgsbase %rax
  mov %rax, F+0xc0
  movq $1, F+0xc8
  mov F+0xa8, %rax
  wrfsbase %rax
  mov F+0xb0, %rax
  wrgsbase %rax
  fxrstor64 F+0x400
  ldmxcsr F+0x90
  xmms load_xmm
  pushq F+0x88
  popfq
  mov F+0x00, %rax
  mov F+0x08, %rcx
  mov F+0x10, %rdx
  mov F+0x18, %rbx
  mov F+0x20, %rsp
  mov F+0x28, %rbp
  mov F+0x30, %rsi
  mov F+0x38, %rdi
  mov F+0x40, %r8
  mov F+0x48, %r9
  mov F+0x50, %r10
  mov F+0x58, %r11
  mov F+0x60, %r12
  mov F+0x68, %r13
  mov F+0x70, %r14
  mov F+0x78, %r15
  jmp *F+0x80
.size st_native_enter, .-st_native_enter

.globl st_native_leave, st_native_leave_end
st_native_leave:
  mov %rax, F+0x00
  mov %rcx, F+0x08
  mov %rdx, F+0x10
  mov %rbx, F+0x18
  mov %rsp, F+0x20
  mov %rbp, F+0x28
  mov %rsi, F+0x30
  mov %rdi, F+0x38
  mov %r8,  F+0x40
  mov %r9,  F+0x48
  mov %r10, F+0x50
  mov %r11, F+0x58
  mov %r12, F+0x60
  mov %r13, F+0x68
  mov %r14, F+0x70
  mov %r15, F+0x78
  mov F+0x98, %rsp
  pushfq
  popq F+0x88
  stmxcsr F+0x90
  xmms store_xmm
  rdfsbase %rax
  mov %rax, F+0xa8
  rdgsbase %rax
  mov %rax, F+0xb0
  mov F+0xb8, %rax
  wrfsbase %rax
  mov F+0xc0, %rax
  wrgsbase %rax
  movq $0, F+0xc8
  fninit
  ldmxcsr F+0xa0
  popfq
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
st_native_leave_end:

.globl st_native_resume
.type st_native_resume, @function
st_native_resume:
  fninit
  ldmxcsr F+0xa0
  popfq
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size st_native_resume, .-st_native_resume
.popsection
)");
// clang-format on

namespace stagetwo::twin {
namespace {

constexpr std::array kSignals = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
constexpr std::size_t kSignalStack = 64 * 1024;
constexpr std::array kGregOfGpr = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                   REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                   REG_R12, REG_R13, REG_R14, REG_R15};

struct sigaction g_previous[kSignals.size()];

// Not ours: whoever was there before (the engine's backstop), or the usual end.
void forward(int number, siginfo_t* info, void* raw) {
  for (std::size_t i = 0; i < kSignals.size(); ++i) {
    if (kSignals[i] != number || (g_previous[i].sa_flags & SA_SIGINFO) == 0) continue;
    g_previous[i].sa_sigaction(number, info, raw);
    return;
  }
  std::signal(number, SIG_DFL);
}

// Runs with the sequence's FS base: nothing here may use thread-local storage before it is
// restored.
__attribute__((no_sanitize("address", "undefined"), no_stack_protector)) void on_signal(
    int number, siginfo_t* info, void* raw) {
  auto* context = static_cast<ucontext_t*>(raw);
  auto& greg = context->uc_mcontext.gregs;
  Frame& f = frame();
  if (f.inside == 0) {
    forward(number, info, raw);
    return;
  }
  u64 fs = 0, gs = 0;
  // Alignment checking may be the sequence's too.
  asm volatile(
      "lea -128(%%rsp), %%rsp\n\tpushfq\n\tandq $~0x40000, (%%rsp)\n\tpopfq\n\t"
      "lea 128(%%rsp), %%rsp" ::
          : "memory", "cc");
  asm volatile("rdfsbase %0\n\trdgsbase %1" : "=r"(fs), "=r"(gs));
  asm volatile("wrfsbase %0\n\twrgsbase %1" ::"r"(f.host_fs), "r"(f.host_gs));
  f.fs_base = fs;
  f.gs_base = gs;
  f.inside = 0;
  for (std::size_t i = 0; i < 16; ++i) f.gpr[i] = static_cast<u64>(greg[kGregOfGpr[i]]);
  f.rip = static_cast<u64>(greg[REG_RIP]);
  f.rflags = static_cast<u64>(greg[REG_EFL]);
  f.vector = static_cast<u64>(greg[REG_TRAPNO]);
  f.error = static_cast<u64>(greg[REG_ERR]);
  f.cr2 = static_cast<u64>(greg[REG_CR2]);
  auto* fpu = context->uc_mcontext.fpregs;
  f.mxcsr = fpu->mxcsr;
  std::memcpy(f.xmm, fpu->_xmm, sizeof f.xmm);
  fpu->mxcsr = f.host_mxcsr;
  greg[REG_EFL] = 0x202;
  greg[REG_RSP] = static_cast<greg_t>(f.host_rsp);
  greg[REG_RIP] = reinterpret_cast<greg_t>(&st_native_resume);
}

bool map_area(u64 where, u64 size, int protection) {
  return mprotect(reinterpret_cast<void*>(where), size, protection) == 0;
}

// A page away from the arena, where no arithmetic on its addresses leads.
bool map_apart(u64 where) {
  void* const at = reinterpret_cast<void*>(where);
  return mmap(at, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
              -1, 0) == at;
}

// The code is readable and executable where it runs, as in a guest, and written through a second
// mapping.
bool map_code(u8** writable) {
  const int fd = memfd_create("native code", MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, kCodeSize) != 0) return false;
  void* alias = mmap(nullptr, kCodeSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  void* code = mmap(reinterpret_cast<void*>(kCode), kCodeSize, PROT_READ | PROT_EXEC,
                    MAP_SHARED | MAP_FIXED, fd, 0);
  close(fd);
  *writable = static_cast<u8*>(alias);
  return alias != MAP_FAILED && code != MAP_FAILED;
}

constexpr unsigned long kFsgsbaseHwcap2 = 2;  // AT_HWCAP2, HWCAP2_FSGSBASE

}  // namespace

bool NativeCpu::open(std::string* reason) {
  if (kShadowMemory) {
    *reason = "a sanitizer's shadow memory lies within reach of random sequences";
    return false;
  }
  if ((getauxval(AT_HWCAP2) & kFsgsbaseHwcap2) == 0) {
    *reason = "the kernel does not let user mode write FS and GS bases";
    return false;
  }
  void* arena = mmap(reinterpret_cast<void*>(kArena), kArenaSize, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  if (arena != reinterpret_cast<void*>(kArena)) {
    *reason = "the fixed addresses of the arena are taken";
    return false;
  }
  open_ = true;
  constexpr int kRw = PROT_READ | PROT_WRITE;
  if (!map_code(&code_)) {
    *reason = "no memory that can be executed";
    return false;
  }
  if (!map_area(kScratch, kScratchSize, kRw) || !map_area(kStack, kStackSize, kRw) ||
      !map_apart(kFrame) || !map_apart(kExit)) {
    *reason = "no memory";
    return false;
  }
  const u16 control = 0x37f;
  const u32 mxcsr = 0x1f80;
  std::memcpy(frame().clean_fpu, &control, sizeof control);
  std::memcpy(frame().clean_fpu + 24, &mxcsr, sizeof mxcsr);
  std::memcpy(reinterpret_cast<void*>(kExit), st_native_leave,
              static_cast<std::size_t>(st_native_leave_end - st_native_leave));
  if (!map_area(kExit, 0x1000, PROT_READ | PROT_EXEC)) return false;
  signal_stack_ = mmap(nullptr, kSignalStack, kRw, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  stack_t stack = {};
  stack.ss_sp = signal_stack_;
  stack.ss_size = kSignalStack;
  sigaltstack(&stack, nullptr);
  struct sigaction action = {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &action, &g_previous[i]);
  return true;
}

NativeCpu::~NativeCpu() {
  if (!open_) return;
  for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &g_previous[i], nullptr);
  munmap(reinterpret_cast<void*>(kArena), kArenaSize);
  munmap(code_, kCodeSize);
  munmap(reinterpret_cast<void*>(kFrame), 0x1000);
  munmap(reinterpret_cast<void*>(kExit), 0x1000);
  if (signal_stack_ == nullptr) return;
  stack_t stack = {};
  stack.ss_flags = SS_DISABLE;
  sigaltstack(&stack, nullptr);
  munmap(signal_stack_, kSignalStack);
}

std::span<u8> NativeCpu::code() {
  return {code_, kCodeSize};
}
std::span<u8> NativeCpu::scratch() {
  return {reinterpret_cast<u8*>(kScratch), kScratchSize};
}
std::span<u8> NativeCpu::stack() {
  return {reinterpret_cast<u8*>(kStack), kStackSize};
}

CpuEnd NativeCpu::run(const CpuImage& start) {
  Frame& f = frame();
  std::memcpy(f.gpr, start.gpr, sizeof f.gpr);
  std::memcpy(f.xmm, start.xmm, sizeof f.xmm);
  f.rip = start.rip;
  f.rflags = start.rflags;
  f.mxcsr = start.mxcsr;
  f.fs_base = start.fs_base;
  f.gs_base = start.gs_base;
  f.vector = ~u64{0};
  f.error = f.cr2 = 0;
  asm volatile("" ::: "memory");
  st_native_enter();
  asm volatile("" ::: "memory");
  CpuEnd end;
  std::memcpy(end.image.gpr, f.gpr, sizeof f.gpr);
  std::memcpy(end.image.xmm, f.xmm, sizeof f.xmm);
  end.image.rflags = f.rflags;
  end.image.mxcsr = f.mxcsr;
  end.image.fs_base = f.fs_base;
  end.image.gs_base = f.gs_base;
  end.vector = f.vector == ~u64{0} ? -1 : static_cast<int>(f.vector);
  end.image.rip = end.vector < 0 ? kExit : f.rip;
  end.error = f.error;
  end.cr2 = f.cr2;
  return end;
}

}  // namespace stagetwo::twin
