// SPDX-License-Identifier: Apache-2.0
#include "uv/ultravisor.h"

#include <algorithm>
#include <utility>

#include "uv/ultravisor_internal.h"

// Room in the pool, which is finite: a free page, or one that a page of the same guest gives up, or
// one of another's that has more than its quota; else the answer is BUSY, and the guest comes
// again.
//
// An instruction uses several pages. A guest that has few in the pool, and gave up one of them for
// the next, would never have all of them there at once. So each has a reserve, which is its quota:
// until it has so many it takes from who has more, and who has no more gives none. There is always
// somebody who has more: all quotas together are no more than the pool.
//
// A page gives its room up by leaving for the hypervisor's process, and that may have no place for
// it: the VMM has unmapped its memory, or the page is of a guest that was stopped. Somebody who
// waits for such a page waits for the VMM, which waits for its vCPU. So who looks for room counts:
// each guest has hands of its own in the pool, one for its own pages and one for others', so that
// nobody else's search makes it pass a page over; when both have been all round, and every page was
// refused for good, there is no room, and the guest's access is a fault of the hypervisor's
// (KVM_RUN: EFAULT). A page that left, or that somebody was just at, begins the count anew.

namespace stagetwo::uv {

Status Ultravisor::room(Svm* svm, u64 page, u32* found) {
  for (unsigned i = 0; i < kTries; ++i) {
    *found = pool_.take({svm->lpid, page});
    if (*found != mem::SecurePool::kNone) return Status::kSuccess;
    if (!options_.evicts) return Status::kBusy;
    const bool wants_reserve = pool_.held(svm->lpid) < quota();
    if (!evict(svm, wants_reserve) && !evict(svm, !wants_reserve)) {
      return has_no_way_out(svm) ? Status::kParameter : Status::kBusy;
    }
  }
  return Status::kBusy;
}

u32 Ultravisor::quota() const {
  const u32 guests = std::max(living_.load(sync::kRelaxed), u32{1});
  return std::min(options_.reserve_pages, pool_.count() / guests);
}

// Of a round that ended so another begins. If nobody has a page there, those that had one have left
// since it was full (a fork has all of them back at once): there is room.
bool Ultravisor::has_no_way_out(Svm* svm) {
  const sync::MutexGuard guard(svm->lock);
  if (svm->refused[0] == Svm::kNobody && svm->refused[1] == Svm::kNobody) return false;
  if (svm->refused[0] < pool_.count() || svm->refused[1] < pool_.count()) return false;
  svm->refused[0] = svm->refused[1] = 0;
  return true;
}

bool Ultravisor::evict(Svm* svm, bool of_others) {
  constexpr unsigned kVictims = 4;
  for (unsigned i = 0; i < kVictims; ++i) {
    mem::SecurePool::Holder victim;
    const bool any =
        pool_.next_victim(svm->lpid, of_others, quota(), &svm->hands[of_others], &victim);
    const Leaves leaves = any ? evict_one(victim) : Leaves::kNever;
    const sync::MutexGuard guard(svm->lock);
    u32& refused = svm->refused[of_others];
    if (!any) {
      refused = Svm::kNobody;
    } else if (leaves != Leaves::kNever) {
      refused = 0;
    } else {
      refused = refused == Svm::kNobody ? 1 : refused + 1;
    }
    if (!any || leaves == Leaves::kYes) return any;
  }
  return false;
}

Ultravisor::Leaves Ultravisor::evict_one(const mem::SecurePool::Holder& victim) {
  Svm* const svm = find(victim.guest);
  const Run run(svm, kLiving);
  if (!run.ok()) return run.state() == SvmState::kStopped ? Leaves::kNever : Leaves::kNotNow;
  {
    const sync::MutexGuard guard(svm->lock);
    PageRecord* const record = svm->find_open(victim.page);
    if (record == nullptr || !record->idle() || record->state != PageState::kSecure ||
        record->pool == mem::SecurePool::kNone) {
      return Leaves::kNotNow;
    }
    record->asked = Asked::kOut;
  }
  const auto moved = [&] { return look(svm, victim.page).pool == mem::SecurePool::kNone; };
  Status answer = ask(victim.guest, Call::kHSvmPageOut, victim.page, 0);
  // A success that moved nothing: the hypervisor takes the page for shared still, because it was
  // unshared by force. It is asked to follow first.
  if (answer == Status::kSuccess && !moved()) {
    when_quiet(svm, victim.page, [](PageRecord& record) { record.asked = Asked::kFollow; });
    answer = ask(victim.guest, Call::kHSvmPageIn, victim.page, 0);
    when_quiet(svm, victim.page, [](PageRecord& record) { record.asked = Asked::kOut; });
    if (answer == Status::kSuccess) answer = ask(victim.guest, Call::kHSvmPageOut, victim.page, 0);
  }
  bool out = false;
  unmark(svm, victim.page, [&](PageRecord& record) TA_NO_ANALYSIS {
    out = record.pool == mem::SecurePool::kNone;
    if (out) ++svm->use.evictions;
  });
  if (out) return Leaves::kYes;
  return is_transient(answer) ? Leaves::kNotNow : Leaves::kNever;
}

// The page has a secure page without memory: it is given one, of zeros.
Status Ultravisor::give_room(Svm* svm, u64 page) {
  const Status marked = mark(svm, page, Asked::kIn, true);
  if (marked != Status::kSuccess) return marked;
  u32 fresh = mem::SecurePool::kNone;
  const Status done = room(svm, page, &fresh);
  unmark(svm, page, [&](PageRecord& record) {
    if (record.state == PageState::kSecure && record.pool == mem::SecurePool::kNone) {
      record.pool = std::exchange(fresh, mem::SecurePool::kNone);
    }
  });
  drop(fresh);
  return done;
}

}  // namespace stagetwo::uv
