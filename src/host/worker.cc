// SPDX-License-Identifier: Apache-2.0
#include "host/worker.h"

#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <memory>

#include "base/alloc.h"
#include "base/check.h"
#include "base/failpoint.h"
#include "base/sys.h"
#include "host/footing.h"
#include "host/thread_count.h"
#include "sync/mutex.h"

// The list and who runs what are under one leaf lock. A turn is run by whoever set `running_`: the
// thread, or a caller of work_without_thread(). The remover waits for `running_` to be something
// else.
//
//   turn                                | remove_work
//   lock; running_ = item; unlock       |
//   item->turn()                        | lock; unlink; running_ == item: sleep on turns_
//   lock; running_ = null; ++turns_     |
//   wake                                | running_ != item: return, the item may die

namespace stagetwo::host {
namespace {

constexpr size_t kStackBytes = 256 * 1024;

enum class Thread : u32 { kNone, kStarting, kRuns, kRefused };

}  // namespace

class Worker {
 public:
  void add(WorkItem* item);
  void remove(WorkItem* item);
  void kick(bool at_once);
  void run_due();
  bool run_now(WorkItem* item);
  void start_afresh();

  [[nodiscard]] Thread thread() const { return thread_.load(sync::kRelaxed); }

 private:
  static void* entry(void* self);
  void serve();
  bool run_one(u64 now, u64* sleep);
  void run(WorkItem* chosen);
  void start_thread();
  u64 until_due(WorkItem* item, u64 now);

  sync::Mutex lock_{sync::Rank::kLeaf};
  WorkItem* items_ = nullptr;
  WorkItem* running_ = nullptr;
  u32 starts_ = 0;                // attempts to make a thread
  sync::Atomic<u32> changed_{0};  // the list or a period; the thread sleeps on it
  sync::Atomic<u32> turns_{0};    // that ended; removers sleep on it
  // Written under the lock.
  sync::Atomic<Thread> thread_{Thread::kNone};
};

namespace {

constinit Worker worker;
constinit sync::Atomic<bool> refuse_threads{false};

using KernelSigset = u64;
// Signals 32 and 33 are libc's own: set-id calls wait until every thread has answered.
constexpr KernelSigset kAllButLibcs = ~(KernelSigset{1} << 31 | KernelSigset{1} << 32);

void set_mask(const KernelSigset* set, KernelSigset* old) {
  sys::call(SYS_rt_sigprocmask, SIG_SETMASK, sys::arg(set), sys::arg(old), sizeof(KernelSigset));
}

// Where client memory is touched a fault has to come through.
constexpr KernelSigset kFaults = KernelSigset{1} << (SIGSEGV - 1) | KernelSigset{1} << (SIGBUS - 1);

bool make_thread(void* (*entry)(void*), void* argument, KernelSigset blocked) {
  if (refuse_threads.load(sync::kRelaxed) || failpoint::should_fail("host.worker_thread")) {
    return false;
  }
  pthread_attr_t attributes;
  if (pthread_attr_init(&attributes) != 0) return false;
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, kStackBytes);
  KernelSigset before = 0;
  set_mask(&blocked, &before);  // inherited: no handler of the client ever runs in it
  pthread_t thread{};
  const int error = pthread_create(&thread, &attributes, entry, argument);
  if (error == 0) leave_thread_count();
  set_mask(&before, nullptr);
  pthread_attr_destroy(&attributes);
  return error == 0;
}

}  // namespace

void* Worker::entry(void* self) {
  sys::call(SYS_prctl, PR_SET_NAME, sys::arg("stagetwo"));
  Footing footing;
  footing.enter(__builtin_frame_address(0));
  static_cast<Worker*>(self)->serve();
  rejoin_thread_count();
  return nullptr;
}

void Worker::serve() {
  for (;;) {
    const u32 seen = changed_.load(sync::kAcquire);
    u64 sleep = sync::kNoTimeout;
    if (run_one(sync::now_ns(), &sleep)) continue;
    {
      const sync::MutexGuard guard(lock_);
      if (items_ == nullptr) {
        thread_.store(Thread::kNone, sync::kRelaxed);
        return;
      }
    }
    sync::futex_wait(changed_, seen, sleep);
  }
}

// In a child of fork. Where the lock is free, whoever had it last, a thread that has ended
// included, let it go before the fork: taking it says so in words that the memory model knows, too
// (POSIX has fork synchronise memory; ThreadSanitizer does not see it of a detached thread that has
// ended). Where it is not, its holder is not in this process, and nobody else is either who could
// change it.
void Worker::start_afresh() {
  if (!lock_.debug_locked()) {
    const sync::MutexGuard last(lock_);
  }
  std::construct_at(this);
}

// What is left of the period, which is read anew each time.
u64 Worker::until_due(WorkItem* item, u64 now) {
  if (item->place.due_now) return 0;
  const u64 period = item->period_ns();
  const u64 passed = now - item->place.since;
  if (period == sync::kNoTimeout) return period;
  return passed >= period ? 0 : period - passed;
}

// Runs one item that is due. False: none is, and the first will be in *sleep.
bool Worker::run_one(u64 now, u64* sleep) {
  WorkItem* chosen = nullptr;
  {
    const sync::MutexGuard guard(lock_);
    if (running_ != nullptr) return false;  // somebody else's turn: they look again after it
    for (WorkItem* item = items_; item != nullptr && chosen == nullptr; item = item->place.next) {
      const u64 left = until_due(item, now);
      if (left == 0) chosen = item;
      if (left < *sleep) *sleep = left;
    }
    if (chosen == nullptr) return false;
    running_ = chosen;
    chosen->place.due_now = false;
  }
  run(chosen);
  return true;
}

// Pre: this thread made it running_.
void Worker::run(WorkItem* chosen) {
  chosen->turn();
  {
    const sync::MutexGuard guard(lock_);
    running_ = nullptr;
    chosen->place.since = sync::now_ns();
    turns_.fetch_add(1, sync::kRelease);
    changed_.fetch_add(1, sync::kRelease);
  }
  sync::futex_wake(turns_, INT32_MAX);
  sync::futex_wake(changed_, INT32_MAX);  // one who found `running_` taken
}

bool Worker::run_now(WorkItem* item) {
  {
    const sync::MutexGuard guard(lock_);
    const WorkItem* listed = items_;
    while (listed != nullptr && listed != item) listed = listed->place.next;
    if (running_ != nullptr || listed == nullptr) return false;
    running_ = item;
    item->place.due_now = false;
  }
  run(item);
  return true;
}

void Worker::start_thread() {
  u32 mine = 0;
  {
    const sync::MutexGuard guard(lock_);
    const Thread now = thread();
    if (now == Thread::kStarting || now == Thread::kRuns) return;
    thread_.store(Thread::kStarting, sync::kRelaxed);
    mine = ++starts_;
  }
  const bool made = make_thread(entry, this, kAllButLibcs & ~kFaults);
  const sync::MutexGuard guard(lock_);
  // A thread that found nothing left to do has said so already, and another may be starting.
  if (thread() == Thread::kStarting && starts_ == mine) {
    thread_.store(made ? Thread::kRuns : Thread::kRefused, sync::kRelaxed);
  }
}

void Worker::add(WorkItem* item) {
  {
    const sync::MutexGuard guard(lock_);
    item->place.since = sync::now_ns();
    item->place.due_now = false;
    item->place.next = items_;
    items_ = item;
  }
  start_thread();
  kick(false);
}

void Worker::remove(WorkItem* item) {
  bool linked = false;
  for (;;) {
    const u32 seen = turns_.load(sync::kAcquire);
    bool runs = false;
    {
      const sync::MutexGuard guard(lock_);
      for (WorkItem** at = &items_; *at != nullptr; at = &(*at)->place.next) {
        if (*at != item) continue;
        *at = item->place.next;
        linked = true;
        break;
      }
      runs = running_ == item;
    }
    if (!runs) break;
    sync::futex_wait(turns_, seen);
  }
  if (linked) kick(false);
}

void Worker::kick(bool at_once) {
  if (at_once) {
    const sync::MutexGuard guard(lock_);
    for (WorkItem* item = items_; item != nullptr; item = item->place.next)
      item->place.due_now = true;
  }
  changed_.fetch_add(1, sync::kRelease);
  sync::futex_wake(changed_, INT32_MAX);
}

void Worker::run_due() {
  u64 sleep = sync::kNoTimeout;
  while (run_one(sync::now_ns(), &sleep)) {
  }
}

void add_work(WorkItem* item) {
  worker.add(item);
}

void remove_work(WorkItem* item) {
  worker.remove(item);
}

void kick_worker(bool at_once) {
  worker.kick(at_once);
}

namespace {

struct OwnThread {
  void (*run)(void*);
  void* argument;
};

void* enter_own_thread(void* start) {
  const OwnThread what = *static_cast<OwnThread*>(start);
  destroy(static_cast<OwnThread*>(start));
  sys::call(SYS_prctl, PR_SET_NAME, sys::arg("stagetwo-device"));
  Footing footing;
  footing.enter(__builtin_frame_address(0));
  what.run(what.argument);
  rejoin_thread_count();
  return nullptr;
}

}  // namespace

bool start_own_thread(void (*run)(void*), void* argument) {
  const auto start = stagetwo::make<OwnThread>("host.own_thread", OwnThread{run, argument});
  if (!start) return false;
  if (make_thread(enter_own_thread, *start, kAllButLibcs & ~kFaults)) return true;
  destroy(*start);
  return false;
}

bool run_turn(WorkItem* item) {
  return worker.run_now(item);
}

void work_without_thread() {
  if (worker.thread() != Thread::kRefused) [[likely]]
    return;
  worker.run_due();
}

bool worker_runs() {
  const Thread now = worker.thread();
  return now == Thread::kRuns || now == Thread::kStarting;
}

void debug_without_worker(bool without) {
  refuse_threads.store(without, sync::kRelaxed);
}

void worker_after_fork_child() {
  worker.start_afresh();
}

}  // namespace stagetwo::host
