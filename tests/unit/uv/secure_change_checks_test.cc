// SPDX-License-Identifier: Apache-2.0
// Goal: the acceptance checks of a guest on its way to be secure, and back: S0-18 and S0-19
// (docs/checks-secure-guests.md). Instantiated in secure_checks_test.cc.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <set>
#include <thread>

#include "tests/support/random_source.h"
#include "tests/support/secure_machine.h"
#include "tests/support/stress_time.h"
#include "tests/unit/uv/secure_guest_check.h"
#include "uv/hypervisor.h"
#include "uv/secure_guest.h"
#include "uv/ultravisor.h"

namespace stagetwo::uv {
namespace {

TEST_P(SecureGuestCheck, S0_18_DoneMakesZerosOfAHundredThousandPagesSoon) {
  constexpr u64 kPages = 100'000;
  SecureMachine m(GetParam(), 8);
  m.plug(0, 0, kPages);
  m.vmm_fill(7, 2);
  ASSERT_EQ(m.ultravisor.esm_begin(m.kLpid), Status::kSuccess);
  // Of this thread: the machine may be busy with others.
  const auto seconds = [] {
    timespec now{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
  };
  const double start = seconds();
  ASSERT_EQ(m.ultravisor.esm_finish(m.kLpid), Status::kSuccess);
  EXPECT_LT(seconds() - start, 2);
  EXPECT_EQ(m.guest_bytes(7), zeros());
  EXPECT_EQ(m.guest_bytes(kPages - 1), zeros());
  EXPECT_EQ(m.h_svm(Call::kHSvmInitDone), Status::kState);
}

// The same by UV_ESM: what was never touched takes no room, and nothing leaves for it.
TEST_P(SecureGuestCheck, S0_18_EsmTakesNoRoomForWhatWasNeverTouched) {
  constexpr u64 kPages = 5000;
  SecureMachine m(GetParam(), 8);
  m.plug(0, 0, kPages);
  m.vmm_fill(7, 2);
  m.vmm_fill(kPages - 1, 1);
  ASSERT_EQ(m.esm(), Status::kSuccess);
  EXPECT_EQ(m.ultravisor.pool_free(), 5u);
  EXPECT_EQ(m.ultravisor.use(m.kLpid).page_outs, 0u);
  EXPECT_EQ(m.uv_page(6), PageState::kSecure);
  EXPECT_EQ(m.guest_bytes(7), m.text(7));
  EXPECT_EQ(m.guest_bytes(kPages - 1), m.text(kPages - 1));
  EXPECT_EQ(m.guest_bytes(6), zeros());
  EXPECT_EQ(m.ultravisor.pool_free(), 4u);
}

// And many of them go in at once: a message for each page is not sent.
TEST_P(SecureGuestCheck, S0_18_EsmTakesWhatWasNeverTouchedManyPagesAtOnce) {
  constexpr u64 kPages = 20'000;
  const std::set<u64> touched{0, 7, 8, 4097, 4099, 9000, 15'003, 15'777, kPages - 1};
  SecureMachine m(GetParam(), 64);
  m.normal.takes_runs = true;
  m.plug(0, 0, kPages);
  for (const u64 page : touched) m.vmm_fill(page, 1);
  ASSERT_EQ(m.esm(), Status::kSuccess);
  EXPECT_LT(m.to_hv.count(Call::kHSvmPageIn), 200u);
  EXPECT_LT(m.to_hv.count(Call::kPageInUntouched), 200u);
  EXPECT_EQ(m.guest.use().page_ins, kPages);
  for (u64 page = 0; page < kPages; ++page) {
    ASSERT_EQ(m.hv_page(page), PageState::kSecure) << page;
    ASSERT_EQ(m.uv_page(page), PageState::kSecure) << page;
    ASSERT_TRUE(m.normal.is_absent(m.gpa(page))) << page;
  }
  for (const u64 page : touched) EXPECT_EQ(m.guest_bytes(page), m.text(page)) << page;
  for (const u64 page : {6UL, 9UL, 4098UL, kPages - 2}) EXPECT_EQ(m.guest_bytes(page), zeros());
  // Plugged into it, and left over by who sends INIT_DONE without asking.
  const u64 before = m.to_uv.count(Call::kUvPageIn);
  m.plug(1, 1 << 20, kPages);
  EXPECT_EQ(m.hv_page((1 << 20) + kPages - 1), PageState::kSecure);
  EXPECT_EQ(m.to_uv.count(Call::kUvPageIn), before);
  EXPECT_EQ(m.guest_bytes((1 << 20) + 5), zeros());
}

// A run is refused whole: one that is not so, is somebody's or no slot's; and nobody but the
// ultravisor may ask.
TEST_P(SecureGuestCheck, S0_18_ARunWithAPageThatIsNotUntouchedChangesNothing) {
  SecureMachine m(GetParam(), 64);
  m.normal.takes_runs = true;
  m.plug(0, 0, 32);
  m.vmm_fill(5, 1);
  const auto run = [&](u64 first, u64 count, Caller who = Caller::kUltravisor) {
    return m.h_svm(Call::kPageInUntouched, first * m.page_bytes, count, 0, who);
  };
  EXPECT_EQ(run(0, 4), Status::kUnsupported) << "before START";
  ASSERT_EQ(m.ultravisor.esm_begin(m.kLpid), Status::kSuccess);
  EXPECT_EQ(run(0, 8), Status::kParameter);
  EXPECT_EQ(run(5, 1), Status::kParameter);
  EXPECT_EQ(run(30, 3), Status::kParameter);
  EXPECT_EQ(run(40, 1), Status::kParameter);
  EXPECT_EQ(run(0, 0), Status::kParameter);
  EXPECT_EQ(run(0, ~u64{0}), Status::kParameter);
  EXPECT_EQ(m.h_svm(Call::kPageInUntouched, 8, 1), Status::kParameter);
  for (const Caller who : {Caller::kGuest, Caller::kSecureGuest, Caller::kHypervisor}) {
    EXPECT_EQ(run(0, 4, who), Status::kUnsupported);
  }
  for (u64 page = 0; page < 32; ++page) {
    ASSERT_EQ(m.hv_page(page), PageState::kNormal) << page;
    ASSERT_FALSE(m.guest.debug_busy(m.gpa(page))) << page;
    ASSERT_FALSE(m.normal.is_absent(m.gpa(page))) << page;
  }
  ASSERT_EQ(m.ultravisor.esm_load(m.kLpid), Status::kSuccess);
  ASSERT_EQ(m.ultravisor.esm_finish(m.kLpid), Status::kSuccess);
  EXPECT_EQ(run(0, 4), Status::kParameter) << "they are secure";
  EXPECT_EQ(m.guest_bytes(5), m.text(5));
}

// The hypervisor has agreed, and its process touches the stand-in before the ultravisor has heard.
TEST_P(SecureGuestCheck, S0_18_ATouchBeforeTheAnswerIsSealedZerosNotABusError) {
  for (const Call call : {Call::kHSvmPageIn, Call::kPageInUntouched}) {
    SecureMachine m(GetParam(), 64);
    m.normal.takes_runs = call == Call::kPageInUntouched;
    m.plug(0, 0, 16);
    ASSERT_EQ(m.ultravisor.esm_begin(m.kLpid), Status::kSuccess);
    Bytes seen;
    m.to_hv.after(call, [&] { seen = m.vmm_read(0); });
    ASSERT_EQ(m.ultravisor.esm_load(m.kLpid), Status::kSuccess);
    EXPECT_EQ(m.uv_page(0), PageState::kPagedOut) << "the answer came later, and knows it not";
    ASSERT_EQ(m.ultravisor.esm_finish(m.kLpid), Status::kSuccess);
    EXPECT_EQ(seen.size(), GetParam()) << "a bus error";
    EXPECT_NE(seen, zeros());
    EXPECT_EQ(m.guest_bytes(0), zeros());
    EXPECT_EQ(m.ultravisor.use(m.kLpid).tampered, 0u);
  }
}

TEST(SecureGuestEsm, GoesOnWhereItRestedUnlessTheGuestWasResetMeanwhile) {
  SecureMachine m(4096, 64, true, 8, 3);
  m.plug(0, 0, 5);
  m.plug(1, 16, 2);
  m.vmm_fill(0, 5);
  m.vmm_fill(16, 2);
  EXPECT_EQ(m.esm(), Status::kBusy);
  EXPECT_EQ(m.ultravisor.state(m.kLpid), SvmState::kTransient);
  EXPECT_EQ(m.uv_page(2), PageState::kSecure);
  EXPECT_EQ(m.uv_page(3), PageState::kNormal);
  ASSERT_TRUE(m.guest.svm_off().has_value());
  EXPECT_EQ(m.ultravisor.state(m.kLpid), SvmState::kNone);
  m.vmm_fill(0, 5);
  EXPECT_EQ(m.esm(), Status::kBusy);
  EXPECT_EQ(m.esm(), Status::kBusy);
  EXPECT_EQ(m.esm(), Status::kSuccess);
  EXPECT_EQ(m.esm(), Status::kSuccess);
  for (const u64 page : {0UL, 3UL, 4UL, 16UL, 17UL}) EXPECT_EQ(m.guest_bytes(page), m.text(page));
}

// Between two turns the VMM plugs memory, behind where UV_ESM has come to and ahead: it is the
// guest's with what is in it, as if it had been there before.
TEST(SecureGuestEsm, TakesInWhatIsPluggedBetweenTwoTurns) {
  SecureMachine m(4096, 64, true, 8, 3);
  m.plug(0, 16, 5);
  m.vmm_fill(16, 5);
  EXPECT_EQ(m.esm(), Status::kBusy);
  EXPECT_EQ(m.uv_page(18), PageState::kSecure);
  for (const u64 first : {0UL, 8UL, 32UL}) {
    m.plug(static_cast<u32>(first) + 1, first, 4);
    m.vmm_fill(first, 4);
  }
  Status done = Status::kBusy;
  unsigned turns = 1;
  for (; turns < 20 && done == Status::kBusy; ++turns) done = m.esm();
  ASSERT_EQ(done, Status::kSuccess);
  EXPECT_LT(turns, 20u);
  for (const u64 first : {0UL, 8UL, 16UL, 32UL}) {
    for (u64 page = first; page < first + 4; ++page) {
      EXPECT_EQ(m.guest_bytes(page), m.text(page)) << page;
    }
  }
  EXPECT_EQ(m.guest_bytes(20), m.text(20));
}

// What the VMM unplugs or moves while it is being taken in is not to be had any more: the rest is.
// (UV_ESM answered PARAMETER.)
TEST(SecureGuestEsm, GoesOnBehindASlotThatGoesMeanwhile) {
  for (const bool moves : {false, true}) {
    SecureMachine m(4096, 64);
    m.plug(0, 0, 3);
    m.plug(1, 8, 4);
    m.plug(2, 16, 3);
    for (const u64 first : {0UL, 8UL, 16UL}) m.vmm_fill(first, 4);
    std::thread other;
    // Page 9 is in, page 10 is asked for; its slot begins to go.
    m.to_hv.watch([&] {
      if (m.hv_page(9) != PageState::kSecure || other.joinable()) return;
      other = std::thread([&] {
        if (moves) {
          EXPECT_TRUE(m.guest.move_slot(1, 5, m.gpa(32)).has_value());
        } else {
          m.guest.remove_slot(1);
        }
      });
      while (!m.guest.debug_life().changing) sync::yield_thread();
    });
    EXPECT_EQ(m.esm(), Status::kSuccess) << moves;
    EXPECT_TRUE(other.joinable());
    if (other.joinable()) other.join();
    for (const u64 first : {0UL, 16UL}) {
      for (u64 page = first; page < first + 3; ++page) EXPECT_EQ(m.guest_bytes(page), m.text(page));
    }
    m.to_hv.watch(nullptr);
  }
}

// A slot comes while pages are taken in, by a thread that does not run for a while in the middle of
// that: no message is served meanwhile. (UV_ESM gave up: PARAMETER.)
TEST(SecureGuestEsm, WaitsForASlotThatIsSlowToCome) {
  SecureMachine m(4096, 64);
  m.plug(0, 0, 6);
  m.vmm_fill(0, 6);
  std::thread plug;
  m.to_hv.before(Call::kHSvmPageIn, [&] {
    m.to_uv.before(Call::kUvRegisterMemSlot,
                   [] { std::this_thread::sleep_for(std::chrono::milliseconds(30)); });
    plug = std::thread([&] { m.plug(1, 8, 2); });
    while (!m.guest.debug_life().changing) sync::yield_thread();
  });
  EXPECT_EQ(m.esm(), Status::kSuccess);
  plug.join();
  for (u64 page = 0; page < 6; ++page) EXPECT_EQ(m.guest_bytes(page), m.text(page));
  EXPECT_EQ(m.guest_bytes(8), Bytes(4096));
}

// Everything is in already, and INIT_DONE is under way: it is a secure guest's, zeros.
TEST(SecureGuestEsm, WhatIsPluggedWhenAllIsInIsASecureGuests) {
  SecureMachine m(4096, 64);
  m.plug(0, 16, 3);
  m.vmm_fill(16, 3);
  m.to_hv.before(Call::kHSvmInitDone, [&] {
    m.plug(1, 0, 2);
    m.vmm_fill(0, 2);
  });
  ASSERT_EQ(m.esm(), Status::kSuccess);
  for (u64 page = 0; page < 2; ++page) {
    EXPECT_EQ(m.hv_page(page), PageState::kSecure);
    EXPECT_EQ(m.guest_bytes(page), Bytes(4096));
  }
  EXPECT_EQ(m.guest_bytes(18), m.text(18));
  // And the moment before: UV_ESM goes on with it.
  ASSERT_TRUE(m.guest.svm_off().has_value());
  m.guest.remove_slot(1);
  ASSERT_EQ(m.ultravisor.esm_begin(m.kLpid), Status::kSuccess);
  ASSERT_EQ(m.ultravisor.esm_load(m.kLpid), Status::kSuccess);
  m.plug(1, 0, 2);
  m.vmm_fill(0, 2);
  EXPECT_EQ(m.ultravisor.esm_finish(m.kLpid), Status::kBusy);
  ASSERT_EQ(m.ultravisor.esm_load(m.kLpid), Status::kSuccess);
  ASSERT_EQ(m.ultravisor.esm_finish(m.kLpid), Status::kSuccess);
  for (u64 page = 0; page < 2; ++page) EXPECT_EQ(m.guest_bytes(page), m.text(page));
}

TEST_P(SecureGuestCheck, S0_19_AbortGivesTheGuestItsMemoryBack) {
  SecureMachine m(GetParam());
  m.plug(0, 0, 4);
  m.vmm_fill(0, 4);
  ASSERT_EQ(m.ultravisor.esm_begin(m.kLpid), Status::kSuccess);
  // 0: secure, 1: paged out, 2: shared as it was, 3: normal.
  ASSERT_EQ(m.ultravisor.ask_page_in(m.kLpid, m.gpa(0)), Status::kSuccess);
  ASSERT_EQ(m.ultravisor.ask_page_in(m.kLpid, m.gpa(1)), Status::kSuccess);
  ASSERT_EQ(m.ultravisor.ask_page_out(m.kLpid, m.gpa(1)), Status::kSuccess);
  ASSERT_EQ(m.ultravisor.ask_share(m.kLpid, m.gpa(2)), Status::kSuccess);
  EXPECT_EQ(m.vmm_read(2), m.text(2));
  EXPECT_EQ(m.ultravisor.esm_abort(m.kLpid), Status::kParameter);
  EXPECT_EQ(m.guest.state(), GuestState::kNormal);
  EXPECT_EQ(m.ultravisor.state(m.kLpid), SvmState::kNone);
  EXPECT_EQ(m.to_uv.count(Call::kUvUnregisterMemSlot), 1u);
  for (u64 page = 0; page < 4; ++page) EXPECT_EQ(m.vmm_read(page), m.text(page)) << page;
  EXPECT_EQ(m.ultravisor.pool_free(), 64u);
  ASSERT_EQ(m.esm(), Status::kSuccess);
  EXPECT_EQ(m.guest_bytes(2), m.text(2));
  EXPECT_EQ(m.h_svm(Call::kHSvmInitAbort), Status::kState);
  EXPECT_EQ(m.ultravisor.esm_abort(m.kLpid), Status::kState);
}

// Another vCPU of the guest that calls while UV_ESM is under way: undone behind the ultravisor's
// back, the guest would be left with sealed pages and no key.
TEST_P(SecureGuestCheck, S0_19_AbortByAGuestThatShouldNotRunUndoesNothing) {
  SecureMachine m(GetParam());
  m.plug(0, 0, 3);
  m.vmm_fill(0, 3);
  EXPECT_EQ(m.h_svm(Call::kHSvmInitAbort, 0, 0, 0, Caller::kGuest), Status::kUnsupported);
  ASSERT_EQ(m.ultravisor.esm_begin(m.kLpid), Status::kSuccess);
  ASSERT_EQ(m.ultravisor.ask_page_in(m.kLpid, m.gpa(0)), Status::kSuccess);
  ASSERT_EQ(m.ultravisor.ask_page_in(m.kLpid, m.gpa(1)), Status::kSuccess);
  ASSERT_EQ(m.ultravisor.ask_page_out(m.kLpid, m.gpa(1)), Status::kSuccess);
  EXPECT_EQ(m.h_svm(Call::kHSvmInitAbort, 0, 0, 0, Caller::kGuest), Status::kBusy);
  EXPECT_EQ(m.guest.state(), GuestState::kTransient);
  EXPECT_EQ(m.ultravisor.state(m.kLpid), SvmState::kTransient);
  ASSERT_EQ(m.ultravisor.esm_load(m.kLpid), Status::kSuccess);
  ASSERT_EQ(m.ultravisor.esm_finish(m.kLpid), Status::kSuccess);
  for (u64 page = 0; page < 3; ++page) EXPECT_EQ(m.guest_bytes(page), m.text(page)) << page;
  EXPECT_EQ(m.h_svm(Call::kHSvmInitAbort, 0, 0, 0, Caller::kSecureGuest), Status::kState);
}

// One message of the change refused, each in turn: what the guest had is there, and it may try
// again.
TEST_P(SecureGuestCheck, S0_19_AbortAtEveryPointOfTheChangeLeavesTheGuestAsItWas) {
  using test::Wire;
  const auto refused_at = [&](Wire SecureMachine::* wire, Call call, unsigned nth) {
    SecureMachine m(GetParam());
    m.plug(0, 0, 3);  // the third page is never touched
    m.plug(1, 8, 2);
    m.vmm_fill(0, 2);
    m.vmm_fill(8, 2);
    constexpr u64 kFull[] = {0, 1, 8, 9};
    (m.*wire).refuse(call, nth, Status::kParameter);
    const Status done = m.esm();
    if (done == Status::kSuccess) return false;
    SCOPED_TRACE(testing::Message() << std::hex << static_cast<u32>(call) << ", message " << nth);
    EXPECT_EQ(done, Status::kParameter);
    EXPECT_EQ(m.guest.state(), GuestState::kNormal);
    EXPECT_EQ(m.ultravisor.state(m.kLpid), SvmState::kNone);
    EXPECT_EQ(m.ultravisor.pool_free(), 64u);
    EXPECT_EQ(m.vmm_read(2), zeros());
    for (const u64 page : kFull) EXPECT_EQ(m.vmm_read(page), m.text(page)) << page;
    EXPECT_EQ(m.esm(), Status::kSuccess);
    for (const u64 page : kFull) EXPECT_EQ(m.guest_bytes(page), m.text(page)) << page;
    EXPECT_EQ(m.guest_bytes(2), zeros());
    return true;
  };
  const auto refusals = [&](Wire SecureMachine::* wire, Call call) {
    unsigned nth = 1;
    while (refused_at(wire, call, nth)) ++nth;
    return nth - 1;
  };
  EXPECT_EQ(refusals(&SecureMachine::to_hv, Call::kHSvmInitStart), 1u);
  EXPECT_EQ(refusals(&SecureMachine::to_uv, Call::kUvRegisterMemSlot), 2u);
  EXPECT_EQ(refusals(&SecureMachine::to_hv, Call::kHSvmPageIn), 5u);
  EXPECT_EQ(refusals(&SecureMachine::to_uv, Call::kUvPageIn), 4u) << "one has nothing to send";
  EXPECT_EQ(refusals(&SecureMachine::to_hv, Call::kHSvmInitDone), 1u);
}

}  // namespace
}  // namespace stagetwo::uv
