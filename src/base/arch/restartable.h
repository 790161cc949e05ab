// SPDX-License-Identifier: Apache-2.0
#pragma once

// Accesses that can be taken away from a thread that does not run: each is one critical section of
// restartable sequences, whose last instruction is the access.
//
//   name the section to the kernel (one store to the thread's word)
//   1: is something asked?    then the access does not happen
//   2: the access             commits: behind it the section is over
//   4:
//
// A thread that is preempted, signalled or met by membarrier's barrier between 1 and 4 goes on at
// 5, behind the signature the kernel looks for, and answers "not done". So when the barrier
// returns, every access that looked at the request before it is done or will not happen. The abort
// goes to the caller's slow way and not back to 1: a debugger that steps through the section never
// gets behind it.
// Analogue: rseq(2), librseq. Differs: the answer is "not done", never a loop.
//
// I1  Nothing in a section but the last instruction changes anything but a scratch register.
// I2  A fault of the access is reported at 5 where the kernel has moved the thread on before it
//     made the signal's frame: both places stand in the fault table (base/arch/guarded.h).
// I3  The descriptors are in memory that is never unmapped while a thread's word may name one: who
//     stops using them clears the word.
// Locking: none. Orders: those of the access; `asked` is read relaxed, see sync/restartable.cc.

#include "base/arch/guarded.h"

// The operands of an asm stand one a line.
// clang-format off

namespace stagetwo::arch {

// ThreadSanitizer neither sees these accesses nor knows the barrier behind them.
#if defined(__SANITIZE_THREAD__)
inline constexpr bool kRestartable = false;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
inline constexpr bool kRestartable = false;
#else
inline constexpr bool kRestartable = true;
#endif
#else
inline constexpr bool kRestartable = true;
#endif

// What an access is asked with. The words are the line's (sync/ack_line.h) and the thread's.
struct Restart {
  u64* section;        // names the section the thread is in; its own word of restartable sequences
  const u32* asked;    // not zero: others want an answer first
  u64* aborted;        // counts accesses that were taken away
};

// Answered by the kernel's look at the four bytes in front of an abort address: what glibc
// registered (sys/rseq.h), inside an instruction that never executes.
#define ST_RESTART_SIGNATURE ".byte 0x0f, 0xb9, 0x3d\n.long 0x53053053\n"

// Operands by name: section, scratch, asked, aborted; `away` is the label for what did not
// happen.
#define ST_RESTART_BEGIN                                             \
  ".pushsection .data.rel.ro.st_restartable,\"aw?\",@progbits\n"     \
  ".balign 32\n"                                                     \
  "3: .long 0, 0\n"                                                  \
  ".quad 1f, 4f - 1f, 5f\n"                                          \
  ".popsection\n"                                                    \
  "lea 3b(%%rip), %[scratch]\n"                                      \
  "mov %[scratch], %[section]\n"                                     \
  "1: cmpl $0, %[asked]\n"                                           \
  "jne %l[away]\n"
// The access stands between the two, with the label 2.
#define ST_RESTART_END                                               \
  "4:\n"                                                             \
  ".pushsection .text.st_aborted,\"ax?\",@progbits\n"                \
  ST_RESTART_SIGNATURE                                               \
  "5: incq %[aborted]\n"                                             \
  "jmp %l[away]\n"                                                   \
  ".popsection\n"                                                    \
  ST_FAULT_ENTRY("2b", "%l[away]")                                   \
  ST_FAULT_ENTRY("5b", "%l[away]")

#define ST_RESTART_OUTPUTS(r) \
  [section] "=m"(*(r).section), [aborted] "+m"(*(r).aborted), [scratch] "=&r"(scratch)
#define ST_RESTART_INPUTS(r) [asked] "m"(*(r).asked)

// All of these: false means that it was taken away, refused by a request or faulted; nothing was
// changed.

template <typename T>
ST_FOREIGN_ACCESS inline bool restartable_load(u64 address, T* out, const Restart& r) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  detail::RawOf<T> raw;
  u64 scratch;
  ST_ASM_GOTO(ST_RESTART_BEGIN "2: mov %[mem], %[out]\n" ST_RESTART_END
              : [out] "=r"(raw), ST_RESTART_OUTPUTS(r)
              : [mem] "m"(detail::cell_at<detail::RawOf<T>>(address)->raw), ST_RESTART_INPUTS(r)
              : "cc"
              : away);
  *out = detail::cast_bits<T>(raw);
  return true;
away:
  return false;
}

template <typename T>
ST_FOREIGN_ACCESS inline bool restartable_store(u64 address, T value, const Restart& r) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  const auto raw = detail::cast_bits<detail::RawOf<T>>(value);
  u64 scratch;
  ST_ASM_GOTO(ST_RESTART_BEGIN "2: mov %[value], %[mem]\n" ST_RESTART_END
              : [mem] "=m"(detail::cell_at<detail::RawOf<T>>(address)->raw), ST_RESTART_OUTPUTS(r)
              : [value] "r"(raw), ST_RESTART_INPUTS(r)
              : "cc"
              : away);
  return true;
away:
  return false;
}

// *expected receives what was there; *swapped says whether it was as expected.
template <typename T>
ST_FOREIGN_ACCESS inline bool restartable_cmpxchg(u64 address, T* expected, T desired,
                                                  bool* swapped, const Restart& r) {
  static_assert(sizeof(T) <= 8);
  auto raw = detail::cast_bits<detail::RawOf<T>>(*expected);
  const auto wanted = detail::cast_bits<detail::RawOf<T>>(desired);
  bool equal = false;
  u64 scratch;
  ST_ASM_GOTO(ST_RESTART_BEGIN "2: lock cmpxchg %[wanted], %[mem]\n" ST_RESTART_END
              : [old] "+&a"(raw), "=@ccz"(equal),
                [mem] "+m"(detail::cell_at<detail::RawOf<T>>(address)->raw), ST_RESTART_OUTPUTS(r)
              : [wanted] "r"(wanted), ST_RESTART_INPUTS(r)
              : "memory"
              : away);
  *expected = detail::cast_bits<T>(raw);
  *swapped = equal;
  return true;
away:
  return false;
}

// Do the bytes at `address` equal `words`: `count` words one after the other, the last of them the
// one that ends at `size`? Pre: count >= 1, 8 <= size <= 8 * count. True: they do.
ST_FOREIGN_ACCESS inline bool restartable_equal(u64 address, const u64* words, u64 count, u64 size,
                                                const Restart& r) {
  u64 scratch;
  u64 index = 0;
  // Faults of the first of the two loads have an entry of their own.
  ST_ASM_GOTO(ST_RESTART_BEGIN
              "jmp 7f\n"
              "6: mov (%[from],%[index],8), %[scratch]\n"
              "cmp (%[words],%[index],8), %[scratch]\n"
              "jne %l[away]\n"
              "inc %[index]\n"
              "7: cmp %[last], %[index]\n"
              "jb 6b\n"
              "2: mov -8(%[from],%[size]), %[scratch]\n"
              "cmp (%[words],%[index],8), %[scratch]\n"
              "jne %l[away]\n" ST_RESTART_END ST_FAULT_ENTRY("6b", "%l[away]")
              : [index] "+&r"(index), ST_RESTART_OUTPUTS(r)
              : [from] "r"(address), [words] "r"(words), [last] "r"(count - 1), [size] "r"(size),
                ST_RESTART_INPUTS(r)
              : "cc", "memory"
              : away);
  return true;
away:
  return false;
}

}  // namespace stagetwo::arch

// clang-format on
