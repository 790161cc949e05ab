// SPDX-License-Identifier: Apache-2.0
#include "uv/ultravisor.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "base/guard.h"
#include "uv/ultravisor_internal.h"

// What the ultravisor asks the hypervisor for, and what a secure guest does: touching its memory,
// sharing, unsharing.
//
// A page that is asked about is marked, and the hypervisor called with no lock held. The mark keeps
// the guest and other requests off the page, not the hypervisor: its answer comes as UV_PAGE_IN or
// UV_PAGE_OUT of the same page, and a touch of its process may come first:
//
//   who asks (page_in_of)              | a touch of the process (SecureGuest::touch_begin)
//   asked: in                          | its own busy bit
//   H_SVM_PAGE_IN ->                   |
//                                      | -> UV_PAGE_OUT: sealed, whatever is asked
//   <- BUSY: the page is the touch's   |
//   asked: nothing; BUSY; again later  | put there; done
//
// Neither side waits for the other with a page in its hands: who finds a page taken answers BUSY
// and lets its own go. A requester tries kTries times, the guest comes again for ever.

namespace stagetwo::uv {
namespace {

// What a guest's call answers that is not from a secure guest, or from one that has ended.
constexpr Status not_a_secure_guest(SvmState state) {
  return state == SvmState::kStopped ? Status::kState : Status::kPermission;
}

// Asks until the answer is final, a bounded number of times.
template <typename F>
Status insist(F f) {
  Status answer = Status::kBusy;
  for (unsigned i = 0; i < kTries && is_transient(answer); ++i) {
    if (i != 0) sync::yield_thread();
    answer = f();
  }
  return answer;
}

}  // namespace

Status Ultravisor::ask(u32 lpid, Call call, u64 page, u64 flags) {
  return hypervisor_->call({call, lpid, {address_of(page), flags, order_of(options_.page_bytes)}},
                           Caller::kUltravisor);
}

// ---- page-in and page-out that the ultravisor wants --------------------------------------------

Status Ultravisor::ask_page_in(u32 lpid, Gpa page) {
  Svm* const svm = find(lpid);
  const Run run(svm, kLiving);
  return run.ok() ? page_in_of(svm, number_of(page)) : run.refusal();
}

Status Ultravisor::page_in_of(Svm* svm, u64 page) {
  const Status marked = mark(svm, page, Asked::kIn, true);
  if (marked != Status::kSuccess) return marked;
  const PageRecord was = look(svm, page);
  const PageCell& cell = page_cell(PageEvent::kUvTouch, was.state);
  if (cell.work != PageWork::kMoveIn) {
    unmark(svm, page);
    return cell.status;
  }
  // Room first: the hypervisor is not asked for what could not be kept. For a page that may never
  // have been touched there is to be some, but none is its own: it is taken when bytes come.
  const bool has_bytes = was.state != PageState::kNormal;
  if (has_bytes || pool_.free_count() == 0) {
    u32 reserved = mem::SecurePool::kNone;
    const Status found = room(svm, page, &reserved);
    if (!has_bytes) {
      drop(reserved);
    } else if (found != Status::kSuccess) {
      unmark(svm, page);
      return found;
    } else {
      const sync::MutexGuard guard(svm->lock);
      svm->find(page)->pool = reserved;
    }
  }
  const Status answer = ask(svm->lpid, Call::kHSvmPageIn, page, 0);
  u32 left = mem::SecurePool::kNone;
  unmark(svm, page, [&](PageRecord& record) {
    // Nothing was sent: it had never been touched. It is zeros, and has no memory yet.
    if (answer == Status::kSuccess && record.state == PageState::kNormal) {
      record.state = PageState::kSecure;
      note_page(svm->lpid, address_of(page), PageState::kNormal, record.state);
    }
    if (record.state != PageState::kSecure) {
      left = std::exchange(record.pool, mem::SecurePool::kNone);
    }
  });
  drop(left);
  return answer;
}

// Pages that may never have been touched, all at once: as page_in_of() of each, but for room in the
// pool, of which they need none yet. Refused, nothing has changed.
Status Ultravisor::page_in_untouched(Svm* svm, u64 first, u64 count) {
  const u64 end = first + count;
  {
    const sync::MutexGuard guard(svm->lock);
    for (u64 page = first; page < end; ++page) {
      const PageRecord* const record = svm->find_open(page);
      const bool is_free =
          record != nullptr && record->idle() && record->state == PageState::kNormal;
      if (!is_free) return Status::kParameter;
    }
    for (u64 page = first; page < end; ++page) svm->find(page)->asked = Asked::kIn;
  }
  const Message asks{Call::kPageInUntouched, svm->lpid, {address_of(first), count}};
  const Status answer = hypervisor_->call(asks, Caller::kUltravisor);
  // A touch may be at one already.
  for (u64 page = first; page < end;) {
    u32 turn = 0;
    {
      const sync::MutexGuard guard(svm->lock);
      for (; page < end; ++page) {
        PageRecord* const record = svm->find(page);
        if (record->busy) break;
        if (answer == Status::kSuccess && record->state == PageState::kNormal) {
          record->state = PageState::kSecure;
          note_page(svm->lpid, address_of(page), PageState::kNormal, record->state);
        }
        record->asked = Asked::kNothing;
      }
      svm->turnstile.turn();
      turn = svm->turnstile.now();
    }
    if (page < end) svm->turnstile.wait(turn);
  }
  return answer;
}

Status Ultravisor::ask_page_out(u32 lpid, Gpa page) {
  Svm* const svm = find(lpid);
  const Run run(svm, kLiving);
  if (!run.ok()) return run.refusal();
  const Status marked = mark(svm, number_of(page), Asked::kOut, true);
  if (marked != Status::kSuccess) return marked;
  const Status answer = ask(lpid, Call::kHSvmPageOut, number_of(page), 0);
  unmark(svm, number_of(page));
  return answer;
}

Status Ultravisor::ask_share(u32 lpid, Gpa page) {
  Svm* const svm = find(lpid);
  const Run run(svm, kLiving);
  if (!run.ok()) return run.refusal();
  const Status marked = mark(svm, number_of(page), Asked::kShare, false);
  if (marked != Status::kSuccess) return marked;
  const PageCell& cell = page_cell(PageEvent::kUvShare, look(svm, number_of(page)).state);
  const Status answer =
      cell.work == PageWork::kNothing ? cell.status : share_one(svm, number_of(page));
  unmark(svm, number_of(page));
  return answer;
}

// ---- sharing -----------------------------------------------------------------------------------

// Calls about many pages are made of turns: between two of them the vCPU's thread may have a signal
// to answer. Whatever else is made of the vCPU meanwhile, what was done stays done.
CallRest Ultravisor::begin_or_go_on(Svm* svm, Call call, u64 gfn, u64 count) {
  const sync::MutexGuard guard(svm->lock);
  const bool goes_on = svm->rest.is_of(call, gfn, count);
  const CallRest begins{call, gfn, count, gfn};
  // What shares between two turns of what unshares, or the other way round, undoes what the first
  // ones did, of whichever vCPU it is: then the call is made from its beginning.
  const bool undone = (svm->rest.call == Call::kUvSharePage) != (call == Call::kUvSharePage);
  if (!goes_on && !undone) return begins;
  const CallRest rest = std::exchange(svm->rest, CallRest());
  return goes_on ? rest : begins;
}

Status Ultravisor::rest(Svm* svm, const CallRest& at) {
  const sync::MutexGuard guard(svm->lock);
  svm->rest = at;
  return Status::kBusy;
}

// All of the range or nothing: first every page of the turn is marked and looked at, then they are
// shared one by one. If the hypervisor refuses one, those before it become secure again, of former
// turns too. Their contents are gone either way, so whatever can be foreseen is refused before the
// first page changes. Idempotent. A success that did nothing: pages that are shared already stay as
// they are.
Status Ultravisor::share(u32 lpid, u64 gfn, u64 count) {
  Svm* const svm = find(lpid);
  const Run run(svm, Run::bit(SvmState::kSecure));
  if (!run.ok()) return not_a_secure_guest(run.state());
  CallRest turn = begin_or_go_on(svm, Call::kUvSharePage, gfn, count);
  if (turn.next == gfn) {
    const Status checked = share_check(svm, gfn, count);
    if (checked != Status::kSuccess) return checked;
  }
  const u64 end = gfn + count, left = end - turn.next;
  const u64 stop = turn.next + std::min(left, options_.esm_pages);
  const Status done = share_turn(svm, turn, stop);
  if (done == Status::kSuccess && stop < end) {
    turn.next = stop;
    return rest(svm, turn);
  }
  const sync::MutexGuard guard(svm->lock);
  // One that unshares may have rested since this turn began.
  if (svm->rest.call != Call::kUvSharePage) svm->rest = {};
  for (u64 page = gfn; page < stop; ++page) {
    PageRecord* const record = svm->find(page);
    if (record != nullptr && record->idle()) record->keeps = false;
  }
  return is_transient(done) ? Status::kRetry : done;
}

// Before anything is marked: is the range there, all of it?
Status Ultravisor::share_check(Svm* svm, u64 first, u64 count) {
  u64 end = 0;
  if (count == 0 || __builtin_add_overflow(first, count, &end)) return Status::kP2;
  const sync::MutexGuard guard(svm->lock);
  for (u64 page = first; page < end; ++page) {
    const PageRecord* const record = svm->find_open(page);
    if (record == nullptr) return page == first ? Status::kParameter : Status::kP2;
    const PageCell& cell = page_cell(PageEvent::kUvShare, record->state);
    if (cell.status != Status::kSuccess) return cell.status;
  }
  return Status::kSuccess;
}

Status Ultravisor::share_turn(Svm* svm, const CallRest& turn, u64 stop) {
  u64 claimed = turn.next;
  Status done = share_claim(svm, turn, stop, &claimed);
  // Of a single page the hypervisor says so before it does anything.
  const bool begins = turn.next == turn.gfn;
  if (done == Status::kSuccess && begins && turn.count > 1 &&
      !has_places(svm->lpid, turn.gfn, turn.count)) {
    done = Status::kParameter;
  }
  u64 shared = turn.next;
  while (done == Status::kSuccess && shared < stop) {
    done = share_one(svm, shared);
    if (done == Status::kSuccess) ++shared;
  }
  if (done != Status::kSuccess) {
    for (u64 page = turn.next; page < shared; ++page) {
      if (!look(svm, page).keeps) static_cast<void>(unshare_one(svm, page, true));
    }
  }
  for (u64 page = turn.next; page < claimed; ++page) unmark(svm, page);
  if (done != Status::kSuccess) share_undo(svm, turn.gfn, turn.next);
  return done;
}

Status Ultravisor::share_claim(Svm* svm, const CallRest& turn, u64 stop, u64* claimed) {
  for (u64 page = turn.next; page < stop; ++page) {
    const Status marked = mark(svm, page, Asked::kShare, false);
    if (marked != Status::kSuccess) return page == turn.gfn ? marked : Status::kP2;
    ++*claimed;
    const sync::MutexGuard guard(svm->lock);
    PageRecord* const record = svm->find(page);
    record->keeps = record->state == PageState::kShared;
    if (record->state == PageState::kLost) return Status::kState;
  }
  return Status::kSuccess;
}

// Pages of former turns, but those that had been shared before. Who has unshared one since, or
// unplugged it, has done it already.
void Ultravisor::share_undo(Svm* svm, u64 first, u64 end) {
  for (u64 page = first; page < end; ++page) {
    if (mark(svm, page, Asked::kShare, true) != Status::kSuccess) continue;
    const PageRecord is = look(svm, page);
    if (is.state == PageState::kShared && !is.keeps) {
      static_cast<void>(unshare_one(svm, page, true));
    }
    unmark(svm, page);
  }
}

bool Ultravisor::has_places(u32 lpid, u64 gfn, u64 count) {
  const Message asks{Call::kPlacesFor, lpid, {address_of(gfn), count}};
  return hypervisor_->call(asks, Caller::kUltravisor) == Status::kSuccess;
}

// Pre: marked.
Status Ultravisor::share_one(Svm* svm, u64 page) {
  if (look(svm, page).keeps) return Status::kSuccess;
  const Status answer =
      insist([&] { return ask(svm->lpid, Call::kHSvmPageIn, page, kPageInShared); });
  if (answer != Status::kSuccess) return is_transient(answer) ? Status::kRetry : Status::kParameter;
  // The hypervisor says so; the record knows.
  return look(svm, page).state == PageState::kShared ? answer : Status::kParameter;
}

// Pre: marked. `by_force`: secure again whatever the hypervisor says; it keeps a frame of zeros
// that the guest does not look at any more, and follows when the page is to leave (evict).
Status Ultravisor::unshare_one(Svm* svm, u64 page, bool by_force) {
  const Asked before = look(svm, page).asked;
  std::optional<Going> going;
  when_quiet(svm, page, [](PageRecord& record) { record.asked = Asked::kUnshare; });
  Status answer = insist([&] { return ask(svm->lpid, Call::kHSvmPageIn, page, 0); });
  if (answer != Status::kSuccess)
    answer = is_transient(answer) ? Status::kRetry : Status::kParameter;
  if (answer != Status::kSuccess && by_force) going.emplace(svm, page, 1);
  when_quiet(svm, page, [&](PageRecord& record) {
    if ((answer == Status::kSuccess || by_force) && record.state == PageState::kShared) {
      record.set_frame(0);
      record.state = PageState::kSecure;
      note_page(svm->lpid, address_of(page), PageState::kShared, record.state);
    }
    record.asked = before;
  });
  return answer;
}

// Idempotent. Successes that did nothing: a page that is not shared, as it is normal, secure or
// paged out. Stops at the first page the hypervisor refuses: those before it are secure, and the
// call may be repeated.
Status Ultravisor::unshare(u32 lpid, u64 gfn, u64 count) {
  Svm* const svm = find(lpid);
  const Run run(svm, Run::bit(SvmState::kSecure));
  if (!run.ok()) return not_a_secure_guest(run.state());
  u64 end = 0;
  if (count == 0 || __builtin_add_overflow(gfn, count, &end)) return Status::kP2;
  CallRest turn = begin_or_go_on(svm, Call::kUvUnsharePage, gfn, count);
  for (u64 page = gfn; turn.next == gfn && page < end; ++page) {
    const PageState is = look(svm, page).state;
    if (is == PageState::kNone) return page == gfn ? Status::kParameter : Status::kP2;
    const Status status = page_cell(PageEvent::kUvUnshare, is).status;
    if (status != Status::kSuccess) return status;
  }
  u64 most = options_.esm_pages;
  for (; turn.next < end; ++turn.next) {
    if (most == 0) return rest(svm, turn);
    const u64 page = turn.next;
    Status done = mark(svm, page, Asked::kUnshare, false);
    if (done != Status::kSuccess) return done;
    const PageCell& cell = page_cell(PageEvent::kUvUnshare, look(svm, page).state);
    if (cell.work == PageWork::kGiveUp) {
      done = unshare_one(svm, page, false);
      --most;
    }
    unmark(svm, page);
    if (done != Status::kSuccess) return done;
  }
  return Status::kSuccess;
}

// Idempotent. A success that did nothing: a guest that shares no page. Goes on behind a page that
// stays shared, and answers what the first of them did: the guest is to know that one is left, and
// to have as few as can be. One whose slot has gone is none.
Status Ultravisor::unshare_all(u32 lpid) {
  Svm* const svm = find(lpid);
  const Run run(svm, Run::bit(SvmState::kSecure));
  if (!run.ok()) return not_a_secure_guest(run.state());
  const auto is_shared = [svm](u64 page) {
    const sync::MutexGuard guard(svm->lock);
    const PageRecord* const record = svm->find_open(page);
    return record != nullptr && record->state == PageState::kShared;
  };
  CallRest turn = begin_or_go_on(svm, Call::kUvUnshareAllPages, 0, 0);
  u64 most = options_.esm_pages;
  for (;;) {
    u64 end = 0;
    {
      const sync::MutexGuard guard(svm->lock);
      if (!svm->pages_from(turn.next, &turn.next, &end)) return turn.so_far;
    }
    for (; turn.next < end; ++turn.next) {
      if (!is_shared(turn.next)) continue;
      if (most-- == 0) return rest(svm, turn);
      const Status done = unshare(lpid, turn.next, 1);
      const bool is_left = done != Status::kSuccess && is_shared(turn.next);
      if (is_left && turn.so_far == Status::kSuccess) turn.so_far = done;
    }
  }
}

// ---- the guest's memory ------------------------------------------------------------------------

GuestAccess Ultravisor::access(u32 lpid, Gpa at, void* bytes, u64 size, bool write) {
  Svm* const svm = find(lpid);
  auto* piece = static_cast<u8*>(bytes);
  while (size > 0) {
    const u64 part = std::min(size, options_.page_bytes - at.raw() % options_.page_bytes);
    const GuestAccess done = access_page(svm, at, piece, part, write);
    if (done != GuestAccess::kDone) return done;
    piece += part;
    at += part;
    size -= part;
  }
  return GuestAccess::kDone;
}

// The process gave up the frame of a shared page: the fault is the hypervisor's.
Status Ultravisor::use_shared(Svm* svm, u64 page) {
  const Status marked = mark(svm, page, Asked::kIn, true);
  if (marked != Status::kSuccess) return marked;
  const Status answer = ask(svm->lpid, Call::kReflectedFault, page, 0);
  unmark(svm, page);
  return answer;
}

// The page's bytes are there for the guest, and are its own until it is done with them: *record.
// Otherwise *record is nullptr, and what was seen stands in *is.
bool Ultravisor::grab(Svm* svm, u64 page, PageRecord** record, PageRecord* is, u32* turn) {
  const sync::MutexGuard guard(svm->lock);
  PageRecord* const found = svm->find_open(page);
  if (found == nullptr) return false;
  *turn = svm->turnstile.now();
  *is = *found;
  const bool there = is->state == PageState::kSecure
                         ? is->pool != mem::SecurePool::kNone
                         : is->state == PageState::kShared && is->frame() != 0;
  *record = is->idle() && there ? found : nullptr;
  if (*record != nullptr) found->busy = true;
  return true;
}

// Pre: grabbed.
bool Ultravisor::use_page(Svm* svm, PageRecord* record, const PageRecord& is, u64 offset,
                          void* bytes, u64 size, bool write) {
  bool good = true;
  if (is.state == PageState::kSecure) {
    u8* const secure = pool_.at(is.pool) + offset;
    std::memcpy(write ? secure : bytes, write ? bytes : secure, size);
    pool_.used(is.pool);
  } else {
    good = write ? memory_->write(is.frame() + offset, bytes, size)
                 : memory_->read(is.frame() + offset, bytes, size);
  }
  const sync::MutexGuard guard(svm->lock);
  record->busy = false;
  if (!good) record->set_frame(0);
  svm->turnstile.turn();
  return good;
}

// What a refusal means for the guest. Its slot may have gone since the page was looked at: then
// there is nothing to refuse, and the next look says so.
GuestAccess Ultravisor::refused(Svm* svm, u64 page) {
  const sync::MutexGuard guard(svm->lock);
  if (svm->state == SvmState::kStopped) return GuestAccess::kStopped;
  const bool is_there = svm->state == SvmState::kSecure && svm->find_open(page) != nullptr;
  return is_there ? GuestAccess::kFault : GuestAccess::kRetry;
}

// What is missing for the guest to use the page is asked for.
Status Ultravisor::come(Svm* svm, u64 page, const PageRecord& is) {
  return is.state == PageState::kSecure   ? give_room(svm, page)
         : is.state == PageState::kShared ? use_shared(svm, page)
                                          : page_in_of(svm, page);
}

// ---- the translations of vCPUs ------------------------------------------------------------------

// A shared page is where the process has it, whether or not its frame is known here: the process
// tells the table itself when it gives an address up.
Where Ultravisor::translate(u32 lpid, Gpa page, u8** at) {
  Svm* const svm = find(lpid);
  if (svm == nullptr) return Where::kProcess;
  const sync::MutexGuard guard(svm->lock);
  switch (svm->state) {
    case SvmState::kNone:
      return Where::kProcess;
    case SvmState::kTransient:
    case SvmState::kAborting:
    case SvmState::kEnding:
      return Where::kLater;
    case SvmState::kStopped:
      return Where::kStopped;
    case SvmState::kSecure:
      break;
  }
  const PageRecord* const record = svm->find_open(number_of(page));
  if (record == nullptr) return Where::kMmio;
  if (!record->idle()) return Where::kLater;
  if (record->state == PageState::kShared) return Where::kProcess;
  if (record->state != PageState::kSecure || record->pool == mem::SecurePool::kNone) {
    return Where::kLater;
  }
  *at = pool_.at(record->pool);
  return Where::kSecure;
}

GuestAccess Ultravisor::bring(u32 lpid, Gpa page) {
  Svm* const svm = find(lpid);
  if (svm == nullptr) return GuestAccess::kDone;
  const Run run(svm, Run::bit(SvmState::kSecure));
  u32 turn = 0;
  PageRecord is;
  {
    const sync::MutexGuard guard(svm->lock);
    turn = svm->turnstile.now();
    if (svm->state == SvmState::kNone) return GuestAccess::kDone;
    if (svm->state == SvmState::kStopped) return GuestAccess::kStopped;
    if (run.ok()) {
      const PageRecord* const found = svm->find_open(number_of(page));
      if (found == nullptr) return GuestAccess::kMmio;
      is = *found;
    }
  }
  if (!run.ok() || !is.idle()) {
    svm->turnstile.wait(turn);
    return GuestAccess::kRetry;
  }
  const bool there = is.state == PageState::kSecure ? is.pool != mem::SecurePool::kNone
                                                    : is.state == PageState::kShared;
  if (there) return GuestAccess::kDone;
  const Status done = come(svm, number_of(page), is);
  if (is_transient(done)) return GuestAccess::kRetry;
  if (done == Status::kSuccess) return GuestAccess::kDone;
  return refused(svm, number_of(page));
}

GuestAccess Ultravisor::access_page(Svm* svm, Gpa at, void* bytes, u64 size, bool write) {
  const u64 page = number_of(at), offset = at.raw() % options_.page_bytes;
  for (unsigned i = 0; i < kTries; ++i) {
    const Run run(svm, Run::bit(SvmState::kSecure));
    if (!run.ok()) return GuestAccess::kStopped;
    u32 turn = 0;
    PageRecord* record = nullptr;
    PageRecord is;
    if (!grab(svm, page, &record, &is, &turn)) return GuestAccess::kMmio;
    if (record != nullptr) {
      if (use_page(svm, record, is, offset, bytes, size, write)) return GuestAccess::kDone;
      continue;
    }
    if (!is.idle()) {
      svm->turnstile.wait(turn);
      continue;
    }
    const Status done = come(svm, page, is);
    if (is_transient(done)) {
      sync::yield_thread();
    } else if (done != Status::kSuccess && refused(svm, page) == GuestAccess::kFault) {
      return GuestAccess::kFault;
    }
  }
  return GuestAccess::kRetry;
}

}  // namespace stagetwo::uv
