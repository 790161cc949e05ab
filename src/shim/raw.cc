// SPDX-License-Identifier: Apache-2.0
#include "shim/raw.h"

#include <linux/io_uring.h>
#include <linux/openat2.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstddef>

#include "host/access.h"
#include "host/kernel_io.h"
#include "host/run_section.h"
#include "shim/behind.h"
#include "shim/engine.h"
#include "shim/files.h"
#include "shim/forks.h"
#include "shim/memory.h"
#include "shim/next.h"
#include "shim/paths.h"
#include "shim/raw_buffers.h"
#include "shim/received.h"
#include "shim/requests.h"
#include "shim/segments.h"
#include "shim/shared_files.h"
#include "shim/signal_masks.h"
#include "shim/signals.h"
#include "shim/thread_ends.h"
#include "shim/transfers.h"

namespace stagetwo::shim {
namespace {

constexpr long kPassOn = -1;  // no number of a system call

template <typename T>
bool fetch(long from, T* to) {
  host::EngineSection section(host::Touches::kClientMemory);
  const bool read = host::read_struct(Hva(static_cast<u64>(from)), to);
  section.leave();
  return read;
}

template <typename T>
T* pointer(long value) {
  return reinterpret_cast<T*>(value);
}
int integer(long value) {
  return static_cast<int>(value);
}
size_t size_of(long value) {
  return static_cast<size_t>(value);
}

// openat2 in place: only the flags concern us.
long open_by_how(long directory, long path, long how, long size, bool* done) {
  const auto* const name = pointer<const char>(path);
  will_be_opened(integer(directory), name);
  const bool ours = static_cast<bool>(target_of(integer(directory), name));
  open_how asked{};
  *done = (ours || awake()) && size >= static_cast<long>(sizeof(asked)) && fetch(how, &asked);
  if (!*done) return kPassOn;
  const int flags = static_cast<int>(asked.flags);
  if (ours) return open_at(integer(directory), name, flags, 0);
  if (asked.resolve == 0 && target_to_open(integer(directory), name, flags)) {
    return open_at(integer(directory), name, flags, 0);
  }
  if (asked.resolve == 0 && opening_refused(integer(directory), name, flags)) return -1;
  const auto go_on = [&] { return next::syscall(SYS_openat2, directory, path, how, size, 0, 0); };
  return truncates(flags) ? take_out_named(integer(directory), name, flags, 0, go_on) : go_on();
}

long by_name(long number, long a, long b, long c, long d, long e, bool* done) {
  *done = true;
  switch (number) {
    case SYS_open:
      return open_at(AT_FDCWD, pointer<const char>(a), integer(b), static_cast<mode_t>(c));
    case SYS_creat:
      return open_at(AT_FDCWD, pointer<const char>(a), O_CREAT | O_WRONLY | O_TRUNC,
                     static_cast<mode_t>(b));
    case SYS_openat:
      return open_at(integer(a), pointer<const char>(b), integer(c), static_cast<mode_t>(d));
    case SYS_openat2:
      return open_by_how(a, b, c, d, done);
    case SYS_stat:
      return stat_at(AT_FDCWD, pointer<const char>(a), pointer<struct stat>(b), 0);
    case SYS_lstat:
      return stat_at(AT_FDCWD, pointer<const char>(a), pointer<struct stat>(b),
                     AT_SYMLINK_NOFOLLOW);
    case SYS_newfstatat:
      return stat_at(integer(a), pointer<const char>(b), pointer<struct stat>(c), integer(d));
    case SYS_statx:
      return statx_at(integer(a), pointer<const char>(b), integer(c), static_cast<unsigned>(d),
                      pointer<struct statx>(e));
    case SYS_access:
      return access_at(AT_FDCWD, pointer<const char>(a), integer(b), 0);
    case SYS_faccessat:
      return access_at(integer(a), pointer<const char>(b), integer(c), 0);
    case SYS_readlink:
      return readlink_at(AT_FDCWD, pointer<const char>(a), pointer<char>(b), size_of(c));
    case SYS_readlinkat:
      return readlink_at(integer(a), pointer<const char>(b), pointer<char>(c), size_of(d));
    default:
      *done = false;
      return kPassOn;
  }
}

constexpr long kSeal = 462;  // mseal, Linux 6.10

// By the address it concerns, or the signal.
long by_address(long number, long a, long b, long c, long d, long e, long f, bool* done) {
  *done = true;
  switch (number) {
    case SYS_mmap:
      return reinterpret_cast<long>(
          map(pointer<void>(a), size_of(b), integer(c), integer(d), integer(e), f));
    case SYS_memfd_create:
      return memory_file(pointer<const char>(a), static_cast<unsigned>(b));
    case SYS_munmap:
      return unmap(pointer<void>(a), size_of(b));
    case SYS_mremap:
      return reinterpret_cast<long>(
          remap(pointer<void>(a), size_of(b), size_of(c), integer(d), pointer<void>(e)));
    case SYS_mprotect:
      return protect(pointer<void>(a), size_of(b), integer(c), -1);
    case SYS_pkey_mprotect:
      if (d < 0) break;
      return protect(pointer<void>(a), size_of(b), integer(c), integer(d));
    case SYS_madvise:
      return advise(pointer<void>(a), size_of(b), integer(c));
    case SYS_process_madvise:
      return advise_parts(integer(a), pointer<const iovec>(b), size_of(c), integer(d),
                          static_cast<unsigned>(e));
    case SYS_mincore:
      return say_resident(pointer<void>(a), size_of(b), pointer<unsigned char>(c));
    case SYS_mlockall:
      return lock_all(integer(a));
    case kSeal:
      return seal(pointer<void>(a), size_of(b), static_cast<unsigned long>(c));
    case SYS_remap_file_pages:
      return remap_pages(pointer<void>(a), size_of(b), integer(c), size_of(d), integer(e));
    case SYS_brk:
      if (!awake()) break;
      return kernel_break(static_cast<unsigned long>(a));
    case SYS_shmat:
      return reinterpret_cast<long>(attach(integer(a), pointer<const void>(b), integer(c)));
    case SYS_shmdt:
      return detach(pointer<const void>(a));
    case SYS_rt_sigprocmask:
      return change_raw_mask(a, b, c, d);
    case SYS_sigaltstack:
      return set_alternate_stack(pointer<const stack_t>(a), pointer<stack_t>(b));
    case SYS_rt_sigaction:
      if (!awake()) break;
      return raw_set_action(integer(a), pointer<const void>(b), pointer<void>(c), size_of(d));
    default:
      break;
  }
  *done = false;
  return kPassOn;
}

// A read or write in any of its forms.
long transfer(long number, Io io, long fd, long from, long count, const off_t* at) {
  const bool parts =
      number == SYS_readv || number == SYS_writev || number == SYS_preadv || number == SYS_pwritev;
  const auto go_on = [&] {
    return next::syscall(number, fd, from, count, at == nullptr ? 0 : *at, 0, 0);
  };
  return parts ? move_parts(integer(fd), io, pointer<const iovec>(from), integer(count), at, go_on)
               : move_bytes(integer(fd), io, pointer<void>(from), size_of(count), at, go_on);
}

long by_descriptor(long number, long a, long b, long c, long d, bool* done) {
  *done = true;
  switch (number) {
    case SYS_ioctl:
      return ioctl_fd(integer(a), static_cast<unsigned long>(b), static_cast<unsigned long>(c));
    case SYS_close:
      return close_fd(integer(a));
    case SYS_close_range:
      return close_fds(static_cast<unsigned>(a), static_cast<unsigned>(b), integer(c));
    case SYS_dup2:
      return dup_to(integer(a), integer(b), 0, false);
    case SYS_dup3:
      return dup_to(integer(a), integer(b), integer(c), true);
    case SYS_fstat:
      return stat_fd(integer(a), pointer<struct stat>(b));
    case SYS_lseek:
      return seek_fd(integer(a), b, integer(c));
    case SYS_truncate:
      return truncate_at(pointer<const char>(a), b);
    case SYS_ftruncate:
      return truncate_fd(integer(a), b);
    case SYS_fallocate:
      return fallocate_fd(integer(a), integer(b), c, d);
    case SYS_read:
    case SYS_readv:
      return transfer(number, Io::kRead, a, b, c, nullptr);
    case SYS_write:
    case SYS_writev:
      return transfer(number, Io::kWrite, a, b, c, nullptr);
    case SYS_pread64:
    case SYS_preadv:
      return transfer(number, Io::kRead, a, b, c, &d);
    case SYS_pwrite64:
    case SYS_pwritev:
      return transfer(number, Io::kWrite, a, b, c, &d);
    default:
      break;
  }
  *done = false;
  return kPassOn;
}

long submit(u64 context, long count, long requests) {
  const long allowed = requests_allowed(pointer<const iocb* const>(requests), count);
  if (allowed < 0) return -1;
  const auto most = static_cast<u64>(allowed);
  note_requests([&] { host::requests_begin(context, most); });
  const long taken =
      call_with_buffers(SYS_io_submit, {static_cast<long>(context), allowed, requests, 0, 0, 0});
  const u64 begun = taken > 0 ? static_cast<u64>(taken) : 0;
  note_requests([&] { host::requests_refused(context, most - begun); });
  return taken;
}

// What is to be a ring may be memory of the program's own, and its descriptor a number of the
// ring's alone (Linux 6.5): no mapping tells of it. Also where that can't be read any more.
bool ring_is_unmapped(u64 params) {
  constexpr u32 kNoMmap = 1 << 14, kRegisteredOnly = 1 << 15;  // IORING_SETUP_...
  u32 flags = 0;
  const bool read = host::read_struct(Hva(params) + offsetof(io_uring_params, flags), &flags);
  return !read || (flags & (kNoMmap | kRegisteredOnly)) != 0;
}

long make_context(const long (&w)[6]) {
  const long made = call_with_buffers(SYS_io_setup, w);
  u64 context = 0;
  if (made == 0 && host::read_struct(Hva(static_cast<u64>(w[1])), &context)) {
    note_requests([&] { host::requests_made(context); });
  }
  return made;
}

long by_context(long number, const long (&w)[6], bool* done) {
  const auto context = static_cast<u64>(w[0]);
  *done = true;
  switch (number) {
    case SYS_io_setup:
      return make_context(w);
    case SYS_io_submit:
      return submit(context, w[1], w[2]);
    case SYS_io_getevents:
    case SYS_io_pgetevents: {
      const long ended = call_with_buffers(number, w);
      if (ended > 0) {
        note_requests([&] { host::requests_fetched(context, static_cast<u64>(ended)); });
      }
      return ended;
    }
    case SYS_io_destroy: {
      const long gone = call_with_buffers(number, w);
      if (gone == 0) note_requests([&] { host::requests_forget(context); });
      return gone;
    }
    case SYS_io_uring_setup: {
      const long made = call_with_buffers(number, w);
      if (made >= 0 && ring_is_unmapped(static_cast<u64>(w[1]))) host::ring_without_mapping();
      return made;
    }
    default:
      *done = false;
      return kPassOn;
  }
}

constexpr long kUserModeOnly = 1;  // UFFD_USER_MODE_ONLY

// Who may not have faults of the kernel reported may still have those of user mode, and the vCPUs
// of this engine are user mode. Only a program that has opened a device gets the lesser descriptor
// for the one it asked for: its own system calls on such pages answer EFAULT.
long userfaultfd(long flags) {
  const long fd = next::syscall(SYS_userfaultfd, flags, 0, 0, 0, 0, 0);
  if (fd >= 0 || errno != EPERM || (flags & kUserModeOnly) != 0 || !awake()) return fd;
  return next::syscall(SYS_userfaultfd, flags | kUserModeOnly, 0, 0, 0, 0, 0);
}

}  // namespace

long raw_call(long number, long a, long b, long c, long d, long e, long f) {
  if (number == SYS_userfaultfd) return userfaultfd(a);
  if (number == SYS_exit) before_thread_ends();
  if (forks_by_number(number, a, b)) return fork_by_number(number, a, b, c, d, e);
  long result = 0;
  // Who has opened one of sysfs only may still be asleep.
  const bool asked = awake() || any_virtual_io();
  if (asked && file_call(number, {a, b, c, d, e, f}, &result)) return result;
  bool done = false;
  result = by_descriptor(number, a, b, c, d, &done);
  if (!done) result = by_name(number, a, b, c, d, e, &done);
  if (!done) result = by_address(number, a, b, c, d, e, f, &done);
  if (!done) result = by_context(number, {a, b, c, d, e, f}, &done);
  return done ? result : call_with_buffers(number, {a, b, c, d, e, f});
}

}  // namespace stagetwo::shim
