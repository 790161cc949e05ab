// SPDX-License-Identifier: Apache-2.0
#pragma once

// The engine's own thread: work that comes back every so often and belongs to no call of the
// client. Analogue: a kernel thread of a VM (kernel file: vhost_task.c, as KVM's NX recovery uses
// it). Differs: one for the whole process, made when the first item is added, gone with the last.
//
// Invariants: I1  a process that adds no item has no thread of ours.
//             I2  after remove_work() returns, no turn of that item runs or will run.
//             I3  the thread runs no code of the client: every signal is blocked in it, but the two
//                 with which libc reaches every thread (setuid, cancellation), and faults: what it
//                 copies may have lost its rights meanwhile, and that touch fails (access.h).
//             I4  a child of fork has no items and no thread until it adds an item of its own.
// Where no thread can be made (a limit, a seccomp filter) items are not lost: whoever next passes
// work_without_thread() runs what is due. Making one is tried again with every add_work().
// Locking: one leaf lock around the list; turns run without it.
// Lifetime: an item is borrowed from add_work until remove_work returns.

#include "base/types.h"
#include "sync/futex.h"

namespace stagetwo::host {

class WorkItem {
 public:
  WorkItem() = default;
  WorkItem(const WorkItem&) = delete;
  WorkItem& operator=(const WorkItem&) = delete;

  // One turn. Context: no lock held, no section open; may block; touches client memory by
  // host/access.h alone.
  virtual void turn() = 0;
  // From now until the next turn; asked after each turn and after kick_worker().
  // sync::kNoTimeout: not before the next kick.
  virtual u64 period_ns() = 0;

  // The worker's, under its lock.
  struct Place {
    WorkItem* next = nullptr;
    u64 since = 0;  // of the last turn, or of add_work
    bool due_now = false;
  };
  Place place;

 protected:
  ~WorkItem() = default;
};

// Pre: not in the list. The first turn comes a period from now.
void add_work(WorkItem* item);
// Waits for a turn that runs. An item that is not in the list (a child's copy) is left alone.
// Context: not from a turn.
void remove_work(WorkItem* item);
// Periods changed: every item is asked again. With `at_once` each also gets a turn now.
void kick_worker(bool at_once = false);

// Runs a turn of `item` here and now. False: somebody's turn runs, or the item is in no list.
bool run_turn(WorkItem* item);

// Runs what is due if there is no thread to do it. One relaxed load when there is.
void work_without_thread();

// A thread of a room's own, detached, with a stack of 256 KiB: a device that works by itself. It
// runs no code of the client (I3), and may touch client memory by host/access.h. False: none can be
// made. In a child of fork it is not there.
[[nodiscard]] bool start_own_thread(void (*run)(void*), void* argument);

// Does the thread exist? Racy: it may be about to end.
[[nodiscard]] bool worker_runs();
// For tests: the next attempts to make the thread fail.
void debug_without_worker(bool without);
void worker_after_fork_child();

}  // namespace stagetwo::host
