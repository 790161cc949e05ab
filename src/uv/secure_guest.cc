// SPDX-License-Identifier: Apache-2.0
#include "uv/secure_guest.h"

#include <algorithm>

#include "base/check.h"
#include "base/guard.h"
#include "base/trace.h"

// Pages of one guest, as the hypervisor moves them. Its life stands in guest_life.cc.
//
// Two flags that the kernel's version carries on the device page are not there. `skip_page_out` and
// `remove_gfn` exist because page-out is reached through a fault, and A FAULT CANNOT CARRY
// ARGUMENTS: whoever drops a device page has to leave a note on it, and a note that is not taken
// off again throws the guest's bytes away at the next touch. Here nobody reaches page-out by a
// fault of his own: share_fresh() and give_up() put the successor of the stand-in, which represents
// the secure page, in place themselves.
//
// A frame that both sides use, and the process that gives its address up:
//
//   who names it (name_frame)          | who unmaps (unmap_begin, unmap_end)
//   takes the gate's snapshot          |
//   asks for the page's address        |
//                                      | begins the gate; UV_PAGE_INVAL: nothing named yet
//   UV_PAGE_IN: the ultravisor has it  |
//   looks at the gate: it has moved    | the address is another's from here on
//   UV_PAGE_INVAL                      |
//
// Between UV_PAGE_IN and the look nobody uses the frame: the ultravisor keeps the guest off a page
// it has asked about until it is answered. If UV_PAGE_INVAL comes after UV_PAGE_IN, it is the one
// that counts. Guard uv_recheck_frame.
//
// A touch, and a call that puts something else in the stand-in's place:
//
//   call (claim .. put_back)           | touch (touch_begin)
//   the page is busy                   |
//                                      | finds it busy: kAgain, lets the record go
//   put_back: waits for the touch      |
//                                      | comes again: nothing stands in any more
//
// If the touch waited for the page, and put_back() for the touch, nobody would go on. A touch that
// comes when the call is done finds no stand-in, and must not put anything there: the guest may be
// using the frame that is there now.

namespace stagetwo::uv {
namespace {

// What a refusal of the ultravisor is in an answer to it: it may be worth another try, or not.
constexpr Status to_answer(Status of_ultravisor) {
  if (of_ultravisor == Status::kSuccess) return Status::kSuccess;
  return is_transient(of_ultravisor) ? Status::kBusy : Status::kParameter;
}

}  // namespace

SecureGuest::~SecureGuest() {
  const sync::MutexGuard guard(lock_);
  ST_CHECK(state_ == GuestState::kNormal && messages_ == 0);
}

// ---- messages to the ultravisor ---------------------------------------------------------------

Status SecureGuest::tell(Call call, u64 a, u64 b, u64 c, u64 d) {
  return ultravisor_->call({call, lpid_, {lpid_, a, b, c, d}}, Caller::kHypervisor);
}
Status SecureGuest::tell_page_in(Gpa page, u64 frame) {
  return tell(Call::kUvPageIn, frame, page.raw(), 0, order_of(page_bytes_));
}
Status SecureGuest::tell_page_out(Gpa page, u64 frame) {
  return tell(Call::kUvPageOut, frame, page.raw(), 0, order_of(page_bytes_));
}
// Refusals do not matter: a page the ultravisor has no frame of has none afterwards either.
Status SecureGuest::tell_gone(Gpa page, u64 flags) {
  const Status told = tell(Call::kUvPageInval, page.raw(), order_of(page_bytes_), flags);
  const sync::MutexGuard guard(lock_);
  if (told != Status::kBusy) ++use_.forgotten;
  return told;
}

// ---- words ------------------------------------------------------------------------------------

SecureGuest::Word* SecureGuest::find(Gpa page) {
  const u64 number = page.raw() / page_bytes_;
  for (Slot& slot : slots_) {
    if (number - slot.first < slot.words.size()) return &slot.words[number - slot.first];
  }
  return nullptr;
}

// All of them in one slot, or nullptr.
SecureGuest::Word* SecureGuest::find_all(Gpa first, u64 count) {
  const u64 number = first.raw() / page_bytes_;
  for (Slot& slot : slots_) {
    const u64 at = number - slot.first, pages = slot.words.size();
    if (at < pages) return count <= pages - at ? &slot.words[at] : nullptr;
  }
  return nullptr;
}

SecureGuest::Claim SecureGuest::claim(u64 gpa, PageEvent event) {
  const sync::MutexGuard guard(lock_);
  const auto answer = [](Status status) {
    return Claim{status, PageState::kNone, PageWork::kNothing, PageState::kNone};
  };
  if (state_ == GuestState::kNormal) return answer(Status::kUnsupported);
  if (gpa % page_bytes_ != 0) return answer(Status::kParameter);
  Word* const word = find(Gpa(gpa));
  const PageState was = word != nullptr ? word->state : PageState::kNone;
  const bool is_taken = ST_GUARD(uv_page_is_taken, word != nullptr && word->busy);
  if (life_comes_first() || is_taken) return answer(Status::kBusy);
  const PageCell& cell = page_cell(event, was);
  if (cell.work == PageWork::kNothing) return answer(cell.status);
  ST_CHECK(word != nullptr);  // there is nothing to do about a page of no slot
  word->busy = true;
  ++messages_;
  return {Status::kSuccess, was, cell.work, cell.next};
}

void SecureGuest::release(Gpa page, PageState now, u64 GuestUse::* counter) {
  const sync::MutexGuard guard(lock_);
  Word* const word = find(page);
  word->state = now;
  word->busy = false;
  --messages_;
  if (counter != nullptr) ++(use_.*counter);
  turnstile_.turn();
}

// ---- H_SVM_PAGE_IN and H_SVM_PAGE_OUT ----------------------------------------------------------

Status SecureGuest::service(const Message& message, Caller caller) {
  const u64 request = static_cast<u64>(message.call);
  trace::emit(trace::Event::kvm_hcall_enter, trace::Room::uv, lpid_, request, message.args[0],
              message.args[1]);
  const Status done = serve(message, caller);
  trace::emit(trace::Event::kvm_hcall_exit, trace::Room::uv, lpid_, request, to_word(done));
  return done;
}

Status SecureGuest::serve(const Message& message, Caller caller) {
  // ABORT is answered by the guest's state alone: what is saved of the caller is the guest's.
  const bool of_guest = caller != Caller::kUltravisor;
  if (message.call == Call::kHSvmInitAbort) {
    const bool undoes = !ST_GUARD(uv_abort_of_guest, of_guest);
    return undoes ? init_abort() : abort_of_guest();
  }
  if (ST_GUARD(uv_call_of_guest, of_guest)) return Status::kUnsupported;
  switch (message.call) {
    case Call::kHSvmInitStart:
      return init_start();
    case Call::kHSvmInitDone:
      return init_done();
    case Call::kHSvmPageIn:
      return page_in(message.args[0], message.args[1], message.args[2]);
    case Call::kHSvmPageOut:
      return page_out(message.args[0], message.args[1], message.args[2]);
    case Call::kReflectedFault:
      return reflected(message.args[0]);
    case Call::kPlacesFor:
      return places(message.args[0], message.args[1]);
    case Call::kPageInUntouched:
      return page_in_untouched(message.args[0], message.args[1]);
    // UV_* numbers are not the hypervisor's to serve, H_SVM_TPM_COMM nobody's.
    default:
      return Status::kFunction;
  }
}

// H_SVM_PAGE_IN has three uses: the first move of a page, the return of one that was paged out, and
// (with the flag) sharing, without it for a shared page the end of sharing. What a shared page is
// stands in page_states.h. Sharing is idempotent: a shared page's frame is named again. Moving is
// not idempotent: a page that is secure is PARAMETER. No success that did nothing, though one that
// moved nothing: a page that was never touched goes without UV_PAGE_IN. BUSY may be tried again,
// PARAMETER may not.
Status SecureGuest::page_in(u64 gpa, u64 flags, u64 order) {
  if (state() == GuestState::kNormal) return Status::kUnsupported;
  if (order != order_of(page_bytes_)) return Status::kP3;
  if ((flags & ~kPageInShared) != 0) return Status::kP2;
  const bool shares = flags == kPageInShared;
  const Claim page = claim(gpa, shares ? PageEvent::kHvPageInShared : PageEvent::kHvPageIn);
  if (page.work == PageWork::kNothing) return page.status;
  const Status done = work_on(Gpa(gpa), page.was, page.work);
  if (done == Status::kSuccess) {
    if (page.work != PageWork::kShareFrame) note_change(Gpa(gpa));
    const auto counter = shares                           ? &GuestUse::shares
                         : page.was == PageState::kShared ? &GuestUse::unshares
                                                          : &GuestUse::page_ins;
    release(Gpa(gpa), page.next, counter);
    return done;
  }
  // The ultravisor did not get back what it had given away: the guest has ended.
  const bool lost = done == Status::kP3;
  release(Gpa(gpa), lost ? PageState::kLost : page.was, nullptr);
  return lost ? Status::kParameter : done;
}

// Idempotent. Successes that did nothing: a page that is not in secure memory, as it is normal,
// shared or paged out.
Status SecureGuest::page_out(u64 gpa, u64 flags, u64 order) {
  if (state() == GuestState::kNormal) return Status::kUnsupported;
  if (order != order_of(page_bytes_)) return Status::kP3;
  if (flags != 0) return Status::kP2;
  const Claim page = claim(gpa, PageEvent::kHvPageOut);
  if (page.work == PageWork::kNothing) return page.status;
  const Status done = work_on(Gpa(gpa), page.was, page.work);
  if (done == Status::kSuccess) {
    // It was told of when the page went in; but the process may have mapped something else since.
    note_change(Gpa(gpa));
    release(Gpa(gpa), page.next, &GuestUse::page_outs);
    return done;
  }
  // Sealed, but nothing is mapped there that could have it, and it could not be taken back.
  const bool gone = done == Status::kHardware;
  release(Gpa(gpa), gone ? page.next : page.was, nullptr);
  return gone ? Status::kParameter : done;
}

// A guest touched a page that both sides use, and whose frame the process gave up. Idempotent. A
// success that did nothing: the page is not shared any more.
Status SecureGuest::reflected(u64 gpa) {
  const Gpa page(gpa);
  PageState was = PageState::kNone;
  {
    const sync::MutexGuard guard(lock_);
    if (state_ == GuestState::kNormal) return Status::kUnsupported;
    Word* const word = gpa % page_bytes_ == 0 ? find(page) : nullptr;
    if (word == nullptr) return Status::kParameter;
    if (life_comes_first() || word->busy) return Status::kBusy;
    was = word->state;
    if (was != PageState::kShared) return Status::kSuccess;
    word->busy = true;
    ++messages_;
  }
  bool named = false;
  const Status done = name_frame(page, &named);
  release(page, was, nullptr);
  return done == Status::kSuccess && !named ? Status::kBusy : done;
}

// Of pages that could be shared. Idempotent: a question. Each is a success that did nothing.
Status SecureGuest::places(u64 gpa, u64 count) {
  constexpr u64 kAtOnce = 256;
  if (gpa % page_bytes_ != 0) return Status::kParameter;
  for (u64 page = gpa / page_bytes_, end = page + count; page < end;) {
    const u64 first = page;
    {
      const sync::MutexGuard guard(lock_);
      if (state_ == GuestState::kNormal) return Status::kUnsupported;
      for (; page < end && page < first + kAtOnce; ++page) {
        const Word* const word = find(Gpa(page * page_bytes_));
        const PageState is = word != nullptr ? word->state : PageState::kNone;
        const PageCell& cell = page_cell(PageEvent::kHvPageInShared, is);
        if (cell.status != Status::kSuccess) return cell.status;
        if (is == PageState::kShared) break;
      }
    }
    if (!memory_.has_places(Gpa(first * page_bytes_), (page - first) * page_bytes_)) {
      return Status::kParameter;
    }
    // The one it ended at is shared, and has its place.
    if (page < end && page < first + kAtOnce) ++page;
  }
  return Status::kSuccess;
}

// Not idempotent, as H_SVM_PAGE_IN. No success that did nothing: nothing is sent, but the pages
// leave the process.
Status SecureGuest::page_in_untouched(u64 gpa, u64 count) {
  const Gpa first(gpa);
  if (gpa % page_bytes_ != 0 || count == 0) return Status::kParameter;
  {
    const sync::MutexGuard guard(lock_);
    if (state_ == GuestState::kNormal) return Status::kUnsupported;
    if (life_comes_first()) return Status::kBusy;
    Word* const words = find_all(first, count);
    if (words == nullptr) return Status::kParameter;
    const auto is_normal = [](const Word& w) { return !w.busy && w.state == PageState::kNormal; };
    if (!std::all_of(words, words + count, is_normal)) return Status::kParameter;
    std::for_each(words, words + count, [](Word& word) { word.busy = true; });
    ++messages_;
  }
  const bool taken = memory_.take_untouched(first, count);
  if (taken) note_change(first, count);
  const PageState next = page_cell(PageEvent::kHvPageIn, PageState::kNormal).next;
  const sync::MutexGuard guard(lock_);
  // A message is under way: the slot is where it was.
  std::for_each_n(find_all(first, count), count, [&](Word& word) {
    if (taken) word.state = next;
    word.busy = false;
  });
  --messages_;
  use_.page_ins += taken ? count : 0;
  turnstile_.turn();
  return taken ? Status::kSuccess : Status::kParameter;
}

// ---- the works --------------------------------------------------------------------------------

Status SecureGuest::work_on(Gpa page, PageState was, PageWork work) {
  bool named = false;
  switch (work) {
    case PageWork::kMoveIn:
      return move_in(page, was);
    case PageWork::kMoveOut:
      return move_out(page);
    case PageWork::kShareFresh:
      return share_fresh(page);
    // A sealed page's frame is wiped by the ultravisor, which knows that it is one.
    case PageWork::kShareCleared:
    case PageWork::kShareFrame:
      return name_frame(page, &named);
    case PageWork::kForgetFrame:
    case PageWork::kGiveUp:
    case PageWork::kRestore:
    case PageWork::kLeave:
    case PageWork::kNothing:
      break;
  }
  ST_CHECK(false);
  return Status::kHardware;
}

// The page, and how many behind it are in the same state and nobody's.
u64 SecureGuest::alike_from(Gpa page, PageState state) {
  constexpr u64 kMost = 16;
  const sync::MutexGuard guard(lock_);
  u64 pages = 1;
  for (; pages < kMost; ++pages) {
    const Word* const word = find(page + pages * page_bytes_);
    if (word == nullptr || word->busy || word->state != state) break;
  }
  return pages;
}

// The process's bytes go, and come back if the ultravisor does not want them. kP3: they are not
// those that were sealed.
Status SecureGuest::move_in(Gpa page, PageState was) {
  u64 frame = 0;
  switch (memory_.take(page, alike_from(page, was), &frame)) {
    case Taken::kHole:
      return Status::kParameter;
    case Taken::kBusy:
      return Status::kBusy;
    case Taken::kUntouched:
      if (was == PageState::kNormal) return Status::kSuccess;
      frame = memory_.new_frame();
      break;
    case Taken::kFrame:
      break;
  }
  if (frame == 0) {
    memory_.discard(page);
    return Status::kBusy;
  }
  const Status told = tell_page_in(page, frame);
  if (!ST_GUARD(uv_page_in_answer, told != Status::kSuccess)) {
    memory_.drop_frame(frame);
    return Status::kSuccess;
  }
  if (!memory_.put_back(page, frame)) memory_.drop_frame(frame);
  return told == Status::kP3 && was == PageState::kPagedOut ? told : to_answer(told);
}

Status SecureGuest::move_out(Gpa page) {
  const u64 frame = memory_.new_frame();
  if (frame == 0) return Status::kBusy;
  const Status told = tell_page_out(page, frame);
  if (told == Status::kSuccess && memory_.put_back(page, frame)) return told;
  // Nothing is mapped there: the ultravisor takes it back.
  const bool lost = told == Status::kSuccess && tell_page_in(page, frame) != Status::kSuccess;
  memory_.drop_frame(frame);
  if (lost) return Status::kHardware;
  return told == Status::kSuccess ? Status::kParameter : to_answer(told);
}

// A frame of zeros is shared first and then put where the stand-in is: until the ultravisor has
// agreed, the secure page and its stand-in are as they were. Without a place for the frame nothing
// is shared, and the guest keeps what it has there.
Status SecureGuest::share_fresh(Gpa page) {
  if (!memory_.has_places(page, page_bytes_)) return Status::kParameter;
  const u64 frame = memory_.new_frame();
  if (frame == 0) return Status::kBusy;
  const Status told = tell_page_in(page, frame);
  if (told != Status::kSuccess) {
    memory_.drop_frame(frame);
    return to_answer(told);
  }
  bool named = false;
  if (memory_.put_back(page, frame)) {
    static_cast<void>(name_frame(page, &named));
  } else {
    memory_.drop_frame(frame);
  }
  // The place went meanwhile, as it may a moment later. The page is shared all the same; the
  // guest's next touch asks for the frame there is then.
  if (!named) static_cast<void>(tell_gone(page));
  return Status::kSuccess;
}

// The frame that is there now is used by both sides. Success with *named false: the process gave
// the address up meanwhile, and the ultravisor has been told that too.
Status SecureGuest::name_frame(Gpa page, bool* named) {
  const auto snapshot = gate_.snapshot();
  const u64 address = memory_.address_of(page);
  if (address == 0) return Status::kParameter;
  const Status told = tell_page_in(page, address);
  if (told != Status::kSuccess) return to_answer(told);
  *named = !ST_GUARD(uv_recheck_frame, gate_.must_retry(snapshot, page.raw() / page_bytes_));
  if (!*named) static_cast<void>(tell_gone(page));
  return Status::kSuccess;
}

// ---- what the process does ---------------------------------------------------------------------

// A touch waits for as long as the page takes; one that has waited too long is told of, once.
// `is_over`: it waits no more. Who has not asked for so long has given up.
void SecureGuest::note_wait(Gpa page, bool is_over) {
  PageWait* at = nullptr;
  PageWait* oldest = &waits_[0];
  for (PageWait& wait : waits_) {
    if (wait.latest != 0 && wait.page == page) at = &wait;
    if (wait.latest < oldest->latest) oldest = &wait;
  }
  if (is_over) {
    if (at != nullptr) at->latest = 0;
    return;
  }
  const u64 now = sync::now_ns();
  if (at == nullptr || now - at->latest > kSlowNs) {
    if (at == nullptr) at = oldest;
    *at = {page, {}, now};
  }
  at->latest = now;
  if (at->watchdog.barks()) ++use_.slow;
}

SecureGuest::Touch SecureGuest::touch_begin(Gpa page, u64* frame) {
  const Gpa start(page.raw() & ~(page_bytes_ - 1));
  PageState then = PageState::kPagedOut;
  {
    const sync::MutexGuard guard(lock_);
    Word* const word = find(start);
    if (word == nullptr) return Touch::kRefused;
    if (word->busy) {
      note_wait(start, false);
      return Touch::kAgain;
    }
    if (page_cell(PageEvent::kHvTouch, word->state).work != PageWork::kMoveOut) {
      note_wait(start, true);
      return Touch::kNoStandIn;
    }
    if (aborting_) then = PageState::kNormal;
    word->busy = true;
    ++messages_;
  }
  *frame = memory_.new_frame();
  const Status told = *frame != 0 ? tell_page_out(start, *frame) : Status::kBusy;
  if (told == Status::kSuccess) {
    const sync::MutexGuard guard(lock_);
    find(start)->state = then;
    note_wait(start, true);
    ++use_.touches;
    return Touch::kFrame;
  }
  memory_.drop_frame(*frame);
  release(start, PageState::kSecure, nullptr);
  const sync::MutexGuard guard(lock_);
  note_wait(start, !is_transient(told));
  return is_transient(told) ? Touch::kAgain : Touch::kRefused;
}

void SecureGuest::touch_end(Gpa page, u64 frame, bool put) {
  const Gpa start(page.raw() & ~(page_bytes_ - 1));
  PageState now = this->page(start);
  if (!put) {
    if (now == PageState::kPagedOut && tell_page_in(start, frame) == Status::kSuccess) {
      now = PageState::kSecure;
    }
    memory_.drop_frame(frame);
  }
  release(start, now, nullptr);
}

// Not for whoever decides the guest's life, and has all its pages: what becomes of them is his to
// say, and he may be waiting for the end of a change of addresses.
bool SecureGuest::hold_sealed(Gpa page) {
  for (;;) {
    u32 turn = 0;
    {
      const sync::MutexGuard guard(lock_);
      Word* const word = find(page);
      if (state_ == GuestState::kNormal || living_ || word == nullptr) return false;
      if (!word->busy) {
        if (word->state != PageState::kPagedOut) return false;
        word->busy = true;
        ++messages_;
        return true;
      }
      turn = turnstile_.now();
    }
    turnstile_.wait(turn);
  }
}

void SecureGuest::open_or_widen(bool first, Gpa start, u64 bytes) {
  const u64 page = start.raw() / page_bytes_;
  const u64 last = (start.raw() + bytes - 1) / page_bytes_;
  first ? gate_.begin(page, last) : gate_.extend(page, last);
}

void SecureGuest::unmap_begin(Gpa start, u64 bytes) {
  open_or_widen(true, start, bytes);
  static_cast<void>(tell_gone_between(start, bytes, 0));
}
void SecureGuest::unmap_more(Gpa start, u64 bytes) {
  open_or_widen(false, start, bytes);
  static_cast<void>(tell_gone_between(start, bytes, 0));
}

// Frames that were named as gone before one was met in use are named again at the next touch.
bool SecureGuest::try_unmap_begin(Gpa start, u64 bytes) {
  open_or_widen(true, start, bytes);
  const bool all = tell_gone_between(start, bytes, kInvalNow);
  if (!all) gate_.end();
  return all;
}
bool SecureGuest::try_unmap_more(Gpa start, u64 bytes) {
  open_or_widen(false, start, bytes);
  return tell_gone_between(start, bytes, kInvalNow);
}

bool SecureGuest::tell_gone_between(Gpa start, u64 bytes, u64 flags) {
  for (Gpa page = Gpa(start.raw() & ~(page_bytes_ - 1)); page < start + bytes;
       page += page_bytes_) {
    bool named = false;
    {
      const sync::MutexGuard guard(lock_);
      if (state_ == GuestState::kNormal) return true;
      const Word* const word = find(page);
      named = word != nullptr &&
              (word->busy ||
               page_cell(PageEvent::kHvUnmapped, word->state).work == PageWork::kForgetFrame);
    }
    if (named && tell_gone(page, flags) == Status::kBusy) return false;
  }
  return true;
}

void SecureGuest::unmap_end() {
  gate_.end();
}

}  // namespace stagetwo::uv
