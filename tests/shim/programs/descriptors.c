// SPDX-License-Identifier: Apache-2.0
// Opening, closing, copying, inheriting and sending emulated descriptors.
#define _GNU_SOURCE
#include <cpuid.h>
#include <dirent.h>
#include <linux/close_range.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>

#include "machine.h"

#ifndef KVM_GET_STATS_FD
#define KVM_GET_STATS_FD _IO(KVMIO, 0xce)
#endif

static int open_vm(int kvm) {
  const int vm = ioctl(kvm, KVM_CREATE_VM, 0);
  REQUIRE(vm >= 0);
  return vm;
}

static unsigned count_lines(const char* path) {
  FILE* file = fopen(path, "r");
  REQUIRE(file != NULL);
  unsigned lines = 0;
  for (int c; (c = fgetc(file)) != EOF;) lines += c == '\n';
  fclose(file);
  return lines;
}

static unsigned count_descriptors(void) {
  DIR* directory = opendir("/proc/self/fd");
  REQUIRE(directory != NULL);
  unsigned count = 0;
  while (readdir(directory) != NULL) count++;
  closedir(directory);
  return count;
}

// --- Opening ---

static int constructor_saw_parameter, constructor_opened_device;

__attribute__((constructor(101))) static void before_main(void) {
  char text[18];
  const int fd = open("/sys/module/kvm/parameters/force_emulation_prefix", O_RDONLY);
  constructor_saw_parameter = fd >= 0 && read(fd, text, sizeof text) == 2 && text[1] == '\n';
  close(fd);
  const int kvm = open("/dev/kvm", O_RDONLY);
  constructor_opened_device = ioctl(kvm, KVM_GET_API_VERSION, 0) == 12;
  close(kvm);
}

static void constructor(void) {
  REQUIRE(constructor_saw_parameter);
  REQUIRE(constructor_opened_device);
}

static void every_open(void) {
  REQUIRE(ioctl(open("/dev/kvm", O_RDWR), KVM_GET_API_VERSION, 0) == 12);
  REQUIRE(ioctl(open64("/dev/kvm", O_RDWR), KVM_GET_API_VERSION, 0) == 12);
  REQUIRE(ioctl(openat(AT_FDCWD, "/dev/kvm", O_RDWR), KVM_GET_API_VERSION, 0) == 12);
  const int dev = open("/dev", O_RDONLY | O_DIRECTORY);
  REQUIRE(ioctl(openat64(dev, "kvm", O_RDWR), KVM_GET_API_VERSION, 0) == 12);
  REQUIRE(ioctl(open("/dev/../dev//kvm", O_RDWR), KVM_GET_API_VERSION, 0) == 12);
  REQUIRE(chdir("/dev") == 0);
  REQUIRE(ioctl(open("kvm", O_RDWR), KVM_GET_API_VERSION, 0) == 12);
  FILE* stream = fopen("/dev/kvm", "r+");
  REQUIRE(stream != NULL && ioctl(fileno(stream), KVM_GET_API_VERSION, 0) == 12);
  REQUIRE(fclose(stream) == 0);
  REFUSES(open("/dev/kvm", O_RDWR | O_CREAT | O_EXCL, 0600), EEXIST);
  REFUSES(open("/dev/kvm", O_RDONLY | O_DIRECTORY), ENOTDIR);
  REFUSES(open("/dev/kvm/", O_RDWR), ENOTDIR);
}

static void raw_calls(void) {
  const int kvm = (int)syscall(SYS_openat, AT_FDCWD, "/dev/kvm", O_RDWR | O_CLOEXEC, 0);
  REQUIRE(kvm >= 0);
  REQUIRE(syscall(SYS_ioctl, kvm, KVM_GET_API_VERSION, 0) == 12);
  const int vm = (int)syscall(SYS_ioctl, kvm, KVM_CREATE_VM, 0);
  REQUIRE(vm >= 0);
  struct stat shown;
  REQUIRE(syscall(SYS_newfstatat, AT_FDCWD, "/dev/kvm", &shown, 0) == 0);
  REQUIRE(S_ISCHR(shown.st_mode));
  REQUIRE(syscall(SYS_gettid) == getpid());
  unsigned long features = 0;
  REQUIRE(syscall(SYS_arch_prctl, 0x1001, &features) == 0 || errno == EINVAL);
  REFUSES(syscall(SYS_read, vm, &shown, 1), EINVAL);
  REQUIRE(syscall(SYS_close, vm) == 0);
  REQUIRE(syscall(SYS_close, kvm) == 0);
  REFUSES(syscall(SYS_ioctl, kvm, KVM_GET_API_VERSION, 0), EBADF);
}

static void identity(void) {
  struct stat by_name, by_fd, link;
  REQUIRE(stat("/dev/kvm", &by_name) == 0);
  REQUIRE(S_ISCHR(by_name.st_mode) && by_name.st_rdev == makedev(10, 232));
  REQUIRE(lstat("/dev/kvm", &link) == 0 && link.st_ino == by_name.st_ino);
  REQUIRE(access("/dev/kvm", R_OK | W_OK) == 0);
  REFUSES(access("/dev/kvm", X_OK), EACCES);
  REQUIRE(faccessat(AT_FDCWD, "/dev/kvm", R_OK, 0) == 0);
  char target[8];
  REFUSES(readlink("/dev/kvm", target, sizeof target), EINVAL);
  const int kvm = open("/dev/kvm", O_RDWR);
  REQUIRE(fstat(kvm, &by_fd) == 0);
  REQUIRE(S_ISCHR(by_fd.st_mode) && by_fd.st_rdev == makedev(10, 232) && by_fd.st_size == 0);
  REQUIRE(by_fd.st_ino == by_name.st_ino && by_fd.st_dev == by_name.st_dev);
  struct statx extended;
  REQUIRE(statx(AT_FDCWD, "/dev/kvm", 0, STATX_BASIC_STATS, &extended) == 0);
  REQUIRE(extended.stx_rdev_major == 10 && extended.stx_rdev_minor == 232);
  REQUIRE(statx(kvm, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &extended) == 0);
  REQUIRE(extended.stx_rdev_major == 10 && extended.stx_rdev_minor == 232);
  const int vm = open_vm(kvm);
  REQUIRE(fstat(vm, &by_fd) == 0 && by_fd.st_size == 0 && (by_fd.st_mode & S_IFMT) == 0);
  const int vcpu = ioctl(vm, KVM_CREATE_VCPU, 3);
  const struct {
    int fd;
    const char* name;
  } shown[] = {{kvm, "/dev/kvm"}, {vm, "anon_inode:kvm-vm"}, {vcpu, "anon_inode:kvm-vcpu:3"}};
  for (unsigned i = 0; i < 3; ++i) {
    char name[32], whole[64] = "", part[8] = "";
    snprintf(name, sizeof name, "/proc/self/fd/%d", shown[i].fd);
    REQUIRE(readlink(name, whole, sizeof whole) == (ssize_t)strlen(shown[i].name));
    REQUIRE(strcmp(whole, shown[i].name) == 0);
    REQUIRE(readlinkat(shown[i].fd, name, part, 4) == 4 && memcmp(part, whole, 4) == 0);
    REQUIRE(part[4] == '\0');
    char* volatile nowhere = NULL;
    REFUSES(readlink(name, nowhere, 4), EFAULT);
    REFUSES(readlink(name, part, 0), EINVAL);
  }
}

static void refusals(void) {
  const int kvm = open("/dev/kvm", O_RDWR);
  const int readable = open("/dev/kvm", O_RDONLY);
  const int vm = open_vm(kvm);
  char byte = 0;
  REFUSES(read(kvm, &byte, 1), EINVAL);
  REFUSES(write(kvm, &byte, 1), EINVAL);
  REFUSES(write(readable, &byte, 1), EBADF);
  REFUSES(pread(kvm, &byte, 1, 0), EINVAL);
  REFUSES(read(vm, &byte, 1), EINVAL);
  REFUSES(pread(vm, &byte, 1, 0), ESPIPE);
  REFUSES(pwrite(vm, &byte, 1, 0), ESPIPE);
  REFUSES(ftruncate(vm, 0), EINVAL);
  REFUSES(fallocate(vm, 0, 0, kPage), ENODEV);
  REQUIRE(lseek(vm, 5, SEEK_SET) == 0);
  REQUIRE(mmap(NULL, kPage, PROT_READ, MAP_SHARED, vm, 0) == MAP_FAILED && errno == ENODEV);
  REQUIRE(mmap(NULL, kPage, PROT_READ, MAP_SHARED, kvm, 0) == MAP_FAILED && errno == ENODEV);
  REFUSES(ioctl(kvm, 0xAEFF, 0), EINVAL);
  REFUSES(ioctl(vm, 0xAEFF, 0), ENOTTY);
}

static void parameters(void) {
  char byte = 0;
  const int fd = open("/sys/module/kvm/parameters/tdp_mmu", O_RDONLY);
  REQUIRE(fd >= 0);
  REQUIRE(read(fd, &byte, 1) == 1 && byte == 'Y');  // byte by byte, as the selftests do
  REQUIRE(read(fd, &byte, 1) == 1 && byte == '\n');
  REQUIRE(read(fd, &byte, 1) == 0);
  REFUSES(write(fd, &byte, 1), EBADF);
  close(fd);
  char line[16];
  FILE* stream = fopen("/sys/module/kvm/parameters/enable_pmu", "r");
  REQUIRE(stream != NULL && fgets(line, sizeof line, stream) != NULL && strcmp(line, "N\n") == 0);
  fclose(stream);
  struct stat shown;
  REQUIRE(stat("/sys/module/kvm/parameters/tdp_mmu", &shown) == 0);
  REQUIRE(S_ISREG(shown.st_mode) && (shown.st_mode & 0777) == 0444);
  REQUIRE(stat("/sys/module/kvm/parameters/eager_page_split", &shown) == 0);
  REQUIRE(S_ISREG(shown.st_mode) && (shown.st_mode & 0777) == 0644);
  REQUIRE(access("/sys/module/kvm/parameters/tdp_mmu", R_OK) == 0);
  REQUIRE(access("/sys/module/kvm", F_OK) == 0);
  unsigned max, signature[3];
  __cpuid(0, max, signature[0], signature[2], signature[1]);
  const int amd = signature[0] == 0x68747541;  // "Auth"
  REQUIRE(
      access(amd ? "/sys/module/kvm_amd/parameters/npt" : "/sys/module/kvm_intel/parameters/ept",
             R_OK) == 0);
  REFUSES(open("/sys/module/kvm/parameters/tdp_mmu", O_RDWR), EACCES);
}

// --- Copies and ends ---

static void copies(void) {
  const int kvm = open("/dev/kvm", O_RDWR);
  const int vm = open_vm(kvm);
  const int by_dup = dup(vm);
  const int by_fcntl = fcntl(vm, F_DUPFD_CLOEXEC, 200);
  REQUIRE(dup2(vm, 300) == 300);
  REQUIRE(dup3(vm, 301, O_CLOEXEC) == 301);
  const int all[] = {vm, by_dup, by_fcntl, 300, 301};
  for (unsigned i = 0; i < 5; i++) {
    REQUIRE(ioctl(all[i], KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == 1);
    REQUIRE(close(all[i]) == 0);
    REFUSES(fcntl(all[i], F_GETFD), EBADF);
  }
  REFUSES(ioctl(301, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY), EBADF);
}

// A stats descriptor: copies close one by one, and the numbers stay after the VM is closed.
static void stats(void) {
  const int kvm = open("/dev/kvm", O_RDWR);
  const int vm = open_vm(kvm);
  const int first = ioctl(vm, KVM_GET_STATS_FD, 0);
  REQUIRE(first >= 0);
  const int second = dup(first);
  char header[24], again[24];
  REQUIRE(pread(first, header, sizeof header, 0) == sizeof header);
  REQUIRE(close(vm) == 0);
  REQUIRE(pread(first, again, sizeof again, 0) == sizeof again);
  REQUIRE(memcmp(header, again, sizeof header) == 0);
  REQUIRE(close(first) == 0);
  REFUSES(fcntl(first, F_GETFD), EBADF);
  REQUIRE(pread(second, again, sizeof again, 0) == sizeof again);
  REFUSES(write(second, header, 1), EBADF);
  REQUIRE(close(second) == 0);
  REFUSES(fcntl(second, F_GETFD), EBADF);
}

static void last_close(void) {
  // A VM ends with its last holder: its memory slots stop borrowing, and nothing of it stays open.
  const unsigned before = count_descriptors();
  struct machine m;
  create_machine(&m, kHalt, sizeof kHalt);
  const int copy = dup(m.vm);
  REQUIRE(close(m.vm) == 0);
  REQUIRE(run_to_exit(&m) == KVM_EXIT_HLT);  // the vCPU keeps its VM
  m.vm = copy;
  destroy_machine(&m);
  REQUIRE(count_descriptors() == before);
  // The run page keeps the vCPU, the vCPU keeps the VM: closed out of order.
  create_machine(&m, kHalt, sizeof kHalt);
  REQUIRE(close(m.vm) == 0 && close(m.vcpu) == 0);
  REQUIRE(m.run->exit_reason == 0);
  REQUIRE(munmap(m.run, (size_t)m.run_size) == 0);
  REQUIRE(close(m.kvm) == 0);
  REQUIRE(count_descriptors() == before);
}

static void ranges(void) {
  const int kvm = open("/dev/kvm", O_RDWR);
  const int vm = open_vm(kvm);
  const int kept = dup2(vm, 20);
  REQUIRE(dup2(vm, 30) == 30 && dup2(vm, 31) == 31);
  REQUIRE(close(30) == 0);                // the engine watches from now on
  REQUIRE(close_range(30, ~0u, 0) == 0);  // and must survive this
  REFUSES(fcntl(31, F_GETFD), EBADF);
  REQUIRE(ioctl(kept, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == 1);
  REQUIRE(close_range(20, 20, CLOSE_RANGE_CLOEXEC) == 0);
  REQUIRE(fcntl(20, F_GETFD) == FD_CLOEXEC);
  closefrom(3);
  REFUSES(ioctl(kept, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY), EBADF);
  const int again = open("/dev/kvm", O_RDWR);
  REQUIRE(again == 3 && close(open_vm(again)) == 0);
}

static void many_opens(void) {
  const unsigned before = count_descriptors();
  for (unsigned i = 0; i < 32763; i++) {
    const int kvm = open("/dev/kvm", O_RDONLY);
    REQUIRE(kvm >= 0 && close(kvm) == 0);
  }
  REQUIRE(count_descriptors() == before);
}

static void* open_and_close_null(void* unused) {
  for (unsigned i = 0; i < 2000; i++) {
    const int fd = open("/dev/null", O_RDWR);
    REQUIRE(fd >= 0 && close(fd) == 0);
  }
  return unused;
}

static void threads_open(void) {
  const int kvm = open("/dev/kvm", O_RDWR);  // awake
  const int vm = open_vm(kvm);
  pthread_t threads[64];
  for (unsigned i = 0; i < 64; i++) {
    REQUIRE(pthread_create(&threads[i], NULL, open_and_close_null, NULL) == 0);
  }
  for (unsigned i = 0; i < 64; i++) pthread_join(threads[i], NULL);
  REQUIRE(ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == 1);
}

// --- Other processes ---

static int status_of(pid_t child) {
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  return status;
}

static void forked(void) {
  struct machine m;
  create_machine(&m, kHalt, sizeof kHalt);
  const pid_t child = fork();
  if (child == 0) {
    REFUSES(ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY), EIO);
    REFUSES(ioctl(m.vcpu, KVM_RUN, 0), EIO);
    REQUIRE(ioctl(m.kvm, KVM_GET_API_VERSION, 0) == 12);
    struct machine own;  // a child has machines of its own
    create_machine(&own, kHalt, sizeof kHalt);
    REQUIRE(run_to_exit(&own) == KVM_EXIT_HLT);
    destroy_machine(&own);
    REQUIRE(close(m.vm) == 0 && close(m.vcpu) == 0);
    _exit(0);
  }
  REQUIRE(status_of(child) == 0);
  REQUIRE(run_to_exit(&m) == KVM_EXIT_HLT);
  destroy_machine(&m);
}

// A child of vfork has descriptors of its own and its parent's memory.
static void vforked(void) {
  const int kvm = open("/dev/kvm", O_RDWR);
  const unsigned before = count_descriptors();
  const int vm = open_vm(kvm);
  const pid_t child = vfork();
  if (child == 0) {
    close(vm);
    close_range(3, ~0u, 0);
    _exit(0);
  }
  REQUIRE(status_of(child) == 0);
  REQUIRE(ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == 1);
  REQUIRE(count_descriptors() == before + 1);  // no watch was left
  REQUIRE(close(vm) == 0 && count_descriptors() == before);
}

static unsigned resident_kilobytes(void) {
  FILE* file = fopen("/proc/self/statm", "r");
  unsigned size = 0, resident = 0;
  REQUIRE(file != NULL && fscanf(file, "%u %u", &size, &resident) == 2);
  fclose(file);
  return resident * 4;
}

// The table of locks is the whole machine's: others come and go in it.
static unsigned count_locks(void) {
  char line[256];
  unsigned locks = 0;
  FILE* file = fopen("/proc/locks", "r");
  REQUIRE(file != NULL);
  while (fgets(line, sizeof line, file) != NULL) locks += strstr(line, "OFDLCK") != NULL;
  fclose(file);
  return locks;
}

// Children with machines of their own are killed in the middle; the parent must not notice.
static void killed_children(void) {
  enum { kChildren = 64, kAtOnce = 8, kSlack = 1024 };
  struct machine m;
  create_machine(&m, kHalt, sizeof kHalt);
  REQUIRE(run_to_exit(&m) == KVM_EXIT_HLT);
  const unsigned descriptors = count_descriptors(), areas = count_lines("/proc/self/maps");
  const unsigned locks = count_locks(), resident = resident_kilobytes();
  for (unsigned done = 0; done < kChildren; done += kAtOnce) {
    pid_t children[kAtOnce];
    for (unsigned i = 0; i < kAtOnce; i++) {
      int ready[2];
      REQUIRE(pipe(ready) == 0);
      children[i] = fork();
      REQUIRE(children[i] >= 0);
      if (children[i] == 0) {
        struct machine own;
        create_machine(&own, kEndless, sizeof kEndless);
        REQUIRE(write(ready[1], "r", 1) == 1);
        ioctl(own.vcpu, KVM_RUN, 0);
        _exit(0);
      }
      char byte;
      close(ready[1]);
      REQUIRE(read(ready[0], &byte, 1) == 1);
      close(ready[0]);
    }
    for (unsigned i = 0; i < kAtOnce; i++) {
      kill(children[i], SIGKILL);
      REQUIRE(status_of(children[i]) == SIGKILL);
    }
  }
  REQUIRE(count_descriptors() == descriptors);
  REQUIRE(count_lines("/proc/self/maps") == areas);
  for (unsigned i = 0; i < 200 && count_locks() > locks; i++) usleep(50000);
  REQUIRE(count_locks() <= locks);
  REQUIRE(resident_kilobytes() <= resident + kSlack);
  set_rip(&m, kCode);
  REQUIRE(run_to_exit(&m) == KVM_EXIT_HLT);
  destroy_machine(&m);
}

static void send_descriptor(int to, int fd) {
  char byte = 'x', control[CMSG_SPACE(sizeof(int))] = {0};
  struct iovec data = {&byte, 1};
  struct msghdr message = {
      .msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  struct cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(header), &fd, sizeof fd);
  REQUIRE(sendmsg(to, &message, 0) == 1);
}

static int receive_descriptor(int from) {
  char byte, control[CMSG_SPACE(sizeof(int))];
  struct iovec data = {&byte, 1};
  struct msghdr message = {
      .msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  REQUIRE(recvmsg(from, &message, 0) == 1);
  int fd;
  memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
  return fd;
}

// Made in a child and sent to the parent: the device works, the VM belongs to the child.
static void sent(void) {
  int ends[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) == 0);
  const pid_t child = fork();
  if (child == 0) {
    const int kvm = open("/dev/kvm", O_RDWR);
    send_descriptor(ends[1], kvm);
    send_descriptor(ends[1], open_vm(kvm));
    pause();
  }
  const int kvm = receive_descriptor(ends[0]);
  const int vm = receive_descriptor(ends[0]);
  REQUIRE(ioctl(kvm, KVM_GET_API_VERSION, 0) == 12);
  REFUSES(ioctl(vm, KVM_CREATE_VCPU, 0), EIO);
  const int mine = open_vm(kvm);
  REQUIRE(close(vm) == 0 && close(kvm) == 0);
  REQUIRE(ioctl(mine, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == 1);
  kill(child, SIGKILL);
  status_of(child);
}

// Through exec: the number is all the next program knows.
static void executed(void) {
  const int kvm = open("/dev/kvm", O_RDWR);
  const int vm = open_vm(kvm);
  REQUIRE(fcntl(vm, F_GETFD) == FD_CLOEXEC);
  REQUIRE(fcntl(vm, F_SETFD, 0) == 0);
  char kvm_text[12], vm_text[12];
  snprintf(kvm_text, sizeof kvm_text, "%d", kvm);
  snprintf(vm_text, sizeof vm_text, "%d", vm);
  setenv("TEST_KVM", kvm_text, 1);
  setenv("TEST_VM", vm_text, 1);
  execl("/proc/self/exe", "descriptors", "after_exec", (char*)NULL);
  REQUIRE(0);
}

static void after_exec(void) {
  const int kvm = atoi(getenv("TEST_KVM")), vm = atoi(getenv("TEST_VM"));
  REFUSES(ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY), EIO);
  REQUIRE(ioctl(kvm, KVM_GET_API_VERSION, 0) == 12);
  REQUIRE(close(vm) == 0);
}

// --- What must not change ---

static void side_effects(void) {
  sigset_t before, after;
  sigemptyset(&before);
  sigaddset(&before, SIGUSR2);
  sigprocmask(SIG_BLOCK, &before, NULL);
  sigprocmask(SIG_BLOCK, NULL, &before);
  errno = 4242;
  const int kvm = open("/dev/kvm", O_RDWR);
  const int vm = ioctl(kvm, KVM_CREATE_VM, 0);
  const int shown = ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY);
  close(vm);
  close(kvm);
  REQUIRE(errno == 4242);  // success leaves errno alone
  REQUIRE(shown == 1);
  sigprocmask(SIG_BLOCK, NULL, &after);
  REQUIRE(memcmp(&before, &after, 8) == 0);
  REQUIRE(random() == 1804289383);  // the first number of an untouched generator
}

static void host_processor(void) {
  const int kvm = open("/dev/kvm", O_RDWR);
  struct {
    struct kvm_cpuid2 head;
    struct kvm_cpuid_entry2 entries[256];
  } list = {.head = {.nent = 256}};
  REQUIRE(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &list) == 0);
  unsigned a, b, c, d, width = 36, guest_width = 0, vendor_seen = 0;
  __cpuid(0x80000000, a, b, c, d);
  if (a >= 0x80000008) {
    __cpuid(0x80000008, a, b, c, d);
    width = a & 0xff;
  }
  __cpuid(0, a, b, c, d);
  for (unsigned i = 0; i < list.head.nent; i++) {
    const struct kvm_cpuid_entry2* e = &list.entries[i];
    if (e->function == 0) vendor_seen = e->ebx == b && e->ecx == c && e->edx == d;
    if (e->function == 0x80000008) guest_width = e->eax & 0xff;
  }
  REQUIRE(vendor_seen);
  REQUIRE(guest_width <= width);
}

// A slot costs no mapping of its own.
static void slots_cost_no_mapping(void) {
  enum { kSlots = 1000 };
  const int kvm = open("/dev/kvm", O_RDWR);
  const int vm = open_vm(kvm);
  uint8_t* memory = mmap(NULL, kSlots * (size_t)kPage, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(memory != MAP_FAILED);
  const unsigned before = count_lines("/proc/self/maps");
  for (unsigned i = 0; i < kSlots; i++) {
    // Every other page of guest memory, so that no two slots could be one.
    REQUIRE(set_slot(vm, i, 2ull * i * kPage, memory + (size_t)i * kPage, kPage, 0) == 0);
  }
  REQUIRE(count_lines("/proc/self/maps") <= before + 8);
}

static void engine_descriptors(void) {
  const int kvm = open("/dev/kvm", O_RDWR);
  const int vm = open_vm(kvm);
  const int copy = dup(vm);
  close(vm);  // held by the copy: the engine opens a watch
  DIR* directory = opendir("/proc/self/fd");
  int watch = -1;
  for (struct dirent* entry; (entry = readdir(directory)) != NULL;) {
    if (atoi(entry->d_name) > watch) watch = atoi(entry->d_name);
  }
  closedir(directory);
  REQUIRE(watch > copy + 16);  // out of the way
  REFUSES(close(watch), EBADF);
  REFUSES(dup2(watch, 40), EBADF);
  REQUIRE(dup2(kvm, watch) == watch);  // the client may have the number if it insists
  REQUIRE(ioctl(watch, KVM_GET_API_VERSION, 0) == 12);
  REQUIRE(ioctl(copy, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == 1);
  REQUIRE(close(copy) == 0);
}

static void own_arena(void) {
  struct machine m;
  create_machine(&m, kHalt, sizeof kHalt);  // libc may have its own first-time allocations
  destroy_machine(&m);
  const struct mallinfo2 before = mallinfo2();
  create_machine(&m, kHalt, sizeof kHalt);
  REQUIRE(run_to_exit(&m) == KVM_EXIT_HLT);
  const struct mallinfo2 during = mallinfo2();
  destroy_machine(&m);
  const struct mallinfo2 after = mallinfo2();
  REQUIRE(before.uordblks == during.uordblks && before.uordblks == after.uordblks);
}

int main(int argc, char** argv) {
  static const struct test_case kCases[] = {
      {"constructor", constructor},
      {"every_open", every_open},
      {"raw_calls", raw_calls},
      {"identity", identity},
      {"refusals", refusals},
      {"parameters", parameters},
      {"copies", copies},
      {"stats", stats},
      {"last_close", last_close},
      {"ranges", ranges},
      {"many_opens", many_opens},
      {"threads_open", threads_open},
      {"forked", forked},
      {"vforked", vforked},
      {"killed_children", killed_children},
      {"sent", sent},
      {"executed", executed},
      {"after_exec", after_exec},
      {"side_effects", side_effects},
      {"host_processor", host_processor},
      {"slots_cost_no_mapping", slots_cost_no_mapping},
      {"engine_descriptors", engine_descriptors},
      {"own_arena", own_arena},
      {NULL, NULL},
  };
  return run_case(argc, argv, kCases);
}
