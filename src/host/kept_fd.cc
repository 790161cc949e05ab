// SPDX-License-Identifier: Apache-2.0
#include "host/kept_fd.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <memory>

#include "base/sys.h"
#include "base/text.h"
#include "host/client_limits.h"
#include "sync/mutex.h"
#include "sync/passing_number.h"

namespace stagetwo::host {

// The ones that were opened in this process.
struct KeptFds {
  static sync::Mutex lock;
  static KeptFd* first;
  static sync::Atomic<int> lowest;  // below it there was never one

  static void add(KeptFd* kept) TA_REQ(lock) {
    kept->next_ = first;
    first = kept;
    kept->listed_ = true;
  }
  static void remove(KeptFd* kept) TA_REQ(lock) {
    KeptFd** link = &first;
    while (*link != kept) link = &(*link)->next_;
    *link = kept->next_;
    kept->listed_ = false;
  }
  static void close_in_child() {
    for (KeptFd* kept = first; kept != nullptr; kept = kept->next_) {
      if (kept->child_ == KeptFd::Child::kHasIt) continue;
      const int fd = kept->number_.exchange(-1);
      if (fd >= 0) static_cast<void>(sys::close(fd));
    }
  }
  template <typename F>
  static void for_each(F&& fn) {
    for (KeptFd* kept = first; kept != nullptr; kept = kept->next_) fn(kept->number_);
  }
};

constinit sync::Mutex KeptFds::lock{sync::Rank::kLeaf};
constinit KeptFd* KeptFds::first = nullptr;
constinit sync::Atomic<int> KeptFds::lowest{INT32_MAX};

namespace {

constexpr size_t kProcLength = sizeof("/proc/") - 1;

Result<int> open_folder() {
  return sys::openat(AT_FDCWD, "/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
}
constinit KeptFd folder(open_folder, KeptFd::Child::kHasIt);

// As sys::raise_engine_fd(), but where no number is free up there it is a lower one, at last the
// one it has: the client can have every number that the limit allows.
Result<int> raise_as_far_as_can_be(int fd) {
  struct ::rlimit limit{};
  long low = sys::kFirstEngineFd;
  if (sys::call(SYS_prlimit64, 0, RLIMIT_NOFILE, 0, sys::arg(&limit)) == 0) {
    low = std::min(low, static_cast<long>(std::min<u64>(limit.rlim_cur, 1u << 20) / 2));
  }
  for (; low > fd; low /= 2) {
    const auto raised = sys::fcntl(fd, F_DUPFD_CLOEXEC, low);
    if (!raised && to_int(raised.error()) == EMFILE) continue;
    static_cast<void>(sys::close(fd));
    if (!raised) return refuse(raised.error());
    return static_cast<int>(*raised);
  }
  ST_TRY(sys::fcntl(fd, F_SETFD, FD_CLOEXEC));
  return fd;
}

}  // namespace

Result<int> open_proc(const char* path, int flags) {
  const FdUse proc = ST_TRY(folder.use());
  return sys::openat(proc.get(), path + kProcLength, flags);
}

Result<int> reopen_engine_file(int fd) {
  const sync::PassingNumber passing;
  FixedString<48> path;
  path.append("/proc/thread-self/fd/").append_int(fd);
  return raise_as_far_as_can_be(ST_TRY(open_proc(path.c_str(), O_RDWR | O_CLOEXEC)));
}

Result<FdUse> KeptFd::use() {
  for (;;) {
    {
      FdUse open_one = number_.use();
      if (open_one.get() >= 0) [[likely]]
        return open_one;
    }
    ST_TRY(keep());
  }
}

Result<void> KeptFd::keep() {
  if (number_.peek() >= 0) [[likely]]
    return {};
  const sync::PassingNumber passing;
  const int fresh = path_ != nullptr ? ST_TRY(open_proc(path_, flags_ | O_CLOEXEC)) : -1;
  const sync::MutexGuard guard(KeptFds::lock);
  if (number_.peek() >= 0) {
    if (fresh >= 0) static_cast<void>(sys::close(fresh));
    return {};
  }
  const int opened = path_ != nullptr ? fresh : ST_TRY(open_());
  set(ST_TRY(raise_as_far_as_can_be(opened)));
  if (!listed_) KeptFds::add(this);
  return {};
}

int KeptFd::set(int fd) {
  note_engine_fd(fd);
  return number_.exchange(fd);
}

bool KeptFd::lend() {
  const sync::MutexGuard guard(KeptFds::lock);
  const int fd = number_.exchange(-1);
  return fd >= 0 && sys::close(fd).has_value();
}

Result<void> HeldFd::hold(int fd) {
  const sync::PassingNumber passing;
  const sync::MutexGuard guard(KeptFds::lock);
  set(ST_TRY(raise_as_far_as_can_be(fd)));
  KeptFds::add(this);
  return {};
}

void HeldFd::close() {
  if (!listed_) return;
  const sync::MutexGuard guard(KeptFds::lock);
  KeptFds::remove(this);
  const int fd = number_.exchange(-1);
  if (fd >= 0) static_cast<void>(sys::close(fd));
}

bool may_be_engines(int fd) {
  return fd >= KeptFds::lowest.load(sync::kRelaxed);
}

void note_engine_fd(int fd) {
  int seen = KeptFds::lowest.load(sync::kRelaxed);
  while (fd >= 0 && fd < seen && !KeptFds::lowest.compare_exchange_weak(seen, fd, sync::kRelaxed)) {
  }
}

int next_kept_fd(int first) {
  const sync::MutexGuard guard(KeptFds::lock);
  int lowest = -1;
  KeptFds::for_each([&](const sync::KeptNumber& place) {
    const int fd = place.peek();
    if (fd >= first && (lowest < 0 || fd < lowest)) lowest = fd;
  });
  return lowest;
}

int kept_fd_of(u64 device, u64 inode) {
  const sync::MutexGuard guard(KeptFds::lock);
  int found = -1;
  KeptFds::for_each([&](const sync::KeptNumber& place) {
    const int fd = place.peek();
    struct ::stat behind{};
    if (found >= 0 || fd < 0 || !sys::fstat(fd, &behind)) return;
    if (behind.st_dev == device && behind.st_ino == inode) found = fd;
  });
  return found;
}

bool vacate_kept_fd(int fd) {
  if (fd < 0 || next_kept_fd(fd) != fd) return false;
  const sync::PassingNumber passing;
  // Without the lock: where no number is free the kept one is lent, and that takes it. What is
  // behind `fd` may be another's by now; then nobody has the number any more, and the copy goes.
  const auto fresh = open_beyond_limit(
      [&]() -> Result<int> { return static_cast<int>(ST_TRY(sys::fcntl(fd, F_DUPFD_CLOEXEC))); });
  const sync::Passage* users = nullptr;  // its owner may close it as soon as the lock is free
  {
    const sync::MutexGuard guard(KeptFds::lock);
    KeptFds::for_each([&](sync::KeptNumber& place) {
      if (place.peek() != fd) return;
      note_engine_fd(fresh.value_or(-1));
      place.exchange(fresh.value_or(-1));
      users = &place.users();
    });
  }
  if (users == nullptr) {
    if (fresh) static_cast<void>(sys::close(*fresh));
    return false;
  }
  sync::KeptNumber::wait_for(*users);
  return true;
}

void kept_fds_after_fork_child() {
  std::construct_at(&KeptFds::lock, sync::Rank::kLeaf);
  sync::KeptNumber::after_fork_child();
  sync::PassingNumber::after_fork_child();
  KeptFds::close_in_child();
}

}  // namespace stagetwo::host
