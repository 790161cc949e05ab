// SPDX-License-Identifier: Apache-2.0
// What is beneath the library: a guest_memfd's number past libc's functions, by libc's own calls
// inside them, and the engine's numbers beside it. No byte of the guest's is there, a close that
// libc makes is one, and no call of the engine's is made on a file of the program's.
#define _GNU_SOURCE
#include "abi/kvm/uapi.h"
//
#include <aio.h>
#include <dirent.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>

#include "guest_file.h"

enum { kGpa = 0x8000, kFilled = 0x5a };

static int file, vcpu;
static struct kvm_run* run;

static uint8_t* code;

// A VM with one page of code at 0x1000 and the file's private pages at 0x8000.
static void make_guest(void) {
  make_vm(KVM_X86_SW_PROTECTED_VM);
  code = mmap(NULL, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memcpy(code, (uint8_t[]){0xa0, 0x00, 0x80, 0xf4}, 4);         // al = [0x8000]; hlt
  memcpy(code + 0x10, (uint8_t[]){0xa2, 0x00, 0x80, 0xf4}, 4);  // [0x8000] = al; hlt
  REQUIRE(set_slot(vm_fd, 0, 0x1000, code, kPage, 0) == 0);
  file = create(kPages * kPage, 0);
  struct kvm_userspace_memory_region2 slot = {.slot = 1,
                                              .flags = KVM_MEM_GUEST_MEMFD,
                                              .guest_phys_addr = kGpa,
                                              .memory_size = kPages * kPage,
                                              .userspace_addr = UINT64_C(1) << 32,
                                              .guest_memfd = (uint32_t)file};
  REQUIRE(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION2, &slot) == 0);
  struct kvm_memory_attributes all = {
      .address = kGpa, .size = kPages * kPage, .attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE};
  REQUIRE(ioctl(vm_fd, KVM_SET_MEMORY_ATTRIBUTES, &all) == 0);
  vcpu = ioctl(vm_fd, KVM_CREATE_VCPU, 0);
  run = mmap(NULL, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
  struct kvm_sregs sregs;
  REQUIRE(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0);
  sregs.cs.base = sregs.cs.selector = 0;
  REQUIRE(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0);
}
// What is in the guest's first private byte; -1: there is none.
static int guest_runs(uint64_t rip, uint64_t rax) {
  struct kvm_regs regs = {.rip = rip, .rax = rax, .rflags = 2};
  REQUIRE(ioctl(vcpu, KVM_SET_REGS, &regs) == 0);
  if (ioctl(vcpu, KVM_RUN, 0) != 0) return -1;
  REQUIRE(run->exit_reason == KVM_EXIT_HLT && ioctl(vcpu, KVM_GET_REGS, &regs) == 0);
  return (int)(regs.rax & 0xff);
}
static int guest_reads(void) {
  return guest_runs(0x1000, 0);
}
static void guest_writes(uint8_t value) {
  REQUIRE(guest_runs(0x1010, value) == value);
}
static void is_unseen(const char* byte) {
  REQUIRE(*byte != kFilled && guest_reads() == kFilled);
}

// The instruction itself, as a program without libc has it.
static long instruction(long number, long a, long b, long c, long d, long e, long f) {
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  long answer;
  __asm__ volatile("syscall"
                   : "=a"(answer)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return answer;
}

static void instructions(void) {
  make_guest();
  guest_writes(kFilled);
  char byte = 0;
  const long at = (long)&byte;
  REQUIRE(instruction(SYS_read, file, at, 1, 0, 0, 0) == -EINVAL);
  REQUIRE(instruction(SYS_write, file, at, 1, 0, 0, 0) == -EINVAL);
  REQUIRE(instruction(SYS_read, vcpu, at, 1, 0, 0, 0) == -EINVAL);
  instruction(SYS_pread64, file, at, 1, 0, 0, 0);
  is_unseen(&byte);
  REQUIRE(instruction(SYS_pwrite64, file, at, 1, 0, 0, 0) < 0);
  is_unseen(&byte);
  instruction(SYS_lseek, file, 0, SEEK_SET, 0, 0, 0);
  instruction(SYS_read, file, at, 1, 0, 0, 0);
  is_unseen(&byte);
  const long mapped = instruction(SYS_mmap, 0, kPage, PROT_READ, MAP_SHARED, file, 0);
  if (mapped > 0) is_unseen((const char*)mapped);
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  off_t start = 0;
  if (instruction(SYS_sendfile, ends[1], file, (long)&start, 1, 0, 0) == 1) {
    REQUIRE(read(ends[0], &byte, 1) == 1);
  }
  is_unseen(&byte);
  start = 0;
  if (instruction(SYS_splice, file, (long)&start, ends[1], 0, 1, 0) == 1) {
    REQUIRE(read(ends[0], &byte, 1) == 1);
  }
  is_unseen(&byte);
  char name[32];
  snprintf(name, sizeof name, "/proc/self/fd/%d", file);
  const long again = instruction(SYS_openat, AT_FDCWD, (long)name, O_RDWR, 0, 0, 0);
  if (again >= 0) {
    instruction(SYS_read, again, at, 1, 0, 0, 0);
    is_unseen(&byte);
    instruction(SYS_close, again, 0, 0, 0, 0, 0);
  }
  REQUIRE(instruction(SYS_fallocate, file, kPunch, 0, kPage, 0, 0) < 0);
  is_unseen(&byte);
}

static void end_of(struct aiocb* request, int expected) {
  while (aio_error(request) == EINPROGRESS) usleep(1000);
  REQUIRE(aio_error(request) == expected && aio_return(request) == -1);
}
static void streams(void) {
  make_guest();
  guest_writes(kFilled);
  char byte = 0;
  FILE* const reader = fdopen(dup(file), "r");
  FILE* const writer = fdopen(dup(file), "r+");
  errno = 0;
  REQUIRE(fread(&byte, 1, 1, reader) == 0 && ferror(reader) && errno == EINVAL);
  REFUSES(fseek(reader, 0, SEEK_SET), ESPIPE);
  REFUSES(fseeko(reader, 0, SEEK_END), ESPIPE);
  setvbuf(writer, NULL, _IONBF, 0);
  errno = 0;
  REQUIRE(fwrite("x", 1, 1, writer) == 0 && errno == EINVAL);
  REFUSES(dprintf(file, "x"), EINVAL);
  FILE* const of_vcpu = fdopen(dup(vcpu), "r");
  errno = 0;
  REQUIRE(fgetc(of_vcpu) == EOF && errno == EINVAL);
  struct aiocb reads = {.aio_fildes = file, .aio_buf = &byte, .aio_nbytes = 1};
  struct aiocb writes = reads;
  REQUIRE(aio_read(&reads) == 0);
  end_of(&reads, ESPIPE);
  REQUIRE(aio_write(&writes) == 0);
  end_of(&writes, ESPIPE);
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  struct aiocb other = {
      .aio_fildes = ends[1], .aio_buf = "y", .aio_nbytes = 1, .aio_lio_opcode = LIO_WRITE};
  reads.aio_lio_opcode = LIO_READ;
  struct aiocb* const both[] = {&other, &reads};
  REFUSES(lio_listio(LIO_WAIT, both, 2, NULL), EIO);
  end_of(&reads, ESPIPE);
  REQUIRE(aio_error(&other) == 0 && read(ends[0], &byte, 1) == 1 && byte == 'y');
  is_unseen(&byte);
}

// Each is the last close, and the guest's next access finds no file.
static void closes(void) {
  make_guest();
  guest_writes(kFilled);
  REQUIRE(freopen("/dev/null", "r+", fdopen(file, "r+")) != NULL);
  REQUIRE(guest_reads() == -1 && errno == EFAULT && run->exit_reason == KVM_EXIT_MEMORY_FAULT);
  make_guest();
  guest_writes(kFilled);
  errno = 0;
  REQUIRE(freopen(NULL, "r", fdopen(file, "r+")) == NULL && errno == ENXIO);
  REQUIRE(guest_reads() == -1 && errno == EFAULT);
}
static void closes_of_a_full_table(int by_reopening) {
  make_guest();
  guest_writes(kFilled);
  FILE* const stream = fdopen(file, "r+");
  const struct rlimit few = {64, 64};
  REQUIRE(setrlimit(RLIMIT_NOFILE, &few) == 0);
  while (dup(0) >= 0) {
  }
  REQUIRE(errno == EMFILE);
  if (by_reopening) {
    REQUIRE(freopen("/dev/null", "r+", stream) == NULL && errno == EMFILE);
  } else {
    REQUIRE(fclose(stream) == 0);
  }
  REQUIRE(guest_reads() == -1 && errno == EFAULT);
}
static void closes_full(void) {
  closes_of_a_full_table(0);
}
static void reopens_full(void) {
  closes_of_a_full_table(1);
}

// What the kernel says of a regular file by itself, and of an inode without handles.
static void asked(void) {
  make_guest();
  guest_writes(kFilled);
  struct {
    short type, whence;
    long long start, size;
    int sysid;
    unsigned pid;
    int pad[4];
  } space = {.size = kPage};
  int left = -1;
  long long bytes = -1;
  REQUIRE(ioctl(file, FIONREAD, &left) == 0 && left == kPages * kPage);
  REQUIRE(ioctl(file, 0x5460 /* FIOQSIZE */, &bytes) == 0 && bytes == 0);
  REFUSES(ioctl(file, FIONREAD, NULL), EFAULT);
  REQUIRE(ioctl(file, _IOW('X', 43, space), &space) == 0 && guest_reads() == 0);  // UNRESVSP64
  REQUIRE(ioctl(file, _IOW('X', 42, space), &space) == 0);                        // RESVSP64
  REFUSES(ioctl(file, _IOW('X', 57, space), &space), EOPNOTSUPP);                 // ZERO_RANGE
  space.whence = 3;
  REFUSES(ioctl(file, _IOW('X', 43, space), &space), EINVAL);
  REFUSES(ioctl(file, _IOW('X', 43, space), NULL), EFAULT);
  REFUSES(ioctl(vm_fd, FIONREAD, &left), ENOTTY);
  struct {
    struct file_handle head;
    char body[128];
  } handle = {.head = {.handle_bytes = 128}};
  int mount;
  char name[32];
  snprintf(name, sizeof name, "/proc/self/fd/%d", file);
  REFUSES(name_to_handle_at(file, "", &handle.head, &mount, AT_EMPTY_PATH), EOPNOTSUPP);
  REFUSES(name_to_handle_at(AT_FDCWD, name, &handle.head, &mount, AT_SYMLINK_FOLLOW), EOPNOTSUPP);
  REFUSES(name_to_handle_at(open(name, O_PATH), "", &handle.head, &mount, AT_EMPTY_PATH),
          EOPNOTSUPP);
}

// Descriptors that are in the table and not the program's.
static void engines(void) {
  make_guest();
  DIR* const all = opendir("/proc/self/fd");
  unsigned seen = 0;
  for (struct dirent* one = readdir(all); one != NULL; one = readdir(all)) {
    const int fd = atoi(one->d_name);
    if (one->d_name[0] == '.' || fcntl(fd, F_GETFD) >= 0) continue;
    REQUIRE(errno == EBADF);
    seen++;
    char byte;
    struct stat s;
    REFUSES(dup(fd), EBADF);
    REFUSES(dup2(fd, 60), EBADF);
    REFUSES(fcntl(fd, F_DUPFD, 0), EBADF);
    REFUSES(read(fd, &byte, 1), EBADF);
    REFUSES(pread(fd, &byte, 1, 0), EBADF);
    REFUSES(write(fd, "x", 1), EBADF);
    REFUSES(lseek(fd, 0, SEEK_SET), EBADF);
    REFUSES(fstat(fd, &s), EBADF);
    REFUSES(ftruncate(fd, 0), EBADF);
    REFUSES(fallocate(fd, kPunch, 0, kPage), EBADF);
    REFUSES(ioctl(fd, FIONREAD, &byte), EBADF);
    REFUSES(close(fd), EBADF);
    errno = 0;
    REQUIRE(mmap(NULL, kPage, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EBADF);
    REFUSES(syscall(SYS_pread64, fd, &byte, 1, 0), EBADF);
    REFUSES(syscall(SYS_dup, fd), EBADF);
    struct kvm_userspace_memory_region2 slot = {.slot = 2,
                                                .flags = KVM_MEM_GUEST_MEMFD,
                                                .guest_phys_addr = 1 << 20,
                                                .memory_size = kPage,
                                                .guest_memfd = (uint32_t)fd};
    REFUSES(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION2, &slot), EBADF);
  }
  REQUIRE(seen >= 3);
}

// The program puts a file of its own on every number the engine may have while others punch.
static volatile int stop;
static void* punch(void* unused) {
  while (!stop) REQUIRE(fallocate(file, kPunch, 0, kPages * kPage) == 0);
  return unused;
}
static void taken_numbers(void) {
  struct rlimit most;
  REQUIRE(getrlimit(RLIMIT_NOFILE, &most) == 0);
  make_guest();
  DIR* const all = opendir("/proc/self/fd");
  int low = 1 << 20;
  for (struct dirent* one = readdir(all); one != NULL; one = readdir(all)) {
    const int fd = atoi(one->d_name);
    if (one->d_name[0] != '.' && fcntl(fd, F_GETFD) < 0 && fd < low) low = fd;
  }
  closedir(all);
  const int numbers = (int)most.rlim_cur - low < 60 ? (int)most.rlim_cur - low - 20 : 40;
  static char full[kPages * kPage], now[kPages * kPage];
  memset(full, 'V', sizeof full);
  const int mine = memfd_create("mine", 0);
  REQUIRE(pwrite(mine, full, sizeof full, 0) == (ssize_t)sizeof full);
  pthread_t punchers[2];
  for (int i = 0; i < 2; i++) pthread_create(&punchers[i], NULL, punch, NULL);
  for (int round = 0; round < 150; round++) {
    for (int n = low; n < low + numbers; n++) REQUIRE(dup2(mine, n) == n);
    REQUIRE(pread(mine, now, sizeof now, 0) == (ssize_t)sizeof now);
    REQUIRE(memcmp(full, now, sizeof now) == 0);
    for (int n = low; n < low + numbers; n++) close(n);
  }
  stop = 1;
  for (int i = 0; i < 2; i++) pthread_join(punchers[i], NULL);
}

int main(int argc, char** argv) {
  static const struct test_case kCases[] = {{"instructions", instructions},
                                            {"streams", streams},
                                            {"closes", closes},
                                            {"closes_full", closes_full},
                                            {"reopens_full", reopens_full},
                                            {"asked", asked},
                                            {"engines", engines},
                                            {"taken_numbers", taken_numbers},
                                            {NULL, NULL}};
  return run_case(argc, argv, kCases);
}
