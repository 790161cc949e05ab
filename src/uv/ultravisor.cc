// SPDX-License-Identifier: Apache-2.0
#include "uv/ultravisor.h"

#include <algorithm>
#include <utility>

#include "uv/run_length.h"
#include "uv/ultravisor_internal.h"

// Who may call what, and the life of a guest. Pages: ultravisor_pages.cc, ultravisor_guest.cc.
//
// The ultravisor keeps a guest until UV_SVM_TERMINATE, also when it began the abort itself: the
// hypervisor gives the pages back in between. A guest that is forgotten takes its key with it, so
// nothing sealed in one life opens in another.

namespace stagetwo::uv {
namespace {

// Of UV_ESM at a page somebody else is at, or whose slots change: turns, and then naps. A tenth of
// a second; who holds a page for longer (a pin) may hold it for ever.
constexpr unsigned kPatience = 256;
constexpr unsigned kNaps = 100;
constexpr u64 kNapNs = 1'000'000;
constexpr u64 kAsOne = 64;  // untouched pages that take as long as one that moves

// UV_ESM's answers to what INIT_START said: not allowed, or not possible.
constexpr Status to_guest(Status start) {
  switch (start) {
    case Status::kAuthority:
    case Status::kUnsupported:
      return Status::kPermission;
    case Status::kBusy:
      return Status::kRetry;
    default:
      return Status::kParameter;
  }
}

bool is_there(Svm* svm, u64 page) {
  const sync::MutexGuard guard(svm->lock);
  return svm->find_open(page) != nullptr;
}

// Is it a call that a guest makes?
constexpr bool is_guests(Call call) {
  return call == Call::kUvEsm || call == Call::kUvSharePage || call == Call::kUvUnsharePage ||
         call == Call::kUvUnshareAllPages;
}
constexpr bool is_ultracall(Call call) {
  return call >= Call::kUvWritePate && call <= Call::kUvSendSbe && static_cast<u32>(call) % 4 == 0;
}

}  // namespace

Ultravisor::~Ultravisor() {
  if (zeros_ != mem::SecurePool::kNone) bounces_.give_back(zeros_);
  size_t count = 0;
  {
    const sync::MutexGuard guard(lock_);
    count = svms_.size();
  }
  for (size_t i = 0; i < count; ++i) {
    u32 lpid = 0;
    {
      const sync::MutexGuard guard(lock_);
      lpid = svms_[i]->lpid;
    }
    static_cast<void>(terminate(lpid));
  }
}

Result<void> Ultravisor::open(const UltravisorOptions& options, Port* hypervisor,
                              RealMemory* memory) {
  ST_TRY(pool_.open(options.pool_pages, options.page_bytes, options.memory));
  ST_TRY(bounces_.open(options.cipher_runs + 1, options.page_bytes, options.memory));
  zeros_ = bounces_.take({});
  options_ = options;
  hypervisor_ = hypervisor;
  memory_ = memory;
  return {};
}

// A number wider than an lpid is nobody's.
Svm* Ultravisor::find(u64 lpid) {
  const sync::MutexGuard guard(lock_);
  for (const Box<Svm>& svm : svms_) {
    if (svm->lpid == lpid) return svm.get();
  }
  return nullptr;
}

Result<Svm*> Ultravisor::find_or_make(u32 lpid) {
  if (Svm* const known = find(lpid)) return known;
  Box<Svm> made = ST_TRY(make_box<Svm>("uv.svm"));
  made->lpid = lpid;
  const sync::MutexGuard guard(lock_);
  for (const Box<Svm>& svm : svms_) {
    if (svm->lpid == lpid) return svm.get();
  }
  if (svms_.size() == kMostGuests) return refuse(ENOSPC);
  // Refused, it ends after the lock: its store has locks of its own.
  ST_TRY(svms_.reserve(svms_.size() + 1));
  ST_CHECK(svms_.push_back(std::move(made)).has_value());
  return svms_.back().get();
}

Result<void> Ultravisor::set_table(u32 lpid, GuestTable* table) {
  Svm* const svm = ST_TRY(find_or_make(lpid));
  const sync::MutexGuard guard(svm->lock);
  svm->table = table;
  return {};
}

// ---- who may call what -------------------------------------------------------------------------

Status Ultravisor::call(const Message& message, Caller caller) {
  const Status done = answer(message, caller);
  trace::emit(trace::Event::st_uv_call, trace::Room::uv, message.lpid,
              static_cast<u64>(message.call), message.args[0], to_word(done));
  return done;
}

Status Ultravisor::answer(const Message& message, Caller caller) {
  switch (caller) {
    case Caller::kHypervisor:
      return from_hypervisor(message);
    case Caller::kGuest:
    case Caller::kSecureGuest:
      return from_guest(message, caller);
    case Caller::kUltravisor:
      break;
  }
  return Status::kPermission;
}

Status Ultravisor::from_hypervisor(const Message& m) {
  if (is_guests(m.call)) return Status::kPermission;
  switch (m.call) {
    case Call::kUvRegisterMemSlot:
      return register_slot(m);
    case Call::kUvUnregisterMemSlot:
      return unregister_slot(m);
    case Call::kUvPageIn:
      return page_in(m);
    case Call::kUvPageOut:
      return page_out(m);
    case Call::kUvPageInval:
      return page_inval(m);
    case Call::kUvSvmTerminate:
      return terminate(m.args[0]);
    // Partition tables, special registers, SCOM, firmware: there are none here. UV_RETURN: a reply
    // travels back as the reply it is, so a call of that name is a bogus one.
    default:
      return Status::kFunction;
  }
}

Status Ultravisor::from_guest(const Message& m, Caller caller) {
  if (!is_ultracall(m.call)) return Status::kFunction;
  if (!is_guests(m.call)) return Status::kPermission;
  if (m.call == Call::kUvEsm) {
    // Idempotent: a secure guest is told that it is one.
    return caller == Caller::kSecureGuest ? Status::kSuccess : esm(m.lpid, m.args[0], m.args[1]);
  }
  if (caller != Caller::kSecureGuest) return Status::kPermission;
  if (m.call == Call::kUvSharePage) return share(m.lpid, m.args[0], m.args[1]);
  if (m.call == Call::kUvUnsharePage) return unshare(m.lpid, m.args[0], m.args[1]);
  return unshare_all(m.lpid);
}

// ---- UV_ESM ------------------------------------------------------------------------------------

// Idempotent: of a secure guest it is a success that did nothing.
Status Ultravisor::esm(u32 lpid, u64 kernel, u64 tree) {
  if (lpid == 0) return Status::kPermission;
  if (kernel == 0) return Status::kP2;
  if (tree == 0) return Status::kP3;
  if (state(lpid) == SvmState::kSecure) return Status::kSuccess;
  u64 next = 0;
  if (!esm_goes_on(lpid, &next)) {
    if (const Status begun = esm_begin(lpid); begun != Status::kSuccess) return begun;
  }
  if (load_from(lpid, &next, options_.esm_pages) != Status::kSuccess) return esm_abort(lpid);
  const Status done = next == kAllPages ? esm_finish(lpid) : Status::kBusy;
  if (done == Status::kSuccess) return done;
  if (done != Status::kBusy) return esm_abort(lpid);
  esm_rests(lpid, next);
  return done;
}

// Between two turns of UV_ESM the vCPU may be somewhere else: its thread has a signal to answer.
// The guest is transient meanwhile, and whoever says UV_ESM next goes on.
bool Ultravisor::esm_goes_on(u32 lpid, u64* next) {
  Svm* const svm = find(lpid);
  if (svm == nullptr) return false;
  const sync::MutexGuard guard(svm->lock);
  if (svm->state != SvmState::kTransient || !std::exchange(svm->esm_rests, false)) return false;
  *next = svm->esm_next;
  return true;
}

void Ultravisor::esm_rests(u32 lpid, u64 next) {
  Svm* const svm = find(lpid);
  const sync::MutexGuard guard(svm->lock);
  svm->esm_rests = true;
  svm->esm_next = next;
}

Status Ultravisor::esm_begin(u32 lpid) {
  const auto made = find_or_make(lpid);
  if (!made) return Status::kRetry;
  Svm* const svm = *made;
  {
    const sync::MutexGuard guard(svm->lock);
    if (svm->state != SvmState::kNone) return Status::kRetry;
    svm->state = SvmState::kTransient;
    living_.fetch_add(1);
    svm->was_secure = false;
    svm->esm_rests = false;
    svm->esm_loaded = false;
    svm->rest = {};
    ++svm->incarnation;
    svm->use = {};
  }
  // It does not run until it is secure, or is not to be: nothing stands for its memory until then.
  {
    const Going all(svm, 0, kAllPages);
  }
  if (!svm->store.begin()) {
    static_cast<void>(terminate(lpid));
    return Status::kRetry;
  }
  const Status start = ask(lpid, Call::kHSvmInitStart, 0, 0);
  if (start == Status::kSuccess) {
    // The slots that are there by now are all ahead.
    const sync::MutexGuard guard(svm->lock);
    svm->esm_behind = kAllPages;
    return start;
  }
  static_cast<void>(terminate(lpid));
  return to_guest(start);
}

Status Ultravisor::esm_load(u32 lpid) {
  u64 next = 0;
  return load_from(lpid, &next, kAllPages);
}

// What was never touched is secure without memory: zeros. *next: where to go on, kAllPages at the
// end. A slot that is plugged meanwhile has contents, too, and may lie behind: what follows its
// beginning is gone through once more, where most is secure already. One that goes has none any
// more (it was PARAMETER, of a guest whose VMM moved or unplugged memory meanwhile).
Status Ultravisor::load_from(u32 lpid, u64* next, u64 most) {
  Svm* const svm = find(lpid);
  const Run run(svm, Run::bit(SvmState::kTransient));
  if (!run.ok()) return Status::kState;
  for (u64 from = *next;;) {
    u64 first = 0, end = 0;
    {
      const sync::MutexGuard guard(svm->lock);
      if (!svm->pages_from(from, &first, &end)) {
        from = std::exchange(svm->esm_behind, kAllPages);
        if (from != kAllPages) continue;
        *next = kAllPages;
        return Status::kSuccess;
      }
    }
    from = end;
    RunLength length;
    for (u64 page = first; page < end && from == end;) {
      if (most == 0) {
        *next = page;
        return Status::kSuccess;
      }
      const u64 count = std::min(length.most(), end - page);
      const bool by_itself = count == 1;
      const Status done = by_itself ? load_page(svm, page) : page_in_untouched(svm, page, count);
      const bool is_in = done == Status::kSuccess;
      if (by_itself && !is_in) {
        if (is_there(svm, page)) return done;
        from = page;
        continue;
      }
      if (is_in) page += count;
      // Of an untouched page nothing moves.
      most -= std::min(most, by_itself ? 1 : is_in ? std::max<u64>(count / kAsOne, 1) : 0);
      length.next(count, is_in);
    }
  }
}

// Who changes the guest's slots may be a thread that does not run just now, and one that ends the
// guest waits for this one.
Status Ultravisor::load_page(Svm* svm, u64 page) {
  sync::Atomic<u32> nobody_wakes{0};
  for (unsigned i = 0;; ++i) {
    const Status done = page_in_of(svm, page);
    const bool goes_on = is_transient(done) && state(svm->lpid) == SvmState::kTransient;
    if (!goes_on || i == kPatience + kNaps) return done;
    if (i < kPatience) {
      sync::yield_thread();
    } else {
      sync::futex_wait(nobody_wakes, 0, kNapNs);
    }
  }
}

// The hypervisor's process may touch a page it has just given up, before it has answered: what is
// left is secure already, and zeros, when it is asked. So is what is plugged from then on, as into
// a secure guest.
Status Ultravisor::esm_finish(u32 lpid) {
  Svm* const svm = find(lpid);
  if (svm == nullptr) return Status::kState;
  {
    const sync::MutexGuard guard(svm->lock);
    if (svm->state != SvmState::kTransient) return Status::kState;
    if (svm->esm_behind != kAllPages) return Status::kBusy;
    svm->esm_loaded = true;
    for (Svm::Slot& slot : svm->slots) {
      for (u64 i = 0; i < slot.pages; ++i) {
        PageRecord& record = slot.records()[i];
        if (record.state == PageState::kNormal) record.state = PageState::kSecure;
      }
    }
  }
  const Status done = ask(lpid, Call::kHSvmInitDone, 0, 0);
  if (done != Status::kSuccess) return is_transient(done) ? Status::kState : done;
  const sync::MutexGuard guard(svm->lock);
  if (svm->state != SvmState::kTransient) return Status::kState;
  svm->state = SvmState::kSecure;
  svm->was_secure = true;
  svm->turnstile.turn();
  return Status::kSuccess;
}

Status Ultravisor::esm_abort(u32 lpid) {
  Svm* const svm = find(lpid);
  if (svm == nullptr) return Status::kState;
  for (;;) {
    u32 turn = 0;
    {
      const sync::MutexGuard guard(svm->lock);
      // A page that was refused has ended the guest before it was one; its other pages go back.
      if (!svm->was_secure &&
          (svm->state == SvmState::kTransient || svm->state == SvmState::kStopped)) {
        svm->state = SvmState::kAborting;
      }
      if (svm->state != SvmState::kAborting) return Status::kState;
      if (svm->runs == 0) break;
      turn = svm->turnstile.now();
    }
    svm->turnstile.wait(turn);
  }
  const Status answer = ask(lpid, Call::kHSvmInitAbort, 0, 0);
  // UV_SVM_TERMINATE has come meanwhile, unless the hypervisor would not abort.
  if (state(lpid) == SvmState::kAborting) static_cast<void>(terminate(lpid));
  return answer;
}

// ---- slots and the end -------------------------------------------------------------------------

// Not idempotent: a slot that is there is P5, its place P2. No success that did nothing.
Status Ultravisor::register_slot(const Message& m) {
  Svm* const svm = find(m.args[0]);
  const Run run(svm, kLiving);
  if (!run.ok()) return run.refusal();
  const u64 gpa = m.args[1], bytes = m.args[2], page = options_.page_bytes;
  u64 end = 0;
  if (gpa % page != 0 || __builtin_add_overflow(gpa, bytes, &end)) return Status::kP2;
  if (bytes == 0 || bytes % page != 0) return Status::kP3;
  if (m.args[3] != 0) return Status::kP4;
  if (m.args[4] >= kMostSlots) return Status::kP5;
  Svm::Slot slot{m.args[4], gpa / page, bytes / page, false, {}};
  auto memory = mem::SecureMemory::map(slot.pages * sizeof(PageRecord),
                                       mem::SecureMemory::Want::kWhatThereIs, "uv.records");
  if (!memory) return Status::kParameter;
  slot.memory = std::move(*memory);
  const sync::MutexGuard guard(svm->lock);
  for (const Svm::Slot& other : svm->slots) {
    if (other.id == slot.id) return Status::kP5;
    if (slot.first < other.first + other.pages && other.first < slot.first + slot.pages) {
      return Status::kP2;
    }
  }
  for (u64 i = 0; i < slot.pages; ++i) {
    auto* const record = ::new (static_cast<void*>(slot.records() + i)) PageRecord();
    // Plugged into a guest that is secure already: nobody's bytes, so zeros.
    if (svm->state == SvmState::kSecure || svm->esm_loaded) record->state = PageState::kSecure;
  }
  const u64 first = slot.first;
  if (!svm->slots.push_back(std::move(slot))) return Status::kParameter;
  if (svm->state == SvmState::kTransient && !svm->esm_loaded) {
    svm->esm_behind = std::min(svm->esm_behind, first);
  }
  return Status::kSuccess;
}

// Not idempotent: a slot that is gone is P2. No success that did nothing. Waits for who is at its
// pages.
Status Ultravisor::unregister_slot(const Message& m) {
  Svm* const svm = find(m.args[0]);
  const Run run(svm, kLiving | Run::bit(SvmState::kAborting) | Run::bit(SvmState::kStopped));
  if (!run.ok()) return run.refusal();
  Svm::Slot gone;
  for (;;) {
    u32 turn = 0;
    {
      const sync::MutexGuard guard(svm->lock);
      size_t at = 0;
      while (at < svm->slots.size() && svm->slots[at].id != m.args[1]) ++at;
      if (at == svm->slots.size()) return Status::kP2;
      Svm::Slot& slot = svm->slots[at];
      slot.closing = true;
      u64 idle = 0;
      while (idle < slot.pages && slot.records()[idle].idle()) ++idle;
      if (idle == slot.pages) {
        gone = std::move(slot);
        svm->slots.erase(at);
        break;
      }
      turn = svm->turnstile.now();
    }
    svm->turnstile.wait(turn);
  }
  const Going going(svm, gone.first, gone.pages);
  for (u64 i = 0; i < gone.pages; ++i) drop(gone.records()[i].pool);
  return Status::kSuccess;
}

// Idempotent: of a guest nobody knows it is a success that did nothing.
Status Ultravisor::terminate(u64 lpid) {
  Svm* const svm = find(lpid);
  if (svm == nullptr) return Status::kSuccess;
  Vec<Svm::Slot> gone("uv.svm_slots");
  for (bool mine = false;;) {
    u32 turn = 0;
    {
      const sync::MutexGuard guard(svm->lock);
      if (svm->state == SvmState::kNone) return Status::kSuccess;
      mine = mine || svm->state != SvmState::kEnding;
      svm->state = SvmState::kEnding;
      if (mine && svm->runs == 0) {
        gone = std::move(svm->slots);
        break;
      }
      turn = svm->turnstile.now();
    }
    svm->turnstile.wait(turn);
  }
  const Going all(svm, 0, kAllPages);
  for (Svm::Slot& slot : gone) {
    for (u64 i = 0; i < slot.pages; ++i) drop(slot.records()[i].pool);
  }
  svm->store.forget();
  const sync::MutexGuard guard(svm->lock);
  svm->state = SvmState::kNone;
  living_.fetch_sub(1);
  svm->turnstile.turn();
  return Status::kSuccess;
}

// ---- looking ----------------------------------------------------------------------------------

SvmState Ultravisor::state(u32 lpid) {
  Svm* const svm = find(lpid);
  if (svm == nullptr) return SvmState::kNone;
  const sync::MutexGuard guard(svm->lock);
  return svm->state;
}

PageState Ultravisor::page(u32 lpid, Gpa page) {
  Svm* const svm = find(lpid);
  if (svm == nullptr) return PageState::kNone;
  const sync::MutexGuard guard(svm->lock);
  const PageRecord* const record = svm->find(number_of(page));
  return record != nullptr ? record->state : PageState::kNone;
}

SvmUse Ultravisor::use(u32 lpid) {
  Svm* const svm = find(lpid);
  if (svm == nullptr) return {};
  const sync::MutexGuard guard(svm->lock);
  SvmUse now = svm->use;
  now.pool_pages = pool_.held(lpid);
  now.version = svm->store.version();
  return now;
}

Asked Ultravisor::debug_asked(u32 lpid, Gpa page, bool* busy, u32* runs) {
  *busy = false;
  *runs = 0;
  Svm* const svm = find(lpid);
  if (svm == nullptr) return Asked::kNothing;
  const sync::MutexGuard guard(svm->lock);
  *runs = svm->runs;
  const PageRecord* const record = svm->find(number_of(page));
  *busy = record != nullptr && record->busy;
  return record != nullptr ? record->asked : Asked::kNothing;
}

mem::SealedStore* Ultravisor::debug_store(u32 lpid) {
  Svm* const svm = find(lpid);
  return svm != nullptr ? &svm->store : nullptr;
}

}  // namespace stagetwo::uv
