// SPDX-License-Identifier: Apache-2.0
#include "host/pin_account.h"

#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "addr/addr.h"
#include "base/process_stamp.h"
#include "base/sys.h"
#include "host/capable.h"
#include "host/pin_ledger.h"
#include "host/process_files.h"
#include "host/process_name.h"
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

// A process as a ledger names it: its number, when it began (a turn of the ticks is 248 days), and
// a part of the namespace that the number is of.
constexpr unsigned kPidBits = 22, kTickBits = 31, kSpaceBits = 10;
static_assert(kPidBits + kTickBits + kSpaceBits + 1 == 64);

u64 low_bits(u64 value, unsigned bits) {
  return value & ((u64{1} << bits) - 1);
}
u64 space_here() {
  return low_bits(pid_space(), kSpaceBits);
}
u64 in_ledger(const ProcessName& process, u64 space) {
  const u64 number = u64{process.pid} << kTickBits | low_bits(process.start_time, kTickBits);
  return (number << kSpaceBits | space) << 1;
}
u32 pid_of(u64 name) {
  return static_cast<u32>(name >> (kTickBits + kSpaceBits + 1));
}

bool is_gone(u32 pid) {
  return sys::call(SYS_kill, pid, 0) == -ESRCH;
}

// Who cannot be asked for lives, as far as anybody here knows.
bool is_dead(u64 name) {
  const u64 space = low_bits(name >> 1, kSpaceBits);
  if (space != space_here() || !proc_is_ours()) return false;
  const ProcessName now = name_of_process(pid_of(name));
  if (now.start_time == 0) return is_gone(now.pid);
  return !now.alive || in_ledger(now, space) != name;
}

PinLedger of_user() {
  return {{.names = &session_word(kPinNameWords),
           .counts = &session_word(kPinCountWords),
           .places = PinLedger::kMostPlaces,
           .common = &session_word(kPinnedWord)},
          is_dead};
}

// This process's place there, found at its first charge: its stamp (upper half), the place and 1.
struct PlaceHere {
  sync::Atomic<u64> place{0};
  sync::Atomic<u64> name{0};
};
constinit PlaceHere place_here;
constexpr unsigned kStampAt = 32;

unsigned own_place() {
  const u64 stamp = u64{stamp_of_process()} << kStampAt;
  u64 known = place_here.place.load(sync::kAcquire);
  if (known - stamp - 1 <= PinLedger::kCommon) [[likely]]
    return static_cast<unsigned>(known - stamp - 1);
  const ProcessName self = name_of_this_process();
  const u64 name = self.start_time == 0 ? 0 : in_ledger(self, space_here());
  place_here.name.store(name, sync::kRelaxed);
  const u64 fresh = stamp + 1 + (name == 0 ? PinLedger::kCommon : of_user().claim(name));
  // Another thread's place, where it was the first.
  if (!place_here.place.compare_exchange(known, fresh, sync::kAcqRel)) return own_place();
  return static_cast<unsigned>(fresh - stamp - 1);
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

Result<void> charge_user(u64 pages) {
  const unsigned place = own_place();
  const u64 name = place_here.name.load(sync::kRelaxed);
  if (!of_user().charge(place, pages, limit_in_pages(), name)) return refuse(ENOMEM);
  return {};
}

Result<void> charge_process(u64 pages) {
  const u64 limit = limit_in_pages(), others = locked_by_kernel();
  u64 now = of_process.load(sync::kRelaxed);
  do {
    u64 sum = 0;
    const bool over = __builtin_add_overflow(now + others, pages, &sum) || sum > limit;
    if (over) return refuse(ENOMEM);
  } while (!of_process.compare_exchange(now, now + pages));
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
  forget_user_namespace();
  rights_age.fetch_add(1, sync::kRelaxed);
}

Result<void> charge_pins(PinCharge mode, u64 pages) {
  if (mode == PinCharge::kUser) return charge_user(pages);
  if (mode == PinCharge::kProcess) return charge_process(pages);
  return {};
}

void uncharge_pins(PinCharge mode, u64 pages) {
  if (mode == PinCharge::kUser) of_user().uncharge(own_place(), pages);
  if (mode == PinCharge::kProcess) of_process.fetch_sub(pages);
}

PinCharged pins_charged() {
  return {of_process.load(), of_user().charged()};
}

void begin_pin_account() {
  const u32 pid = static_cast<u32>(sys::getpid());
  sync::Atomic<u64>* const names = &session_word(kPinNameWords);
  bool any = false;
  for (unsigned i = 0; i < PinLedger::kMostPlaces; ++i) any = any || pid_of(names[i].load()) == pid;
  if (any) of_user().drop(in_ledger(name_of_this_process(), space_here()));
}

// A child has no pins; what its parent charged to the user is the parent's, and without a session
// the words are copies of the parent's.
void pin_account_after_fork_child() {
  of_process.store(0);
  place_here.place.store(0);
  if (!session_folder().empty()) return;
  for (unsigned i = 0; i < PinLedger::kMostPlaces; ++i) {
    (&session_word(kPinNameWords))[i].store(0);
    (&session_word(kPinCountWords))[i].store(0);
  }
  session_word(kPinnedWord).store(0);
}

}  // namespace stagetwo::host
