// SPDX-License-Identifier: Apache-2.0
// The descriptors of page requests and of a virtual IOMMU's events, waited for in every way there
// is: readable exactly while something is queued, here, in a child, and in a process that was sent
// the descriptor.
//
//   iommu_queues                    under stagetwo run --iommufd-test --abi=6.18
#define _GNU_SOURCE
#include "iommufd_client.h"
//
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <sys/uio.h>

enum {
  kRequest = sizeof(struct iommu_hwpt_pgfault),
  kEvent = sizeof(struct iommufd_vevent_header) + 4
};

static int iommu;
static struct mock_device mock;
static int faults, events;  // the descriptors

static void request_page(uint64_t address) {
  struct iommu_test_cmd cmd = {
      .trigger_iopf = {.dev_id = mock.device, .pasid = 1, .grpid = 2, .perm = 3, .addr = address}};
  REQUIRE(test_op(iommu, IOMMU_TEST_OP_TRIGGER_IOPF, 0, &cmd) == 0);
}
static void tell_event(void) {
  struct iommu_test_cmd cmd = {.trigger_vevent = {.dev_id = mock.device}};
  REQUIRE(test_op(iommu, IOMMU_TEST_OP_TRIGGER_VEVENT, 0, &cmd) == 0);
}

static void set_up(void) {
  iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  REQUIRE(iommu >= 0);
  const uint32_t ioas = ioas_of(iommu);
  mock = device_on(iommu, ioas);
  struct iommu_fault_alloc queue = {.size = sizeof queue};
  REQUIRE(ioctl(iommu, IOMMU_FAULT_QUEUE_ALLOC, &queue) == 0);
  faults = (int)queue.out_fault_fd;
  const uint32_t parent = hwpt_of(iommu, mock.device, ioas, IOMMU_HWPT_ALLOC_NEST_PARENT, 0, NULL);
  struct iommu_viommu_alloc viommu = {.size = sizeof viommu,
                                      .type = IOMMU_VIOMMU_TYPE_SELFTEST,
                                      .dev_id = mock.device,
                                      .hwpt_id = parent};
  REQUIRE(ioctl(iommu, IOMMU_VIOMMU_ALLOC, &viommu) == 0);
  struct iommu_vdevice_alloc vdevice = {.size = sizeof vdevice,
                                        .viommu_id = viommu.out_viommu_id,
                                        .dev_id = mock.device,
                                        .virt_id = 7};
  REQUIRE(ioctl(iommu, IOMMU_VDEVICE_ALLOC, &vdevice) == 0);
  struct iommu_veventq_alloc events_of = {.size = sizeof events_of,
                                          .viommu_id = viommu.out_viommu_id,
                                          .type = IOMMU_VEVENTQ_TYPE_SELFTEST,
                                          .veventq_depth = 2};
  REQUIRE(ioctl(iommu, IOMMU_VEVENTQ_ALLOC, &events_of) == 0);
  events = (int)events_of.out_veventq_fd;
  struct iommu_hwpt_selftest data = {0};
  const uint32_t nested = hwpt_of(iommu, mock.device, viommu.out_viommu_id,
                                  IOMMU_HWPT_FAULT_ID_VALID, queue.out_fault_id, &data);
  REQUIRE(replace(iommu, mock.test_device, nested) == 0);
}

// A pipe says POLLWRNORM where it says POLLOUT; a fault queue never does.
static void expect_no_priority_writes(void) {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const struct timespec now = {0, 0};
  struct pollfd both[] = {{.fd = faults, .events = POLLWRNORM},
                          {.fd = ends[1], .events = POLLOUT | POLLWRNORM}};
  REQUIRE(poll(both, 2, 0) == 1 && both[0].revents == 0);
  REQUIRE(both[1].revents == (POLLOUT | POLLWRNORM) && both[0].events == POLLWRNORM);
  both[0].events |= POLLOUT;
  REQUIRE(ppoll(both, 2, &now, NULL) == 2 && both[0].revents == POLLOUT);
  struct pollfd* volatile nowhere = (struct pollfd*)8;
  REQUIRE(poll(nowhere, 1, 0) == -1 && errno == EFAULT);
  const int epoll = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event event = {.events = EPOLLOUT | EPOLLWRNORM}, came[2];
  REQUIRE(epoll_ctl(epoll, EPOLL_CTL_ADD, faults, &event) == 0);
  REQUIRE(epoll_wait(epoll, came, 2, 0) == 1 && came[0].events == EPOLLOUT);
  event.events = EPOLLWRNORM;
  REQUIRE(epoll_ctl(epoll, EPOLL_CTL_MOD, faults, &event) == 0);
  REQUIRE(epoll_wait(epoll, came, 2, 0) == 0 && event.events == EPOLLWRNORM);
  close(epoll);
  close(ends[0]);
  close(ends[1]);
}

static short ready(int fd) {
  struct pollfd one = {.fd = fd, .events = POLLIN | POLLOUT | POLLRDNORM | POLLPRI};
  const struct timespec now = {0, 0};
  REQUIRE(poll(&one, 1, 0) >= 0);
  const short said = one.revents;
  REQUIRE(ppoll(&one, 1, &now, NULL) >= 0 && one.revents == said);
  fd_set in, out;
  FD_ZERO(&in);
  FD_ZERO(&out);
  FD_SET(fd, &in);
  FD_SET(fd, &out);
  struct timeval none = {0, 0};
  REQUIRE(select(fd + 1, &in, &out, NULL, &none) >= 0);
  REQUIRE(FD_ISSET(fd, &in) == ((said & POLLIN) != 0));
  REQUIRE(FD_ISSET(fd, &out) == ((said & POLLOUT) != 0));
  return said;
}
enum { kIn = POLLIN | POLLRDNORM };

static uint32_t read_fault(void) {
  struct iommu_hwpt_pgfault one;
  REQUIRE(read(faults, &one, sizeof one) == sizeof one);
  return one.cookie;
}
static void answer(uint32_t cookie) {
  const struct iommu_hwpt_page_response response = {.cookie = cookie,
                                                    .code = IOMMUFD_PAGE_RESP_SUCCESS};
  REQUIRE(write(faults, &response, sizeof response) == sizeof response);
}
static void read_event(void) {
  char bytes[kEvent];
  REQUIRE(read(events, bytes, sizeof bytes) == sizeof bytes);
}

static void follows_the_queue(void) {
  REQUIRE(ready(faults) == POLLOUT && ready(events) == 0);
  expect_no_priority_writes();
  request_page(0x1000);
  REQUIRE(ready(faults) == (POLLOUT | kIn) && ready(events) == 0);
  request_page(0x2000);
  const uint32_t first = read_fault();
  REQUIRE(ready(faults) == (POLLOUT | kIn));  // the second
  const uint32_t second = read_fault();
  REQUIRE(ready(faults) == POLLOUT);  // unanswered is not unread
  answer(second);
  answer(first);
  REQUIRE(ready(faults) == POLLOUT);
  tell_event();
  REQUIRE(ready(events) == kIn);
  for (int i = 0; i < 3; ++i) tell_event();  // two are lost, and that can be read
  read_event();
  read_event();
  REQUIRE(ready(events) == kIn);
  struct iommufd_vevent_header lost;
  REQUIRE(read(events, &lost, sizeof lost) == sizeof lost);
  REQUIRE(lost.flags == IOMMU_VEVENTQ_FLAG_LOST_EVENTS && ready(events) == 0);
}

// It is a fault before the queue is asked, however much or little is wanted.
static void takes_no_kernel_address(void) {
  void* const beyond = (void*)(uintptr_t)-4096;
  char bytes[kRequest];
  struct iovec parts[2] = {{bytes, kRequest}, {beyond, kRequest}};
  REFUSES(read(faults, beyond, kRequest), EFAULT);
  REFUSES(read(faults, beyond, kRequest - 1), EFAULT);
  REFUSES(read(faults, beyond, 0), EFAULT);
  REFUSES(write(faults, beyond, 8), EFAULT);
  REFUSES(read(events, beyond, kEvent), EFAULT);
  REFUSES(readv(faults, parts, 2), EFAULT);
  parts[1].iov_len = (size_t)-1;
  REFUSES(readv(faults, parts, 2), EINVAL);
}

// The kernel's read never waits, whatever the flag says.
static void reads_without_waiting(int blocking) {
  char bytes[2 * kRequest];
  int on = !blocking;
  REQUIRE(ioctl(faults, FIONBIO, &on) == 0 && ioctl(events, FIONBIO, &on) == 0);
  const int flags = O_RDWR | (on ? O_NONBLOCK : 0);  // no large file
  REQUIRE(fcntl(faults, F_GETFL) == flags && fcntl(events, F_GETFL) == flags);
  REQUIRE(read(faults, bytes, kRequest) == 0 && read(events, bytes, kEvent) == 0);
  takes_no_kernel_address();
  REFUSES(read(faults, bytes, kRequest - 1), ESPIPE);
  REFUSES(write(events, bytes, 8), EINVAL);
  request_page(0x1000);
  tell_event();
  REFUSES(read(faults, bytes, 0), EINVAL);
  REQUIRE(read(events, bytes, kEvent - 1) == 0);  // no room
  char* const nowhere = mmap(NULL, kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REFUSES(read(faults, nowhere, kRequest), EFAULT);
  munmap(nowhere, kPage);
  REQUIRE(ready(faults) == (POLLOUT | kIn) && ready(events) == kIn);  // nothing was lost
  read_event();
  // In parts: each is a read of its own.
  struct iovec parts[2] = {{bytes, kRequest}, {bytes + kRequest, kRequest}};
  request_page(0x2000);
  REQUIRE(readv(faults, parts, 2) == 2 * kRequest);
  struct iommu_hwpt_pgfault got[2];
  memcpy(got, bytes, sizeof got);
  REQUIRE(got[0].addr == 0x1000 && got[1].addr == 0x2000);
  for (int i = 0; i < 2; ++i) answer(got[i].cookie);
}

static void is_no_pipe(void) {
  struct stat said;
  REQUIRE(fstat(faults, &said) == 0 && (said.st_mode & S_IFMT) == 0 && said.st_size == 0);
  REFUSES(lseek(faults, 0, SEEK_CUR), ESPIPE);
  REFUSES(fcntl(faults, F_GETPIPE_SZ), EBADF);
  int bytes;
  REFUSES(ioctl(faults, FIONREAD, &bytes), ENOTTY);
  REQUIRE(mmap(NULL, kPage, PROT_READ, MAP_SHARED, faults, 0) == MAP_FAILED && errno == ENODEV);
  char byte;
  REFUSES(pread(faults, &byte, 1, 0), ESPIPE);
}

static int wait_for(int epoll) {
  struct epoll_event event;
  const int count = epoll_wait(epoll, &event, 1, 0);
  REQUIRE(count >= 0);
  if (count != 0) REQUIRE((event.events & (EPOLLHUP | EPOLLERR)) == 0);
  return count;
}

static void with_epoll(void) {
  const int level = epoll_create1(0), edge = epoll_create1(0), once = epoll_create1(0);
  struct epoll_event in = {.events = EPOLLIN}, edges = {.events = EPOLLIN | EPOLLET},
                     first = {.events = EPOLLIN | EPOLLONESHOT};
  REQUIRE(epoll_ctl(level, EPOLL_CTL_ADD, faults, &in) == 0);
  REQUIRE(epoll_ctl(edge, EPOLL_CTL_ADD, faults, &edges) == 0);
  REQUIRE(epoll_ctl(once, EPOLL_CTL_ADD, events, &first) == 0);
  REQUIRE(wait_for(level) == 0 && wait_for(edge) == 0 && wait_for(once) == 0);
  request_page(0x1000);
  REQUIRE(wait_for(level) == 1 && wait_for(level) == 1);
  REQUIRE(wait_for(edge) == 1 && wait_for(edge) == 0);
  request_page(0x2000);  // comes while the first is unread: an edge all the same
  REQUIRE(wait_for(edge) == 1 && wait_for(edge) == 0);
  const uint32_t one = read_fault();
  REQUIRE(wait_for(level) == 1 && wait_for(edge) == 0);
  answer(one);
  answer(read_fault());
  REQUIRE(wait_for(level) == 0 && wait_for(edge) == 0);
  tell_event();
  REQUIRE(wait_for(once) == 1 && wait_for(once) == 0);
  REQUIRE(epoll_ctl(once, EPOLL_CTL_MOD, events, &first) == 0 && wait_for(once) == 1);
  read_event();
  close(level);
  close(edge);
  close(once);
}

static void* ask_later(void* unused) {
  (void)unused;
  usleep(20000);
  request_page(0x3000);
  return NULL;
}
static void wakes_a_sleeper(void) {
  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, ask_later, NULL) == 0);
  struct pollfd one = {.fd = faults, .events = POLLIN};
  REQUIRE(poll(&one, 1, 30000) == 1 && one.revents == POLLIN);
  pthread_join(thread, NULL);
  answer(read_fault());
}

// What the device is taken off is answered, and nothing is left to be read.
static void is_empty_when_detached(uint32_t pt) {
  request_page(0x1000);
  REQUIRE(ready(faults) == (POLLOUT | kIn));
  REQUIRE(replace(iommu, mock.test_device, pt) == 0);
  REQUIRE(ready(faults) == POLLOUT);
}

static void in_a_child(void) {
  int done[2];
  REQUIRE(pipe(done) == 0);
  const pid_t child = fork();
  if (child == 0) {
    char byte;
    struct pollfd one = {.fd = faults, .events = POLLIN};
    REQUIRE(poll(&one, 1, 30000) == 1 && one.revents == POLLIN);
    answer(read_fault());
    request_page(0x5000);  // its parent's to read
    REQUIRE(read(done[0], &byte, 1) == 1);
    _exit(0);
  }
  request_page(0x4000);
  struct pollfd one = {.fd = faults, .events = POLLIN};
  for (uint64_t found = 0; found != 0x5000;) {
    struct iommu_hwpt_pgfault got = {0};
    REQUIRE(poll(&one, 1, 30000) == 1);
    const ssize_t bytes = ready(faults) & POLLIN ? read(faults, &got, sizeof got) : 0;
    if (bytes == 0) continue;  // the child's, who was first
    REQUIRE(bytes == sizeof got);
    if (got.addr == 0x4000) {
      answer(got.cookie);
      request_page(0x4000);
      usleep(1000);
      continue;
    }
    found = got.addr;
    answer(got.cookie);
  }
  REQUIRE(write(done[1], "", 1) == 1);
  ends_well(child);
}

// A process that nobody of ours has been in: it has the queue's descriptor, or that and the
// iommufd, or the iommufd alone.
static void sent(const char* how) {
  int pair[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
  const pid_t child = start_again(how, pair[1]);
  close(pair[1]);
  const int both[2] = {iommu, faults};
  const int alone = strcmp(how, "queue") == 0;
  const int asks = strcmp(how, "iommufd") == 0;
  send_descriptors(pair[0], alone ? &faults : both, alone || asks ? 1 : 2);
  REQUIRE(send(pair[0], &mock, sizeof mock, 0) == sizeof mock);
  char byte;
  if (asks) {
    struct pollfd one = {.fd = faults, .events = POLLIN};
    REQUIRE(poll(&one, 1, 30000) == 1);
    answer(read_fault());
  } else {
    request_page(0x6000);
    REQUIRE(recv(pair[0], &byte, 1, 0) == 1);
    REQUIRE(ready(faults) == POLLOUT);  // it has read and answered
  }
  ends_well(child);
  close(pair[0]);
}
static int sent_to(const char* how, int socket) {
  int got[2] = {-1, -1};
  const int alone = strcmp(how, "queue") == 0;
  const int asks = strcmp(how, "iommufd") == 0;
  receive_descriptors(socket, got, alone || asks ? 1 : 2);
  REQUIRE(recv(socket, &mock, sizeof mock, 0) == sizeof mock);
  iommu = got[0];
  faults = alone ? got[0] : got[1];
  if (asks) {
    request_page(0x7000);
    return 0;
  }
  struct pollfd one = {.fd = faults, .events = POLLIN};
  REQUIRE(poll(&one, 1, 30000) == 1 && one.revents == POLLIN);
  answer(read_fault());
  REQUIRE(ready(faults) == POLLOUT);
  if (!alone) {
    request_page(0x8000);
    REQUIRE(ready(faults) == (POLLOUT | kIn));
    answer(read_fault());
  }
  REQUIRE(send(socket, "", 1, 0) == 1);
  return 0;
}

int main(int argc, char** argv) {
  if (argc == 3) return sent_to(argv[1], atoi(argv[2]));
  set_up();
  follows_the_queue();
  reads_without_waiting(0);
  reads_without_waiting(1);
  is_no_pipe();
  with_epoll();
  wakes_a_sleeper();
  in_a_child();
  sent("both");
  sent("queue");
  sent("iommufd");
  const uint32_t plain = ioas_of(iommu);
  is_empty_when_detached(plain);
  close(iommu);
  REQUIRE(ready(faults) == POLLOUT && ready(events) == 0);
  expect_no_priority_writes();
  puts("done");
  return 0;
}
