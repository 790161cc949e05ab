// SPDX-License-Identifier: Apache-2.0
#pragma once

// One secure page and everybody who wants it at once: the guest, the process that touches it or
// gives its address up, the ultravisor that moves it, slots that go, a reset. The halves are the
// real ones; normal memory is plain memory, which counts every use of an address that was given up.
//
// Each is a race that the kernel's version had and lost once: docs/checks-secure-guests.md.

#include "tests/sched/sched_support.h"
#include "tests/support/secure_machine.h"

namespace stagetwo::test {

namespace sched = sync::sched;

class UvWorld {
 public:
  explicit UvWorld(bool secure = true) : m(4096, 8) {
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
};

}  // namespace stagetwo::test
