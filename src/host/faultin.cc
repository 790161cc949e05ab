// SPDX-License-Identifier: Apache-2.0
#include "host/faultin.h"

#include <sys/mman.h>

#include "base/kernel_numbers.h"
#include "base/sys.h"
#include "base/trace.h"
#include "host/access.h"
#include "host/backstop.h"
#include "host/page_owner.h"
#include "sync/atomic.h"

// What the kernel answers and what it means (the table is the test's, too):
//
//   situation                          POPULATE     here
//   present and permitted, or absent   0            success
//   PROT_NONE; write to a read-only    EINVAL       EFAULT
//   not mapped                         ENOMEM       EFAULT
//   beyond the end of the file         EFAULT       touched: EFAULT
//   user-mode-only userfaultfd         EFAULT       touched: the resolver fills it, success
//   poisoned                           EHWPOISON    EHWPOISON
//
// The touch is a guarded load, or an atomic add of nothing: it changes no byte for any observer. It
// succeeds where POPULATE does (one page, no more), so whoever may take a signal touches first and
// asks the kernel about failures only; a page that an owner hides behind PROT_NONE is left to the
// kernel's answer, and so is a process whose backstop is not there yet.

namespace stagetwo::host {
namespace {

enum class Support : u32 { kUnknown, kYes, kNo };

// Probed once, by whoever comes first; every prober finds the same.
constinit sync::Atomic<Support> support{Support::kUnknown};
constinit sync::Atomic<u64> refused_touches{0};
alignas(kPageSize) constinit u8 probe_page[kPageSize] = {};

// EINTR and EAGAIN mean "ask again"; a bound, so that a kernel that always says so is not for ever.
constexpr int kMaxAsks = 64;

Result<void> touch(Hva at, Access access) {
  u8 byte = 0;
  const bool there = access == Access::kWrite ? fetch_add(at, u8{0}, &byte) : load(at, &byte);
  if (there) return {};
  refused_touches.fetch_add(1, sync::kRelaxed);
  if (take_poison()) return refuse(EHWPOISON);
  return refuse(EFAULT);
}

int populate(Hva page, Access access) {
  const int advice = access == Access::kWrite ? MADV_POPULATE_WRITE : MADV_POPULATE_READ;
  for (int asked = 0; asked < kMaxAsks; ++asked) {
    const Result<void> done = sys::madvise(reinterpret_cast<void*>(page.raw()), kPageSize, advice);
    if (done) return 0;
    const int error = to_int(done.error());
    if (error != EINTR && error != EAGAIN) return error;
  }
  return EFAULT;
}

}  // namespace

bool has_populate() {
  Support known = support.load(sync::kRelaxed);
  if (known == Support::kUnknown) {
    const bool works = sys::madvise(probe_page, kPageSize, MADV_POPULATE_READ).has_value();
    known = works ? Support::kYes : Support::kNo;
    support.store(known, sync::kRelaxed);
  }
  return known == Support::kYes;
}

u64 debug_refused_touches() {
  return refused_touches.load(sync::kRelaxed);
}
void debug_without_populate(bool without) {
  support.store(without ? Support::kNo : Support::kUnknown, sync::kRelaxed);
}

namespace {

bool may_touch_first(Ask first) {
  return first == Ask::kTouch && backstop::installed() && !kernel_meets_hidden_pages();
}

// `runs_on`: the next page is on its way too, if it is there.
Result<void> ask(Hva at, Access access, Ask first, bool runs_on) {
  if (!has_populate()) return touch(at, access);
  const Hva page = page_floor(at);
  if (may_touch_first(first)) {
    // The touch of a page that is there is a miss of every cache, four times as long as the rest of
    // a fault. Who goes through memory finds the next one on its way; looking for one that is not
    // there costs as much.
    if (runs_on) prefetch(at + kPageSize, access);
    const Result<void> touched = touch(at, access);
    trace::emit(trace::Event::st_faultin, trace::Room::host, page.raw(), static_cast<u64>(access),
                static_cast<u64>(touched ? 0 : to_int(touched.error())));
    if (touched || to_int(touched.error()) == EHWPOISON) return touched;
  }
  const int error = populate(page, access);
  trace::emit(trace::Event::st_faultin, trace::Room::host, page.raw(), static_cast<u64>(access),
              static_cast<u64>(error));
  if (error == 0) return {};
  if (error == EHWPOISON) return refuse(EHWPOISON);
  if (error == EFAULT) return touch(at, access);
  return refuse(EFAULT);
}

}  // namespace

Result<void> faultin(Hva at, Access access, Ask first) {
  const Hva page = page_floor(at);
  trace::enter_room(trace::Room::host, 7, page.raw());
  if (!is_user_range(page, kPageSize)) return refuse(EFAULT);
  // Owners first: the kernel would ask them through a signal or another thread, and not at all
  // where the page is hidden behind PROT_NONE. One taken again before the kernel got there is asked
  // for again; a refusal that no owner had part in stands.
  for (int asked = 0;; ++asked) {
    const u64 turn = owners_turn();
    const BringBack owners = bring_back(page);
    if (owners == BringBack::kLost || owners == BringBack::kStuck) return refuse(EFAULT);
    if (owners == BringBack::kNotAbsent) static_cast<void>(fill_first_touch(page, access));
    const Result<void> done = ask(at, access, first, owners == BringBack::kNotAbsent);
    if (done || to_int(done.error()) == EHWPOISON || !kernel_meets_hidden_pages()) return done;
    // What was in transit is waited for first: its end is a turn, whoever had it.
    if (asked == kMaxAsks || (!is_absent(page) && owners_turn() == turn)) return done;
  }
}

}  // namespace stagetwo::host
