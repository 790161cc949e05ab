// SPDX-License-Identifier: Apache-2.0
// The thread that answers touches of absent pages. It makes no allocation, touches nothing that an
// owner could take, waits for no thread that could wait for it, and runs no code of the client.

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "base/alloc.h"
#include "base/failpoint.h"
#include "base/process_page.h"
#include "base/sys.h"
#include "host/memory_budget.h"
#include "host/owner_table.h"
#include "host/thread_count.h"

namespace stagetwo::host {
namespace {

constexpr size_t kStackBytes = 256 * 1024;

// The stamp of the process whose thread runs, 0: none. Whoever sets it makes the thread.
constinit sync::Atomic<u32> resolver_of{0};

using KernelSigset = u64;
// Signals 32 and 33 are libc's own: set-id calls wait until every thread has answered.
constexpr KernelSigset kLibcs = KernelSigset{1} << 31 | KernelSigset{1} << 32;
// A touch of memory that has lost its rights meanwhile has to come through.
constexpr KernelSigset kFaults = KernelSigset{1} << (SIGSEGV - 1) | KernelSigset{1} << (SIGBUS - 1);
constexpr KernelSigset kAllButThese = ~(kLibcs | kFaults);

void set_mask(const KernelSigset* set, KernelSigset* old) {
  sys::call(SYS_rt_sigprocmask, SIG_SETMASK, sys::arg(set), sys::arg(old), sizeof(KernelSigset));
}

void* serve(void*) {
  sys::call(SYS_prctl, PR_SET_NAME, sys::arg("stagetwo-pages"));
  userfault::Touch touches[userfault::kMaxTouches];
  for (;;) {
    const unsigned count = userfault::wait_for_touches(touches);
    if (count == 0) {
      rejoin_thread_count();
      return nullptr;
    }
    for (unsigned i = 0; i < count; ++i) {
      // A process that touches fast what it never had would be ahead of who makes room: its next
      // touch waits for us.
      if (owner_table()->resolve(touches[i])) {
        budget::owe_for(HvaRange(page_floor(touches[i].page), kPageSize));
      }
    }
  }
}

// On a stack of the engine's own, which no owner takes; it is never given back.
int make_thread() {
  if (failpoint::should_fail("host.resolver_thread")) return EAGAIN;
  pthread_attr_t attributes;
  if (pthread_attr_init(&attributes) != 0) return EAGAIN;
  const auto stack = map_pages(kPageSize + kStackBytes, "host.resolver_stack");
  int made = ENOMEM;
  if (stack) {
    u8* const bottom = static_cast<u8*>(*stack) + kPageSize;
    static_cast<void>(sys::mprotect(*stack, kPageSize, PROT_NONE));
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstack(&attributes, bottom, kStackBytes);
    KernelSigset before = 0;
    set_mask(&kAllButThese, &before);
    pthread_t thread{};
    made = pthread_create(&thread, &attributes, serve, nullptr);
    if (made == 0) leave_thread_count();
    set_mask(&before, nullptr);
    if (made != 0) unmap_pages(*stack, kPageSize + kStackBytes);
  }
  pthread_attr_destroy(&attributes);
  return made;
}

}  // namespace

Result<void> start_resolver() {
  const u32 stamp = process_stamp();
  u32 seen = resolver_of.load(sync::kRelaxed);
  if (seen == stamp) [[likely]]
    return {};
  if (!resolver_of.compare_exchange(seen, stamp)) return {};
  const int made = make_thread();
  if (made == 0) return {};
  resolver_of.store(0);
  return refuse(made);
}

}  // namespace stagetwo::host
