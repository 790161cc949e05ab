// SPDX-License-Identifier: Apache-2.0
// A guest_memfd in a process that opens no device: inherited through exec, sent, taken from another
// process, opened by its name there. Only what the library sees of it makes its refusals the
// kernel's.
#define _GNU_SOURCE
#include "abi/kvm/uapi.h"
//
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "guest_file.h"

// What the kernel's file refuses everywhere, and what it allows.
static void refuse_to_receiver(int fd) {
  char byte = 1;
  REFUSES(read(fd, &byte, 1), EINVAL);
  REFUSES(write(fd, &byte, 1), EINVAL);
  REFUSES(pread(fd, &byte, 1, 0), ESPIPE);
  REFUSES(syscall(SYS_pwrite64, fd, &byte, 1, 0), ESPIPE);
  REFUSES(lseek(fd, 0, SEEK_SET), ESPIPE);
  REFUSES(ftruncate(fd, 0), EINVAL);
  REFUSES(fchmod(fd, 0600), EINVAL);
  REFUSES(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), EINVAL);
  REFUSES(ioctl(fd, KVM_GET_API_VERSION, 0), ENOTTY);
  char name[64];
  snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
  REFUSES(open(name, O_RDWR), ENXIO);
  use_elsewhere(fd);
}

// The program again, which then knows nothing but the numbers it is given.
static pid_t start_again(const char* which, int fd, int other) {
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child != 0) return child;
  char first[12], second[12];
  snprintf(first, sizeof first, "%d", fd);
  snprintf(second, sizeof second, "%d", other);
  setenv("TEST_FIRST", first, 1);
  setenv("TEST_SECOND", second, 1);
  execl("/proc/self/exe", "received", which, (char*)NULL);
  _exit(127);
}
static int given(const char* which) {
  return atoi(getenv(which));
}

static void inherited(void) {
  make_vm(KVM_X86_DEFAULT_VM);
  ends_well(start_again("heir", create(kPages * kPage, 0), -1));
}
static void heir(void) {
  refuse_to_receiver(given("TEST_FIRST"));
}

// Each by a process that has not slept through anything before it.
static void received(void) {
  const char* const ways[] = {"receiver", "receiver_by_number", "receiver_of_many"};
  for (unsigned i = 0; i < 3; i++) {
    int pair[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    const pid_t child = start_again(ways[i], pair[1], -1);  // before there is a device
    if (i == 0) make_vm(KVM_X86_DEFAULT_VM);
    const int fd = create(kPages * kPage, 0);
    send_descriptor(pair[0], fd);
    ends_well(child);
    close(fd);
  }
}
static void receiver(void) {
  refuse_to_receiver(receive_descriptor(given("TEST_FIRST")));
}
static int receive_otherwise(int socket, int many) {
  char byte = 0, control[CMSG_SPACE(sizeof(int))] = {0};
  struct iovec part = {&byte, 1};
  struct mmsghdr message = {.msg_hdr = {.msg_iov = &part,
                                        .msg_iovlen = 1,
                                        .msg_control = control,
                                        .msg_controllen = sizeof control}};
  REQUIRE((many ? recvmmsg(socket, &message, 1, 0, NULL)
                : syscall(SYS_recvmsg, socket, &message.msg_hdr, 0)) == 1);
  int fd = -1;
  memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message.msg_hdr)), sizeof fd);
  return fd;
}
static void receiver_by_number(void) {
  refuse_to_receiver(receive_otherwise(given("TEST_FIRST"), 0));
}
static void receiver_of_many(void) {
  refuse_to_receiver(receive_otherwise(given("TEST_FIRST"), 1));
}

// The child looks into its parent, which must let it.
enum { kMayNotLook = 4 };
static void looked_at(const char* how) {
  int ready[2];
  REQUIRE(pipe(ready) == 0);
  prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
  char number[12] = {0};
  const pid_t child = start_again(how, ready[0], getpid());
  make_vm(KVM_X86_DEFAULT_VM);
  snprintf(number, sizeof number, "%d", create(kPages * kPage, 0));
  REQUIRE(write(ready[1], number, sizeof number) == sizeof number);
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child && WIFEXITED(status));
  if (WEXITSTATUS(status) == kMayNotLook) _exit(kMayNotLook);
  REQUIRE(status == 0);
}
static int number_of_parents_file(void) {
  char number[12];
  REQUIRE(read(given("TEST_FIRST"), number, sizeof number) == sizeof number);
  return atoi(number);
}
static void taken(void) {
  looked_at("taker");
}
static void taker(void) {
  const int theirs = number_of_parents_file();
  const int process = (int)syscall(SYS_pidfd_open, given("TEST_SECOND"), 0);
  REQUIRE(process >= 0);
  const int fd = pidfd_getfd(process, theirs, 0);
  if (fd < 0 && errno == EPERM) _exit(kMayNotLook);
  REQUIRE(fd >= 0);
  refuse_to_receiver(fd);
}
static void named(void) {
  looked_at("namer");
}
static void namer(void) {
  char name[64];
  snprintf(name, sizeof name, "/proc/%d/fd/%d", given("TEST_SECOND"), number_of_parents_file());
  char link[8];
  if (readlink(name, link, sizeof link) < 0 && errno == EACCES) _exit(kMayNotLook);
  REFUSES(open(name, O_RDWR), ENXIO);
  REFUSES(truncate(name, 0), EINVAL);
}

int main(int argc, char** argv) {
  static const struct test_case kCases[] = {{"inherited", inherited},
                                            {"heir", heir},
                                            {"received", received},
                                            {"receiver", receiver},
                                            {"receiver_by_number", receiver_by_number},
                                            {"receiver_of_many", receiver_of_many},
                                            {"taken", taken},
                                            {"taker", taker},
                                            {"named", named},
                                            {"namer", namer},
                                            {NULL, NULL}};
  return run_case(argc, argv, kCases);
}
