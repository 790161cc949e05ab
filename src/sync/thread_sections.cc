// SPDX-License-Identifier: Apache-2.0
#include "sync/thread_sections.h"

#include <pthread.h>

#include "base/check.h"
#include "base/sys.h"

namespace stagetwo::sync {
namespace {

[[gnu::tls_model("initial-exec")]] thread_local AckLine* innermost = nullptr;
[[gnu::tls_model("initial-exec")]] thread_local bool watched = false;

// 0: no key yet, 1: somebody makes it, else key + 2. Outside the schedule seam: no protocol hangs
// on it, and the key outlives every scheduled run.
unsigned key_state = 0;

void thread_dies(void*) {
  watched = false;  // another key's destructor may still enter a section; then we are asked again
  ThreadSections::abandon();
}

// Registers the calling thread. Where no key is left, the waiter's look at the thread remains.
[[gnu::cold]] void watch_this_thread() {
  unsigned state = __atomic_load_n(&key_state, __ATOMIC_ACQUIRE);
  if (state == 0 && __atomic_compare_exchange_n(&key_state, &state, 1u, false, __ATOMIC_ACQ_REL,
                                                __ATOMIC_ACQUIRE)) {
    pthread_key_t key = 0;
    state = pthread_key_create(&key, thread_dies) == 0 ? key + 2 : 0;
    __atomic_store_n(&key_state, state, __ATOMIC_RELEASE);
  }
  if (state < 2) return;  // being made by another thread: the next entry registers
  watched = pthread_setspecific(state - 2, &watched) == 0;
}

}  // namespace

void ThreadSections::push(AckLine& line) {
  if (!watched) [[unlikely]]
    watch_this_thread();
  line.outer_ = innermost;
  innermost = &line;
}

void ThreadSections::pop(AckLine& line) {
  ST_CHECK(innermost == &line);
  innermost = line.outer_;
}

bool ThreadSections::entered(const AckLine& line) {
  for (const AckLine* own = innermost; own != nullptr; own = own->outer_) {
    if (own == &line) return true;
  }
  return false;
}

ThreadSections::Aside::Aside() {
  for (AckLine* line = innermost; line != nullptr; line = line->outer_) {
    line->state_.store(0, kRelease);
  }
}

ThreadSections::Aside::~Aside() {
  for (AckLine* line = innermost; line != nullptr; line = line->outer_) {
    const u64 mine = u64{++line->entries_} << 32 | static_cast<u32>(sys::current_tid());
    line->state_.exchange(mine, kSeqCst);
  }
}

void ThreadSections::abandon() {
  while (innermost != nullptr) {
    AckLine* line = innermost;
    innermost = line->outer_;
    line->state_.store(0, kRelease);
    if (line->waiters_.load(kRelaxed) != 0) line->ring();
  }
}

}  // namespace stagetwo::sync
