// SPDX-License-Identifier: Apache-2.0
#pragma once

// Every system call the engine makes, through one instruction of its own, so
// that interposition never sees the engine and user dispatch can be told where the engine is.
// Thin typed wrappers: a refusal is the kernel's errno, nothing is retried, errno is not touched.
//
// Engine descriptors are high (>= kFirstEngineFd where the limit allows) and close-on-exec; every
// wrapper that makes a descriptor for the engine's own use says `engine` in its name.
//
// Context: any, signal handlers included. Allocates nothing.

#include <sys/types.h>

#include "base/result.h"
#include "base/types.h"

struct stat;
struct statx;
struct timespec;

extern "C" {
long stagetwo_syscall(long nr, long a, long b, long c, long d, long e, long f);
extern const char stagetwo_syscall_begin[];
extern const char stagetwo_syscall_end[];
}

namespace stagetwo::sys {

// The raw door: a negative value is -errno.
inline long call(long nr, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0, long f = 0) {
  return stagetwo_syscall(nr, a, b, c, d, e, f);
}
// A pointer as a system-call argument.
inline long arg(const volatile void* pointer) {
  return static_cast<long>(reinterpret_cast<std::uintptr_t>(pointer));
}
inline Result<long> checked(long returned) {
  if (returned < 0) return refuse(static_cast<int>(-returned));
  return returned;
}
// Where the instruction is, for user dispatch and seccomp.
struct CodeRange {
  u64 start;
  u64 size;
};
CodeRange code_range();

// Memory. `mmap` is the raw call: allocations go through base/alloc.h, which can be made to fail.
Result<void*> mmap(void* at, size_t bytes, int prot, int flags, int fd, off_t offset);
Result<void> munmap(void* at, size_t bytes);
Result<void> mprotect(void* at, size_t bytes, int prot);
Result<void> madvise(void* at, size_t bytes, int advice);
Result<void*> mremap(void* at, size_t old_bytes, size_t new_bytes, int flags, void* new_at);
Result<void> mincore(void* at, size_t bytes, unsigned char* vec);

// Files.
Result<int> openat(int dir, const char* path, int flags, mode_t mode = 0);
Result<int> memfd_create(const char* name, unsigned flags);
Result<void> close(int fd);
Result<void> fstat(int fd, struct ::stat* out);
Result<void> ftruncate(int fd, off_t size);
Result<size_t> read(int fd, void* to, size_t bytes);
Result<size_t> write(int fd, const void* from, size_t bytes);
Result<size_t> pread(int fd, void* to, size_t bytes, off_t at);
Result<size_t> pwrite(int fd, const void* from, size_t bytes, off_t at);
Result<long> fcntl(int fd, int command, long argument = 0);
Result<long> ioctl(int fd, unsigned long request, unsigned long argument);
Result<void> fallocate(int fd, int mode, off_t offset, off_t size);
Result<int> eventfd(unsigned initial, int flags);

// An engine descriptor is moved out of the client's way, close-on-exec: high, but not to the end,
// for the kernel keeps a table of every number up to the highest. Post: `fd` is closed, also on
// failure.
inline constexpr int kFirstEngineFd = 1 << 12;
Result<int> raise_engine_fd(int fd);
// Opens again what is behind `fd` (a description of its own: the client cannot tell), as an engine
// fd. `proc` is the folder /proc, or -1: by its name.
Result<int> reopen_engine_fd(int fd, int flags, int proc = -1);

// Threads and time.
Result<void> futex_wait(const volatile u32* word, u32 expected, const timespec* relative);
int futex_wake(volatile u32* word, int count);
void sched_yield();
int gettid();
int getpid();
// Cached per thread; right in a child of fork too.
int current_tid();
// With the list of locks that libc has told the kernel of for it (get_robust_list(2)); null: none,
// or nobody may ask.
struct ThisThread {
  u32 tid;
  void* robust_list;
};
ThisThread this_thread();
// Is thread `tid`, of any process, over? A leader that ended before its threads is, too, though it
// keeps its number until they have ended, as a process does until it is waited for.
bool thread_gone(int tid);
// Does thread `tid` of this process still run?
bool thread_alive(int tid);
Result<void> tgkill(int pid, int tid, int signal);
u64 monotonic_ns();
Result<long> membarrier(int command, unsigned flags = 0, int cpu = 0);

// Ends the process without returning to the client; used by checks.
[[noreturn]] void abort_process();
void write_stderr(const char* text, size_t size);

}  // namespace stagetwo::sys
