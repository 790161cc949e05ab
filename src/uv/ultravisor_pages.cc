// SPDX-License-Identifier: Apache-2.0
#include "uv/ultravisor.h"

#include <optional>

#include "base/guard.h"
#include "uv/ultravisor_internal.h"

// UV_PAGE_IN, UV_PAGE_OUT, UV_PAGE_INVAL: what the hypervisor asks about one page, mostly because
// it was asked itself. A page's turn:
//
//   claim    under the lock: the record is nobody's (not busy), the table says what is to be done
//   work     no lock: the cipher, copies; the record is ours
//   settle   under the lock: the new state, not busy
//
// Order of the checks: the order of pages, flags, the real address, the guest, its state, the page.
//
// What lies in normal memory may change while it is looked at, so a sealed page is copied first,
// opened from the copy, and only then is there a secure page:
//
//   open_sealed                        | the process
//   copies the frame                   |
//                                      | writes into the frame
//   checks the copy's tag, opens it    |
//   the guest has what was checked     |

namespace stagetwo::uv {
namespace {

constexpr unsigned kReachable = kLiving | 1U << static_cast<unsigned>(SvmState::kAborting) |
                                1U << static_cast<unsigned>(SvmState::kStopped);

// The page is the caller's until settle(). Waits for who is at it: a run of the cipher or a copy;
// where *taken may be said, says that instead.
PageRecord* claim(Svm* svm, u64 page, bool* taken = nullptr) {
  for (Watchdog watchdog;;) {
    u32 turn = 0;
    {
      const sync::MutexGuard guard(svm->lock);
      PageRecord* const record = svm->find(page);
      if (record == nullptr) return nullptr;
      if (!record->busy) {
        record->busy = true;
        return record;
      }
      if (taken != nullptr) {
        *taken = true;
        return nullptr;
      }
      turn = svm->turnstile.now();
    }
    if (watchdog.barks()) note_slow(svm);
    svm->turnstile.wait(turn);
  }
}

void settle(Svm* svm, PageRecord* record, u64 gpa, PageState was) {
  const sync::MutexGuard guard(svm->lock);
  note_page(svm->lpid, gpa, was, record->state);
  record->busy = false;
  svm->turnstile.turn();
}

// Others look at records under the lock, so they are written under it.
void change(Svm* svm, PageRecord* record, PageState state, u64 frame) {
  const sync::MutexGuard guard(svm->lock);
  record->state = state;
  record->set_frame(frame);
}

// May a vCPU have a translation of it? Pre: claimed.
bool is_used(const PageRecord& record) {
  return record.state == PageState::kSecure || record.state == PageState::kShared;
}

mem::SealedIdentity identity_of(Svm* svm, u64 address, u64 bytes) {
  const sync::MutexGuard guard(svm->lock);
  return {svm->lpid, svm->incarnation, address, bytes};
}

}  // namespace

void Ultravisor::drop(u32 pool_page) {
  if (pool_page != mem::SecurePool::kNone) pool_.give_back(pool_page);
}

bool Ultravisor::write_zeros(u64 frame) {
  return memory_->write(frame, bounces_.at(zeros_), options_.page_bytes);
}

// ---- UV_PAGE_IN --------------------------------------------------------------------------------

// lpid, real address, gpa, flags, order. Not idempotent: a page that is secure is P2. A shared
// page's frame may be named again and again. A success that did nothing: the hypervisor follows
// with a page that was unshared by force before (unshare_one).
Status Ultravisor::page_in(const Message& m) {
  const u64 frame = m.args[1], gpa = m.args[2];
  if (m.args[4] != order_of(options_.page_bytes)) return Status::kP5;
  if (m.args[3] != 0) return Status::kP4;
  if (frame == 0 || pool_.contains(frame, options_.page_bytes)) return Status::kP2;
  Svm* const svm = find(m.args[0]);
  const Run run(svm, kLiving);
  if (!run.ok()) return run.refusal();
  if (gpa % options_.page_bytes != 0) return Status::kP3;
  const u64 page = number_of(Gpa(gpa));
  PageRecord* const record = claim(svm, page);
  if (record == nullptr) return Status::kP3;
  Status done = Status::kSuccess;
  const PageState was = record->state;
  const bool was_shared = was == PageState::kShared;
  std::optional<Going> going;
  if (is_used(*record)) going.emplace(svm, page, 1);
  if (record->asked == Asked::kUnshare && was_shared) {
    // Nothing is imported: the secure page is zeros, whatever the frame holds.
    change(svm, record, PageState::kSecure, 0);
  } else if (record->asked == Asked::kFollow && record->state == PageState::kSecure) {
    // It was unshared by force (unshare_one), and now the hypervisor follows.
  } else if (record->asked == Asked::kShare && !was_shared) {
    const PageCell& cell = page_cell(PageEvent::kUvShare, record->state);
    done = cell.status == Status::kSuccess
               ? share_into(svm, record, frame, cell.work != PageWork::kShareFrame)
               : cell.status;
  } else {
    const PageCell& cell = page_cell(PageEvent::kUvPageIn, record->state);
    done = cell.status;
    if (cell.work == PageWork::kShareFrame) change(svm, record, PageState::kShared, frame);
    if (cell.work == PageWork::kMoveIn) done = move_in(svm, page, record, frame);
  }
  settle(svm, record, gpa, was);
  return done;
}

// `to` may be the copy itself.
Result<void> Ultravisor::open_sealed(Svm* svm, u64 page, PageRecord* record, u64 frame, u8* copy,
                                     void* to) {
  if (!memory_->read(frame, copy, options_.page_bytes)) return refuse(EFAULT);
  return svm->store.open(identity_of(svm, address_of(page), options_.page_bytes), record->sealed,
                         copy, to);
}

// One failed check ends the guest.
Status Ultravisor::tampered(Svm* svm, u64 page, PageRecord* record) {
  u32 reserved = mem::SecurePool::kNone;
  {
    const sync::MutexGuard guard(svm->lock);
    reserved = std::exchange(record->pool, mem::SecurePool::kNone);
    record->state = PageState::kLost;
    if (svm->state == SvmState::kTransient || svm->state == SvmState::kSecure) {
      svm->state = SvmState::kStopped;
    }
    ++svm->use.tampered;
    svm->use.tampered_gpa = address_of(page);
  }
  // Whatever else its vCPUs can still reach: they stop.
  const Going going(svm, 0, kAllPages);
  drop(reserved);
  return Status::kP3;
}

Status Ultravisor::move_in(Svm* svm, u64 page, PageRecord* record, u64 frame) {
  u32 target = record->pool;
  const bool reserved = target != mem::SecurePool::kNone;
  if (!reserved) target = pool_.take({svm->lpid, page});
  if (target == mem::SecurePool::kNone) return Status::kRetry;
  if (record->state == PageState::kNormal) {
    if (!memory_->read(frame, pool_.at(target), options_.page_bytes)) {
      if (!reserved) drop(target);
      return Status::kP2;
    }
  } else {
    const Bounce copy(&bounces_);
    const auto opened = open_sealed(svm, page, record, frame, copy.data(), pool_.at(target));
    if (!opened) {
      if (!reserved) drop(target);
      return opened.error() == Errno{EFAULT} ? Status::kP2 : tampered(svm, page, record);
    }
  }
  const sync::MutexGuard guard(svm->lock);
  record->pool = target;
  record->state = PageState::kSecure;
  ++svm->use.page_ins;
  return Status::kSuccess;
}

// The guest wants to show this page. What it was is thrown away; a frame that held a sealed page,
// or stands in for a secure one, is wiped: sharing publishes nothing.
Status Ultravisor::share_into(Svm* svm, PageRecord* record, u64 frame, bool cleared) {
  if (ST_GUARD(uv_share_clears, cleared) && !write_zeros(frame)) return Status::kP2;
  u32 secret = mem::SecurePool::kNone;
  {
    const sync::MutexGuard guard(svm->lock);
    secret = std::exchange(record->pool, mem::SecurePool::kNone);
    record->state = PageState::kShared;
    record->set_frame(frame);
  }
  drop(secret);
  return Status::kSuccess;
}

// ---- UV_PAGE_OUT -------------------------------------------------------------------------------

// lpid, real address, gpa, flags, order. Not idempotent: a page that is out already is PARAMETER. A
// success that did nothing: a shared page, which is the hypervisor's to read already.
Status Ultravisor::page_out(const Message& m) {
  const u64 frame = m.args[1], gpa = m.args[2];
  if (m.args[4] != order_of(options_.page_bytes)) return Status::kP5;
  if (m.args[3] != 0) return Status::kP4;
  if (frame == 0 || pool_.contains(frame, options_.page_bytes)) return Status::kP2;
  Svm* const svm = find(m.args[0]);
  const Run run(svm, kReachable);
  if (!run.ok()) return run.refusal();
  if (gpa % options_.page_bytes != 0) return Status::kP3;
  const u64 page = number_of(Gpa(gpa));
  PageRecord* const record = claim(svm, page);
  if (record == nullptr) return Status::kP3;
  const PageState was = record->state;
  // The hypervisor had nothing to give for a page it was asked for, and its process has touched
  // what stands in for it before the answer has come.
  if (record->state == PageState::kNormal && record->asked == Asked::kIn) {
    change(svm, record, PageState::kSecure, 0);
  }
  std::optional<Going> going;
  if (is_used(*record)) going.emplace(svm, page, 1);
  Status done = Status::kRetry;
  if (run.state() == SvmState::kAborting) {
    done = give_clear(svm, page, record, frame);
  } else if (record->asked != Asked::kUnshare) {
    const PageCell& cell = page_cell(PageEvent::kUvPageOut, record->state);
    done = cell.work == PageWork::kMoveOut ? move_out(svm, page, record, frame) : cell.status;
  }
  settle(svm, record, gpa, was);
  return done;
}

Status Ultravisor::move_out(Svm* svm, u64 page, PageRecord* record, u64 frame) {
  const Bounce sealed(&bounces_);
  mem::SealedRecord fresh;
  const auto identity = identity_of(svm, address_of(page), options_.page_bytes);
  const bool there = record->pool != mem::SecurePool::kNone;
  const u8* const bytes = there ? pool_.at(record->pool) : bounces_.at(zeros_);
  const auto done = svm->store.seal(identity, bytes, sealed.data(), &fresh);
  if (!done) return done.error() == Errno{EOVERFLOW} ? Status::kHardware : Status::kRetry;
  if (!memory_->write(frame, sealed.data(), options_.page_bytes)) return Status::kP2;
  u32 out = mem::SecurePool::kNone;
  {
    const sync::MutexGuard guard(svm->lock);
    out = std::exchange(record->pool, mem::SecurePool::kNone);
    record->sealed = fresh;
    record->state = PageState::kPagedOut;
    ++svm->use.page_outs;
  }
  drop(out);
  return Status::kSuccess;
}

// The guest goes on as a normal one: its contents came from the hypervisor and go back to it. The
// frame of a sealed page is opened where it is.
Status Ultravisor::give_clear(Svm* svm, u64 page, PageRecord* record, u64 frame) {
  switch (record->state) {
    case PageState::kSecure: {
      const bool there = record->pool != mem::SecurePool::kNone;
      if (there ? !memory_->write(frame, pool_.at(record->pool), options_.page_bytes)
                : !write_zeros(frame)) {
        return Status::kP2;
      }
      break;
    }
    case PageState::kPagedOut: {
      const Bounce clear(&bounces_);
      const auto opened = open_sealed(svm, page, record, frame, clear.data(), clear.data());
      if (!opened)
        return opened.error() == Errno{EFAULT} ? Status::kP2 : tampered(svm, page, record);
      if (!memory_->write(frame, clear.data(), options_.page_bytes)) return Status::kP2;
      break;
    }
    case PageState::kNone:
    case PageState::kNormal:
    case PageState::kShared:
    case PageState::kLost:
      return Status::kParameter;
  }
  u32 out = mem::SecurePool::kNone;
  {
    const sync::MutexGuard guard(svm->lock);
    out = std::exchange(record->pool, mem::SecurePool::kNone);
    record->state = PageState::kNormal;
  }
  drop(out);
  return Status::kSuccess;
}

// ---- UV_PAGE_INVAL -----------------------------------------------------------------------------

// lpid, gpa, order, and whether to wait. Idempotent. A success that did nothing: a page whose frame
// is not known, as it is normal, or not known any more. Post: the guest uses the frame no more.
Status Ultravisor::page_inval(const Message& m) {
  if (m.args[2] != order_of(options_.page_bytes)) return Status::kP3;
  Svm* const svm = find(m.args[0]);
  const Run run(svm, kLiving | Run::bit(SvmState::kStopped));
  if (!run.ok()) return run.refusal();
  if (m.args[1] % options_.page_bytes != 0) return Status::kP2;
  bool taken = false;
  PageRecord* const record =
      claim(svm, number_of(Gpa(m.args[1])), m.args[3] == kInvalNow ? &taken : nullptr);
  if (record == nullptr) return taken ? Status::kBusy : Status::kP2;
  const PageCell& cell = page_cell(PageEvent::kUvPageInval, record->state);
  if (cell.work == PageWork::kForgetFrame) change(svm, record, PageState::kShared, 0);
  settle(svm, record, m.args[1], record->state);
  return cell.status;
}

}  // namespace stagetwo::uv
