// SPDX-License-Identifier: Apache-2.0
#include "host/pin_account.h"

#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "addr/addr.h"
#include "base/process_stamp.h"
#include "base/sys.h"
#include "host/capable.h"
#include "host/process_files.h"
#include "host/session.h"
#include "sync/atomic.h"

namespace stagetwo::host {
namespace {

constinit sync::Atomic<u64> of_process{0};

// That this thread may lock what it likes was found in the process of the stamp, at that age of
// rights; so many pages are believed it still.
constexpr u32 kBelievedPages = 255, kAges = 1u << 24;
struct Belief {
  u32 stamp;
  u32 age_and_pages;  // of which the pages are the last 8 bits
};
constinit sync::Atomic<u32> rights_age{0};
[[gnu::tls_model("initial-exec")]] constinit thread_local Belief belief{};

sync::Atomic<u64>& of_user() {
  return session_word(kPinnedWord);
}

u64 limit_in_pages() {
  struct ::rlimit limit{};
  if (sys::call(SYS_prlimit64, 0, RLIMIT_MEMLOCK, 0, sys::arg(&limit)) != 0) return 0;
  return limit.rlim_cur / kPageSize;
}

// In pages.
u64 locked_by_kernel() {
  return status_kilobytes("VmLck:").value_or(0) / (kPageSize / 1024);
}

// `others`: what counts against the limit besides.
Result<void> charge(sync::Atomic<u64>& counter, u64 pages, u64 others) {
  const u64 limit = limit_in_pages();
  u64 now = counter.load(sync::kRelaxed);
  do {
    u64 sum = 0;
    const bool over = __builtin_add_overflow(now + others, pages, &sum) || sum > limit;
    if (over) return refuse(ENOMEM);
  } while (!counter.compare_exchange(now, now + pages));
  return {};
}

}  // namespace

PinCharge pin_charge(PinCharge wanted, u64 pages) {
  const u32 stamp = stamp_of_process(), age = rights_age.load(sync::kRelaxed) % kAges;
  const bool is_same = belief.stamp == stamp && belief.age_and_pages / (kBelievedPages + 1) == age;
  if (is_same && pages <= belief.age_and_pages % (kBelievedPages + 1)) [[likely]] {
    belief.age_and_pages -= static_cast<u32>(pages);
    return PinCharge::kNone;
  }
  if (!capable(CAP_IPC_LOCK)) return wanted;
  belief = {stamp, age * (kBelievedPages + 1) + kBelievedPages};
  return PinCharge::kNone;
}

void forget_rights() {
  rights_age.fetch_add(1, sync::kRelaxed);
}

Result<void> charge_pins(PinCharge mode, u64 pages) {
  if (mode == PinCharge::kUser) ST_TRY(charge(of_user(), pages, 0));
  if (mode == PinCharge::kProcess) ST_TRY(charge(of_process, pages, locked_by_kernel()));
  return {};
}

void uncharge_pins(PinCharge mode, u64 pages) {
  if (mode == PinCharge::kUser) of_user().fetch_sub(pages);
  if (mode == PinCharge::kProcess) of_process.fetch_sub(pages);
}

void uncharge_pins_of_the_dead(PinCharge mode, u64 pages) {
  if (mode == PinCharge::kUser) of_user().fetch_sub(pages);
}

PinCharged pins_charged() {
  return {of_process.load(), of_user().load()};
}

// A child has no pins; what its parent charged to the user is the parent's.
void pin_account_after_fork_child() {
  of_process.store(0);
}

}  // namespace stagetwo::host
