// SPDX-License-Identifier: Apache-2.0
#pragma once

// The functions we stand in front of: libc's, or another preloaded library's. Looked up at first
// use (so that loading us looks up nothing), all of them at the first open of a device (so that no
// lookup happens in a signal handler later). dlsym allocates nothing when it finds what it looks
// for.
//
// Context: any thread, constructors included.

#include <aio.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <fts.h>
#include <ftw.h>
#include <glob.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/check.h"
#include "sync/atomic.h"

namespace stagetwo::shim {

template <typename F>
class Next;

template <typename R, typename... A>
class Next<R(A...)> {
 public:
  explicit constexpr Next(const char* name) : name_(name) {}
  R operator()(A... arguments) { return get()(arguments...); }
  void resolve() { static_cast<void>(get()); }

 private:
  using Function = R (*)(A...);
  Function get() {
    Function found = function_.load(sync::kRelaxed);
    if (found != nullptr) [[likely]]
      return found;
    void* const address = dlsym(RTLD_NEXT, name_);
    ST_CHECK(address != nullptr);
    found = reinterpret_cast<Function>(address);
    function_.store(found, sync::kRelaxed);  // every thread finds the same
    return found;
  }

  const char* name_;
  sync::Atomic<Function> function_{nullptr};
};

// Variadic ones are called with what the kernel would see. The types are spelt out because libc's
// declarations carry attributes that a template argument cannot.
#define ST_NEXT_FUNCTIONS(X)                                                               \
  X(open, int(const char*, int, mode_t))                                                   \
  X(openat, int(int, const char*, int, mode_t))                                            \
  X(fopen, FILE*(const char*, const char*))                                                \
  X(freopen, FILE*(const char*, const char*, FILE*))                                       \
  X(fdopen, FILE*(int, const char*))                                                       \
  X(fclose, int(FILE*))                                                                    \
  X(fflush, int(FILE*))                                                                    \
  X(stat, int(const char*, struct stat*))                                                  \
  X(lstat, int(const char*, struct stat*))                                                 \
  X(fstat, int(int, struct stat*))                                                         \
  X(fstatat, int(int, const char*, struct stat*, int))                                     \
  X(statx, int(int, const char*, int, unsigned, struct statx*))                            \
  X(access, int(const char*, int))                                                         \
  X(eaccess, int(const char*, int))                                                        \
  X(faccessat, int(int, const char*, int, int))                                            \
  X(glob, int(const char*, int, int (*)(const char*, int), glob_t*))                       \
  X(nftw, int(const char*, int (*)(const char*, const struct stat*, int, FTW*), int, int)) \
  X(ftw, int(const char*, int (*)(const char*, const struct stat*, int), int))             \
  X(fts_open, FTS*(char* const*, int, int (*)(const FTSENT**, const FTSENT**)))            \
  X(fts_read, FTSENT*(FTS*))                                                               \
  X(fts_children, FTSENT*(FTS*, int))                                                      \
  X(posix_spawn_file_actions_addopen,                                                      \
    int(posix_spawn_file_actions_t*, int, const char*, int, mode_t))                       \
  X(posix_spawn_file_actions_addchdir_np, int(posix_spawn_file_actions_t*, const char*))   \
  X(readlink, ssize_t(const char*, char*, size_t))                                         \
  X(readlinkat, ssize_t(int, const char*, char*, size_t))                                  \
  X(realpath, char*(const char*, char*))                                                   \
  X(__realpath_chk, char*(const char*, char*, size_t))                                     \
  X(getxattr, ssize_t(const char*, const char*, void*, size_t))                            \
  X(lgetxattr, ssize_t(const char*, const char*, void*, size_t))                           \
  X(listxattr, ssize_t(const char*, char*, size_t))                                        \
  X(llistxattr, ssize_t(const char*, char*, size_t))                                       \
  X(flistxattr, ssize_t(int, char*, size_t))                                               \
  X(statfs, int(const char*, struct statfs*))                                              \
  X(statvfs, int(const char*, struct statvfs*))                                            \
  X(posix_fallocate, int(int, off_t, off_t))                                               \
  X(lockf, int(int, int, off_t))                                                           \
  X(ioctl, int(int, unsigned long, unsigned long))                                         \
  X(fcntl, int(int, int, long))                                                            \
  X(mmap, void*(void*, size_t, int, int, int, off_t))                                      \
  X(memfd_create, int(const char*, unsigned))                                              \
  X(munmap, int(void*, size_t))                                                            \
  X(mremap, void*(void*, size_t, size_t, int, void*))                                      \
  X(mprotect, int(void*, size_t, int))                                                     \
  X(pkey_mprotect, int(void*, size_t, int, int))                                           \
  X(madvise, int(void*, size_t, int))                                                      \
  X(mincore, int(void*, size_t, unsigned char*))                                           \
  X(process_madvise, ssize_t(int, const iovec*, size_t, int, unsigned))                    \
  X(remap_file_pages, int(void*, size_t, int, size_t, int))                                \
  X(brk, int(void*))                                                                       \
  X(sbrk, void*(ssize_t))                                                                  \
  X(shmat, void*(int, const void*, int))                                                   \
  X(shmdt, int(const void*))                                                               \
  X(aio_read, int(aiocb*))                                                                 \
  X(aio_write, int(aiocb*))                                                                \
  X(lio_listio, int(int, aiocb* const*, int, sigevent*))                                   \
  X(close, int(int))                                                                       \
  X(close_range, int(unsigned, unsigned, int))                                             \
  X(dup2, int(int, int))                                                                   \
  X(dup3, int(int, int, int))                                                              \
  X(read, ssize_t(int, void*, size_t))                                                     \
  X(write, ssize_t(int, const void*, size_t))                                              \
  X(pread, ssize_t(int, void*, size_t, off_t))                                             \
  X(pwrite, ssize_t(int, const void*, size_t, off_t))                                      \
  X(readv, ssize_t(int, const iovec*, int))                                                \
  X(writev, ssize_t(int, const iovec*, int))                                               \
  X(preadv, ssize_t(int, const iovec*, int, off_t))                                        \
  X(pwritev, ssize_t(int, const iovec*, int, off_t))                                       \
  X(sendfile, ssize_t(int, int, off_t*, size_t))                                           \
  X(splice, ssize_t(int, off_t*, int, off_t*, size_t, unsigned))                           \
  X(__read_chk, ssize_t(int, void*, size_t, size_t))                                       \
  X(__pread_chk, ssize_t(int, void*, size_t, off_t, size_t))                               \
  X(lseek, off_t(int, off_t, int))                                                         \
  X(ftruncate, int(int, off_t))                                                            \
  X(truncate, int(const char*, off_t))                                                     \
  X(fallocate, int(int, int, off_t, off_t))                                                \
  X(_Fork, pid_t())                                                                        \
  X(__register_atfork, int(void (*)(), void (*)(), void (*)(), void*))                     \
  X(clone, int(int (*)(void*), void*, int, void*, pid_t*, void*, pid_t*))                  \
  X(signal, sighandler_t(int, sighandler_t))                                               \
  X(sysv_signal, sighandler_t(int, sighandler_t))                                          \
  X(sigset, sighandler_t(int, sighandler_t))                                               \
  X(siginterrupt, int(int, int))                                                           \
  X(sigignore, int(int))                                                                   \
  X(sigaction, int(int, const struct sigaction*, struct sigaction*))                       \
  X(pthread_cancel, int(pthread_t))                                                        \
  X(pthread_sigmask, int(int, const sigset_t*, sigset_t*))                                 \
  X(pthread_create, int(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*))       \
  X(sigaltstack, int(const stack_t*, stack_t*))                                            \
  X(syscall, long(long, long, long, long, long, long, long))

namespace next {
#define ST_DECLARE_NEXT(name, ...) extern constinit Next<__VA_ARGS__> name;
ST_NEXT_FUNCTIONS(ST_DECLARE_NEXT)
#undef ST_DECLARE_NEXT

// Context: no signal handler.
void resolve_all();
}  // namespace next

}  // namespace stagetwo::shim
