// SPDX-License-Identifier: Apache-2.0
#include "base/sys.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

#include <algorithm>

#include "base/process_stamp.h"
#include "base/text.h"
#include "base/this_thread.h"

namespace stagetwo::sys {
namespace {

Result<void> nothing(long returned) {
  if (returned < 0) return refuse(static_cast<int>(-returned));
  return {};
}
Result<int> number(long returned) {
  if (returned < 0) return refuse(static_cast<int>(-returned));
  return static_cast<int>(returned);
}
Result<size_t> count(long returned) {
  if (returned < 0) return refuse(static_cast<int>(-returned));
  return static_cast<size_t>(returned);
}
Result<void*> pointer(long returned) {
  if (returned < 0 && returned > -4096) return refuse(static_cast<int>(-returned));
  return reinterpret_cast<void*>(returned);
}
long size_arg(size_t bytes) {
  return static_cast<long>(bytes);
}

void* ask_robust_list() {
  void* head = nullptr;
  size_t size = 0;
  const long done = call(SYS_get_robust_list, 0, arg(&head), arg(&size));
  return done == 0 && size == sizeof(robust_list_head) ? head : nullptr;
}

void learn_thread(u32 stamp) {
  detail::known_thread = {static_cast<u32>(gettid()), stamp, ask_robust_list()};
}

// Has a thread that still has its number ended all the same? It has no memory any more, and the
// kernel says so before it looks at rights or addresses (kernel file: process_vm_access.c).
bool has_no_memory(int tid) {
  u8 byte = 0;
  const iovec here{&byte, 1};
  const iovec there{nullptr, 1};
  return call(SYS_process_vm_readv, tid, arg(&here), 1, arg(&there), 1, 0) == -ESRCH;
}

}  // namespace

CodeRange code_range() {
  return {reinterpret_cast<u64>(stagetwo_syscall_begin),
          static_cast<u64>(stagetwo_syscall_end - stagetwo_syscall_begin)};
}

Result<void*> mmap(void* at, size_t bytes, int prot, int flags, int fd, off_t offset) {
  return pointer(call(SYS_mmap, arg(at), size_arg(bytes), prot, flags, fd, offset));
}
Result<void> munmap(void* at, size_t bytes) {
  return nothing(call(SYS_munmap, arg(at), size_arg(bytes)));
}
Result<void> mprotect(void* at, size_t bytes, int prot) {
  return nothing(call(SYS_mprotect, arg(at), size_arg(bytes), prot));
}
Result<void> madvise(void* at, size_t bytes, int advice) {
  return nothing(call(SYS_madvise, arg(at), size_arg(bytes), advice));
}
Result<void*> mremap(void* at, size_t old_bytes, size_t new_bytes, int flags, void* new_at) {
  return pointer(
      call(SYS_mremap, arg(at), size_arg(old_bytes), size_arg(new_bytes), flags, arg(new_at)));
}
Result<void> mincore(void* at, size_t bytes, unsigned char* vec) {
  return nothing(call(SYS_mincore, arg(at), size_arg(bytes), arg(vec)));
}

Result<int> openat(int dir, const char* path, int flags, mode_t mode) {
  return number(call(SYS_openat, dir, arg(path), flags, mode));
}
Result<int> memfd_create(const char* name, unsigned flags) {
  return number(call(SYS_memfd_create, arg(name), flags));
}
Result<void> close(int fd) {
  return nothing(call(SYS_close, fd));
}
Result<void> fstat(int fd, struct ::stat* out) {
  return nothing(call(SYS_newfstatat, fd, arg(""), arg(out), AT_EMPTY_PATH));
}
Result<void> ftruncate(int fd, off_t size) {
  return nothing(call(SYS_ftruncate, fd, size));
}
Result<size_t> read(int fd, void* to, size_t bytes) {
  return count(call(SYS_read, fd, arg(to), size_arg(bytes)));
}
Result<size_t> write(int fd, const void* from, size_t bytes) {
  return count(call(SYS_write, fd, arg(from), size_arg(bytes)));
}
Result<size_t> pread(int fd, void* to, size_t bytes, off_t at) {
  return count(call(SYS_pread64, fd, arg(to), size_arg(bytes), at));
}
Result<size_t> pwrite(int fd, const void* from, size_t bytes, off_t at) {
  return count(call(SYS_pwrite64, fd, arg(from), size_arg(bytes), at));
}
Result<long> fcntl(int fd, int command, long argument) {
  return checked(call(SYS_fcntl, fd, command, argument));
}
Result<long> ioctl(int fd, unsigned long request, unsigned long argument) {
  return checked(call(SYS_ioctl, fd, static_cast<long>(request), static_cast<long>(argument)));
}
Result<void> fallocate(int fd, int mode, off_t offset, off_t size) {
  return nothing(call(SYS_fallocate, fd, mode, offset, size));
}
Result<int> eventfd(unsigned initial, int flags) {
  return number(call(SYS_eventfd2, initial, flags));
}

Result<int> raise_engine_fd(int fd) {
  struct rlimit limit{};
  // Half of what the limit allows: high enough to be out of the way, low enough that there is room.
  long low = kFirstEngineFd;
  if (call(SYS_prlimit64, 0, RLIMIT_NOFILE, 0, arg(&limit)) == 0) {
    low = std::min(low, static_cast<long>(std::min<u64>(limit.rlim_cur, 1u << 20) / 2));
  }
  const long raised = call(SYS_fcntl, fd, F_DUPFD_CLOEXEC, low);
  static_cast<void>(call(SYS_close, fd));
  return number(raised);
}

Result<int> reopen_engine_fd(int fd, int flags, int proc) {
  FixedString<40> path;
  path.append(proc < 0 ? "/proc/thread-self/fd/" : "thread-self/fd/").append_int(fd);
  const int opened = ST_TRY(openat(proc < 0 ? AT_FDCWD : proc, path.c_str(), flags | O_CLOEXEC));
  return raise_engine_fd(opened);
}

Result<void> futex_wait(const volatile u32* word, u32 expected, const timespec* relative) {
  return nothing(call(SYS_futex, arg(word), FUTEX_WAIT_PRIVATE, expected, arg(relative)));
}
int futex_wake(volatile u32* word, int count) {
  const long woken = call(SYS_futex, arg(word), FUTEX_WAKE_PRIVATE, count);
  return woken < 0 ? 0 : static_cast<int>(woken);
}
void sched_yield() {
  static_cast<void>(call(SYS_sched_yield));
}
int gettid() {
  return static_cast<int>(call(SYS_gettid));
}
int getpid() {
  return static_cast<int>(call(SYS_getpid));
}

int current_tid() {
  const u32 stamp = stamp_of_process();
  if (detail::known_thread.stamp != stamp || detail::known_thread.tid == 0) [[unlikely]]
    learn_thread(stamp);
  return static_cast<int>(detail::known_thread.tid);
}

ThisThread this_thread() {
  const int tid = current_tid();
  void* list = detail::known_thread.robust_list;
  // A libc may tell of its list at its first use only, and the engine of one for a while.
  if (list == nullptr) [[unlikely]]
    list = ask_robust_list();
  return {static_cast<u32>(tid), list};
}

bool thread_gone(int tid) {
  return call(SYS_tkill, tid, 0) == -ESRCH || has_no_memory(tid);
}
bool thread_alive(int tid) {
  return call(SYS_tgkill, getpid(), tid, 0) == 0 && !has_no_memory(tid);
}
Result<void> tgkill(int pid, int tid, int signal) {
  return nothing(call(SYS_tgkill, pid, tid, signal));
}

u64 monotonic_ns() {
  // The vDSO's clock through libc: 25 ns instead of 100, async-signal-safe, and no interposition.
  timespec now{};
  static_cast<void>(clock_gettime(CLOCK_MONOTONIC, &now));
  return static_cast<u64>(now.tv_sec) * 1'000'000'000u + static_cast<u64>(now.tv_nsec);
}
Result<long> membarrier(int command, unsigned flags, int cpu) {
  return checked(call(SYS_membarrier, command, flags, cpu));
}

void write_stderr(const char* text, size_t size) {
  while (size > 0) {
    const long written = call(SYS_write, 2, arg(text), size_arg(size));
    if (written <= 0) return;
    text += written;
    size -= static_cast<size_t>(written);
  }
}

void abort_process() {
  // The client may have blocked or handled SIGABRT; the default action must still end the process,
  // with a core where the client wants one.
  struct {
    void (*handler)(int);
    unsigned long flags;
    void (*restorer)();
    u64 mask;
  } act{SIG_DFL, 0, nullptr, 0};
  static_cast<void>(call(SYS_rt_sigaction, SIGABRT, arg(&act), 0, 8));
  u64 unblock = u64{1} << (SIGABRT - 1);
  static_cast<void>(call(SYS_rt_sigprocmask, SIG_UNBLOCK, arg(&unblock), 0, 8));
  static_cast<void>(call(SYS_tgkill, getpid(), gettid(), SIGABRT));
  for (;;) static_cast<void>(call(SYS_exit_group, 134));
}

}  // namespace stagetwo::sys
