// SPDX-License-Identifier: Apache-2.0
// A guest_memfd through libc: what its file answers, in Linux 6.12 and in 6.18, and in processes
// that did not make it.
#define _GNU_SOURCE
#include "abi/kvm/uapi.h"
//
#include <linux/aio_abi.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#include "guest_file.h"

static void creation(void) {
  make_vm(KVM_X86_DEFAULT_VM);
  const uint64_t bad[] = {0, 1, 4097, (uint64_t)-4096};
  for (unsigned i = 0; i < 4; i++) REFUSES(create(bad[i], 0), EINVAL);
  const int small = create(kPage, 0), vast = create(UINT64_C(1) << 62, 0);
  REQUIRE(small >= 0 && vast == small + 1);
  REQUIRE(fcntl(small, F_GETFD) == 0);
  REQUIRE((fcntl(small, F_GETFL) & O_ACCMODE) == O_RDWR);
  REFUSES(create(kPage, 1), EINVAL);
  REFUSES(create(kPage, UINT64_C(1) << 63), EINVAL);
}

// Of several requests those before the refused one are taken.
static void refuses_requests(int fd, int other) {
  aio_context_t queue = 0;
  REQUIRE(syscall(SYS_io_setup, 4, &queue) == 0);
  char byte = 2;
  struct iocb one = {.aio_lio_opcode = IOCB_CMD_PWRITE,
                     .aio_fildes = (uint32_t)fd,
                     .aio_buf = (uintptr_t)&byte,
                     .aio_nbytes = 1};
  struct iocb before = one;
  before.aio_fildes = (uint32_t)other;
  struct iocb* list[] = {&before, &one};
  REFUSES(syscall(SYS_io_submit, queue, 1, &list[1]), EINVAL);
  REQUIRE(syscall(SYS_io_submit, queue, 2, list) == 1);
  struct io_event event;
  REQUIRE(syscall(SYS_io_getevents, queue, 1, 1, &event, NULL) == 1);
  REQUIRE(syscall(SYS_io_destroy, queue) == 0);
}

static void operations(void) {
  make_vm(KVM_X86_DEFAULT_VM);
  const int fd = create(kPages * kPage, 0);
  char byte = 1;
  struct iovec part = {&byte, 1};
  REFUSES(read(fd, &byte, 1), EINVAL);
  REFUSES(write(fd, &byte, 1), EINVAL);
  REFUSES(readv(fd, &part, 1), EINVAL);
  REFUSES(pread(fd, &byte, 1, 0), ESPIPE);
  REFUSES(pwrite(fd, &byte, 1, 0), ESPIPE);
  REFUSES(preadv2(fd, &part, 1, -1, 0), EINVAL);
  REFUSES(pwritev2(fd, &part, 1, -1, 0), EINVAL);
  int ends[2];
  off_t start = 0;
  REQUIRE(pipe(ends) == 0 && write(ends[1], &byte, 1) == 1);
  REFUSES(sendfile(ends[1], fd, NULL, 1), EINVAL);
  REFUSES(sendfile(ends[1], fd, &start, 1), ESPIPE);
  REFUSES(splice(fd, NULL, ends[1], NULL, 1, 0), EINVAL);
  REFUSES(splice(ends[0], NULL, fd, NULL, 1, 0), EINVAL);
  REFUSES(readahead(fd, 0, kPage), EINVAL);
  // By number they are the same calls.
  REFUSES(syscall(SYS_read, fd, &byte, 1), EINVAL);
  REFUSES(syscall(SYS_write, fd, &byte, 1), EINVAL);
  REFUSES(syscall(SYS_readv, fd, &part, 1), EINVAL);
  REFUSES(syscall(SYS_pread64, fd, &byte, 1, 0), ESPIPE);
  REFUSES(syscall(SYS_pwrite64, fd, &byte, 1, 0), ESPIPE);
  REFUSES(syscall(SYS_preadv2, fd, &part, 1, -1L, 0, 0), EINVAL);
  REFUSES(syscall(SYS_pwritev2, fd, &part, 1, -1L, 0, 0), EINVAL);
  REFUSES(syscall(SYS_sendfile, ends[1], fd, NULL, 1), EINVAL);
  REFUSES(syscall(SYS_splice, ends[0], NULL, fd, NULL, 1, 0), EINVAL);
  REFUSES(syscall(SYS_tee, ends[0], fd, 1, 0), EINVAL);
  REFUSES(syscall(SYS_ftruncate, fd, 0), EINVAL);
  refuses_requests(fd, ends[1]);
  REFUSES(lseek(fd, 0, SEEK_SET), ESPIPE);
  REFUSES(ftruncate(fd, kPages * kPage), EINVAL);
  REFUSES(ioctl(fd, KVM_GET_API_VERSION, 0), ENOTTY);
  errno = 0;
  REQUIRE(mmap(NULL, kPage, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == ENODEV);
  REQUIRE(mmap(NULL, kPage, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED && errno == ENODEV);
  REFUSES(fallocate(fd, 0, 0, kPage), EOPNOTSUPP);
  REFUSES(fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, kPage), EOPNOTSUPP);
  REFUSES(fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 0, kPage), EOPNOTSUPP);
  REFUSES(fallocate(fd, FALLOC_FL_KEEP_SIZE, 1, kPage), EINVAL);
  REFUSES(fallocate(fd, kPunch, 0, 0), EINVAL);
  REFUSES(fallocate(fd, kPunch, -kPage, kPage), EINVAL);
  REFUSES(fallocate(fd, kPunch, INT64_MAX - kPage + 1, kPage), EFBIG);
  REQUIRE(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, kPages * kPage) == 0);
  struct stat s;
  REQUIRE(fstat(fd, &s) == 0);
  REQUIRE(s.st_size == kPages * kPage && s.st_blksize == kPage && s.st_blocks == 0);
  REQUIRE(s.st_mode == (S_IFREG | 0600) && s.st_nlink == 1);
  REQUIRE(fallocate(fd, kPunch, kPages * kPage, kPage) == 0);
}

static int a_page_of(int fd, int prot, int flags, off_t offset) {
  return mmap(NULL, kPage, prot, flags, fd, offset) == MAP_FAILED ? -1 : 0;
}

// What the kernel looks at before the file comes first.
static void orders(void) {
  make_vm(KVM_X86_DEFAULT_VM);
  const int fd = create(kPages * kPage, 0);
  REFUSES(a_page_of(fd, PROT_READ, MAP_SHARED, 1), EINVAL);
  REFUSES(a_page_of(fd, PROT_READ, 0, 0), EINVAL);
  REFUSES(a_page_of(fd, PROT_READ, MAP_SHARED | MAP_HUGETLB, 0), EINVAL);
  REFUSES(a_page_of(fd, PROT_READ, MAP_SHARED_VALIDATE | MAP_SYNC, 0), EOPNOTSUPP);
  REFUSES(a_page_of(fd, PROT_READ, MAP_SHARED, -kPage), EOVERFLOW);
  REFUSES(a_page_of(fd, PROT_READ | PROT_EXEC, MAP_SHARED, 0), EPERM);
  REFUSES(a_page_of(fd, PROT_NONE, MAP_SHARED, 0), ENODEV);
  REFUSES(a_page_of(fd, PROT_READ, MAP_SHARED_VALIDATE, 0), ENODEV);
  errno = 0;
  REQUIRE(mmap(NULL, 0, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EINVAL);
  REQUIRE(mmap(NULL, -kPage, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == ENOMEM);
  // What is mapped at a fixed place stays there; since files of this kind can be mapped at all it
  // goes before the file is asked.
  char* const here = mmap(NULL, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  *here = 42;
  if (ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD_FLAGS) == 0) {
    REQUIRE(mmap(here, kPage, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED);
    REQUIRE(errno == ENODEV && *here == 42);
  }
  REQUIRE(mmap(here, kPage, PROT_READ, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0) == MAP_FAILED);
  REQUIRE(errno == EEXIST);

  const off_t beyond = INT64_MAX - kPage + 1;
  REFUSES(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_KEEP_SIZE, beyond, kPage), EOPNOTSUPP);
  REFUSES(fallocate(fd, kPunch | FALLOC_FL_ZERO_RANGE, beyond, kPage), EOPNOTSUPP);
  REFUSES(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, beyond, kPage), EFBIG);
  REFUSES(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, kPage), EOPNOTSUPP);
  REFUSES(fallocate(fd, 0x1000, -1, kPage), EINVAL);
  REFUSES(fallocate(vm_fd, 0, beyond, kPage), ENODEV);

  REFUSES(lseek(fd, 0, SEEK_HOLE), ESPIPE);
  REFUSES(lseek(fd, 0, 5), EINVAL);
  int ends[2];
  off_t start = 0;
  void* const nowhere = (void*)8;
  REQUIRE(pipe(ends) == 0 && write(ends[1], "abc", 3) == 3);
  REQUIRE(sendfile(ends[1], fd, NULL, 0) == 0);
  REFUSES(sendfile(ends[1], fd, nowhere, 1), EFAULT);
  REFUSES(sendfile(fd, fd, NULL, 1), EINVAL);
  REQUIRE(splice(ends[0], NULL, fd, NULL, 0, 0) == 0);
  REFUSES(splice(fd, &start, ends[1], NULL, 1, 0), EINVAL);
  REFUSES(splice(fd, NULL, ends[1], &start, 1, 0), ESPIPE);
  REFUSES(splice(fd, nowhere, ends[1], NULL, 1, 0), EFAULT);
  REFUSES(tee(fd, ends[1], 1, 0), EINVAL);
  const int file = memfd_create("file", 0);
  REQUIRE(ftruncate(file, kPage) == 0);
  REFUSES(copy_file_range(fd, NULL, file, NULL, 1, 0), EXDEV);
  REFUSES(copy_file_range(file, NULL, fd, NULL, 1, 0), EXDEV);
  REFUSES(copy_file_range(fd, NULL, file, NULL, 1, 1), EINVAL);
  REFUSES(copy_file_range(fd, NULL, fd, NULL, 1, 0), EINVAL);
  REFUSES(copy_file_range(fd, NULL, ends[1], NULL, 1, 0), EINVAL);
  REQUIRE(posix_fallocate(fd, 0, kPage) == ESPIPE && posix_fallocate(fd, 0, 0) == EINVAL);
}

// The inode has no operation that changes it.
static void changes(void) {
  make_vm(KVM_X86_DEFAULT_VM);
  const int fd = create(kPages * kPage, 0);
  const struct timespec omitted[2] = {{0, UTIME_OMIT}, {0, UTIME_OMIT}};
  const struct timespec early[2] = {{1, 0}, {1, 0}};
  char value[8];
  REFUSES(fchmod(fd, 0600), EINVAL);
  REFUSES(fchown(fd, -1, -1), EINVAL);
  REFUSES(fchownat(fd, "", -1, -1, AT_EMPTY_PATH), EINVAL);
  REFUSES(futimens(fd, NULL), EINVAL);
  REFUSES(futimens(fd, early), EINVAL);
  REQUIRE(futimens(fd, omitted) == 0);
  REFUSES(utimensat(fd, "", NULL, AT_EMPTY_PATH), EINVAL);
  const off_t sizes[] = {kPages * kPage, 0, 1 << 20, -1};
  for (unsigned i = 0; i < 4; i++) REFUSES(ftruncate(fd, sizes[i]), EINVAL);
  REFUSES(fsync(fd), EINVAL);
  REFUSES(fdatasync(fd), EINVAL);
  REQUIRE(syncfs(fd) == 0);
  REFUSES(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW), EINVAL);
  REFUSES(fcntl(fd, F_GET_SEALS), EINVAL);
  REFUSES(fcntl(fd, F_SETFL, O_DIRECT), EINVAL);
  REQUIRE(fcntl(fd, F_SETFL, O_APPEND) == 0 && (fcntl(fd, F_GETFL) & O_APPEND) != 0);
  REFUSES(fsetxattr(fd, "user.a", "b", 1, 0), EOPNOTSUPP);
  REFUSES(fgetxattr(fd, "user.a", value, sizeof value), EOPNOTSUPP);
  REFUSES(fremovexattr(fd, "trusted.a"), EOPNOTSUPP);
  REQUIRE(flistxattr(fd, value, sizeof value) == 0);
  REFUSES(fchdir(fd), ENOTDIR);
  REQUIRE(posix_fadvise(fd, 0, kPage, POSIX_FADV_DONTNEED) == 0);
  struct statfs s;
  REQUIRE(fstatfs(fd, &s) == 0 && s.f_type == 0x09041934 && s.f_bsize == kPage);
  struct stat now;
  REQUIRE(fstat(fd, &now) == 0 && now.st_size == kPages * kPage && now.st_mode == (S_IFREG | 0600));
}

// Locks of the client say nothing about who holds the file.
static void locks(void) {
  make_vm(KVM_X86_DEFAULT_VM);
  const int fd = create(kPages * kPage, 0), other = dup(fd);
  REQUIRE(flock(fd, LOCK_EX) == 0 && flock(fd, LOCK_UN) == 0);
  struct flock all = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
  REQUIRE(fcntl(fd, F_SETLK, &all) == 0);
  REFUSES(fcntl(fd, F_OFD_SETLK, &all), EAGAIN);  // of another owner
  REQUIRE(fcntl(fd, F_OFD_GETLK, &all) == 0);
  REQUIRE(all.l_type == F_WRLCK && all.l_start == 0 && all.l_len == 0 && all.l_pid == getpid());
  all = (struct flock){.l_type = F_UNLCK, .l_whence = SEEK_SET};
  REQUIRE(fcntl(fd, F_SETLK, &all) == 0 && fcntl(fd, F_OFD_SETLK, &all) == 0);
  // Whatever is unlocked: the file stays.
  const struct flock parts[] = {{.l_start = INT64_MAX, .l_len = 1},
                                {.l_start = 0, .l_len = INT64_MAX},
                                {.l_start = 1, .l_len = INT64_MAX},
                                {.l_start = INT64_MAX, .l_len = -5},
                                {.l_start = 0, .l_whence = SEEK_END}};
  for (unsigned i = 0; i < 5; i++) {
    struct flock part = parts[i];
    part.l_type = F_UNLCK;
    REQUIRE(fcntl(fd, F_OFD_SETLK, &part) == 0 && fcntl(fd, F_SETLK, &part) == 0);
  }
  struct flock beyond = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 2, .l_len = INT64_MAX};
  REFUSES(fcntl(fd, F_SETLK, &beyond), EOVERFLOW);
  REQUIRE(lockf(fd, F_LOCK, 0) == 0 && lockf(fd, F_TEST, 0) == 0 && lockf(fd, F_ULOCK, 0) == 0);
  close(other);
  close(open("/dev/kvm", O_RDWR));
  // It is still the VM's own.
  struct kvm_userspace_memory_region2 slot = {.slot = 1,
                                              .flags = KVM_MEM_GUEST_MEMFD,
                                              .guest_phys_addr = 0x10000,
                                              .memory_size = kPage,
                                              .guest_memfd = (uint32_t)fd};
  REQUIRE(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION2, &slot) == 0);
}

// A name leads to the inode, which nobody opens.
static void refuse_name(int directory, const char* name) {
  const int modes[] = {O_RDONLY, O_WRONLY, O_RDWR, O_RDWR | O_TRUNC, O_RDWR | O_CREAT};
  for (unsigned i = 0; i < 5; i++) REFUSES(openat(directory, name, modes[i], 0600), ENXIO);
  REFUSES(openat(directory, name, O_RDONLY | O_DIRECTORY), ENOTDIR);
  REFUSES(openat(directory, name, O_RDONLY | O_NOFOLLOW), ELOOP);
  REFUSES(openat(directory, name, O_RDWR | O_CREAT | O_EXCL, 0600), EEXIST);
  struct stat s;
  REQUIRE(fstatat(directory, name, &s, 0) == 0);
  REQUIRE(s.st_size == kPages * kPage && s.st_mode == (S_IFREG | 0600) && s.st_blocks == 0);
  REQUIRE(fstatat(directory, name, &s, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(s.st_mode));
  char link[64] = {0};
  REQUIRE(readlinkat(directory, name, link, sizeof link) == 21);
  REQUIRE(strcmp(link, "anon_inode:[kvm-gmem]") == 0);
  REFUSES(fchmodat(directory, name, 0600, 0), EINVAL);
  REFUSES(fchownat(directory, name, -1, -1, 0), EINVAL);
  REFUSES(utimensat(directory, name, NULL, 0), EINVAL);
}
static void names(void) {
  make_vm(KVM_X86_DEFAULT_VM);
  const int fd = create(kPages * kPage, 0);
  const char* const spellings[] = {"/proc/self/fd/%d", "/dev/fd/%d", "/proc/thread-self/fd/%d",
                                   "/proc//self/./fd/%d"};
  char name[64];
  for (unsigned i = 0; i < 4; i++) {
    snprintf(name, sizeof name, spellings[i], fd);
    refuse_name(AT_FDCWD, name);
  }
  snprintf(name, sizeof name, "%d", fd);
  refuse_name(open("/proc/self/fd", O_RDONLY | O_DIRECTORY), name);
  snprintf(name, sizeof name, "/proc/%d/fd/%d", getpid(), fd);
  refuse_name(AT_FDCWD, name);
  const off_t sizes[] = {kPages * kPage, 0, 1 << 20};
  for (unsigned i = 0; i < 3; i++) REFUSES(truncate(name, sizes[i]), EINVAL);
  REFUSES(chmod(name, 0644), EINVAL);
  REFUSES(chown(name, -1, -1), EINVAL);
  REFUSES(creat(name, 0600), ENXIO);
  errno = 0;
  REQUIRE(fopen(name, "r") == NULL && errno == ENXIO);
  REQUIRE(fopen(name, "w") == NULL && freopen(name, "r", stdin) == NULL);
  REFUSES(access(name, X_OK), EACCES);
  REQUIRE(access(name, R_OK | W_OK) == 0);
  char value[8];
  REFUSES(setxattr(name, "user.a", "b", 1, 0), EOPNOTSUPP);
  REFUSES(getxattr(name, "user.a", value, sizeof value), EOPNOTSUPP);
  REQUIRE(listxattr(name, value, sizeof value) == 0);
  char* const arguments[] = {name, NULL};
  REFUSES(execv(name, arguments), EACCES);
  struct statfs where;
  REQUIRE(statfs(name, &where) == 0 && where.f_type == 0x09041934);
  // A place only.
  const int place = open(name, O_PATH);
  struct stat s;
  REQUIRE(place >= 0 && fstat(place, &s) == 0 && s.st_size == kPages * kPage);
  REFUSES(read(place, value, 1), EBADF);
  REFUSES(a_page_of(place, PROT_READ, MAP_SHARED, 0), EBADF);
  REFUSES(fallocate(place, FALLOC_FL_KEEP_SIZE, 0, kPage), EBADF);
  REFUSES(fallocate(place, FALLOC_FL_KEEP_SIZE, -1, kPage), EBADF);
  REFUSES(ftruncate(place, 0), EBADF);
  REFUSES(lseek(place, 0, SEEK_SET), EBADF);
}

// The same by syscall(2).
static void numbers(void) {
  make_vm(KVM_X86_DEFAULT_VM);
  const int fd = create(kPages * kPage, 0);
  char name[64], byte = 1;
  snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
  const struct iovec part = {&byte, 1};
  int ends[2];
  off_t start = 0;
  REQUIRE(pipe(ends) == 0 && write(ends[1], "abc", 3) == 3);
  REFUSES(syscall(SYS_read, fd, &byte, 1), EINVAL);
  REFUSES(syscall(SYS_pwrite64, fd, &byte, 1, 0), ESPIPE);
  REFUSES(syscall(SYS_preadv2, fd, &part, 1, 0, 0, 0), ESPIPE);
  REFUSES(syscall(SYS_pwritev2, fd, &part, 1, -1L, -1L, 0), EINVAL);
  REFUSES(syscall(SYS_sendfile, ends[1], fd, &start, 1), ESPIPE);
  REFUSES(syscall(SYS_splice, ends[0], NULL, fd, NULL, 1, 0), EINVAL);
  REFUSES(syscall(SYS_tee, fd, ends[1], 1, 0), EINVAL);
  REFUSES(syscall(SYS_copy_file_range, fd, NULL, fd, NULL, 1, 0), EINVAL);
  REFUSES(syscall(SYS_mmap, NULL, kPage, PROT_READ, MAP_SHARED, fd, 0), ENODEV);
  REFUSES(syscall(SYS_ftruncate, fd, 0), EINVAL);
  REFUSES(syscall(SYS_truncate, name, 0), EINVAL);
  REFUSES(syscall(SYS_fchmod, fd, 0600), EINVAL);
  REFUSES(syscall(SYS_chmod, name, 0600), EINVAL);
  REFUSES(syscall(SYS_fchown, fd, -1, -1), EINVAL);
  REFUSES(syscall(SYS_utimensat, fd, NULL, NULL, 0), EINVAL);
  REFUSES(syscall(SYS_fsync, fd), EINVAL);
  REFUSES(syscall(SYS_fcntl, fd, F_ADD_SEALS, 0), EINVAL);
  REFUSES(syscall(SYS_fsetxattr, fd, "user.a", "b", 1, 0), EOPNOTSUPP);
  REFUSES(syscall(SYS_readahead, fd, 0, kPage), EINVAL);
  REFUSES(syscall(SYS_open, name, O_RDWR), ENXIO);
  REFUSES(syscall(SYS_openat, AT_FDCWD, name, O_RDONLY), ENXIO);
  const uint64_t how[3] = {O_RDWR, 0, 0};
  REFUSES(syscall(SYS_openat2, AT_FDCWD, name, how, sizeof how), ENXIO);
  char link[64] = {0};
  REQUIRE(syscall(SYS_readlink, name, link, sizeof link) == 21);
  REFUSES(syscall(SYS_fallocate, fd, 0, 0, kPage), EOPNOTSUPP);
}

// A child and a receiver allocate and punch; neither has the VM.
static void elsewhere(void) {
  make_vm(KVM_X86_DEFAULT_VM);
  int pair[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
  const pid_t receiver = fork();  // before there is a file
  REQUIRE(receiver >= 0);
  if (receiver == 0) {
    use_elsewhere(receive_descriptor(pair[1]));
    _exit(0);
  }
  const int fd = create(kPages * kPage, 0);
  send_descriptor(pair[0], fd);
  ends_well(receiver);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    REFUSES(create(kPage, 0), EIO);
    use_elsewhere(fd);
    _exit(0);
  }
  ends_well(child);
  close(vm_fd);
  REQUIRE(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, kPages * kPage) == 0);  // outlives the VM's own
  close(fd);
}

static sigjmp_buf back;
static siginfo_t seen;
static void on_bus(int signal, siginfo_t* info, void* context) {
  (void)signal;
  (void)context;
  seen = *info;
  siglongjmp(back, 1);
}
static int touch_is_sigbus(volatile char* at) {
  if (sigsetjmp(back, 1) != 0) return seen.si_signo == SIGBUS && seen.si_code == BUS_ADRERR;
  *at = *at;
  return 0;
}

// Linux 6.18: MMAP and INIT_SHARED.
static void mappable_by(int holes) {
  make_vm(KVM_X86_DEFAULT_VM);
  REQUIRE(ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD) == 1);
  REQUIRE(ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD_FLAGS) == 3);
  REFUSES(create(kPage, 4), EINVAL);
  struct sigaction action = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO};
  REQUIRE(sigaction(SIGBUS, &action, NULL) == 0);

  const int both = create(kPages * kPage, 3);
  REQUIRE(mmap(NULL, kPage, PROT_READ, MAP_PRIVATE, both, 0) == MAP_FAILED && errno == EINVAL);
  // Longer than the file is allowed; beyond the end is SIGBUS.
  char* const at = mmap(NULL, (kPages + 1) * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, both, 0);
  REQUIRE(at != MAP_FAILED);
  at[0] = at[kPage] = 42;
  REQUIRE(touch_is_sigbus(at + kPages * kPage));
  REQUIRE(madvise(at, kPage, MADV_DONTNEED) == 0 && at[0] == 42);
  REQUIRE(fallocate(both, kPunch, 0, kPage) == 0 && at[0] == 0 && at[kPage] == 42);
  REQUIRE(madvise(at, 2 * kPage, MADV_REMOVE) == 0 && at[kPage] == 0);
  at[kPage] = 7;
  REFUSES(msync(at, kPage, MS_SYNC), EINVAL);
  REFUSES(syscall(SYS_msync, at, kPage, MS_SYNC | MS_INVALIDATE), EINVAL);
  REQUIRE(msync(at, kPage, MS_ASYNC) == 0 && msync(at, 0, MS_SYNC) == 0);
  REFUSES(mprotect(at, kPage, PROT_READ | PROT_EXEC), EACCES);
  REQUIRE(mprotect(at, 0, PROT_EXEC) == 0 && mprotect(at, kPage, PROT_READ | PROT_WRITE) == 0);

  const int alone = create(kPages * kPage, 1);
  char* const closed = mmap(NULL, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, alone, 0);
  REQUIRE(closed != MAP_FAILED && touch_is_sigbus(closed));
  REQUIRE(remap_file_pages(closed, kPage, 0, 1, 0) == 0 && touch_is_sigbus(closed));
  REFUSES(a_page_of(alone, PROT_READ, MAP_SHARED, 1), EINVAL);
  REFUSES(a_page_of(alone, PROT_READ, MAP_SHARED, -kPage), EOVERFLOW);
  const int shared = create(kPages * kPage, 2);
  REQUIRE(mmap(NULL, kPage, PROT_READ, MAP_SHARED, shared, 0) == MAP_FAILED && errno == ENODEV);

  // A slot of a default VM that is served from the file alone, and a guest that reads it.
  uint8_t* const memory =
      mmap(NULL, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memcpy(memory, (uint8_t[]){0xa0, 0x00, 0x30, 0xf4}, 4);  // al = [0x3000]; hlt
  REQUIRE(set_slot(vm_fd, 0, 0x1000, memory, kPage, 0) == 0);
  struct kvm_userspace_memory_region2 slot = {.slot = 1,
                                              .flags = KVM_MEM_GUEST_MEMFD,
                                              .guest_phys_addr = 0x2000,
                                              .memory_size = kPages * kPage,
                                              .userspace_addr = (uintptr_t)at,
                                              .guest_memfd = (uint32_t)both};
  REQUIRE(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION2, &slot) == 0);
  const int vcpu = ioctl(vm_fd, KVM_CREATE_VCPU, 0);
  struct kvm_run* const run = mmap(NULL, 3 * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
  struct kvm_sregs sregs;
  REQUIRE(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0);
  sregs.cs.base = sregs.cs.selector = 0;
  REQUIRE(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0);
  struct kvm_regs regs = {.rip = 0x1000, .rflags = 2};
  REQUIRE(ioctl(vcpu, KVM_SET_REGS, &regs) == 0);
  REQUIRE(ioctl(vcpu, KVM_RUN, 0) == 0 && run->exit_reason == KVM_EXIT_HLT);
  REQUIRE(ioctl(vcpu, KVM_GET_REGS, &regs) == 0 && (regs.rax & 0xff) == 7);

  // A hole made through a mapping is one in the file, also where the mapping shows no page of it.
  // (Linux 6.18.44 leaves the guest the page of a file that is not shared, whoever makes the hole.)
  const struct {
    int fd;
    char* at;
  } files[] = {{both, at},
               {alone, mmap(NULL, 2 * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, alone, 0)}};
  memcpy(memory + 16, (uint8_t[]){0xa2, 0x00, 0x30, 0xf4}, 4);  // [0x3000] = al; hlt
  for (unsigned i = 0; i < (unsigned)holes; i++) {
    struct kvm_userspace_memory_region2 none = {.slot = 1};
    REQUIRE(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION2, &none) == 0);
    slot.guest_memfd = (uint32_t)files[i].fd;
    REQUIRE(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION2, &slot) == 0);
    for (unsigned turn = 0; turn < 2; turn++) {
      regs = (struct kvm_regs){.rip = turn == 0 ? 0x1010 : 0x1000, .rax = 9, .rflags = 2};
      REQUIRE(ioctl(vcpu, KVM_SET_REGS, &regs) == 0 && ioctl(vcpu, KVM_RUN, 0) == 0);
      REQUIRE(turn != 0 || madvise(files[i].at + kPage, kPage, MADV_REMOVE) == 0);
    }
    REQUIRE(ioctl(vcpu, KVM_GET_REGS, &regs) == 0 && (regs.rax & 0xff) == 0);
  }
  char* const read_only = mmap(NULL, kPage, PROT_READ, MAP_SHARED, alone, 0);
  REQUIRE(madvise(read_only, kPage, MADV_REMOVE) == 0);

  // A machine's own KVM may have no VMs with private memory.
  if ((ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_VM_TYPES) & 2) == 0) return;
  make_vm(KVM_X86_SW_PROTECTED_VM);
  REQUIRE(ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD_FLAGS) == 1);
  REFUSES(create(kPage, 2), EINVAL);
}

static void mappable(void) {
  mappable_by(2);
}
static void mappable_on_oracle(void) {
  mappable_by(1);
}

int main(int argc, char** argv) {
  const struct {
    const char* name;
    void (*run)(void);
  } cases[] = {{"creation", creation}, {"operations", operations},
               {"orders", orders},     {"changes", changes},
               {"locks", locks},       {"names", names},
               {"numbers", numbers},   {"elsewhere", elsewhere},
               {"mappable", mappable}, {"mappable_on_oracle", mappable_on_oracle}};
  for (unsigned i = 0; argc == 2 && i < sizeof cases / sizeof cases[0]; i++) {
    if (strcmp(argv[1], cases[i].name) != 0) continue;
    cases[i].run();
    return 0;
  }
  fprintf(stderr, "guest_memfd: which case?\n");
  return 2;
}
