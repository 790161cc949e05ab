// SPDX-License-Identifier: Apache-2.0
#include "tests/support/twin/privileged_snippets.h"

// The addresses and selectors are those of cpu_image.h and guest_world.h: SCRATCH is the first
// scratch page, RODATA a byte of the code pages, which are not writable, that no code uses.
// Whatever a snippet changes for those after it, it puts back.

extern "C" {
struct StSnippet {
  const char* name;
  const stagetwo::twin::u8* start;
  const stagetwo::twin::u8* end;
};
extern const StSnippet st_snippets[], st_snippets_end[];
}

// clang-format off
asm(R"(
.set SCRATCH, 0x10100000
.set RODATA, 0x1000fff0
.set KERNEL_CS, 0x08
.set KERNEL_SS, 0x10
.set USER_CS, 0x33
.set USER_SS, 0x2b
.set TSS, 0x40

.macro snippet name
  .pushsection .data.rel.ro
  .quad 1001f, 1002f, 1003f
  .popsection
  .pushsection .rodata
  1001: .asciz "\name"
  .popsection
  1002:
.endm
.macro end_snippet
  1003:
.endm
# wrmsr of a 64-bit value
.macro set_msr index, value
  mov $\index, %ecx
  mov $(\value & 0xffffffff), %eax
  mov $(\value >> 32), %edx
  wrmsr
.endm
# REX.W FF /5 (2c: jump) or /3 (1c: call) with the 10-byte pointer at SCRATCH; assemblers differ here
.macro far_through_scratch modrm
  .byte 0x48, 0xff, \modrm, 0x25
  .long SCRATCH
.endm
# an IRETQ frame, then the IRETQ, to the next instruction
.macro to_ring cs, ss
  mov %rsp, %rax
  pushq $\ss
  push %rax
  pushfq
  pushq $\cs
  lea 1f(%rip), %rax
  push %rax
  iretq
  1:
.endm

.pushsection .data.rel.ro
.balign 8
.globl st_snippets
st_snippets:
.popsection
.pushsection .text

snippet "control registers read back what was set"
  mov %cr0, %rax
  mov %cr3, %rbx
  mov %cr4, %rsi
  mov %rbx, %cr3
end_snippet
snippet "CR4.PGE can be set and cleared"
  mov %cr4, %rax
  or $0x80, %rax
  mov %rax, %cr4
  mov %cr4, %rbx
  and $~0x80, %rax
  mov %rax, %cr4
end_snippet
snippet "a reserved bit of CR4 is refused"
  mov %cr4, %rax
  bts $40, %rax
  mov %rax, %cr4
end_snippet
snippet "paging without protection is refused"
  mov %cr0, %rax
  and $~1, %rax
  mov %rax, %cr0
end_snippet
snippet "not write-through without cache disable is refused"
  mov %cr0, %rax
  bts $29, %rax
  mov %rax, %cr0
end_snippet
snippet "PAE cannot be cleared in long mode"
  mov %cr4, %rax
  and $~0x20, %rax
  mov %rax, %cr4
end_snippet
snippet "CR0.TS makes SSE unavailable, CLTS makes it available"
  mov %cr0, %rax
  or $8, %rax
  mov %rax, %cr0
  mov %cr0, %rbx
  clts
  mov %cr0, %rsi
end_snippet
snippet "CR2 is a register like another"
  movabs $0x123456789abc, %rax
  mov %rax, %cr2
  mov %cr2, %rbx
end_snippet
snippet "CR8 holds four bits"
  mov $5, %eax
  mov %rax, %cr8
  mov %cr8, %rbx
  xor %eax, %eax
  mov %rax, %cr8
end_snippet
snippet "CR8 beyond four bits is refused"
  mov $0x10, %eax
  mov %rax, %cr8
end_snippet
snippet "CR1 does not exist"
  .byte 0x0f, 0x20, 0xc8
end_snippet
snippet "debug registers read back"
  movabs $0x10100008, %rax
  mov %rax, %db0
  mov %db0, %rbx
  mov %rax, %db3
  mov %db3, %rsi
  xor %eax, %eax
  mov %rax, %db0
  mov %rax, %db3
  mov %db7, %rdi
end_snippet
snippet "DR6 above 32 bits is refused"
  movabs $0x100000000, %rax
  mov %rax, %db6
end_snippet
snippet "EFER reads and takes its own value"
  mov $0xc0000080, %ecx
  rdmsr
  mov %eax, %ebx
  wrmsr
end_snippet
snippet "EFER.LME cannot be cleared under paging"
  mov $0xc0000080, %ecx
  rdmsr
  btr $8, %eax
  wrmsr
end_snippet
snippet "an unknown MSR is refused for reading"
  mov $0xdeadbeef, %ecx
  rdmsr
end_snippet
snippet "an unknown MSR is refused for writing"
  set_msr 0xdeadbeef, 0
end_snippet
snippet "system call MSRs read back"
  set_msr 0xc0000081, 0x0023001000000000
  set_msr 0xc0000082, 0x0000123456789abc
  set_msr 0xc0000084, 0x0000000000047700
  mov $0xc0000081, %ecx
  rdmsr
  mov %rdx, %rbx
  mov $0xc0000082, %ecx
  rdmsr
  mov %rdx, %rsi
  mov %rax, %rdi
  mov $0xc0000084, %ecx
  rdmsr
end_snippet
snippet "LSTAR must be canonical"
  set_msr 0xc0000082, 0x8000000000000000
end_snippet
snippet "PAT reads back, and refuses a reserved type"
  set_msr 0x277, 0x0007040600070406
  mov $0x277, %ecx
  rdmsr
  mov %rax, %rbx
  set_msr 0x277, 0x0000000000000002
end_snippet
snippet "SWAPGS exchanges the bases"
  set_msr 0xc0000101, 0x0000000010100040
  set_msr 0xc0000102, 0x0000000010100080
  movq $0x11, SCRATCH+0x40
  movq $0x22, SCRATCH+0x80
  mov %gs:0, %rbx
  swapgs
  mov %gs:0, %rsi
end_snippet
snippet "segment bases as MSRs reach addressing"
  set_msr 0xc0000100, 0x0000000010100100
  movq $0x33, SCRATCH+0x108
  mov %fs:8, %rbx
end_snippet
snippet "descriptor tables are stored and loaded back"
  sgdt SCRATCH
  sidt SCRATCH+16
  lgdt SCRATCH
  lidt SCRATCH+16
  str %eax
  sldt %ebx
end_snippet
snippet "a busy task cannot be loaded"
  mov $TSS, %eax
  ltr %ax
end_snippet
snippet "no task is at the null selector"
  xor %eax, %eax
  ltr %ax
end_snippet
snippet "an empty local table may be loaded"
  xor %eax, %eax
  lldt %ax
  sldt %rbx
end_snippet
snippet "a local table must be a system segment"
  mov $KERNEL_CS, %eax
  lldt %ax
end_snippet
snippet "LAR and LSL of code, data, task, nothing"
  mov $KERNEL_CS, %eax
  lar %eax, %ebx
  lsl %eax, %esi
  setz %r8b
  mov $USER_SS, %eax
  lar %eax, %edi
  setz %r9b
  mov $TSS, %eax
  lar %eax, %ebp
  lsl %eax, %r10d
  setz %r11b
  xor %eax, %eax
  lar %eax, %r12d
  setz %r13b
  mov $0x1000, %eax
  lsl %eax, %r14d
  setz %r15b
end_snippet
snippet "VERR and VERW of code, data, nothing"
  mov $KERNEL_CS, %eax
  verr %ax
  setz %bl
  verw %ax
  setz %bh
  mov $USER_SS, %eax
  verr %ax
  setz %cl
  verw %ax
  setz %ch
  xor %eax, %eax
  verr %ax
  setz %dl
end_snippet
snippet "data segments take data and null selectors"
  mov $USER_SS, %eax
  mov %eax, %ds
  mov %ds, %ebx
  xor %eax, %eax
  mov %eax, %ds
  mov %ds, %esi
end_snippet
snippet "a data segment beyond the table is refused"
  mov $0x1008, %eax
  mov %eax, %es
end_snippet
snippet "a data segment cannot be the task"
  mov $TSS, %eax
  mov %eax, %es
end_snippet
snippet "SS may be null at CPL 0 and holds interrupts back"
  xor %eax, %eax
  mov %eax, %ss
  mov %ss, %ebx
  mov $KERNEL_SS, %eax
  mov %eax, %ss
  mov %ss, %esi
end_snippet
snippet "SS must be a writable segment of this level"
  mov $USER_SS, %eax
  mov %eax, %ss
end_snippet
snippet "a far jump through memory"
  lea 1f(%rip), %rax
  mov %rax, SCRATCH
  movw $KERNEL_CS, SCRATCH+8
  far_through_scratch 0x2c
  ud2
1:
  mov %cs, %ebx
end_snippet
snippet "a far jump to a data segment is refused"
  movw $KERNEL_SS, SCRATCH+8
  far_through_scratch 0x2c
end_snippet
snippet "a far call and a far return"
  lea 1f(%rip), %rax
  mov %rax, SCRATCH
  movw $KERNEL_CS, SCRATCH+8
  far_through_scratch 0x1c
  mov $7, %esi
  jmp 2f
1:
  mov (%rsp), %rbx
  sub %rax, %rbx
  lretq
2:
end_snippet
snippet "IRETQ within the kernel"
  to_ring KERNEL_CS, KERNEL_SS
  mov %cs, %ebx
end_snippet
snippet "IRETQ to user mode, where HLT is refused"
  to_ring USER_CS, USER_SS
  mov %cs, %ebx
  hlt
end_snippet
snippet "IRETQ to a null code segment is refused"
  to_ring 0, KERNEL_SS
end_snippet
snippet "IRETQ takes NT as a request it refuses"
  pushfq
  orl $0x4000, (%rsp)
  popfq
  iretq
end_snippet
snippet "SYSCALL and SYSRET"
  set_msr 0xc0000081, 0x0023000800000000
  set_msr 0xc0000084, 0x0000000000000400
  lea 2f(%rip), %rax
  xor %edx, %edx # the code stands below 4 GiB
  cmp %eax, %edx
  mov $0xc0000082, %ecx
  wrmsr
  to_ring USER_CS, USER_SS
  std
  syscall
  mov %cs, %edi
  mov %ss, %ebp
  jmp 3f
2:
  mov %cs, %ebx
  mov %r11, %rsi
  pushfq
  pop %r8
  sysretq
3:
  cld
end_snippet
snippet "SYSCALL is undefined while EFER.SCE is clear"
  mov $0xc0000080, %ecx
  rdmsr
  btr $0, %eax
  wrmsr
  mov %eax, %ebx
  bts $0, %eax
  wrmsr
  mov %eax, %esi
end_snippet
snippet "INT reaches its gate"
  int $0x30
end_snippet
snippet "INT3 reaches its gate"
  int3
end_snippet
snippet "the kernel writes IOPL and IF"
  pushq $0x3202
  popfq
  pushfq
  pop %rax
  pushq $2
  popfq
end_snippet
snippet "user mode writes neither IOPL nor IF"
  to_ring USER_CS, USER_SS
  pushq $0x3202
  popfq
  pushfq
  pop %rax
end_snippet
snippet "CLI and STI"
  sti
  nop
  pushfq
  pop %rax
  cli
  pushfq
  pop %rbx
end_snippet
snippet "CLI is refused in user mode"
  to_ring USER_CS, USER_SS
  cli
end_snippet
snippet "translations can be dropped"
  invlpg SCRATCH
  wbinvd
  mov SCRATCH, %rax
end_snippet
snippet "LMSW sets what SMSW shows"
  smsw %eax
  lmsw %ax
  smsw %ebx
  smsw SCRATCH
end_snippet
snippet "CPUID answers its leaves"
  xor %eax, %eax
  cpuid
  mov %ebx, %esi
  mov $0x80000000, %eax
  cpuid
  mov %eax, %edi
  mov $0x80000008, %eax
  xor %ecx, %ecx
  cpuid
end_snippet
snippet "RDTSCP brings the auxiliary value"
  set_msr 0xc0000103, 0x1234
  rdtscp
  xor %eax, %eax
  xor %edx, %edx
end_snippet
snippet "an address that is not canonical"
  movabs $0x0000800000000000, %rbx
  mov (%rbx), %rax
end_snippet
snippet "a stack that is not canonical"
  movabs $0x8000000000000000, %rsp
  push %rax
end_snippet
snippet "CR0.WP protects the kernel from itself"
  mov %rax, RODATA
end_snippet
snippet "without CR0.WP the kernel may write what it may read"
  mov %cr0, %rbx
  btr $16, %rbx
  mov %rbx, %cr0
  mov %rax, RODATA
  bts $16, %rbx
  mov %rbx, %cr0
end_snippet
snippet "user mode does not see supervisor pages"
  to_ring USER_CS, USER_SS
  mov $0x40008000, %eax
  mov (%rax), %rbx
end_snippet
snippet "FXSAVE and FXRSTOR"
  movl $0x1fa0, SCRATCH+0x400
  ldmxcsr SCRATCH+0x400
  fxsave64 SCRATCH
  movl $0, SCRATCH+28
  movl $0x1f80, SCRATCH+24
  fxrstor64 SCRATCH
  stmxcsr SCRATCH+0x404
end_snippet
snippet "XGETBV is undefined without CR4.OSXSAVE"
  xor %ecx, %ecx
  xgetbv
end_snippet
snippet "division by zero"
  xor %ecx, %ecx
  div %ecx
end_snippet
snippet "the breakpoint flag in the pushed RFLAGS of a fault"
  ud2
end_snippet

.popsection
.pushsection .data.rel.ro
.globl st_snippets_end
st_snippets_end:
.popsection
)");
// clang-format on

namespace stagetwo::twin {

const std::vector<Snippet>& privileged_snippets() {
  static const std::vector<Snippet> snippets = [] {
    std::vector<Snippet> list;
    for (const StSnippet* s = st_snippets; s != st_snippets_end; ++s)
      list.push_back({s->name, {s->start, static_cast<std::size_t>(s->end - s->start)}});
    return list;
  }();
  return snippets;
}

Sequence sequence_of(const Snippet& snippet, RandomSource& random) {
  Sequence sequence;
  sequence.start.gpr[vcpu::kRsp] = kStack + 0x800;
  sequence.data_seed = random.next();
  Unit unit;
  unit.bytes.assign(snippet.code.begin(), snippet.code.end());
  sequence.units.push_back(unit);
  return sequence;
}

}  // namespace stagetwo::twin
