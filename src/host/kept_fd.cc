// SPDX-License-Identifier: Apache-2.0
#include "host/kept_fd.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <memory>

#include "base/sys.h"
#include "sync/mutex.h"

namespace stagetwo::host {

// The ones that were opened in this process.
struct KeptFds {
  static sync::Mutex lock;
  static KeptFd* first;
  static sync::Atomic<bool> any;

  static void add(KeptFd* kept) TA_REQ(lock) {
    kept->next_ = first;
    first = kept;
    kept->listed_ = true;
    any.store(true, sync::kRelaxed);
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
      const int fd = kept->fd_.exchange(-1, sync::kRelaxed);
      if (fd >= 0) static_cast<void>(sys::close(fd));
    }
  }
  template <typename F>
  static void for_each(F&& fn) {
    for (KeptFd* kept = first; kept != nullptr; kept = kept->next_) fn(kept->fd_);
  }
};

constinit sync::Mutex KeptFds::lock{sync::Rank::kLeaf};
constinit KeptFd* KeptFds::first = nullptr;
constinit sync::Atomic<bool> KeptFds::any{false};

namespace {

constexpr size_t kProcLength = sizeof("/proc/") - 1;

Result<int> open_folder() {
  return sys::openat(AT_FDCWD, "/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
}
constinit KeptFd folder(open_folder, KeptFd::Child::kHasIt);

}  // namespace

int proc_folder() {
  return folder.get().value_or(-1);
}

Result<int> open_proc(const char* path, int flags) {
  return sys::openat(ST_TRY(folder.get()), path + kProcLength, flags);
}

Result<int> KeptFd::get() {
  if (const int fd = fd_.load(sync::kRelaxed); fd >= 0) [[likely]]
    return fd;
  const int fresh = path_ != nullptr ? ST_TRY(open_proc(path_, flags_ | O_CLOEXEC)) : -1;
  const sync::MutexGuard guard(KeptFds::lock);
  if (const int fd = fd_.load(sync::kRelaxed); fd >= 0) {
    if (fresh >= 0) static_cast<void>(sys::close(fresh));
    return fd;
  }
  const int opened = path_ != nullptr ? fresh : ST_TRY(open_());
  const int raised = ST_TRY(sys::raise_engine_fd(opened));
  fd_.store(raised, sync::kRelaxed);
  if (!listed_) KeptFds::add(this);
  return raised;
}

bool KeptFd::lend() {
  const sync::MutexGuard guard(KeptFds::lock);
  const int fd = fd_.exchange(-1, sync::kRelaxed);
  return fd >= 0 && sys::close(fd).has_value();
}

Result<void> HeldFd::hold(int fd) {
  const sync::MutexGuard guard(KeptFds::lock);
  fd_.store(ST_TRY(sys::raise_engine_fd(fd)), sync::kRelaxed);
  KeptFds::add(this);
  return {};
}

Result<int> HeldFd::get() const {
  const int fd = fd_.load(sync::kRelaxed);
  if (fd < 0) return refuse(EBADF);
  return fd;
}

void HeldFd::close() {
  if (!listed_) return;
  const sync::MutexGuard guard(KeptFds::lock);
  KeptFds::remove(this);
  const int fd = fd_.exchange(-1, sync::kRelaxed);
  if (fd >= 0) static_cast<void>(sys::close(fd));
}

bool any_kept_fd() {
  return KeptFds::any.load(sync::kRelaxed);
}

int next_kept_fd(int first) {
  const sync::MutexGuard guard(KeptFds::lock);
  int lowest = -1;
  KeptFds::for_each([&](const sync::Atomic<int>& place) {
    const int fd = place.load(sync::kRelaxed);
    if (fd >= first && (lowest < 0 || fd < lowest)) lowest = fd;
  });
  return lowest;
}

int kept_fd_of(u64 device, u64 inode) {
  const sync::MutexGuard guard(KeptFds::lock);
  int found = -1;
  KeptFds::for_each([&](const sync::Atomic<int>& place) {
    const int fd = place.load(sync::kRelaxed);
    struct ::stat behind{};
    if (found >= 0 || fd < 0 || !sys::fstat(fd, &behind)) return;
    if (behind.st_dev == device && behind.st_ino == inode) found = fd;
  });
  return found;
}

bool vacate_kept_fd(int fd) {
  const sync::MutexGuard guard(KeptFds::lock);
  bool found = false;
  KeptFds::for_each([&](sync::Atomic<int>& place) {
    if (place.load(sync::kRelaxed) != fd) return;
    // raise_engine_fd closes the old number, which the client is about to take.
    place.store(sys::raise_engine_fd(fd).value_or(-1), sync::kRelaxed);
    found = true;
  });
  return found;
}

void kept_fds_after_fork_child() {
  std::construct_at(&KeptFds::lock, sync::Rank::kLeaf);
  KeptFds::close_in_child();
}

}  // namespace stagetwo::host
