// SPDX-License-Identifier: Apache-2.0
#include "uv/secure_guest.h"

#include "base/check.h"
#include "base/guard.h"

// One guest's life: START, DONE, ABORT, SVM_OFF, slots that come and go.
//
//   from \ event   START       DONE      ABORT     SVM_OFF
//   normal         transient   UNSUPP    UNSUPP    normal, nothing done
//   transient      STATE       secure    normal    normal
//   secure         STATE       STATE     STATE     normal
//
// Nothing leads from secure to a state that accepts ABORT: ABORT gives pages back in clear. A START
// that fails leaves the guest normal. Leaving is one function (give_up) with one difference: ABORT
// gives back what it can, SVM_OFF and a slot that goes give back zeros.
//
// A page is held (busy) while its life is decided: messages are answered BUSY, touches come again.
// It is let go as soon as that is done, not when all are, and where pages are to be taken only
// those are held that are on their way: a fork has what is absent brought back, by touches, and
// lets nobody take a page until it is over.
//
//   who takes pages (take_all)         | fork
//   takes page 1; lets it go           |
//                                      | begins; touches page 1: sealed
//   is to take page 2: waits for the   |
//     fork's end                       | done; ends
//   takes page 2                       |
//
// With page 1 in its hands each would wait for the other. For the same reason ABORT restores what
// is absent before it takes a sealed page to open it.

namespace stagetwo::uv {

// One thread at a time, and no message about a single page meanwhile. Who waits holds off new
// messages: those that overlap without end would keep it waiting for ever.
class SecureGuest::Life {
 public:
  explicit Life(SecureGuest* guest) : guest_(*guest) {
    for (bool counted = false;; counted = true) {
      u32 turn = 0;
      {
        const sync::MutexGuard guard(guest_.lock_);
        if (!counted) ++guest_.wanted_;
        if (!guest_.living_ && guest_.messages_ == 0) {
          guest_.living_ = true;
          --guest_.wanted_;
          return;
        }
        turn = guest_.turnstile_.now();
      }
      guest_.turnstile_.wait(turn);
    }
  }
  ~Life() {
    const sync::MutexGuard guard(guest_.lock_);
    guest_.living_ = false;
    guest_.turnstile_.turn();
  }
  Life(const Life&) = delete;
  Life& operator=(const Life&) = delete;

  void becomes(GuestState state) {
    const sync::MutexGuard guard(guest_.lock_);
    guest_.state_ = state;
  }

 private:
  SecureGuest& guest_;
};

// ---- looking ----------------------------------------------------------------------------------

GuestState SecureGuest::state() {
  const sync::MutexGuard guard(lock_);
  return state_;
}
PageState SecureGuest::page(Gpa page) {
  const sync::MutexGuard guard(lock_);
  const Word* const word = find(page);
  return word != nullptr ? word->state : PageState::kNone;
}
GuestUse SecureGuest::use() {
  const sync::MutexGuard guard(lock_);
  return use_;
}
GuestLife SecureGuest::debug_life() {
  const sync::MutexGuard guard(lock_);
  return {living_, wanted_, messages_, running_};
}
bool SecureGuest::debug_busy(Gpa page) {
  const sync::MutexGuard guard(lock_);
  const Word* const word = find(page);
  return word != nullptr && word->busy;
}
void SecureGuest::enable() {
  const sync::MutexGuard guard(lock_);
  enabled_ = true;
}
bool SecureGuest::run_begin() {
  const sync::MutexGuard guard(lock_);
  if (living_) return false;
  ++running_;
  return true;
}
void SecureGuest::run_end() {
  const sync::MutexGuard guard(lock_);
  ST_CHECK(running_ != 0);
  --running_;
}

// ---- pages held ---------------------------------------------------------------------------------

SecureGuest::Slot* SecureGuest::find_slot(u32 id) {
  for (Slot& slot : slots_) {
    if (slot.id == id) return &slot;
  }
  return nullptr;
}

// Pre: a Life, so that nobody but a touch has a page, and slots stay where they are.
void SecureGuest::hold_pages(const Slot* only) {
  for (size_t at = 0, word = 0;;) {
    u32 turn = 0;
    {
      const sync::MutexGuard guard(lock_);
      while (at < slots_.size() &&
             ((only != nullptr && &slots_[at] != only) || word == slots_[at].words.size())) {
        ++at;
        word = 0;
      }
      if (at == slots_.size()) return;
      Word& found = slots_[at].words[word];
      if (!found.busy) {
        found.busy = true;
        ++word;
        continue;
      }
      turn = turnstile_.now();
    }
    turnstile_.wait(turn);
  }
}

void SecureGuest::let_pages_go(const Slot* only) {
  const sync::MutexGuard guard(lock_);
  for (Slot& slot : slots_) {
    if (only != nullptr && &slot != only) continue;
    for (Word& word : slot.words) word.busy = false;
  }
  turnstile_.turn();
}

// f of every held page that is among `states`; each is let go at once. Where f says kNone that is
// the end, and what is left is let go, too.
template <typename F>
bool SecureGuest::for_each_held_page(const Slot* only, unsigned states, F f) {
  bool good = true;
  for (size_t at = 0, word = 0;;) {
    Gpa page;
    PageState was = PageState::kNone;
    {
      const sync::MutexGuard guard(lock_);
      if (at == slots_.size()) return good;
      const Slot& slot = slots_[at];
      if ((only != nullptr && &slot != only) || word == slot.words.size()) {
        ++at;
        word = 0;
        continue;
      }
      was = slot.words[word].state;
      page = Gpa((slot.first + word) * page_bytes_);
    }
    if ((states >> static_cast<unsigned>(was) & 1) == 0) {
      ++word;
      continue;
    }
    const PageState now = good ? f(page, was) : PageState::kNone;
    good = now != PageState::kNone;
    const sync::MutexGuard guard(lock_);
    Word& done = slots_[at].words[word++];
    if (good) done.state = now;
    done.busy = false;
    turnstile_.turn();
  }
}

// ---- START and DONE -----------------------------------------------------------------------------

Status SecureGuest::register_slots() {
  size_t slots = 0;
  {
    const sync::MutexGuard guard(lock_);
    slots = slots_.size();
  }
  for (size_t at = 0; at < slots; ++at) {
    u64 first = 0, pages = 0, id = 0;
    {
      const sync::MutexGuard guard(lock_);
      first = slots_[at].first;
      pages = slots_[at].words.size();
      id = slots_[at].id;
    }
    const Status told =
        tell(Call::kUvRegisterMemSlot, first * page_bytes_, pages * page_bytes_, 0, id);
    if (told == Status::kSuccess) continue;
    unregister_slots(at);
    return Status::kParameter;
  }
  return Status::kSuccess;
}

void SecureGuest::unregister_slots(size_t count) {
  while (count-- > 0) {
    u64 id = 0;
    {
      const sync::MutexGuard guard(lock_);
      id = slots_[count].id;
    }
    static_cast<void>(tell(Call::kUvUnregisterMemSlot, id));
  }
}

// Not idempotent: a guest that began already is told STATE, and stays as it is. No success that did
// nothing.
Status SecureGuest::init_start() {
  if (ultravisor_ == nullptr) return Status::kUnsupported;
  Life life(this);
  {
    const sync::MutexGuard guard(lock_);
    if (state_ != GuestState::kNormal) return Status::kState;
    if (ST_GUARD(uv_opt_in, !enabled_)) return Status::kAuthority;
  }
  const Status registered = register_slots();
  if (registered == Status::kSuccess) life.becomes(GuestState::kTransient);
  return registered;
}

// What is still normal leaves the process, and its contents are thrown away: nobody measured them.
// Pre: a Life, so that nobody else changes a normal page. No more is held than what is on its way:
// see above.
bool SecureGuest::take_all(const Slot* only, Untakable untakable, u64 away) {
  RunLength length;
  for (size_t at = 0, word = 0;;) {
    Gpa page;
    u64 count = 0;
    {
      const sync::MutexGuard guard(lock_);
      if (at == slots_.size()) return true;
      Slot& slot = slots_[at];
      if (only != nullptr && &slot != only) word = slot.words.size();
      for (; word < slot.words.size(); ++word) {
        const PageCell& cell = page_cell(PageEvent::kHvInitDone, slot.words[word].state);
        if (cell.status != Status::kSuccess) return false;
        if (cell.work == PageWork::kGiveUp) break;
      }
      if (word == slot.words.size()) {
        ++at;
        word = 0;
        continue;
      }
      page = Gpa((slot.first + word) * page_bytes_);
      count = hold_normal(slot, word, length.most());
      ST_CHECK(count != 0);
    }
    const bool by_itself = count == 1;
    const bool taken = by_itself ? take_away(page, untakable) : memory_.take_untouched(page, count);
    if (taken) note_change(Gpa(page.raw() + away), count);
    const sync::MutexGuard guard(lock_);
    for (u64 i = 0; i < count; ++i) {
      Word& done = slots_[at].words[word + i];
      if (taken) done.state = page_cell(PageEvent::kHvInitDone, done.state).next;
      done.busy = false;
    }
    turnstile_.turn();
    if (by_itself && !taken) return false;
    if (taken) word += count;
    length.next(count, taken);
  }
}

// How many pages from this one on are normal, at most so many; they are held.
u64 SecureGuest::hold_normal(Slot& slot, u64 word, u64 most) {
  u64 count = 0;
  for (; count < most && word + count < slot.words.size(); ++count) {
    Word& next = slot.words[word + count];
    if (next.state != PageState::kNormal || next.busy) break;
    next.busy = true;
  }
  return count;
}

bool SecureGuest::take_away(Gpa page, Untakable untakable) {
  u64 frame = 0;
  switch (memory_.take(page, 1, &frame)) {
    case Taken::kHole:
    case Taken::kBusy:
      return untakable == Untakable::kStays;
    case Taken::kFrame:
      memory_.drop_frame(frame);
      break;
    case Taken::kUntouched:
      break;
  }
  return true;
}

// Not idempotent: a second one is STATE. No success that did nothing. Refused, it leaves moved what
// it has moved: the ultravisor ends the guest then.
Status SecureGuest::init_done() {
  Life life(this);
  switch (state()) {
    case GuestState::kNormal:
      return Status::kUnsupported;
    case GuestState::kSecure:
      return Status::kState;
    case GuestState::kTransient:
      break;
  }
  const bool all = take_all(nullptr, Untakable::kEnds, 0);
  if (all) life.becomes(GuestState::kSecure);
  return all ? Status::kSuccess : Status::kState;
}

// ---- leaving ------------------------------------------------------------------------------------

// In clear, from an ultravisor that knows that the guest leaves: UV_PAGE_OUT fills the frame, of a
// sealed page from the frame's own bytes. PARAMETER: that one has been given in clear already.
//
//   touch of the process               | ABORT
//   the page is busy, is being sealed  |
//                                      | the ultravisor: aborting
//   UV_PAGE_OUT: in clear              |
//   "paged out"                        |
//                                      | takes it; PARAMETER; puts it back as it is
//
// What cannot be had is zeros.
void SecureGuest::restore(Gpa page, PageState was) {
  u64 frame = 0;
  Taken taken = Taken::kUntouched;
  if (was == PageState::kPagedOut) taken = memory_.take(page, 1, &frame);
  if (frame == 0) frame = memory_.new_frame();
  if (frame != 0 && taken != Taken::kHole && taken != Taken::kBusy) {
    const Status told = tell_page_out(page, frame);
    const bool was_clear = was == PageState::kPagedOut && told == Status::kParameter;
    if ((told == Status::kSuccess || was_clear) && memory_.put_back(page, frame)) return;
  }
  memory_.drop_frame(frame);
  memory_.discard(page);
}

void SecureGuest::give_up(const Slot* only, u64 away) {
  static_cast<void>(for_each_held_page(only, kAllStates, [&](Gpa page, PageState was) {
    const PageCell& cell = page_cell(PageEvent::kHvSvmOff, was);
    if (cell.work != PageWork::kGiveUp) return cell.next;
    memory_.discard(page);
    note_change(Gpa(page.raw() + away));
    return cell.next;
  }));
}

// A transient guest does not run: who says he is one is another vCPU, that left the guest just
// before UV_ESM stopped it. Nothing may be undone for him behind the ultravisor's back: it would
// seal what it is asked for, and forget the key. He is asked to come again when UV_ESM is over.
// Idempotent, as it does nothing; but no success that did nothing: it has none.
Status SecureGuest::abort_of_guest() {
  const sync::MutexGuard guard(lock_);
  switch (state_) {
    case GuestState::kNormal:
      return Status::kUnsupported;
    case GuestState::kTransient:
      return Status::kBusy;
    case GuestState::kSecure:
      break;
  }
  return Status::kState;
}

// Not idempotent: a guest that is normal again is UNSUPPORTED. Success is PARAMETER: the receiver
// is the guest, whose UV_ESM failed. No success that did nothing.
Status SecureGuest::init_abort() {
  Life life(this);
  size_t slots = 0;
  {
    const sync::MutexGuard guard(lock_);
    if (state_ == GuestState::kNormal) return Status::kUnsupported;
    if (ST_GUARD(uv_abort_of_secure, state_ == GuestState::kSecure)) return Status::kState;
    aborting_ = true;
    slots = slots_.size();
  }
  hold_pages(nullptr);
  const auto give_back = [&](Gpa page, PageState was) {
    const PageCell& cell = page_cell(PageEvent::kHvInitAbort, was);
    if (cell.work == PageWork::kRestore) restore(page, was);
    if (cell.work == PageWork::kGiveUp) memory_.discard(page);
    if (cell.work == PageWork::kRestore || cell.work == PageWork::kGiveUp) note_change(page);
    return cell.next;
  };
  constexpr unsigned kSealed = 1U << static_cast<unsigned>(PageState::kPagedOut);
  static_cast<void>(for_each_held_page(nullptr, kAllStates & ~kSealed, give_back));
  static_cast<void>(for_each_held_page(nullptr, kSealed, give_back));
  unregister_slots(slots);
  static_cast<void>(tell(Call::kUvSvmTerminate));
  life.becomes(GuestState::kNormal);
  {
    const sync::MutexGuard guard(lock_);
    aborting_ = false;
  }
  memory_.leave_none_ahead();
  return Status::kParameter;
}

// Idempotent: a guest that never began is a success that did nothing.
Result<void> SecureGuest::svm_off() {
  Life life(this);
  {
    const sync::MutexGuard guard(lock_);
    if (state_ == GuestState::kNormal) return {};
    if (running_ != 0) return refuse(EBUSY);
  }
  hold_pages(nullptr);
  const Status told = tell(Call::kUvSvmTerminate);
  if (told == Status::kSuccess) {
    give_up(nullptr, 0);
    life.becomes(GuestState::kNormal);
  } else {
    let_pages_go(nullptr);
  }
  memory_.leave_none_ahead();
  if (told != Status::kSuccess) return refuse(EINVAL);
  return {};
}

// ---- slots --------------------------------------------------------------------------------------

Result<void> SecureGuest::check_place(Gpa base, u64 bytes, const Slot* but) {
  u64 end = 0;
  if (bytes == 0 || base.raw() % page_bytes_ != 0 || bytes % page_bytes_ != 0 ||
      __builtin_add_overflow(base.raw(), bytes, &end)) {
    return refuse(EINVAL);
  }
  for (const Slot& slot : slots_) {
    const u64 start = slot.first * page_bytes_;
    const bool overlaps = base.raw() < start + slot.words.size() * page_bytes_ && start < end;
    if (&slot != but && overlaps) return refuse(EINVAL);
  }
  return {};
}

Result<void> SecureGuest::check_slot(u32 id, Gpa base, u64 bytes) {
  if (id >= kMostSlots || find_slot(id) != nullptr) return refuse(EINVAL);
  return check_place(base, bytes, nullptr);
}

Result<void> SecureGuest::add_slot(u32 id, Gpa base, u64 bytes) {
  Life life(this);
  GuestState state = GuestState::kNormal;
  const Slot* fresh = nullptr;
  {
    const sync::MutexGuard guard(lock_);
    ST_TRY(check_slot(id, base, bytes));
    Slot slot{id, base.raw() / page_bytes_, Vec<Word>("uv.words")};
    ST_TRY(slot.words.resize(bytes / page_bytes_));
    ST_TRY(slots_.push_back(std::move(slot)));
    fresh = &slots_.back();
    state = state_;
  }
  if (state == GuestState::kNormal) return {};
  const bool known = tell(Call::kUvRegisterMemSlot, base.raw(), bytes, 0, id) == Status::kSuccess;
  if (known) {
    if (state != GuestState::kSecure || take_all(fresh, Untakable::kEnds, 0)) return {};
    hold_pages(fresh);
    static_cast<void>(tell(Call::kUvUnregisterMemSlot, id));
    give_up(fresh, 0);
  }
  const sync::MutexGuard guard(lock_);
  slots_.pop_back();
  return refuse(EINVAL);
}

// The new place is registered before the old one goes, so that a refusal has changed nothing; but
// where they overlap, or no id is free. A guest that has ended (STATE) has no more use for either.
SecureGuest::Moved SecureGuest::register_moved(u32* id, u32 spare, Gpa from, Gpa to, u64 bytes) {
  const auto enters = [&](Gpa at, u32 as) {
    const Status told = tell(Call::kUvRegisterMemSlot, at.raw(), bytes, 0, as);
    return told == Status::kSuccess || told == Status::kState;
  };
  const bool overlaps = from < to + bytes && to < from + bytes;
  if (!overlaps && spare < kMostSlots) {
    if (!enters(to, spare)) return Moved::kNo;
    static_cast<void>(tell(Call::kUvUnregisterMemSlot, *id));
    *id = spare;
    return Moved::kYes;
  }
  static_cast<void>(tell(Call::kUvUnregisterMemSlot, *id));
  if (enters(to, *id)) return Moved::kYes;
  static_cast<void>(enters(from, *id));
  return Moved::kBack;
}

Result<u32> SecureGuest::move_slot(u32 id, u32 spare, Gpa to) {
  Life life(this);
  Slot* slot = nullptr;
  GuestState state = GuestState::kNormal;
  u64 bytes = 0;
  Gpa from;
  {
    const sync::MutexGuard guard(lock_);
    slot = find_slot(id);
    if (slot == nullptr) return refuse(EINVAL);
    bytes = slot->words.size() * page_bytes_;
    from = Gpa(slot->first * page_bytes_);
    ST_TRY(check_place(to, bytes, slot));
    state = state_;
  }
  const bool is_told = state != GuestState::kNormal;
  if (is_told) hold_pages(slot);
  const Moved moved = is_told ? register_moved(&id, spare, from, to, bytes) : Moved::kYes;
  // Whoever keeps the log has the slot at its new place by now, also if it is to come back.
  const u64 away = to.raw() - from.raw();
  if (is_told && moved != Moved::kNo) give_up(slot, away);
  if (moved == Moved::kYes) {
    memory_.moved(from, to, bytes);
    const sync::MutexGuard guard(lock_);
    slot->first = to.raw() / page_bytes_;
    slot->id = id;
  }
  if (is_told && moved == Moved::kNo) let_pages_go(slot);
  if (state == GuestState::kSecure && moved != Moved::kNo) {
    static_cast<void>(take_all(slot, Untakable::kStays, moved == Moved::kYes ? 0 : away));
  }
  if (moved != Moved::kYes) return refuse(EINVAL);
  return id;
}

void SecureGuest::remove_slot(u32 id) {
  Life life(this);
  Slot* slot = nullptr;
  GuestState state = GuestState::kNormal;
  {
    const sync::MutexGuard guard(lock_);
    slot = find_slot(id);
    state = state_;
  }
  if (slot == nullptr) return;
  if (state != GuestState::kNormal) {
    hold_pages(slot);
    static_cast<void>(tell(Call::kUvUnregisterMemSlot, id));
    give_up(slot, 0);
  }
  const sync::MutexGuard guard(lock_);
  slots_.erase(static_cast<size_t>(slot - slots_.begin()));
}

}  // namespace stagetwo::uv
