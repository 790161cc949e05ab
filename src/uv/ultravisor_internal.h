// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the ultravisor's sources share.

#include "base/check.h"
#include "base/guard.h"
#include "base/trace.h"
#include "sync/futex.h"
#include "uv/ultravisor.h"

namespace stagetwo::uv {

// An operation on a guest that must not be forgotten meanwhile. ok(): it is in one of `states`.
class Ultravisor::Run {
 public:
  Run(Svm* svm, unsigned states) : svm_(svm) {
    if (svm == nullptr) return;
    const sync::MutexGuard guard(svm->lock);
    state_ = svm->state;
    ok_ = (states & bit(state_)) != 0;
    if (ok_) ++svm->runs;
  }
  ~Run() {
    if (!ok_) return;
    const sync::MutexGuard guard(svm_->lock);
    --svm_->runs;
    svm_->turnstile.turn();
  }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  static constexpr unsigned bit(SvmState state) { return 1U << static_cast<unsigned>(state); }
  [[nodiscard]] bool ok() const { return ok_; }
  [[nodiscard]] SvmState state() const { return state_; }
  // What a call that names the guest answers when it is not ok(): nobody's lpid, or too late.
  [[nodiscard]] Status refusal() const {
    return state_ == SvmState::kNone ? Status::kParameter : Status::kState;
  }

 private:
  Svm* svm_;
  SvmState state_ = SvmState::kNone;
  bool ok_ = false;
};

inline constexpr unsigned kLiving = 1U << static_cast<unsigned>(SvmState::kTransient) |
                                    1U << static_cast<unsigned>(SvmState::kSecure);

inline void note_page(u32 lpid, u64 gpa, PageState was, PageState now) {
  if (was == now) return;
  trace::emit(trace::Event::st_uv_page, trace::Room::uv, lpid, gpa, static_cast<u64>(was),
              static_cast<u64>(now));
}

// A page has been waited for, for too long. Context: no lock.
inline void note_slow(Svm* svm) {
  const sync::MutexGuard guard(svm->lock);
  ++svm->use.slow;
}

// Pages become others while it lasts: no vCPU has a translation of them, or gets one that lasts.
// Context: no lock.
class Ultravisor::Going {
 public:
  Going(Svm* svm, u64 first, u64 count) {
    {
      const sync::MutexGuard guard(svm->lock);
      table_ = svm->table;
    }
    if (!ST_GUARD(uv_table_going, table_ != nullptr)) table_ = nullptr;
    if (table_ != nullptr) table_->going(first, count);
  }
  ~Going() {
    if (table_ != nullptr) table_->gone();
  }
  Going(const Going&) = delete;
  Going& operator=(const Going&) = delete;

 private:
  GuestTable* table_ = nullptr;
};

// A page of secure memory for one run of the cipher, whose other end is normal memory: that may
// change while it is looked at. Zeros at first, wiped at the end. Nobody takes a second one while
// he has one: if all were somebody's first, everybody would wait for a second for ever.
class Ultravisor::Bounce {
 public:
  explicit Bounce(mem::SecurePool* pool) : pool_(*pool) {
    // Whoever has one is on his way out: a run of the cipher and a copy.
    while ((page_ = pool_.take({})) == mem::SecurePool::kNone) sync::yield_thread();
  }
  ~Bounce() { pool_.give_back(page_); }
  Bounce(const Bounce&) = delete;
  Bounce& operator=(const Bounce&) = delete;

  [[nodiscard]] u8* data() const { return pool_.at(page_); }

 private:
  mem::SecurePool& pool_;
  u32 page_;
};

// ---- pages that are asked about (ultravisor_guest.cc)

inline constexpr unsigned kTries = 64;  // of a requester

// The page is marked as asked about, by the caller. kSuccess; kParameter: there is no such page;
// kP2: it is being shared or unshared by another.
inline Status mark(Svm* svm, u64 page, Asked what, bool waits_for_shares) {
  for (;;) {
    u32 turn = 0;
    {
      const sync::MutexGuard guard(svm->lock);
      PageRecord* const record = svm->find_open(page);
      if (record == nullptr) return Status::kParameter;
      if (record->idle()) {
        record->asked = what;
        return Status::kSuccess;
      }
      const bool is_shared_now = record->asked == Asked::kShare || record->asked == Asked::kUnshare;
      if (is_shared_now && !waits_for_shares) return Status::kP2;
      turn = svm->turnstile.now();
    }
    svm->turnstile.wait(turn);
  }
}

// f(record) under the lock, when nobody works on the page. Pre: the page is marked.
template <typename F>
void when_quiet(Svm* svm, u64 page, F f) {
  for (;;) {
    u32 turn = 0;
    {
      const sync::MutexGuard guard(svm->lock);
      PageRecord* const record = svm->find(page);
      ST_CHECK(record != nullptr && record->asked != Asked::kNothing);
      if (!record->busy) {
        f(*record);
        svm->turnstile.turn();
        return;
      }
      turn = svm->turnstile.now();
    }
    svm->turnstile.wait(turn);
  }
}

// The mark is taken off; `last` may change the record first.
template <typename F>
void unmark(Svm* svm, u64 page, F last) {
  when_quiet(svm, page, [&](PageRecord& record) {
    last(record);
    record.asked = Asked::kNothing;
  });
}
inline void unmark(Svm* svm, u64 page) {
  unmark(svm, page, [](PageRecord&) {});
}

inline PageRecord look(Svm* svm, u64 page) {
  const sync::MutexGuard guard(svm->lock);
  const PageRecord* const record = svm->find(page);
  PageRecord none;
  none.state = PageState::kNone;
  return record != nullptr ? *record : none;
}

}  // namespace stagetwo::uv
