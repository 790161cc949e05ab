// SPDX-License-Identifier: Apache-2.0
#pragma once

// One secure page and everybody who wants it at once: the guest, the process that touches it or
// gives its address up, the ultravisor that moves it, slots that go, a reset. The halves are the
// real ones; normal memory is plain memory, which counts every use of an address that was given up.
//
// Each is a race that the kernel's version had and lost once: docs/checks-secure-guests.md.

#include "tests/sched/sched_support.h"
#include "tests/support/random_source.h"
#include "tests/support/secure_machine.h"
#include "tests/support/toy_guest_table.h"

namespace stagetwo::test {

namespace sched = sync::sched;

class UvWorld {
 public:
  explicit UvWorld(bool secure = true, u32 cipher_runs = 8) : m(4096, 8, true, cipher_runs) {
    m.plug(0, 0, 2);
    m.vmm_fill(0, 2);
    if (secure) sched::expect(m.esm() == uv::Status::kSuccess, "the guest becomes secure");
  }
  virtual ~UvWorld() = default;

  // Whoever is done last looks at what is left. Not of the model: one thread runs at a time.
  template <typename Scenario>
  static void act(Scenario* scenario, unsigned me) {
    scenario->play(me);
    if (++scenario->done_ == Scenario::kThreads) scenario->check();
  }
  void check() {
    sched::expect(m.memory.stale() == 0, "an address is used after the process gave it up");
    for (u64 page = 0; page < 2; ++page) {
      sched::expect(m.hv_page(page) == m.uv_page(page) || m.uv_page(page) == uv::PageState::kNone,
                    "both halves say the same of a page");
    }
    sched::expect(m.ultravisor.state(uv_lpid) != uv::SvmState::kStopped, "nobody tampered");
  }

 protected:
  static constexpr u32 uv_lpid = SecureMachine::kLpid;
  // The guest's word, or what sharing makes of it.
  void guest_reads(bool may_be_zeros) {
    u64 word = 0;
    const auto done = m.ultravisor.access(uv_lpid, m.gpa(0), &word, sizeof(word), false);
    if (done != uv::GuestAccess::kDone) return;
    u64 want = 0;
    const Bytes text = m.text(0);
    std::memcpy(&want, text.data(), sizeof(want));
    sched::expect(word == want || (may_be_zeros && word == 0), "the guest reads what it wrote");
  }
  void vmm_reads() { sched::expect(!m.vmm_read(0).empty(), "a touch is served"); }

  SecureMachine m;
  unsigned done_ = 0;
};

// Page-in and page-out of one page, from both sides at once (the first version had no lock).
struct TouchAgainstGuest : UvWorld {
  static constexpr unsigned kThreads = 3;
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) guest_reads(false);
    if (me == 1) vmm_reads();
    if (me == 2) static_cast<void>(m.ultravisor.ask_page_out(uv_lpid, m.gpa(0)));
  }
};

// A touch of the stand-in while it goes (the entry's fault raced with the page being freed).
struct TouchAgainstShare : UvWorld {
  static constexpr unsigned kThreads = 2;
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) {
      vmm_reads();
      vmm_reads();
    } else {
      static_cast<void>(m.guest_call(uv::Call::kUvSharePage, 0, 1));
      guest_reads(true);
      static_cast<void>(m.guest_call(uv::Call::kUvUnsharePage, 0, 1));
      guest_reads(true);
    }
  }
};

// The process gives the address of a page up that is being shared (a fault had looked the slot up
// before a flush of it).
struct UnmapAgainstShare : UvWorld {
  static constexpr unsigned kThreads = 2;
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) {
      m.normal.unmap(&m.guest, m.gpa(0), false);
    } else {
      static_cast<void>(m.guest_call(uv::Call::kUvSharePage, 0, 1));
      guest_reads(true);
    }
  }
};

// The same of a page that is shared: the guest's fault is reflected (a page that had turned secure
// was sent again).
struct UnmapAgainstReflectedFault : UvWorld {
  static constexpr unsigned kThreads = 3;
  UnmapAgainstReflectedFault() {
    sched::expect(m.guest_call(uv::Call::kUvSharePage, 0, 1) == uv::Status::kSuccess, "shared");
  }
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) m.normal.unmap(&m.guest, m.gpa(0), false);
    if (me == 1) {
      guest_reads(true);
      guest_reads(true);
    }
    if (me == 2) static_cast<void>(m.guest_call(uv::Call::kUvUnsharePage, 0, 1));
  }
};

// A slot goes while its pages are used (what the slot pointed at outlived it).
struct SlotGoesUnderTouch : UvWorld {
  static constexpr unsigned kThreads = 3;
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) m.guest.remove_slot(0);
    if (me == 1) guest_reads(false);
    if (me == 2) static_cast<void>(m.vmm_read(0));
  }
};

// The same under a vCPU that has seen its page paged out, and now wishes for it (the wish was
// refused as of a page that is there, and KVM_RUN answered EFAULT).
struct SlotGoesUnderAWish : UvWorld {
  static constexpr unsigned kThreads = 2;
  SlotGoesUnderAWish() { vmm_reads(); }
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) return m.guest.remove_slot(0);
    auto done = uv::GuestAccess::kRetry;
    for (unsigned i = 0; i < 8 && done == uv::GuestAccess::kRetry; ++i) {
      done = m.ultravisor.bring(uv_lpid, m.gpa(0));
      sched::expect(done != uv::GuestAccess::kFault, "a slot that goes is no fault of the page");
    }
    u64 word = 0;
    const auto read = m.ultravisor.access(uv_lpid, m.gpa(1), &word, sizeof(word), false);
    sched::expect(read != uv::GuestAccess::kFault, "nor of one that is read");
  }
};

// Reset during the change of state.
struct ResetAgainstEsm : UvWorld {
  static constexpr unsigned kThreads = 2;
  ResetAgainstEsm() : UvWorld(false) {}
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) {
      static_cast<void>(m.esm());
    } else {
      sched::expect(m.guest.svm_off().has_value(), "no vCPU runs");
    }
  }
  void check() {
    UvWorld::check();
    sched::expect(m.guest.svm_off().has_value() && m.ultravisor.pool_free() == 8,
                  "every page of the pool comes back");
  }
};

// Leftovers leave at INIT_DONE while the process touches them (they were taken for normal).
struct TouchAgainstDone : UvWorld {
  static constexpr unsigned kThreads = 2;
  TouchAgainstDone() : UvWorld(false) {
    sched::expect(m.ultravisor.esm_begin(uv_lpid) == uv::Status::kSuccess, "begun");
  }
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) {
      static_cast<void>(m.ultravisor.esm_finish(uv_lpid));
    } else {
      vmm_reads();
      vmm_reads();
    }
  }
};

// A slot is plugged into a secure guest while the process touches it.
struct TouchAgainstPlug : UvWorld {
  static constexpr unsigned kThreads = 2;
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) {
      sched::expect(m.guest.add_slot(1, m.gpa(4), 4096).has_value(), "plugged");
      Bytes got;
      sched::expect(m.guest_read(4, &got) != uv::GuestAccess::kDone || got == Bytes(4096),
                    "plugged memory is zeros");
    } else {
      static_cast<void>(m.vmm_read(4));
      static_cast<void>(m.vmm_read(4));
    }
  }
  void check() {
    UvWorld::check();
    const uv::PageState is = m.hv_page(4);
    sched::expect(is == m.uv_page(4), "both halves say the same of what is plugged");
    sched::expect(is == uv::PageState::kSecure || is == uv::PageState::kPagedOut, "it is moved");
    sched::expect(m.vmm_read(4) != Bytes(4096), "the process sees it sealed");
    Bytes got;
    sched::expect(m.guest_read(4, &got) == uv::GuestAccess::kDone && got == Bytes(4096), "zeros");
  }
};

// Two pages of zeros, which have no memory yet, leave at once, and the cipher has as many places as
// there are threads (a run that took a second place held the first meanwhile: when every place was
// somebody's first, all waited for ever).
struct ZerosLeaveAtOnce : UvWorld {
  static constexpr unsigned kThreads = 2;
  ZerosLeaveAtOnce() : UvWorld(true, kThreads) {
    sched::expect(m.guest.add_slot(1, m.gpa(4), 2 * 4096).has_value(), "plugged");
  }
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) { sched::expect(!m.vmm_read(4 + me).empty(), "a touch is served"); }
};

// The same, of pages that an ABORT gives back while the process touches one: to open a sealed page
// takes one place as well.
struct TouchAgainstAbort : UvWorld {
  static constexpr unsigned kThreads = 2;
  TouchAgainstAbort() : UvWorld(false, 1) {
    sched::expect(m.ultravisor.esm_begin(uv_lpid) == uv::Status::kSuccess, "begun");
    sched::expect(m.ultravisor.esm_load(uv_lpid) == uv::Status::kSuccess, "all in");
    vmm_reads();
  }
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) {
      static_cast<void>(m.ultravisor.esm_abort(uv_lpid));
    } else {
      static_cast<void>(m.vmm_read(1));
    }
  }
  void check() {
    UvWorld::check();
    sched::expect(m.vmm_read(0) == m.text(0), "what was sealed comes back in clear");
    sched::expect(m.vmm_read(1) == m.text(1), "and what was touched meanwhile");
  }
};

// The guest makes everything secret while a slot goes (the walk counted slots, jumped over the end
// of a list that had become shorter, and went on through whatever lay behind it, for ever).
struct UnshareAllAgainstUnplug : UvWorld {
  static constexpr unsigned kThreads = 2;
  UnshareAllAgainstUnplug() {
    for (u32 id = 1; id < 4; ++id) m.plug(id, 8 * id, 1);
    for (u32 id = 0; id < 4; ++id) {
      sched::expect(m.guest_call(uv::Call::kUvSharePage, 8 * id, 1) == uv::Status::kSuccess,
                    "shared");
    }
  }
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) {
      // Once more where it met the slot that went, or one that came to its place.
      auto done = uv::Status::kRetry;
      while (uv::is_transient(done)) done = m.guest_call(uv::Call::kUvUnshareAllPages);
      sched::expect(done == uv::Status::kSuccess, "everything is secret");
    } else {
      for (u32 id = 1; id < 4; ++id) m.guest.remove_slot(id);
    }
  }
  void check() {
    UvWorld::check();
    sched::expect(m.uv_page(0) == uv::PageState::kSecure, "what stays is secret");
  }
};

// A vCPU uses its page by a translation while the page leaves: for the process, and because the
// ultravisor wants its room (a translation that stays reads a page of the pool that is another's,
// and a store through it is lost).
struct TranslationAgainstPageOut : UvWorld {
  static constexpr unsigned kThreads = 3;
  TranslationAgainstPageOut() { table.listen(&m.ultravisor, uv_lpid); }
  ~TranslationAgainstPageOut() override { table.leave(); }
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) writes_and_reads(&table, &m);
    if (me == 1) vmm_reads();
    if (me == 2) static_cast<void>(m.ultravisor.ask_page_out(uv_lpid, m.gpa(0)));
  }
  static void writes_and_reads(ToyGuestTable* table, SecureMachine* m) {
    for (u64 i = 1; i < 4; ++i) {
      u64 word = i;
      if (table->access(m->gpa(0), &word, true) != uv::Where::kSecure) continue;
      word = 0;
      for (unsigned point = 0; point < 8; ++point) sched::point();  // a hit has none
      const auto where = table->access(m->gpa(0), &word, false);
      sched::expect(where != uv::Where::kSecure || word == i, "a vCPU reads what it wrote");
    }
  }
  ToyGuestTable table;
};

// The same while another vCPU shows the page and hides it again: between its own bytes and the
// process's a vCPU never sees what is sealed.
struct TranslationAgainstShare : UvWorld {
  static constexpr unsigned kThreads = 2;
  TranslationAgainstShare() { table.listen(&m.ultravisor, uv_lpid); }
  ~TranslationAgainstShare() override { table.leave(); }
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) {
      for (unsigned i = 0; i < 24; ++i) {
        if (i % 8 == 0) reads(true);
        sched::point();
      }
    } else {
      hidden = m.guest_call(uv::Call::kUvSharePage, 0, 1) == uv::Status::kSuccess &&
               m.guest_call(uv::Call::kUvUnsharePage, 0, 1) == uv::Status::kSuccess;
    }
  }
  void reads(bool or_text) {
    u64 word = 1, text = 0;
    std::memcpy(&text, m.text(0).data(), sizeof(text));
    const auto where = table.access(m.gpa(0), &word, false);
    if (where == uv::Where::kSecure) {
      sched::expect(word == 0 || (or_text && word == text), "its own bytes, or zeros");
    }
  }
  void check() {
    UvWorld::check();
    if (hidden) reads(false);
  }
  ToyGuestTable table;
  bool hidden = false;
};

// The stress test's threads (tests/stress/uv_stress_test.cc), a few steps of each, in a pool that
// is too small: whatever the order, everybody comes to an end.
struct Everybody {
  static constexpr unsigned kThreads = 4;
  static constexpr u64 kPages = 3;
  explicit Everybody(u64 seed_of_steps) : m(4096, 2), seed(seed_of_steps) {
    m.plug(0, 0, kPages);
    m.vmm_fill(0, kPages);
    sched::expect(m.esm() == uv::Status::kSuccess, "the guest becomes secure");
  }
  void thread(unsigned me) {
    RandomSource random(seed * 4 + me);
    if (me == 0) guest(&random);
    if (me == 1 || me == 2) {
      for (unsigned i = 0; i < 4; ++i) {
        sched::expect(!m.vmm_read(random.below(kPages)).empty(), "a touch is served");
      }
    }
    if (me == 3) plug();
  }
  void guest(RandomSource* random) {
    Bytes got;
    for (unsigned i = 0; i < 4; ++i) {
      const u64 page = random->below(kPages);
      switch (random->small(5)) {
        case 0:
          static_cast<void>(m.guest_call(uv::Call::kUvSharePage, page, kPages - page));
          break;
        case 1:
          static_cast<void>(m.guest_call(uv::Call::kUvUnsharePage, page, kPages - page));
          break;
        case 2:
          static_cast<void>(m.guest_call(uv::Call::kUvUnshareAllPages));
          break;
        case 3:
          static_cast<void>(m.guest_write(page, m.text(page, i)));
          break;
        default:
          static_cast<void>(m.guest_read(page, &got));
          break;
      }
    }
  }
  void plug() {
    for (unsigned i = 0; i < 2; ++i) {
      if (!m.guest.add_slot(1, m.gpa(20), 4096)) continue;
      static_cast<void>(m.guest_write(20, m.text(20)));
      m.guest.remove_slot(1);
    }
  }
  SecureMachine m;
  const u64 seed;
};

}  // namespace stagetwo::test
