// SPDX-License-Identifier: Apache-2.0
#include "base/sys.h"

// The engine's one system-call instruction. It stands in assembly so that its
// address is known: system-call user dispatch and a client's own seccomp filter are told about
// [stagetwo_syscall_begin, stagetwo_syscall_end) and about nothing else.
//
// Registers: the C++ arguments are (nr, a, b, c, d, e | stack: f); the kernel wants
// rax = nr, rdi rsi rdx r10 r8 r9. The kernel clobbers rcx and r11 only.

#if !defined(__x86_64__)
#error "this file is the x86-64 flavour of the engine's system call"
#endif

asm(R"(
  .text
  .p2align 4
  .globl stagetwo_syscall_begin
  .hidden stagetwo_syscall_begin
  .globl stagetwo_syscall
  .hidden stagetwo_syscall
  .type stagetwo_syscall, @function
stagetwo_syscall_begin:
stagetwo_syscall:
  .cfi_startproc
  endbr64
  movq %rdi, %rax
  movq %rsi, %rdi
  movq %rdx, %rsi
  movq %rcx, %rdx
  movq %r8, %r10
  movq %r9, %r8
  movq 8(%rsp), %r9
  syscall
  ret
  .cfi_endproc
  .size stagetwo_syscall, . - stagetwo_syscall
  .globl stagetwo_sigreturn
  .hidden stagetwo_sigreturn
  .type stagetwo_sigreturn, @function
  .p2align 4
  nop
# Where a signal handler of the engine returns to. It needs the stack exactly as it is, so it cannot
# pass through the function above; unwinders know a signal frame by these very bytes.
stagetwo_sigreturn:
  movq $15, %rax
  syscall
  .size stagetwo_sigreturn, . - stagetwo_sigreturn
  .globl stagetwo_syscall_end
  .hidden stagetwo_syscall_end
stagetwo_syscall_end:
)");
