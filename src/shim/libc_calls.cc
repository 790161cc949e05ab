// SPDX-License-Identifier: Apache-2.0
#include "shim/libc_calls.h"

#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstring>

#include "base/arch/syscall_site.h"
#include "base/check.h"
#include "base/function_table.h"
#include "base/sys.h"
#include "host/process_map.h"
#include "host/run_section.h"
#include "shim/engine.h"
#include "shim/memory.h"
#include "shim/options.h"
#include "shim/segments.h"
#include "shim/thread_ends.h"

#if !defined(__x86_64__)
#error "the gates of this file are x86-64 code"
#endif

// One gate for each function. It is entered by a jump in place of `mov $number, %eax` and leaves to
// the instruction behind the system call, so nothing but rax, rcx and r11 may differ. While a
// handler of the client runs below (host/run_section.h), an unwinder finds libc's function as its
// caller: the return address lies in the frame for it.
#define ST_LIBC_GATE(name, call)               \
  asm(".text\n"                                \
      ".p2align 4\n"                           \
      ".globl stagetwo_gate_" #name            \
      "\n"                                     \
      ".hidden stagetwo_gate_" #name           \
      "\n"                                     \
      ".type stagetwo_gate_" #name             \
      ", @function\n"                          \
      "stagetwo_gate_" #name                   \
      ":\n"                                    \
      ".cfi_startproc\n"                       \
      ".cfi_def_cfa rsp, 0\n"                  \
      ".cfi_undefined rip\n"                   \
      "leaq -128(%rsp), %rsp\n"                \
      "pushq stagetwo_after_" #name            \
      "(%rip)\n"                               \
      "pushq %rbp\n"                           \
      "movq %rsp, %rbp\n"                      \
      ".cfi_def_cfa rbp, 144\n"                \
      ".cfi_offset rip, -136\n"                \
      ".cfi_offset rbp, -144\n"                \
      "pushq %rdi\n pushq %rsi\n pushq %rdx\n" \
      "pushq %r10\n pushq %r8\n pushq %r9\n"   \
      "andq $-16, %rsp\n"                      \
      "movq %r10, %rcx\n"                      \
      "call stagetwo_libc_" #call              \
      "\n"                                     \
      "leaq -48(%rbp), %rsp\n"                 \
      "popq %r9\n popq %r8\n popq %r10\n"      \
      "popq %rdx\n popq %rsi\n popq %rdi\n"    \
      "popq %rbp\n"                            \
      ".cfi_def_cfa rsp, 136\n"                \
      ".cfi_restore rbp\n"                     \
      "leaq 136(%rsp), %rsp\n"                 \
      ".cfi_def_cfa rsp, 0\n"                  \
      "notrack jmp *stagetwo_after_" #name     \
      "(%rip)\n"                               \
      ".cfi_endproc\n"                         \
      ".size stagetwo_gate_" #name ", . - stagetwo_gate_" #name)

// X(gate, call, whose): libc's own, and the dynamic loader's, which has some of its own.
#define ST_LIBC_CALLS(X)                \
  X(munmap, munmap, kLibc)              \
  X(mremap, mremap, kLibc)              \
  X(mprotect, mprotect, kLibc)          \
  X(madvise, madvise, kLibc)            \
  X(mmap, mmap, kLibc)                  \
  X(brk, brk, kLibc)                    \
  X(loader_munmap, munmap, kLoader)     \
  X(loader_mprotect, mprotect, kLoader) \
  X(loader_mmap, mmap, kLoader)

#define ST_DECLARE(name, call, whose)                          \
  extern "C" {                                                 \
  [[gnu::visibility("hidden")]] void stagetwo_gate_##name();   \
  [[gnu::visibility("hidden")]] u64 stagetwo_after_##name = 0; \
  }                                                            \
  ST_LIBC_GATE(name, call);
using stagetwo::u64;
ST_LIBC_CALLS(ST_DECLARE);
#undef ST_DECLARE

namespace stagetwo::shim {
namespace {

// Asleep, and where the engine itself calls libc (it makes a thread), nothing is announced.
// `seen` answers as libc's functions do; the gate as the kernel.
template <typename F>
long instead_of(long number, long a, long b, long c, long d, long e, long f, F&& seen) {
  if (!awake() || host::in_engine()) return sys::call(number, a, b, c, d, e, f);
  const int error = errno;
  long result = seen();
  if (result == -1) result = -errno;
  errno = error;
  return result;
}

void* pointer(long value) {
  return reinterpret_cast<void*>(value);
}
size_t size_of(long value) {
  return static_cast<size_t>(value);
}
int integer(long value) {
  return static_cast<int>(value);
}
long number_in(void* value) {
  return reinterpret_cast<long>(value);
}

enum class Whose : u8 { kLibc, kLoader };

enum class Fate : u8 {
  kUntried,
  kSeen,
  kLeft,         // the user's wish
  kNotThere,     // no libc or loader of that name has it
  kUnknownCode,  // not every instruction is known
  kTooFar,       // the jump does not reach
  kRefused,      // the kernel does not let the page be replaced
};

struct Call {
  const char* name;
  Whose whose;
  u32 number;
  void (*gate)();
  u64* after;
  Fate fate = Fate::kUntried;
  u64 jump = 0;  // where the jump goes
};

#define ST_ROW(gate, call, whose) \
  {#call, Whose::whose, SYS_##call, stagetwo_gate_##gate, &stagetwo_after_##gate},
// Written while waking, under its lock.
constinit Call calls[] = {ST_LIBC_CALLS(ST_ROW)};
#undef ST_ROW

// libc's own function of that name, whoever else has one: libc itself calls its own.
CodeSpan in_libc(const char* name) {
  void* const libc = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
  void* const found = libc == nullptr ? nullptr : dlsym(libc, name);
  if (libc != nullptr) dlclose(libc);
  Dl_info about{};
  const ElfW(Sym)* symbol = nullptr;
  if (found == nullptr ||
      dladdr1(found, &about, reinterpret_cast<void**>(const_cast<ElfW(Sym)**>(&symbol)),
              RTLD_DL_SYMENT) == 0 ||
      symbol == nullptr || about.dli_saddr != found) {
    return {};
  }
  return {reinterpret_cast<u64>(found), symbol->st_size};
}

// The loader's functions have no names: the one that makes the call, if there is one only.
CodeSpan in_loader(u32 number) {
  void* const any = dlsym(RTLD_DEFAULT, "__tls_get_addr");
  Dl_info about{};
  if (any == nullptr || dladdr(any, &about) == 0) return {};
  const auto functions = FunctionTable::of_object(reinterpret_cast<u64>(about.dli_fbase));
  if (!functions) return {};
  const CodeSpan text = functions->text();
  const auto pair = arch::syscall_pair(number);
  CodeSpan found;
  const u8* const end = reinterpret_cast<const u8*>(text.end());
  for (const u8* at = reinterpret_cast<const u8*>(text.start);; at += pair.size()) {
    at = std::search(at, end, pair.begin(), pair.end());
    if (at == end) return found;
    const auto around = functions->function_at(reinterpret_cast<u64>(at));
    if (!around || found.size != 0) return {};
    found = *around;
  }
}

// Looks the call up; where everything is known, its gate learns where to go back to.
Fate prepare(Call& call) {
  constexpr u64 kLongest = 4096;
  const CodeSpan function =
      call.whose == Whose::kLibc ? in_libc(call.name) : in_loader(call.number);
  if (function.size == 0 || function.size > kLongest) return Fate::kNotThere;
  const auto mapping = host::mapping_at(Hva(function.start & kPageMask));
  const bool plain = mapping && mapping->file_backed && !mapping->shared && mapping->prot.read &&
                     mapping->prot.exec && !mapping->prot.write &&
                     function.end() <= mapping->range.end().raw();
  if (!plain) return Fate::kUnknownCode;
  const auto site = arch::find_syscall_site(reinterpret_cast<const u8*>(function.start),
                                            function.size, call.number);
  if (!site) return Fate::kUnknownCode;
  call.jump = function.start + site->jump;
  if ((call.jump & ~kPageMask) > kPageSize - arch::kJumpBytes) return Fate::kUnknownCode;
  if (!arch::encode_jump(call.jump, reinterpret_cast<u64>(call.gate))) return Fate::kTooFar;
  *call.after = function.start + site->after;
  return Fate::kUntried;
}

// A copy of the page with the jumps in it takes the page's place in one system call: a thread that
// runs there finds the old page or the new one, and waits in its fault in between. Nobody can stand
// inside the bytes that differ: they are one instruction.
bool replace_page(u64 page) {
  const auto made =
      sys::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (!made) return false;
  auto* const copy = static_cast<u8*>(*made);
  memcpy(copy, reinterpret_cast<const void*>(page), kPageSize);
  for (const Call& call : calls) {
    if (call.fate != Fate::kUntried || (call.jump & kPageMask) != page) continue;
    const auto jump = arch::encode_jump(call.jump, reinterpret_cast<u64>(call.gate));
    ST_CHECK(jump.has_value());  // prepare() has asked
    memcpy(copy + (call.jump - page), jump->data(), jump->size());
  }
  if (sys::mprotect(copy, kPageSize, PROT_READ | PROT_EXEC) &&
      sys::mremap(copy, kPageSize, kPageSize, MREMAP_MAYMOVE | MREMAP_FIXED,
                  reinterpret_cast<void*>(page))) {
    constexpr long kSetName = 0;  // PR_SET_VMA_ANON_NAME: for who reads /proc/PID/maps
    static_cast<void>(sys::call(SYS_prctl, PR_SET_VMA, kSetName, static_cast<long>(page), kPageSize,
                                sys::arg("stagetwo: libc")));
    return true;
  }
  static_cast<void>(sys::munmap(copy, kPageSize));
  return false;
}

void append_name(FixedString<512>& line, const Call& call) {
  line.append(call.whose == Whose::kLibc ? " " : " ld.so:").append(call.name);
}

const char* reason(Fate fate) {
  switch (fate) {
    case Fate::kLeft:
      return "--libc=leave";
    case Fate::kNotThere:
      return "not found";
    case Fate::kUnknownCode:
      return "unknown instructions";
    case Fate::kTooFar:
      return "too far from the engine";
    default:
      return "the kernel refuses";
  }
}

}  // namespace

void see_libc_calls() {
  const bool leave = option("libc") == "leave";
  for (Call& call : calls) {
    if (call.fate == Fate::kUntried) call.fate = leave ? Fate::kLeft : prepare(call);
  }
  for (Call& call : calls) {
    if (call.fate != Fate::kUntried) continue;
    const u64 page = call.jump & kPageMask;
    const Fate fate = replace_page(page) ? Fate::kSeen : Fate::kRefused;
    for (Call& same : calls) {
      if (same.fate == Fate::kUntried && (same.jump & kPageMask) == page) same.fate = fate;
    }
  }
}

void append_libc_calls(FixedString<512>& line) {
  line.append("libc's own calls seen:");
  for (const Call& call : calls) {
    if (call.fate == Fate::kSeen) append_name(line, call);
  }
  line.append("; not seen:");
  bool all = true;
  for (const Call& call : calls) {
    if (call.fate == Fate::kSeen) continue;
    all = false;
    append_name(line, call);
    line.append(" (").append(reason(call.fate)).append(")");
  }
  if (all) line.append(" none");
}

}  // namespace stagetwo::shim

// ---- what the gates call; arguments as the kernel takes them, answers as it gives them ---------

namespace shim = stagetwo::shim;
#define ST_FROM_GATE extern "C" [[gnu::used, gnu::visibility("hidden")]] long

ST_FROM_GATE stagetwo_libc_munmap(long a, long b, long c, long d, long e, long f) {
  return shim::instead_of(SYS_munmap, a, b, c, d, e, f, [&]() -> long {
    return shim::unmap(shim::pointer(a), shim::size_of(b), shim::Via::kKernel);
  });
}
ST_FROM_GATE stagetwo_libc_mremap(long a, long b, long c, long d, long e, long f) {
  return shim::instead_of(SYS_mremap, a, b, c, d, e, f, [&] {
    return shim::number_in(shim::remap(shim::pointer(a), shim::size_of(b), shim::size_of(c),
                                       shim::integer(d), shim::pointer(e), shim::Via::kKernel));
  });
}
ST_FROM_GATE stagetwo_libc_mprotect(long a, long b, long c, long d, long e, long f) {
  return shim::instead_of(SYS_mprotect, a, b, c, d, e, f, [&]() -> long {
    return shim::protect(shim::pointer(a), shim::size_of(b), shim::integer(c), -1,
                         shim::Via::kKernel);
  });
}
ST_FROM_GATE stagetwo_libc_madvise(long a, long b, long c, long d, long e, long f) {
  return shim::instead_of(SYS_madvise, a, b, c, d, e, f, [&]() -> long {
    if (shim::gives_own_stack_back(static_cast<u64>(a), static_cast<u64>(b), shim::integer(c))) {
      shim::before_thread_ends();
    }
    return shim::advise(shim::pointer(a), shim::size_of(b), shim::integer(c), shim::Via::kKernel);
  });
}
ST_FROM_GATE stagetwo_libc_mmap(long a, long b, long c, long d, long e, long f) {
  return shim::instead_of(SYS_mmap, a, b, c, d, e, f, [&] {
    return shim::number_in(shim::map(shim::pointer(a), shim::size_of(b), shim::integer(c),
                                     shim::integer(d), shim::integer(e), f, shim::Via::kKernel));
  });
}
ST_FROM_GATE stagetwo_libc_brk(long a, long b, long c, long d, long e, long f) {
  return shim::instead_of(SYS_brk, a, b, c, d, e, f,
                          [&] { return shim::kernel_break(static_cast<u64>(a)); });
}
