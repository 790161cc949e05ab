// SPDX-License-Identifier: Apache-2.0
#include "sync/restartable.h"

#include <linux/membarrier.h>
#include <sys/rseq.h>

#include <cstddef>

#include "base/arch/restartable.h"
#include "base/guard.h"
#include "base/sys.h"
#include "sync/atomic.h"
#include "sync/futex.h"

// libc registers each thread and says where its area is; a libc that does not know of it has no
// such symbols. The area begins with cpu_id_start, cpu_id, rseq_cs.
#pragma weak __rseq_offset
#pragma weak __rseq_size

// One access against one barrier:
//
//   owner                              | invalidator
//   section = descriptor               |
//   1: nothing is asked                |
//                                      | asked = 1
//                                      | barrier: the owner runs: interrupted, its next
//                                      | instruction is the abort; it does not run: the same
//                                      | when it is scheduled
//   5: not done                        | it has let go: passed
//   slow way: hold()                   | unmaps
//
//   section = descriptor               | asked = 1
//                                      | barrier
//   1: something is asked              | it has let go: passed
//   not done                           | unmaps
//
//   1: nothing is asked                | asked = 1
//   2: the access                      |
//   4: (behind the section)            | barrier: nothing to take back; the access is before it
//                                      | it has let go: passed
//
// Holding against looking (Dekker; the barrier is the owner's fence):
//
//   holds                              | asked = 1
//   read asked                         | barrier
//                                      | read what the owner does
//
//   The barrier's moment in the owner is behind the store: the invalidator reads "holds" and waits
//   for the acknowledgement. It is before the store: the load sees 1, and the owner acknowledges.
//
// Sharing: a barrier serves whoever asked before it began.
//
//   A                                  | B
//   begun 4 → 5, in the kernel         |
//                                      | asked = 1; asks: begun is 5, the next one will do
//   done = 5                           | not enough: 5 began before
//                                      | busy, begun 6, …, done = 6
//   asks at begun 6: waits for 7, or for B to leave `busy`
//
// Nobody waits for a thread in the kernel longer than kPatienceNs: it may not be scheduled.

namespace stagetwo::sync {
namespace {

constexpr u64 kPatienceNs = 30'000;
constexpr size_t kCpuIdOffset = 4;
constexpr size_t kSectionOffset = 8;
constexpr unsigned kNeededSize = 16;

enum Support : u32 { kUnknown, kYes, kNo };

// support: stored (release) by whoever asked the kernel first; the answer is the same for all.
constinit Atomic<u32> support{kUnknown};
constinit Atomic<u32> forbidden{0};  // by tests
// Numbers of barriers: begun rises before one, done (release) is the highest that returned.
constinit Atomic<u64> begun{0};
constinit Atomic<u64> done{0};
constinit Atomic<u32> busy{0};  // somebody is in the kernel for one; a hint
constinit Atomic<u64> issued{0};
constinit Atomic<u64> shared{0};

bool supported() {
  if constexpr (!arch::kRestartable) return false;
  if (forbidden.load(kRelaxed) != 0) return false;
  u32 known = support.load(kAcquire);
  if (known == kUnknown) {
    const bool area = &__rseq_size != nullptr && &__rseq_offset != nullptr;
    known = area && __rseq_size >= kNeededSize &&
                    sys::membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ)
                ? kYes
                : kNo;
    support.store(known, kRelease);
  }
  return known == kYes;
}

bool ask_kernel() {
  if (!ST_GUARD(restart_barrier, true)) return true;
  if (sys::membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ)) return true;
  // A process that registered is not refused, except by a filter that came later.
  return false;
}

void raise(Atomic<u64>& word, u64 value) {
  u64 seen = word.load(kRelaxed);
  while (seen < value && !word.compare_exchange_weak(seen, value, kAcqRel)) {
  }
}

// Post: true: another thread's barrier, begun after `before`, has returned. False: `busy` is the
// caller's, or patience is over.
bool served_by_another(u64 before, bool* is_mine) {
  u64 start = 0;
  for (;;) {
    if (done.load(kAcquire) > before) return true;
    u32 nobody = 0;
    *is_mine = busy.compare_exchange(nobody, 1, kAcqRel);
    if (*is_mine) return false;
    const u64 now = now_ns();
    if (start == 0) start = now;
    if (now - start > kPatienceNs) return false;
    spin_hint();
  }
}

}  // namespace

u64* restartable_section() {
  if (!supported()) return nullptr;
  auto* const area = static_cast<std::byte*>(__builtin_thread_pointer()) + __rseq_offset;
  // Negative: not registered. The kernel writes it, this thread reads it.
  const auto* const cpu = reinterpret_cast<volatile s32*>(area + kCpuIdOffset);
  return *cpu < 0 ? nullptr : reinterpret_cast<u64*>(area + kSectionOffset);
}

void forget_restartable_section(u64* section) {
  *static_cast<volatile u64*>(section) = 0;
}

bool restart_barrier() {
#if defined(ST_SCHED)
  if (sched::active()) {
    if (ST_GUARD(restart_barrier, true)) sched::restart_everywhere();
    return true;
  }
#endif
  if (!supported()) return false;
  const u64 before = begun.fetch_add(0, kSeqCst);  // after the caller's stores
  bool is_mine = false;
  if (served_by_another(before, &is_mine)) {
    shared.fetch_add(1, kRelaxed);
    return true;
  }
  const u64 number = begun.fetch_add(1, kSeqCst) + 1;
  const bool made = ask_kernel();
  if (made) {
    issued.fetch_add(1, kRelaxed);
    raise(done, number);
  }
  if (is_mine) busy.store(0, kRelease);
  return made;
}

RestartCounts restart_counts() {
  return {.issued = issued.load(kRelaxed), .shared = shared.load(kRelaxed)};
}

NoRestartableSections::NoRestartableSections() {
  forbidden.fetch_add(1);
}
NoRestartableSections::~NoRestartableSections() {
  forbidden.fetch_sub(1);
}

}  // namespace stagetwo::sync
