// SPDX-License-Identifier: Apache-2.0
#include "host/client_limits.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>

#include <algorithm>
#include <memory>

#include "base/sys.h"
#include "host/kept_fd.h"
#include "sync/mutex.h"

namespace stagetwo::host {
namespace {

constexpr u64 kExceeded = u64{1} << (SIGXFSZ - 1);

// Two threads that both raise the limit would each give back what the other has set.
constinit sync::Mutex limits_lock{sync::Rank::kLeaf};

// The client may lower its limit at any moment: the signal that follows is nobody's.
class WithoutSignal {
 public:
  WithoutSignal() {
    sys::call(SYS_rt_sigprocmask, SIG_BLOCK, sys::arg(&kExceeded), sys::arg(&before_), 8);
    u64 pending = 0;
    sys::call(SYS_rt_sigpending, sys::arg(&pending), sizeof(pending));
    was_pending_ = (pending & kExceeded) != 0;
  }
  WithoutSignal(const WithoutSignal&) = delete;
  WithoutSignal& operator=(const WithoutSignal&) = delete;
  ~WithoutSignal() {
    const timespec at_once{};
    if (!was_pending_) {
      sys::call(SYS_rt_sigtimedwait, sys::arg(&kExceeded), 0, sys::arg(&at_once), 8);
    }
    sys::call(SYS_rt_sigprocmask, SIG_SETMASK, sys::arg(&before_), 0, 8);
  }

 private:
  u64 before_ = 0;
  bool was_pending_ = false;
};

// Any of the two may be nullptr.
bool limit(int resource, const rlimit* to, rlimit* before) {
  return sys::call(SYS_prlimit64, 0, resource, sys::arg(to), sys::arg(before)) == 0;
}

class HigherLimit {
 public:
  HigherLimit(int resource, u64 need) : resource_(resource) {
    enough_ = limit(resource, nullptr, &before_) && need <= before_.rlim_cur;
    if (enough_) return;
    // Above the hard limit only who is privileged may go.
    ours_ = {need, std::max<rlim_t>(need, before_.rlim_max)};
    enough_ = raised_ = limit(resource, &ours_, &before_);
    if (enough_ || before_.rlim_cur == before_.rlim_max) return;
    ours_ = {before_.rlim_max, before_.rlim_max};
    raised_ = limit(resource, &ours_, &before_);
  }
  HigherLimit(const HigherLimit&) = delete;
  HigherLimit& operator=(const HigherLimit&) = delete;
  ~HigherLimit() {
    if (!raised_) return;
    rlimit found{};
    if (!limit(resource_, &before_, &found)) return;
    const bool clients = found.rlim_cur != ours_.rlim_cur || found.rlim_max != ours_.rlim_max;
    if (clients) limit(resource_, &found, nullptr);
  }
  [[nodiscard]] bool enough() const { return enough_; }

 private:
  int resource_;
  rlimit before_{};
  rlimit ours_{};
  bool raised_ = false;
  bool enough_ = false;
};

// Nothing is asked of what is behind it.
constinit KeptFd kept_number{
    KeptFd::Open{[] { return sys::openat(AT_FDCWD, "/", O_PATH | O_CLOEXEC); }}};
constinit sync::Atomic<bool> is_lent{false};

Result<int> raised(Result<int> opened) {
  return opened ? sys::raise_engine_fd(*opened) : opened;
}
bool is_refused_for_room(const Result<int>& opened) {
  return !opened && to_int(opened.error()) == EMFILE;
}

}  // namespace

Result<void> set_file_size(int fd, u64 size) {
  const sync::MutexGuard guard(limits_lock);
  const WithoutSignal quiet;
  const HigherLimit higher(RLIMIT_FSIZE, size);
  if (!higher.enough()) return refuse(EFBIG);
  return sys::ftruncate(fd, static_cast<off_t>(size));
}

Result<int> open_beyond_limit(Open open, const void* what) {
  auto opened = raised(open(what));
  if (!is_refused_for_room(opened)) return opened;
  {
    const sync::MutexGuard guard(limits_lock);
    // Twice the lowest of the engine's numbers, so that there is room above it.
    const HigherLimit higher(RLIMIT_NOFILE, u64{2} * sys::kFirstEngineFd);
    opened = raised(open(what));
  }
  if (!is_refused_for_room(opened) || !kept_number.lend()) return opened;
  is_lent.store(true, sync::kRelaxed);
  opened = raised(open(what));
  // There is no other number: it is out of the way as it is.
  return is_refused_for_room(opened) ? open(what) : opened;
}

void keep_a_number() {
  if (kept_number.keep()) is_lent.store(false, sync::kRelaxed);
}

void take_number_back() {
  if (is_lent.load(sync::kRelaxed)) [[unlikely]]
    keep_a_number();
}

void client_limits_after_fork_child() {
  std::construct_at(&limits_lock, sync::Rank::kLeaf);
  is_lent.store(false, sync::kRelaxed);
}

}  // namespace stagetwo::host
