// SPDX-License-Identifier: Apache-2.0
#include "host/descriptor.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <thread>
#include <vector>

#include "base/sys.h"
#include "host/client_limits.h"
#include "host/kept_fd.h"
#include "tests/support/fd_message.h"

namespace stagetwo::host {
namespace {

// Says what happens to it.
struct Life {
  int closed = 0;
  int destroyed = 0;
};

class Toy final : public Description {
 public:
  explicit Toy(Life* life) : life_(life) {}
  ~Toy() override { ++life_->destroyed; }
  long ioctl(int, unsigned long request, unsigned long arg) override {
    return request == 1 ? static_cast<long>(arg) : -ENOTTY;
  }
  void last_close() override { ++life_->closed; }

 private:
  Life* life_;
};

int publish_toy(Life* life, DescriptorSpec spec = {}, u64 size = 0, const char* kind = "toy") {
  auto backing = Backing::create(kind, size);
  auto toy = make_box<Toy>("toy", life);
  if (!backing || !toy) return -1;
  const auto fd = publish(std::move(*toy), std::move(*backing), spec);
  return fd ? *fd : -1;
}

// What the shim does for close().
void watched_close(int fd) {
  CloseWatch watch(fd);
  ASSERT_EQ(close(fd), 0);
  watch.closed();
}

TEST(Descriptor, IsTheLowestFreeNumber) {
  const int free_number = dup(0);
  close(free_number);
  Life life;
  const int fd = publish_toy(&life);
  EXPECT_EQ(fd, free_number);
  watched_close(fd);
}

TEST(Descriptor, IsFoundByWhatIsBehindIt) {
  Life life;
  const int fd = publish_toy(&life);
  const int copy = fcntl(fd, F_DUPFD_CLOEXEC, 100);
  ASSERT_GE(copy, 100);
  EXPECT_EQ(find(copy).get(), find(fd).get());
  EXPECT_EQ(find(copy)->ioctl(copy, 1, 7), 7);
  EXPECT_FALSE(find(0));
  EXPECT_FALSE(find(-1));
  watched_close(copy);
  watched_close(fd);
}

TEST(Descriptor, EndsWithItsLastDup) {
  Life life;
  const int fd = publish_toy(&life);
  const int copy = dup(fd);
  watched_close(fd);
  EXPECT_EQ(life.closed, 0);
  EXPECT_TRUE(find(copy));
  EXPECT_EQ(descriptor_counts().watched, 1u);
  watched_close(copy);
  EXPECT_EQ(life.closed, 1);
  EXPECT_EQ(life.destroyed, 1);
  EXPECT_EQ(descriptor_counts().watched, 0u);
}

TEST(Descriptor, LivesOnInAMappingOfTheClient) {
  Life life;
  const int fd = publish_toy(&life, {}, 4096);
  void* page = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  ASSERT_NE(page, MAP_FAILED);
  watched_close(fd);
  EXPECT_EQ(life.closed, 0);
  munmap(page, 4096);
  sweep_closed();
  EXPECT_EQ(life.closed, 1);
}

TEST(Descriptor, IsNotKeptAliveByAMappingOfTheEngine) {
  auto backing = Backing::create("toy", 4096);
  ASSERT_TRUE(backing);
  auto page = backing->map(0, 4096, PROT_READ | PROT_WRITE);
  ASSERT_TRUE(page);
  Life life;
  auto fd = publish(std::move(*make_box<Toy>("toy", &life)), std::move(*backing), {});
  ASSERT_TRUE(fd);
  void* theirs = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
  std::memcpy(*page, "both see it", 12);
  EXPECT_STREQ(static_cast<char*>(theirs), "both see it");
  munmap(theirs, 4096);
  watched_close(*fd);
  EXPECT_EQ(life.closed, 1);
  Backing::unmap(*page, 4096);
}

TEST(Descriptor, LivesWhileAChildHoldsIt) {
  Life life;
  const int fd = publish_toy(&life);
  const pid_t child = fork();
  if (child == 0) {
    pause();
    _exit(0);
  }
  watched_close(fd);
  EXPECT_EQ(life.closed, 0);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  sweep_closed();
  EXPECT_EQ(life.closed, 1);
  EXPECT_EQ(descriptor_counts().watched, 0u);
}

class SlowToEnd final : public Description {
 public:
  explicit SlowToEnd(std::atomic<int>* turn) : turn_(turn) {}
  long ioctl(int, unsigned long, unsigned long) override { return -ENOTTY; }
  void last_close() override {
    turn_->store(1);
    ::usleep(50'000);
    turn_->store(2);
  }

 private:
  std::atomic<int>* turn_;
};

// How far it is when `asks` returns: 2 is over.
int turn_after(const DescriptorSpec& spec, void (*asks)()) {
  std::atomic<int> turn{0};
  auto backing = Backing::create("toy", 0);
  auto slow = make_box<SlowToEnd>("toy", &turn);
  if (!backing || !slow) return -1;
  const auto fd = publish(std::move(*slow), std::move(*backing), spec);
  if (!fd) return -1;
  const int held = ::dup(*fd);
  watched_close(*fd);
  EXPECT_EQ(turn.load(), 0);
  ::close(held);  // behind our back, as by the end of another process
  std::thread first([] { sweep_closed(); });
  while (turn.load() == 0) std::this_thread::yield();
  asks();
  const int seen = turn.load();
  first.join();
  return seen;
}
TEST(Descriptor, MemoryThatAnotherThreadEndsHasEndedForWhoAsks) {
  EXPECT_EQ(turn_after({.shape = FileShape::kMemory}, sweep_closed_memory), 2);
}
TEST(Descriptor, WhateverAnotherThreadEndsHasEndedForWhoWantsWhatItHeld) {
  EXPECT_EQ(turn_after({.shape = FileShape::kMemory}, settle_closed), 2);
  EXPECT_EQ(turn_after({.shape = FileShape::kAnonInode}, settle_closed), 2);
}

TEST(Descriptor, StateOfTheProcessIsForeignInAChild) {
  Life life;
  DescriptorSpec shared;
  shared.home = StateHome::kDescription;
  const int fd = publish_toy(&life);
  const int shared_fd = publish_toy(&life, shared);
  EXPECT_FALSE(find(fd).foreign());
  const pid_t child = fork();
  if (child == 0) {
    descriptors_after_fork_child();
    const bool right = find(fd).foreign() && !find(shared_fd).foreign();
    CloseWatch watch(fd);
    close(fd);
    watch.closed();
    _exit(right && life.closed == 0 && life.destroyed == 0 ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  watched_close(fd);
  watched_close(shared_fd);
  EXPECT_EQ(life.destroyed, 2);
}

// Sends `fd` through a socket, as one process does to another.
int pass_through_socket(int fd) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) != 0) return -1;
  int received[] = {-1};
  if (test::FdMessage<1>({fd}).send(ends[0])) {
    EXPECT_TRUE(test::FdMessage<1>().receive(ends[1], received));
  }
  close(ends[0]);
  close(ends[1]);
  return received[0];
}

TEST(Descriptor, SentThroughASocketIsTheSame) {
  Life life;
  const int fd = publish_toy(&life);
  const int received = pass_through_socket(fd);
  ASSERT_GE(received, 0);
  EXPECT_EQ(find(received).get(), find(fd).get());
  watched_close(fd);
  EXPECT_EQ(life.closed, 0);
  watched_close(received);
  EXPECT_EQ(life.closed, 1);
}

TEST(Descriptor, UnknownOneIsRecognisedByItsName) {
  // As it arrives from another process: the memfd exists, the table has never heard of it.
  const int theirs = memfd_create("stagetwo:1:kvm-vm", MFD_CLOEXEC);
  const int mine = memfd_create("something else", MFD_CLOEXEC);
  EXPECT_FALSE(find(mine));
  DescriptionRef ref = find(theirs);
  ASSERT_TRUE(ref);
  EXPECT_TRUE(ref.foreign());
  EXPECT_EQ(ref->ioctl(theirs, 1, 0), -EIO);
  ref.reset();
  watched_close(theirs);
  close(mine);
}

Life attached_life;

TEST(Descriptor, ReceivedStateOfADescriptionIsAttached) {
  set_attacher([](std::string_view kind, int, DescriptorSpec* spec) -> Box<Description> {
    if (kind != "shared-toy") return nullptr;
    spec->home = StateHome::kDescription;
    auto toy = make_box<Toy>("toy", &attached_life);
    return toy ? Box<Description>(std::move(*toy)) : Box<Description>();
  });
  const int theirs = memfd_create("stagetwo:1:shared-toy", MFD_CLOEXEC);
  DescriptionRef ref = find(theirs);
  ASSERT_TRUE(ref);
  EXPECT_FALSE(ref.foreign());
  EXPECT_EQ(ref->ioctl(theirs, 1, 3), 3);
  ref.reset();
  watched_close(theirs);
  EXPECT_EQ(attached_life.destroyed, 1);
  set_attacher(nullptr);
}

TEST(Descriptor, ReadOnlyOneRefusesWritesByItself) {
  Life life;
  DescriptorSpec spec;
  spec.open_flags = O_RDONLY | O_CLOEXEC;
  const int fd = publish_toy(&life, spec, 4096);
  char byte = 0;
  EXPECT_EQ(pread(fd, &byte, 1, 0), 1);
  EXPECT_EQ(write(fd, &byte, 1), -1);
  EXPECT_EQ(errno, EBADF);
  watched_close(fd);
  EXPECT_EQ(life.closed, 1);
}

TEST(Descriptor, ShowsTheIdentityOfADevice) {
  Life life;
  DescriptorSpec spec;
  spec.shape = FileShape::kCharDevice;
  spec.device_major = 10;
  spec.device_minor = 232;
  const int fd = publish_toy(&life, spec);
  struct stat shown{};
  ASSERT_EQ(fstat(fd, &shown), 0);
  rewrite_stat(find(fd), &shown);
  EXPECT_TRUE(S_ISCHR(shown.st_mode));
  EXPECT_EQ(shown.st_rdev, makedev(10, 232));
  watched_close(fd);
}

TEST(Descriptor, EngineDescriptorGivesWay) {
  Life life;
  const int fd = publish_toy(&life);
  const int copy = dup(fd);
  watched_close(fd);
  const int engine = next_engine_fd(0);
  ASSERT_GE(engine, 0);
  EXPECT_TRUE(is_engine_fd(engine));
  EXPECT_TRUE(vacate_engine_fd(engine));
  EXPECT_FALSE(is_engine_fd(engine));
  EXPECT_EQ(0, close(engine));  // until then no other of the engine's takes it
  watched_close(copy);
  EXPECT_EQ(life.closed, 1);
}

// Limits the size of files the process writes, until the end of the scope.
class FileLimit {
 public:
  explicit FileLimit(rlim_t soft) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit lower{soft, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &lower);
  }
  FileLimit(const FileLimit&) = delete;
  FileLimit& operator=(const FileLimit&) = delete;
  ~FileLimit() { setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  rlimit before_{};
};

TEST(Descriptor, IsNoFileOfTheClientsLimit) {
  const FileLimit none(0);
  Life life;
  const int fd = publish_toy(&life, {}, 1 << 20);
  ASSERT_GE(fd, 0);
  struct stat behind{};
  EXPECT_EQ(fstat(fd, &behind), 0);
  EXPECT_EQ(behind.st_size, 1 << 20);
  rlimit after{};
  getrlimit(RLIMIT_FSIZE, &after);
  EXPECT_EQ(after.rlim_cur, 0u);
  sigset_t pending;
  sigpending(&pending);
  EXPECT_FALSE(sigismember(&pending, SIGXFSZ));
  watched_close(fd);
}

// A process that may not raise its hard limit is refused, and lives.
TEST(Descriptor, BeyondAHardLimitIsRefused) {
  const pid_t child = fork();
  if (child == 0) {
    const rlimit none{0, 0};
    if (setrlimit(RLIMIT_FSIZE, &none) != 0) _exit(1);
    if (setresuid(65534, 65534, 65534) != 0 && geteuid() == 0) _exit(2);
    const auto backing = Backing::create("toy", 4096);
    _exit(!backing && to_int(backing.error()) == EFBIG ? 0 : 3);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

// Takes every number that is left, until the end of the scope.
class FullTable {
 public:
  FullTable() {
    getrlimit(RLIMIT_NOFILE, &before_);
    const rlimit few{64, before_.rlim_max};
    setrlimit(RLIMIT_NOFILE, &few);
    for (int fd = dup(0); fd >= 0; fd = dup(0)) taken_.push_back(fd);
  }
  FullTable(const FullTable&) = delete;
  FullTable& operator=(const FullTable&) = delete;
  ~FullTable() {
    for (const int fd : taken_) close(fd);
    setrlimit(RLIMIT_NOFILE, &before_);
  }

 private:
  rlimit before_{};
  std::vector<int> taken_;
};

TEST(Descriptor, EndsThoughTheTableIsFull) {
  Life life;
  Life other;
  const int fd = publish_toy(&life);
  const int second = publish_toy(&other);
  const FullTable full;
  watched_close(fd);
  EXPECT_EQ(life.closed, 1);
  ASSERT_GE(dup(0), 0);  // whoever closes in a full table fills it again
  watched_close(second);
  EXPECT_EQ(other.closed, 1);
}

TEST(Descriptor, WatchedInAFullTableEndsWithItsLastDup) {
  Life life;
  const int fd = publish_toy(&life);
  const int copy = dup(fd);
  const FullTable full;
  watched_close(fd);
  EXPECT_EQ(life.closed, 0);
  close(copy);
  sweep_closed();
  EXPECT_EQ(life.closed, 1);
}

// The rest of a child's life: no limit is raised any more, and `few` numbers are all.
void stay_within(rlim_t few) {
  constexpr unsigned kSysResource = 1u << 24;
  struct {
    unsigned version = 0x20080522;
    int pid = 0;
  } head;
  unsigned sets[6] = {};  // effective, permitted, inheritable of the low words, then the high ones
  if (syscall(SYS_capget, &head, sets) != 0) _exit(10);
  sets[0] &= ~kSysResource;
  sets[1] &= ~kSysResource;
  if (syscall(SYS_capset, &head, sets) != 0) _exit(11);
  const rlimit limit{few, few};
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) _exit(12);
  kept_fds_after_fork_child();
  client_limits_after_fork_child();
}

// What has no descriptor of its own is watched by the number that is kept for it, again and again.
TEST(Descriptor, EndsInAFullTableAtAHardLimit) {
  const pid_t child = fork();
  if (child == 0) {
    stay_within(64);
    Life lives[3];
    int fds[3];
    for (int i = 0; i < 3; ++i) fds[i] = publish_toy(&lives[i]);
    while (dup(0) >= 0) {
    }
    for (int i = 0; i < 3; ++i) {
      watched_close(fds[i]);
      if (lives[i].closed != 1) _exit(1);
      if (dup(0) != fds[i] || dup(0) >= 0) _exit(2);  // the close gave exactly one number back
    }
    _exit(0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

TEST(Descriptor, HeldInAFullTableAtAHardLimitEndsWithItsLastDup) {
  const pid_t child = fork();
  if (child == 0) {
    stay_within(64);
    Life lives[2];
    int fds[2];
    for (int i = 0; i < 2; ++i) fds[i] = publish_toy(&lives[i]);
    const int copy = dup(fds[0]);
    while (dup(0) >= 0) {
    }
    watched_close(fds[0]);
    if (lives[0].closed != 0) _exit(1);
    close(copy);
    sweep_closed();
    if (lives[0].closed != 1) _exit(2);
    watched_close(fds[1]);  // the number is kept again
    _exit(lives[1].closed == 1 ? 0 : 3);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

// As in the kernel, one number is enough.
TEST(Descriptor, IsMadeWithTheLastNumber) {
  const pid_t child = fork();
  if (child == 0) {
    stay_within(64);
    Life lives[3];
    const int first = publish_toy(&lives[0]);
    while (dup(0) >= 0) {
    }
    close(first + 1);
    if (publish_toy(&lives[1]) != first + 1) _exit(1);
    _exit(publish_toy(&lives[2]) < 0 ? 0 : 2);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

// At a hard limit the number that the close gives back is the one for the watch.
TEST(Descriptor, WithADescriptorOfItsOwnEndsAtAHardLimit) {
  const pid_t child = fork();
  if (child == 0) {
    auto backing = Backing::create("toy", 0);
    HeldFd own;
    const auto opened = sys::reopen_engine_fd(backing->fd(), O_RDWR);
    if (!opened || !own.hold(*opened)) _exit(1);
    Life life;
    const auto fd = publish(std::move(*make_box<Toy>("toy", &life)), std::move(*backing), {});
    const int copy = dup(*fd);
    const rlimit few{64, 64};
    if (setrlimit(RLIMIT_NOFILE, &few) != 0) _exit(2);
    while (dup(0) >= 0) {
    }
    watched_close(*fd);
    if (life.closed != 0) _exit(3);
    close(copy);
    sweep_closed();
    _exit(life.closed == 1 ? 0 : 4);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

TEST(Descriptor, ManyThreadsFindWhileOthersClose) {
  std::atomic<bool> stop{false};
  std::atomic<int> shared{-1};
  std::thread reader([&] {
    while (!stop) {
      DescriptionRef ref = find(shared);
      if (ref) static_cast<void>(ref->ioctl(0, 1, 0));
    }
  });
  std::vector<Life> lives(2000);
  for (Life& life : lives) {
    shared = publish_toy(&life);
    const int fd = shared;
    ASSERT_GE(fd, 0);
    watched_close(fd);
  }
  stop = true;
  reader.join();
  for (const Life& life : lives) {
    ASSERT_EQ(life.closed, 1);
    ASSERT_EQ(life.destroyed, 1);
  }
  EXPECT_EQ(descriptor_counts().live, 0u);
}

}  // namespace
}  // namespace stagetwo::host
