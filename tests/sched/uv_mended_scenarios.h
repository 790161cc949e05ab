// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the kernel's version of secure guests got wrong at first and mended later, where no lock of
// its own was missing: an answer that was not looked at, a call that should have been refused, a
// page left as it was. Here each meets another thread at every point. Numbers A7-n are those of
// docs/checks-secure-guests.md; rows that were races to begin with stand in uv_scenarios.h.
//
// A7-1 cannot be as it was: an allocation that may sleep under a lock that spins. Who waits for a
// lock of the house sleeps (SleepsUnderALock), so its holder may, and this room allocates under two
// of them. What is left is that memory runs out there, while others want the lock.

#include "base/failpoint.h"
#include "tests/sched/uv_scenarios.h"

namespace stagetwo::test {

// A7-1: the holder of a lock sleeps, as one may who allocates; how many steps does a waiter take
// meanwhile?
template <typename Lock>
struct SleepsUnderALock {
  u64 steps_of_waiter(u64 seed) {
    sched::Options options;
    options.seed = seed;
    options.observer = [](void* self, unsigned me, const sched::Access&) {
      auto* const world = static_cast<SleepsUnderALock*>(self);
      world->steps += me == 1 && world->held ? 1 : 0;
    };
    options.observer_context = this;
    steps = 0;
    const auto end = sched::run(options, 2, [this](unsigned me) { play(me); });
    EXPECT_TRUE(end.finished());
    return steps;
  }
  void play(unsigned me) {
    lock.hold([&] {
      if (me != 0) return;
      held = true;
      for (unsigned i = 0; i < 600; ++i) sched::point();
      held = false;
    });
  }
  Lock lock;
  bool held = false;
  u64 steps = 0;
};
struct RoomsLock {
  template <typename F>
  void hold(F f) {
    const sync::MutexGuard guard(lock);
    f();
  }
  sync::Mutex lock{sync::Rank::kUv};
};
struct SpinningLock {
  template <typename F>
  void hold(F f) {
    while (taken.exchange(1, sync::kAcquire) != 0) sync::spin_hint();
    f();
    taken.store(0, sync::kRelease);
  }
  sync::Atomic<u32> taken{0};
};

// A7-1: memory for a slot runs out, wherever it is asked for.
struct PlugWithoutMemory : UvWorld {
  static constexpr unsigned kThreads = 3;
  static constexpr u64 kMost = 20;
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) plug();
    if (me == 1) vmm_reads();
    if (me == 2) guest_reads(false);
  }
  void plug() {
    u64 refused = 0;
    for (bool failed = true; failed && refused < kMost; refused += failed ? 1 : 0) {
      failpoint::arm(nullptr, refused + 1);
      const bool plugged = m.guest.add_slot(1, m.gpa(4), 4096).has_value();
      failed = failpoint::failed() != 0;
      failpoint::disarm();
      sched::expect(plugged || failed, "there is memory");
      const auto is = plugged ? uv::PageState::kSecure : uv::PageState::kNone;
      sched::expect(m.hv_page(4) == is && m.uv_page(4) == is, "plugged, or not at all");
      if (plugged) m.guest.remove_slot(1);
    }
    sched::expect(refused >= 2 && refused < kMost, "each allocation failed once");
  }
};

// A7-3: a page that was never touched goes in (nothing stood in for it: the hypervisor thought it
// normal still).
struct TouchAgainstAnEmptyPage : UvWorld {
  static constexpr unsigned kThreads = 2;
  TouchAgainstAnEmptyPage() : UvWorld(false) {
    m.plug(1, kPage, 1);
    sched::expect(m.ultravisor.esm_begin(uv_lpid) == uv::Status::kSuccess, "begun");
  }
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) {
      auto done = uv::Status::kBusy;
      while (uv::is_transient(done)) done = m.ultravisor.ask_page_in(uv_lpid, m.gpa(kPage));
      sched::expect(done == uv::Status::kSuccess, "it goes in");
    } else {
      sched::expect(!m.vmm_read(kPage).empty() && !m.vmm_read(kPage).empty(), "served");
    }
  }
  void check() {
    UvWorld::check();
    const uv::PageState is = m.hv_page(kPage);
    sched::expect(is != uv::PageState::kNormal && is == m.uv_page(kPage), "it is in");
    sched::expect(m.normal.is_absent(m.gpa(kPage)) == (is == uv::PageState::kSecure),
                  "a stand-in, or sealed bytes");
    sched::expect(m.vmm_read(kPage) != Bytes(4096), "no page in clear");
    sched::expect(m.ultravisor.esm_load(uv_lpid) == uv::Status::kSuccess &&
                      m.ultravisor.esm_finish(uv_lpid) == uv::Status::kSuccess,
                  "the guest becomes secure");
    sched::expect(m.guest_bytes(kPage) == Bytes(4096), "it is zeros");
  }
  static constexpr u64 kPage = 4;
};

// A7-8: any call at any time, by who is believed to be the ultravisor: what the guest's state does
// not allow is refused, before a reset, in the middle of it and behind it. (ABORT of a secure guest
// would give its pages away in clear.)
struct CallsAgainstReset : UvWorld {
  static constexpr unsigned kThreads = 3;
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    using enum uv::Status;
    if (me == 0) {
      guest_reads(false);
      sched::expect(m.guest.svm_off().has_value(), "no vCPU runs");
    }
    if (me == 1) {
      for (const uv::Call call : {uv::Call::kHSvmInitAbort, uv::Call::kHSvmInitDone,
                                  uv::Call::kHSvmInitStart, uv::Call::kHSvmInitAbort}) {
        const uv::Status done = m.h_svm(call);
        // START of a guest that is normal again is refused where the ultravisor does not know it.
        const bool begins = call == uv::Call::kHSvmInitStart && done == kParameter;
        sched::expect(done == kState || done == kUnsupported || begins, "not now");
      }
    }
    if (me == 2) {
      const Bytes seen = m.vmm_read(1);
      sched::expect(seen == Bytes(4096) || seen != m.text(1), "sealed, or wiped");
    }
  }
  void check() {
    UvWorld::check();
    sched::expect(m.guest.state() == uv::GuestState::kNormal, "normal");
    for (u64 page = 0; page < 2; ++page) {
      sched::expect(m.vmm_read(page) == Bytes(4096), "nothing is given in clear");
    }
    sched::expect(m.ultravisor.pool_free() == 8, "every page of the pool comes back");
  }
};

// A7-9: a page-out that fails, of a page that others want (it was left locked).
struct PageOutThatFails : TouchAgainstGuest {
  PageOutThatFails() { m.to_uv.refuse(uv::Call::kUvPageOut, 1, uv::Status::kRetry); }
  void thread(unsigned me) { act(this, me); }
  void check() {
    UvWorld::check();
    guest_reads(false);
    sched::expect(m.h_page_out(0) == uv::Status::kSuccess, "the page is nobody's");
    sched::expect(m.guest_bytes(0) == m.text(0), "and the guest's");
  }
};

// A7-10: a START that fails, and a vCPU that waits to run (the failure never came back to it).
struct StartThatFails : UvWorld {
  static constexpr unsigned kThreads = 2;
  StartThatFails() : UvWorld(false) {
    m.to_uv.refuse(uv::Call::kUvRegisterMemSlot, 1, uv::Status::kParameter);
  }
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) {
      sched::expect(m.esm() == uv::Status::kParameter, "refused");
      vcpu_runs();
    } else {
      vcpu_runs();
    }
  }
  void vcpu_runs() {
    while (!m.guest.run_begin()) sync::yield_thread();
    u8* at = nullptr;
    while (m.ultravisor.translate(uv_lpid, m.gpa(0), &at) != uv::Where::kProcess) {
      static_cast<void>(m.ultravisor.bring(uv_lpid, m.gpa(0)));
    }
    m.guest.run_end();
    sched::expect(m.vmm_read(0) == m.text(0), "its memory is as it was");
  }
  void check() {
    UvWorld::check();
    sched::expect(m.guest.state() == uv::GuestState::kNormal, "it is normal");
    sched::expect(m.esm() == uv::Status::kSuccess, "and may try again");
  }
};

// A7-11: the VMM says that the guest may, while that tries (nobody was asked).
struct StartAgainstOptIn : UvWorld {
  static constexpr unsigned kThreads = 2;
  StartAgainstOptIn() {
    sched::expect(m.hypervisor.add(&other) && other.add_slot(0, m.gpa(0), 4096), "plugged");
    m.to_hv.after(uv::Call::kHSvmInitStart, [this] {
      sched::expect(may || other.state() == uv::GuestState::kNormal, "begun without a word");
    });
  }
  ~StartAgainstOptIn() override {
    static_cast<void>(other.svm_off());
    m.hypervisor.remove(&other);
  }
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) {
      const auto done = m.ultravisor.call({uv::Call::kUvEsm, kOther, {1, 1}}, uv::Caller::kGuest);
      sched::expect(done == uv::Status::kPermission || done == uv::Status::kSuccess,
                    "its VMM has said so, or not");
      is_secure = done == uv::Status::kSuccess;
    } else {
      for (unsigned i = 0; i < 8; ++i) sched::point();
      may = true;
      other.enable();
    }
  }
  void check() {
    UvWorld::check();
    const auto want = is_secure ? uv::GuestState::kSecure : uv::GuestState::kNormal;
    sched::expect(other.state() == want, "all of it or nothing");
  }
  static constexpr u32 kOther = 9;
  PlainNormalMemory normal_of_other{&m.memory};
  uv::SecureGuest other{kOther, 4096, &normal_of_other, &m.to_uv};
  bool may = false, is_secure = false;
};

// A7-12: another vCPU makes the ultravisor's calls while the guest becomes secure (any guest
// could).
struct GuestsCallsAgainstEsm : UvWorld {
  static constexpr unsigned kThreads = 2;
  GuestsCallsAgainstEsm() : UvWorld(false) {}
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) {
      sched::expect(m.esm() == uv::Status::kSuccess, "the guest becomes secure");
    } else {
      calls(uv::Caller::kGuest);
    }
  }
  void calls(uv::Caller who) {
    const u64 order = uv::order_of(4096);
    for (const uv::Call call : {uv::Call::kHSvmPageOut, uv::Call::kHSvmInitDone,
                                uv::Call::kHSvmPageIn, uv::Call::kHSvmInitStart}) {
      sched::expect(m.h_svm(call, 0, 0, order, who) == uv::Status::kUnsupported, "not a guest's");
    }
  }
  void check() {
    UvWorld::check();
    calls(uv::Caller::kSecureGuest);
    for (u64 page = 0; page < 2; ++page) {
      sched::expect(m.hv_page(page) == uv::PageState::kSecure, "nothing came of it");
      sched::expect(m.guest_bytes(page) == m.text(page), "and nothing is lost");
    }
  }
};

// A7-13: ABORT is answered by the guest's state alone; a vCPU says it that should not run now.
struct GuestsAbortAgainstEsm : UvWorld {
  static constexpr unsigned kThreads = 2;
  GuestsAbortAgainstEsm() : UvWorld(false) {}
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    using enum uv::Status;
    if (me == 0) {
      sched::expect(m.esm() == kSuccess, "the guest becomes secure");
      return;
    }
    for (unsigned i = 0; i < 4; ++i) {
      const auto done = m.h_svm(uv::Call::kHSvmInitAbort, 0, 0, 0, uv::Caller::kGuest);
      sched::expect(done == kUnsupported || done == kBusy || done == kState, "undoes nothing");
    }
  }
  void check() {
    UvWorld::check();
    for (u64 page = 0; page < 2; ++page) {
      sched::expect(m.guest_bytes(page) == m.text(page), "nothing is lost");
    }
  }
};

// A7-16: DONE and a page that has been in, and goes out meanwhile (it was moved a second time, and
// its contents thrown away).
struct DoneAgainstAPageThatHasBeenIn : UvWorld {
  static constexpr unsigned kThreads = 2;
  static constexpr u64 kLeftovers = 12;
  DoneAgainstAPageThatHasBeenIn() : UvWorld(false) {
    m.plug(1, 8, kLeftovers);
    m.vmm_fill(8, kLeftovers);
    sched::expect(m.ultravisor.esm_begin(uv_lpid) == uv::Status::kSuccess &&
                      m.ultravisor.ask_page_in(uv_lpid, m.gpa(0)) == uv::Status::kSuccess,
                  "begun");
  }
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) {
      sched::expect(m.ultravisor.esm_finish(uv_lpid) == uv::Status::kSuccess, "done");
    } else {
      const bool began = m.hv_page(8) == uv::PageState::kSecure;
      vmm_reads();
      // The loop lets others in: a touch is served before it is over (it was a soft lockup).
      const bool is_over = m.hv_page(8 + kLeftovers - 1) == uv::PageState::kSecure;
      let_in += began && !is_over ? 1 : 0;
    }
  }
  void check() {
    UvWorld::check();
    sched::expect(m.guest_bytes(0) == m.text(0), "what was in stays");
    sched::expect(m.guest_bytes(1) == Bytes(4096), "what was left over is zeros");
  }
  inline static unsigned let_in = 0;
};

// A7-16: a slot is flushed and comes back (with the states its pages had before).
struct SlotComesBack : UvWorld {
  static constexpr unsigned kThreads = 3;
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) {
      m.guest.remove_slot(0);
      sched::expect(m.guest.add_slot(0, m.gpa(0), 2 * 4096).has_value(), "plugged");
    }
    if (me == 1) static_cast<void>(m.vmm_read(0));
    if (me == 2) guest_reads(true);
  }
  void check() {
    UvWorld::check();
    for (u64 page = 0; page < 2; ++page) {
      const uv::PageState is = m.hv_page(page);
      sched::expect(is == uv::PageState::kSecure || is == uv::PageState::kPagedOut, "its own");
      sched::expect(m.guest_bytes(page) == Bytes(4096), "nothing of the old one");
    }
    sched::expect(m.guest.svm_off().has_value() && m.ultravisor.pool_free() == 8,
                  "every page of the pool comes back");
  }
};

// A7-18: a slot goes whose pages are touched and unmapped meanwhile: all of them go (what looked
// pages up by slot failed, because the slot was marked as going).
struct EveryPageOfASlotGoes : UvWorld {
  static constexpr unsigned kThreads = 3;
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) m.guest.remove_slot(0);
    if (me == 1) m.normal.unmap(&m.guest, m.gpa(0), true);
    if (me == 2) static_cast<void>(m.vmm_read(1));
  }
  void check() {
    UvWorld::check();
    sched::expect(m.ultravisor.pool_free() == 8, "none of them is in secure memory");
    sched::expect(!m.normal.is_absent(m.gpa(1)), "nothing stands in");
    sched::expect(m.vmm_read(1) == Bytes(4096), "the process has zeros there");
  }
};

// A7-19: somebody has a reference to the page, for a moment (page-in failed for good).
struct AReferenceThatPasses : UvWorld {
  static constexpr unsigned kThreads = 3;
  AReferenceThatPasses() {
    vmm_reads();
    m.normal.pin(m.gpa(0), true);
  }
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) {
      u64 word = 0;
      auto done = uv::GuestAccess::kRetry;
      while (done == uv::GuestAccess::kRetry) {
        done = m.ultravisor.access(uv_lpid, m.gpa(0), &word, sizeof(word), false);
      }
      sched::expect(done == uv::GuestAccess::kDone, "a page in use is no fault");
    }
    if (me == 1) {
      const auto done = m.ultravisor.ask_page_in(uv_lpid, m.gpa(0));
      sched::expect(done == uv::Status::kSuccess || uv::is_transient(done), "or later");
    }
    if (me == 2) {
      for (unsigned i = 0; i < 16; ++i) sched::point();
      m.normal.pin(m.gpa(0), false);
    }
  }
  void check() {
    UvWorld::check();
    sched::expect(m.guest_bytes(0) == m.text(0), "it comes whole");
  }
};

// A7-20: the ultravisor refuses a page, which others want (nobody looked at its answer, and the
// page's bytes were gone).
struct PageInThatIsRefused : UvWorld {
  static constexpr unsigned kThreads = 3;
  PageInThatIsRefused() {
    vmm_reads();
    m.to_uv.refuse(uv::Call::kUvPageIn, 1, uv::Status::kRetry);
  }
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) static_cast<void>(m.ultravisor.ask_page_in(uv_lpid, m.gpa(0)));
    if (me == 1) guest_reads(false);
    if (me == 2) vmm_reads();
  }
  void check() {
    UvWorld::check();
    sched::expect(m.guest_bytes(0) == m.text(0), "its bytes are where they were");
  }
};

}  // namespace stagetwo::test
