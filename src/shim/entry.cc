// SPDX-License-Identifier: Apache-2.0
// The libc names we stand in front of: one line each, in the order of exports.map.

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <sys/sendfile.h>

#include "host/run_section.h"
#include "shim/aio_calls.h"
#include "shim/behind.h"
#include "shim/described.h"
#include "shim/engine.h"
#include "shim/files.h"
#include "shim/forks.h"
#include "shim/libc_signals.h"
#include "shim/mdev_files.h"
#include "shim/memory.h"
#include "shim/next.h"
#include "shim/programs.h"
#include "shim/raw.h"
#include "shim/segments.h"
#include "shim/shared_files.h"
#include "shim/signal_masks.h"
#include "shim/spliced.h"
#include "shim/transfers.h"
#include "shim/virtual_io.h"

#define ST_ENTRY extern "C" __attribute__((visibility("default")))

namespace shim = stagetwo::shim;
namespace next = stagetwo::shim::next;
using shim::Io;

namespace {

// The mode is there only when a file may be made.
mode_t mode_of(int flags, va_list arguments) {
  const bool makes = (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE;
  return makes ? va_arg(arguments, mode_t) : 0;
}

}  // namespace

#define ST_OPEN(directory)                       \
  va_list arguments;                             \
  va_start(arguments, flags);                    \
  const mode_t mode = mode_of(flags, arguments); \
  va_end(arguments);                             \
  return shim::open_at(directory, path, flags, mode)

ST_ENTRY int open(const char* path, int flags, ...) {
  ST_OPEN(AT_FDCWD);
}
ST_ENTRY int open64(const char* path, int flags, ...) {
  ST_OPEN(AT_FDCWD);
}
ST_ENTRY int openat(int directory, const char* path, int flags, ...) {
  ST_OPEN(directory);
}
ST_ENTRY int openat64(int directory, const char* path, int flags, ...) {
  ST_OPEN(directory);
}
ST_ENTRY int creat(const char* path, mode_t mode) {
  return shim::open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
ST_ENTRY int creat64(const char* path, mode_t mode) {
  return creat(path, mode);
}
ST_ENTRY int __open_2(const char* path, int flags) {
  return shim::open_at(AT_FDCWD, path, flags, 0);
}
ST_ENTRY int __open64_2(const char* path, int flags) {
  return shim::open_at(AT_FDCWD, path, flags, 0);
}
ST_ENTRY int __openat_2(int directory, const char* path, int flags) {
  return shim::open_at(directory, path, flags, 0);
}
ST_ENTRY int __openat64_2(int directory, const char* path, int flags) {
  return shim::open_at(directory, path, flags, 0);
}
ST_ENTRY FILE* fopen(const char* path, const char* mode) {
  return shim::noted_stream(shim::open_stream(path, mode));
}
ST_ENTRY FILE* fopen64(const char* path, const char* mode) {
  return shim::noted_stream(shim::open_stream(path, mode));
}
ST_ENTRY FILE* fdopen(int fd, const char* mode) noexcept {
  return shim::stream_refused(fd) ? nullptr : shim::stream_on(fd, mode);
}
ST_ENTRY int fclose(FILE* stream) {
  return shim::close_stream(stream);
}
ST_ENTRY FILE* freopen(const char* path, const char* mode, FILE* stream) {
  return shim::noted_stream(shim::reopen_stream(path, mode, stream));
}
ST_ENTRY FILE* freopen64(const char* path, const char* mode, FILE* stream) {
  return shim::noted_stream(shim::reopen_stream(path, mode, stream));
}
ST_ENTRY int fflush(FILE* stream) {
  return shim::flush_stream(stream);
}

// struct stat64 is struct stat here, and version 1 of the old names is both.
#define ST_AS_STAT(buffer) reinterpret_cast<struct stat*>(buffer)
ST_ENTRY int stat(const char* path, struct stat* out) noexcept {
  return shim::stat_at(AT_FDCWD, path, out, 0);
}
ST_ENTRY int stat64(const char* path, struct stat64* out) noexcept {
  return shim::stat_at(AT_FDCWD, path, ST_AS_STAT(out), 0);
}
ST_ENTRY int lstat(const char* path, struct stat* out) noexcept {
  return shim::stat_at(AT_FDCWD, path, out, AT_SYMLINK_NOFOLLOW);
}
ST_ENTRY int lstat64(const char* path, struct stat64* out) noexcept {
  return shim::stat_at(AT_FDCWD, path, ST_AS_STAT(out), AT_SYMLINK_NOFOLLOW);
}
ST_ENTRY int fstat(int fd, struct stat* out) noexcept {
  return shim::stat_fd(fd, out);
}
ST_ENTRY int fstat64(int fd, struct stat64* out) noexcept {
  return shim::stat_fd(fd, ST_AS_STAT(out));
}
ST_ENTRY int fstatat(int directory, const char* path, struct stat* out, int flags) noexcept {
  return shim::stat_at(directory, path, out, flags);
}
ST_ENTRY int fstatat64(int directory, const char* path, struct stat64* out, int flags) noexcept {
  return shim::stat_at(directory, path, ST_AS_STAT(out), flags);
}
ST_ENTRY int statx(int directory, const char* path, int flags, unsigned mask,
                   struct statx* out) noexcept {
  return shim::statx_at(directory, path, flags, mask, out);
}
ST_ENTRY int __xstat(int, const char* path, struct stat* out) {
  return stat(path, out);
}
ST_ENTRY int __xstat64(int, const char* path, struct stat64* out) {
  return stat64(path, out);
}
ST_ENTRY int __lxstat(int, const char* path, struct stat* out) {
  return lstat(path, out);
}
ST_ENTRY int __lxstat64(int, const char* path, struct stat64* out) {
  return lstat64(path, out);
}
ST_ENTRY int __fxstat(int, int fd, struct stat* out) {
  return fstat(fd, out);
}
ST_ENTRY int __fxstat64(int, int fd, struct stat64* out) {
  return fstat64(fd, out);
}
ST_ENTRY int __fxstatat(int, int directory, const char* path, struct stat* out, int flags) {
  return fstatat(directory, path, out, flags);
}
ST_ENTRY int __fxstatat64(int, int directory, const char* path, struct stat64* out, int flags) {
  return fstatat64(directory, path, out, flags);
}
ST_ENTRY int access(const char* path, int mode) noexcept {
  return shim::access_at(AT_FDCWD, path, mode, 0);
}
ST_ENTRY int eaccess(const char* path, int mode) noexcept {
  return shim::access_at(AT_FDCWD, path, mode, AT_EACCESS);
}
ST_ENTRY int euidaccess(const char* path, int mode) noexcept {
  return shim::access_at(AT_FDCWD, path, mode, AT_EACCESS);
}
ST_ENTRY int faccessat(int directory, const char* path, int mode, int flags) noexcept {
  return shim::access_at(directory, path, mode, flags);
}
ST_ENTRY ssize_t readlink(const char* path, char* buffer, size_t size) noexcept {
  return shim::readlink_at(AT_FDCWD, path, buffer, size);
}
ST_ENTRY ssize_t readlinkat(int directory, const char* path, char* buffer, size_t size) noexcept {
  return shim::readlink_at(directory, path, buffer, size);
}
ST_ENTRY ssize_t __readlink_chk(const char* path, char* buffer, size_t size, size_t room) {
  return shim::readlink_at(AT_FDCWD, path, buffer, size < room ? size : room);
}
ST_ENTRY ssize_t __readlinkat_chk(int directory, const char* path, char* buffer, size_t size,
                                  size_t room) {
  return shim::readlink_at(directory, path, buffer, size < room ? size : room);
}
ST_ENTRY char* realpath(const char* path, char* to) noexcept {
  return shim::real_name(path, to);
}
ST_ENTRY char* __realpath_chk(const char* path, char* to, size_t room) noexcept {
  return room < PATH_MAX ? next::__realpath_chk(path, to, room) : shim::real_name(path, to);
}
ST_ENTRY char* canonicalize_file_name(const char* path) noexcept {
  return shim::real_name(path, nullptr);
}
ST_ENTRY ssize_t getxattr(const char* path, const char* name, void* to, size_t size) noexcept {
  return shim::attribute_at(path, name, to, size, shim::Link::kFollowed);
}
ST_ENTRY ssize_t lgetxattr(const char* path, const char* name, void* to, size_t size) noexcept {
  return shim::attribute_at(path, name, to, size, shim::Link::kItself);
}
ST_ENTRY ssize_t listxattr(const char* path, char* to, size_t size) noexcept {
  return shim::attributes_at(path, to, size, shim::Link::kFollowed);
}
ST_ENTRY ssize_t llistxattr(const char* path, char* to, size_t size) noexcept {
  return shim::attributes_at(path, to, size, shim::Link::kItself);
}

ST_ENTRY ssize_t flistxattr(int fd, char* to, size_t size) noexcept {
  return shim::list_attributes(fd, to, size);
}
ST_ENTRY int statfs(const char* path, struct statfs* out) noexcept {
  return shim::filesystem_of(path, out);
}
ST_ENTRY int statfs64(const char* path, struct statfs64* out) noexcept {
  return shim::filesystem_of(path, reinterpret_cast<struct statfs*>(out));
}
ST_ENTRY int statvfs(const char* path, struct statvfs* out) noexcept {
  return shim::filesystem_of(path, out);
}
ST_ENTRY int statvfs64(const char* path, struct statvfs64* out) noexcept {
  return shim::filesystem_of(path, reinterpret_cast<struct statvfs*>(out));
}

ST_ENTRY int close(int fd) {
  return shim::close_fd(fd);
}
ST_ENTRY int close_range(unsigned first, unsigned last, int flags) noexcept {
  return shim::close_fds(first, last, flags);
}
ST_ENTRY void closefrom(int first) noexcept {
  shim::close_fds(first < 0 ? 0 : static_cast<unsigned>(first), ~0u, 0);
}
ST_ENTRY int dup2(int from, int to) noexcept {
  return shim::dup_to(from, to, 0, false);
}
ST_ENTRY int dup3(int from, int to, int flags) noexcept {
  return shim::dup_to(from, to, flags, true);
}

ST_ENTRY int ioctl(int fd, unsigned long request, ...) noexcept {
  va_list arguments;
  va_start(arguments, request);
  const auto argument = va_arg(arguments, unsigned long);
  va_end(arguments);
  return static_cast<int>(shim::ioctl_fd(fd, request, argument));
}

ST_ENTRY int fcntl(int fd, int command, ...) {
  va_list arguments;
  va_start(arguments, command);
  const auto argument = va_arg(arguments, long);
  va_end(arguments);
  return shim::control_fd(fd, command, argument);
}
ST_ENTRY int fcntl64(int fd, int command, ...) {
  va_list arguments;
  va_start(arguments, command);
  const auto argument = va_arg(arguments, long);
  va_end(arguments);
  return shim::control_fd(fd, command, argument);
}

// struct aiocb64 is struct aiocb here.
ST_ENTRY int aio_read(aiocb* request) noexcept {
  return shim::aio_transfer(request, false);
}
ST_ENTRY int aio_read64(aiocb64* request) noexcept {
  return shim::aio_transfer(reinterpret_cast<aiocb*>(request), false);
}
ST_ENTRY int aio_write(aiocb* request) noexcept {
  return shim::aio_transfer(request, true);
}
ST_ENTRY int aio_write64(aiocb64* request) noexcept {
  return shim::aio_transfer(reinterpret_cast<aiocb*>(request), true);
}
ST_ENTRY int lio_listio(int mode, aiocb* const* list, int count, sigevent* when_all) noexcept {
  return shim::aio_list(mode, list, count, when_all);
}
ST_ENTRY int lio_listio64(int mode, aiocb64* const* list, int count, sigevent* when_all) noexcept {
  return shim::aio_list(mode, reinterpret_cast<aiocb* const*>(list), count, when_all);
}

#define ST_MOVE(io, to, size, at, call) \
  return shim::move_bytes(fd, Io::io, to, size, at, [&] { return next::call; })
#define ST_MOVE_PARTS(io, at, call) \
  return shim::move_parts(fd, Io::io, parts, count, at, [&] { return next::call; })

ST_ENTRY ssize_t read(int fd, void* to, size_t size) {
  ST_MOVE(kRead, to, size, nullptr, read(fd, to, size));
}
ST_ENTRY ssize_t write(int fd, const void* from, size_t size) {
  ST_MOVE(kWrite, from, size, nullptr, write(fd, from, size));
}
ST_ENTRY ssize_t pread(int fd, void* to, size_t size, off_t at) {
  ST_MOVE(kRead, to, size, &at, pread(fd, to, size, at));
}
// Not by pread(): inlined there at -O3, g++ 12 takes the buffer for one that is read.
ST_ENTRY ssize_t pread64(int fd, void* to, size_t size, off64_t at) {
  ST_MOVE(kRead, to, size, &at, pread(fd, to, size, at));
}
ST_ENTRY ssize_t pwrite(int fd, const void* from, size_t size, off_t at) {
  ST_MOVE(kWrite, from, size, &at, pwrite(fd, from, size, at));
}
ST_ENTRY ssize_t pwrite64(int fd, const void* from, size_t size, off64_t at) {
  return pwrite(fd, from, size, at);
}
// More than there is room for ends the program, in libc.
ST_ENTRY ssize_t __read_chk(int fd, void* to, size_t size, size_t room) {
  if (size > room) return next::__read_chk(fd, to, size, room);
  return read(fd, to, size);
}
ST_ENTRY ssize_t __pread_chk(int fd, void* to, size_t size, off_t at, size_t room) {
  if (size > room) return next::__pread_chk(fd, to, size, at, room);
  return pread(fd, to, size, at);
}
ST_ENTRY ssize_t __pread64_chk(int fd, void* to, size_t size, off64_t at, size_t room) {
  return __pread_chk(fd, to, size, at, room);
}
ST_ENTRY ssize_t readv(int fd, const iovec* parts, int count) {
  ST_MOVE_PARTS(kRead, nullptr, readv(fd, parts, count));
}
ST_ENTRY ssize_t writev(int fd, const iovec* parts, int count) {
  ST_MOVE_PARTS(kWrite, nullptr, writev(fd, parts, count));
}
ST_ENTRY ssize_t preadv(int fd, const iovec* parts, int count, off_t at) {
  ST_MOVE_PARTS(kRead, &at, preadv(fd, parts, count, at));
}
ST_ENTRY ssize_t preadv64(int fd, const iovec* parts, int count, off64_t at) {
  return preadv(fd, parts, count, at);
}
ST_ENTRY ssize_t pwritev(int fd, const iovec* parts, int count, off_t at) {
  ST_MOVE_PARTS(kWrite, &at, pwritev(fd, parts, count, at));
}
ST_ENTRY ssize_t pwritev64(int fd, const iovec* parts, int count, off64_t at) {
  return pwritev(fd, parts, count, at);
}
ST_ENTRY ssize_t sendfile(int to, int from, off_t* at, size_t size) noexcept {
  return shim::send_file(to, from, at, size);
}
ST_ENTRY ssize_t sendfile64(int to, int from, off64_t* at, size_t size) noexcept {
  return shim::send_file(to, from, at, size);
}
ST_ENTRY ssize_t splice(int from, off64_t* from_at, int to, off64_t* to_at, size_t size,
                        unsigned flags) {
  return shim::splice_bytes(from, from_at, to, to_at, size, flags);
}
ST_ENTRY off_t lseek(int fd, off_t offset, int whence) noexcept {
  return shim::seek_fd(fd, offset, whence);
}
ST_ENTRY off64_t lseek64(int fd, off64_t offset, int whence) noexcept {
  return shim::seek_fd(fd, offset, whence);
}
ST_ENTRY int ftruncate(int fd, off_t size) noexcept {
  return shim::truncate_fd(fd, size);
}
ST_ENTRY int ftruncate64(int fd, off64_t size) noexcept {
  return shim::truncate_fd(fd, size);
}
ST_ENTRY int truncate(const char* path, off_t size) noexcept {
  return shim::truncate_at(path, size);
}
ST_ENTRY int truncate64(const char* path, off64_t size) noexcept {
  return shim::truncate_at(path, size);
}
ST_ENTRY int fallocate(int fd, int mode, off_t offset, off_t size) {
  return shim::fallocate_fd(fd, mode, offset, size);
}
ST_ENTRY int fallocate64(int fd, int mode, off64_t offset, off64_t size) {
  return shim::fallocate_fd(fd, mode, offset, size);
}

ST_ENTRY int posix_fallocate(int fd, off_t offset, off_t size) {
  return shim::preallocate(fd, offset, size);
}
ST_ENTRY int posix_fallocate64(int fd, off64_t offset, off64_t size) {
  return shim::preallocate(fd, offset, size);
}
ST_ENTRY int lockf(int fd, int command, off_t size) {
  return shim::lock_part(fd, command, size);
}
ST_ENTRY int lockf64(int fd, int command, off64_t size) {
  return shim::lock_part(fd, command, size);
}

ST_ENTRY void* mmap(void* at, size_t size, int prot, int flags, int fd, off_t offset) noexcept {
  return shim::map(at, size, prot, flags, fd, offset);
}
ST_ENTRY void* mmap64(void* at, size_t size, int prot, int flags, int fd, off64_t offset) noexcept {
  return shim::map(at, size, prot, flags, fd, offset);
}
ST_ENTRY int memfd_create(const char* name, unsigned flags) noexcept {
  return shim::memory_file(name, flags);
}
ST_ENTRY int munmap(void* at, size_t size) noexcept {
  return shim::unmap(at, size);
}

ST_ENTRY void* mremap(void* old_at, size_t old_size, size_t new_size, int flags, ...) noexcept {
  va_list arguments;
  va_start(arguments, flags);
  void* const new_at = (flags & MREMAP_FIXED) != 0 ? va_arg(arguments, void*) : nullptr;
  va_end(arguments);
  return shim::remap(old_at, old_size, new_size, flags, new_at);
}

ST_ENTRY int mprotect(void* at, size_t size, int prot) noexcept {
  return shim::protect(at, size, prot, -1);
}
ST_ENTRY int pkey_mprotect(void* at, size_t size, int prot, int key) noexcept {
  return key < 0 ? next::pkey_mprotect(at, size, prot, key) : shim::protect(at, size, prot, key);
}
ST_ENTRY int madvise(void* at, size_t size, int advice) noexcept {
  return shim::advise(at, size, advice);
}
ST_ENTRY int mincore(void* at, size_t size, unsigned char* to) noexcept {
  return shim::say_resident(at, size, to);
}
ST_ENTRY ssize_t process_madvise(int pidfd, const iovec* parts, size_t count, int advice,
                                 unsigned flags) noexcept {
  return shim::advise_parts(pidfd, parts, count, advice, flags);
}
ST_ENTRY int remap_file_pages(void* at, size_t size, int prot, size_t page, int flags) noexcept {
  return shim::remap_pages(at, size, prot, page, flags);
}
ST_ENTRY int mlockall(int flags) noexcept {
  return shim::lock_all(flags);
}
ST_ENTRY int mseal(void* at, size_t size, unsigned long flags) noexcept {
  return shim::seal(at, size, flags);
}
ST_ENTRY int brk(void* at) noexcept {
  return shim::set_break(at);
}
ST_ENTRY void* sbrk(intptr_t by) noexcept {
  return shim::move_break(by);
}
ST_ENTRY void* shmat(int id, const void* at, int flags) noexcept {
  return shim::attach(id, at, flags);
}
ST_ENTRY int shmdt(const void* at) noexcept {
  return shim::detach(at);
}

ST_ENTRY int sigaction(int number, const struct sigaction* set, struct sigaction* old) noexcept {
  return shim::sigaction_entry(number, set, old);
}
ST_ENTRY sighandler_t signal(int number, sighandler_t handler) noexcept {
  return shim::bsd_signal_entry(number, handler);
}
ST_ENTRY sighandler_t bsd_signal(int number, sighandler_t handler) {
  return shim::bsd_signal_entry(number, handler);
}
ST_ENTRY sighandler_t ssignal(int number, sighandler_t handler) noexcept {
  return shim::bsd_signal_entry(number, handler);
}
ST_ENTRY sighandler_t sysv_signal(int number, sighandler_t handler) noexcept {
  return shim::sysv_signal_entry(number, handler);
}
ST_ENTRY sighandler_t __sysv_signal(int number, sighandler_t handler) noexcept {
  return shim::sysv_signal_entry(number, handler);
}
ST_ENTRY int siginterrupt(int number, int interrupt) noexcept {
  return shim::siginterrupt_entry(number, interrupt);
}
ST_ENTRY sighandler_t sigset(int number, sighandler_t handler) noexcept {
  return shim::sigset_entry(number, handler);
}
ST_ENTRY int sigignore(int number) noexcept {
  return shim::sigignore_entry(number);
}

// The words of the forms that list them, and behind the null one of execle the settings.
#define ST_WORDS(words)                                                              \
  va_list list;                                                                      \
  va_start(list, first);                                                             \
  size_t count = 1;                                                                  \
  for (const char* word = first; word != nullptr; ++count) {                         \
    word = va_arg(list, const char*);                                                \
  }                                                                                  \
  va_end(list);                                                                      \
  auto** const words = static_cast<char**>(__builtin_alloca(count * sizeof(char*))); \
  words[0] = const_cast<char*>(first);                                               \
  va_start(list, first);                                                             \
  for (size_t i = 1; i < count; ++i) words[i] = va_arg(list, char*)

ST_ENTRY int execl(const char* path, const char* first, ...) noexcept {
  ST_WORDS(words);
  va_end(list);
  return execv(path, words);
}
ST_ENTRY int execlp(const char* file, const char* first, ...) noexcept {
  ST_WORDS(words);
  va_end(list);
  return execvp(file, words);
}
ST_ENTRY int execle(const char* path, const char* first, ...) noexcept {
  ST_WORDS(words);
  char** const settings = va_arg(list, char**);
  va_end(list);
  return execve(path, words, settings);
}

ST_ENTRY int posix_spawn_file_actions_addopen(posix_spawn_file_actions_t* steps, int fd,
                                              const char* path, int flags, mode_t mode) noexcept {
  return shim::add_opening(steps, fd, path, flags, mode);
}
ST_ENTRY int posix_spawn_file_actions_addchdir_np(posix_spawn_file_actions_t* steps,
                                                  const char* path) noexcept {
  return shim::add_entering(steps, path);
}

ST_ENTRY int __register_atfork(void (*before)(), void (*parent)(), void (*child)(),
                               void* library) noexcept {
  return shim::register_fork_handlers(before, parent, child, library);
}
ST_ENTRY pid_t _Fork() noexcept {
  return shim::fork_without_handlers();
}
ST_ENTRY int clone(int (*run)(void*), void* stack, int flags, void* argument, ...) noexcept {
  va_list rest;
  va_start(rest, argument);
  auto* const parent_id = va_arg(rest, pid_t*);
  void* const tls = va_arg(rest, void*);
  auto* const child_id = va_arg(rest, pid_t*);
  va_end(rest);
  return shim::clone_process(run, stack, flags, argument, parent_id, tls, child_id);
}

ST_ENTRY int sigprocmask(int how, const sigset_t* set, sigset_t* old) noexcept {
  return shim::change_mask(how, set, old);
}
ST_ENTRY int pthread_sigmask(int how, const sigset_t* set, sigset_t* old) noexcept {
  return shim::change_thread_mask(how, set, old);
}
ST_ENTRY int sigaltstack(const stack_t* set, stack_t* old) noexcept {
  return shim::set_alternate_stack(set, old);
}
ST_ENTRY int pthread_create(pthread_t* thread, const pthread_attr_t* about, void* (*run)(void*),
                            void* given) noexcept {
  return shim::create_thread(thread, about, run, given);
}
ST_ENTRY int pthread_cancel(pthread_t thread) {
  const int result = next::pthread_cancel(thread);
  if (shim::awake()) stagetwo::host::kick_cancelled(thread);
  return result;
}

ST_ENTRY long syscall(long number, ...) noexcept {
  va_list list;
  va_start(list, number);
  const long a = va_arg(list, long), b = va_arg(list, long), c = va_arg(list, long);
  const long d = va_arg(list, long), e = va_arg(list, long), f = va_arg(list, long);
  va_end(list);
  return shim::raw_call(number, a, b, c, d, e, f);
}
