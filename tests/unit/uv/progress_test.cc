// SPDX-License-Identifier: Apache-2.0
// Goal: nobody waits for ever, and whoever looks can see what happens. A change of the guest's life
// comes to its turn however many messages come; a page whose unsharing the hypervisor could not
// follow can be evicted later.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "base/trace.h"
#include "tests/support/secure_machine.h"

namespace stagetwo::uv {
namespace {

using test::SecureMachine;

// Whoever asks waits at the gate until it opens.
class SlowWire final : public Port {
 public:
  explicit SlowWire(Port* to) : to_(*to) {}
  Status call(const Message& message, Caller caller) override {
    const Status answer = to_.call(message, caller);
    if (message.call == Call::kUvPageOut && !open.load()) {
      waiting.store(true);
      waiting.notify_all();
      open.wait(false);
    }
    return answer;
  }
  std::atomic<bool> open{false}, waiting{false};

 private:
  Port& to_;
};

// Messages that overlap without end kept a slot from being plugged, and a guest from being reset.
TEST(SecureGuestProgress, AChangeOfLifeHasItsTurnBeforeMessagesThatComeLater) {
  SecureMachine m;
  m.plug(0, 0, 3);
  m.vmm_fill(0, 3);
  ASSERT_EQ(m.esm(), Status::kSuccess);
  SlowWire wire(m.to_uv.to);
  m.to_uv.to = &wire;
  std::thread first([&] { EXPECT_EQ(m.h_page_out(0), Status::kSuccess); });
  wire.waiting.wait(false);
  std::thread plug([&] { EXPECT_TRUE(m.guest.add_slot(1, m.gpa(8), 4096).has_value()); });
  // The slot waits for the first message, and from then on others wait for the slot.
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  Status later = Status::kSuccess;
  while (later != Status::kBusy && std::chrono::steady_clock::now() < end) {
    later = m.h_page_in(1);
    std::this_thread::yield();
  }
  EXPECT_EQ(later, Status::kBusy);
  wire.open.store(true);
  wire.open.notify_all();
  first.join();
  plug.join();
  EXPECT_EQ(m.h_page_in(1), Status::kParameter) << "it is secure: no longer busy";
  m.to_uv.to = &m.ultravisor;  // the guest outlives the slow one
}

// ---- a page that takes long
// ----------------------------------------------------------------------

// Waits until the count is 1, which it is a tenth of a second after the wait began; *ns: how long.
template <typename F>
bool is_told(F count, u64* ns) {
  const u64 start = sync::now_ns();
  constexpr u64 kMost = 20'000'000'000;
  while (count() == 0 && sync::now_ns() - start < kMost) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  *ns = sync::now_ns() - start;
  return count() == 1;
}
// A10.6: a touch of a page that is busy waits; after 100 ms there is an event, one, and it is
// served all the same, whenever that is.
TEST(SecureGuestSlow, ATouchThatWaitsTooLongIsToldOfOnceAndServed) {
  SecureMachine m;
  m.plug(0, 0, 2);
  m.vmm_fill(0, 2);
  ASSERT_EQ(m.esm(), Status::kSuccess);
  EXPECT_FALSE(m.vmm_read(1).empty());
  EXPECT_EQ(m.guest.use().slow, 0u) << "a touch that does not wait";
  SlowWire wire(m.to_uv.to);
  m.to_uv.to = &wire;
  std::thread mover([&] { EXPECT_EQ(m.h_page_out(0), Status::kSuccess); });
  wire.waiting.wait(false);
  test::Bytes seen;
  std::thread toucher([&] { seen = m.vmm_read(0); });
  u64 ns = 0;
  EXPECT_TRUE(is_told([&] { return m.guest.use().slow; }, &ns));
  EXPECT_GE(ns, 50'000'000u) << "not at once";
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_EQ(m.guest.use().slow, 1u) << "once";
  EXPECT_TRUE(seen.empty()) << "and it waits still";
  wire.open.store(true);
  wire.open.notify_all();
  mover.join();
  toucher.join();
  EXPECT_EQ(seen.size(), m.page_bytes) << "no bus error for being slow";
  EXPECT_EQ(m.guest_bytes(0), m.text(0));
  // The next wait is another one.
  EXPECT_FALSE(m.vmm_read(0).empty());
  EXPECT_EQ(m.guest.use().slow, 1u);
  m.to_uv.to = &m.ultravisor;
}

// Its vCPUs are slow to leave the guest: whoever has the page waits for them.
class SlowTable final : public GuestTable {
 public:
  void going(u64, u64) override {
    waiting.store(true);
    waiting.notify_all();
    open.wait(false);
  }
  void gone() override {}
  std::atomic<bool> open{false}, waiting{false};
};

TEST(SecureGuestSlow, AMessageThatWaitsTooLongForAPageIsToldOfOnceAndAnswered) {
  SecureMachine m;
  m.plug(0, 0, 2);
  m.vmm_fill(0, 2);
  ASSERT_EQ(m.esm(), Status::kSuccess);
  SlowTable table;
  ASSERT_TRUE(m.ultravisor.set_table(m.kLpid, &table).has_value());
  std::thread mover([&] { EXPECT_EQ(m.h_page_out(0), Status::kSuccess); });
  table.waiting.wait(false);
  std::thread asker([&] {
    const u64 order = order_of(m.page_bytes);
    EXPECT_EQ(m.uv_call(Call::kUvPageInval, m.gpa(0).raw(), order, 0), Status::kP2);
  });
  u64 ns = 0;
  EXPECT_TRUE(is_told([&] { return m.ultravisor.use(m.kLpid).slow; }, &ns));
  EXPECT_GE(ns, 50'000'000u);
  table.open.store(true);
  table.open.notify_all();
  mover.join();
  asker.join();
  EXPECT_EQ(m.ultravisor.use(m.kLpid).slow, 1u);
  ASSERT_TRUE(m.ultravisor.set_table(m.kLpid, nullptr).has_value());
  EXPECT_EQ(m.guest_bytes(0), m.text(0));
}

// Half a sharing is taken back by force where the hypervisor cannot follow: its page is in use. It
// goes on taking the page for shared, and would answer each page-out with "nothing to do".
// The touch has the page when the guest begins to leave: what it is given is in clear already.
TEST(SecureGuestProgress, ATouchThatAnAbortOvertakesLosesNothing) {
  for (const bool is_sealed_first : {false, true}) {
    SecureMachine m;
    m.plug(0, 0, 3);
    m.vmm_fill(0, 3);
    ASSERT_EQ(m.ultravisor.esm_begin(m.kLpid), Status::kSuccess);
    ASSERT_EQ(m.ultravisor.esm_load(m.kLpid), Status::kSuccess);
    EXPECT_FALSE(is_sealed_first && m.vmm_read(0) == m.text(0));
    std::thread leaver;
    m.to_uv.before(Call::kUvPageOut, [&] {
      leaver = std::thread([&] { EXPECT_EQ(m.ultravisor.esm_abort(m.kLpid), Status::kParameter); });
      while (m.ultravisor.state(m.kLpid) != SvmState::kAborting) sync::yield_thread();
    });
    EXPECT_FALSE(m.vmm_read(1).empty());
    leaver.join();
    for (u64 page = 0; page < 3; ++page) EXPECT_EQ(m.vmm_read(page), m.text(page)) << page;
    EXPECT_EQ(m.memory.stale(), 0u);
  }
}

TEST(SecureGuestProgress, APageUnsharedByForceGivesItsRoomLater) {
  SecureMachine m(4096, 1);
  ASSERT_EQ(m.esm(), Status::kSuccess);
  m.plug(0, 0, 3);
  m.normal.pin(m.gpa(0), true);
  m.to_uv.refuse(Call::kUvPageIn, 3, Status::kParameter);  // 0's frame twice, then 1's
  ASSERT_EQ(m.guest_call(Call::kUvSharePage, 0, 2), Status::kParameter);
  ASSERT_EQ(m.uv_page(0), PageState::kSecure);
  ASSERT_EQ(m.hv_page(0), PageState::kShared);
  ASSERT_EQ(m.guest_write(0, m.text(0)), GuestAccess::kDone) << "it has the one page of the pool";
  EXPECT_EQ(m.guest_write(2, m.text(2)), GuestAccess::kRetry) << "still in use";
  m.normal.pin(m.gpa(0), false);
  EXPECT_EQ(m.guest_write(2, m.text(2)), GuestAccess::kDone);
  EXPECT_EQ(m.hv_page(0), PageState::kPagedOut);
  EXPECT_EQ(m.guest_bytes(0), m.text(0)) << "and nothing of it is lost";
  EXPECT_EQ(m.memory.stale(), 0u);
}

// A fork has what is absent brought back, and lets nobody take a page until it is over: who takes
// pages while he holds some that are absent waits for it as it waits for him.
TEST(SecureGuestProgress, WhoeverTakesPagesHoldsNoneThatAreAbsent) {
  SecureMachine m;
  m.plug(0, 0, 3);
  m.vmm_fill(0, 3);
  m.plug(2, 16, 1);
  u64 taken = 0, first = 0;
  const auto fork = [&](Gpa page) {
    ++taken;
    if (page == m.gpa(first)) return;
    u64 frame = 0;
    ASSERT_EQ(m.guest.touch_begin(m.gpa(first), &frame), SecureGuest::Touch::kFrame) << taken;
    m.guest.touch_end(m.gpa(first), frame, false);
  };
  ASSERT_EQ(m.ultravisor.esm_begin(m.kLpid), Status::kSuccess);
  m.normal.before_take = fork;
  EXPECT_EQ(m.ultravisor.esm_finish(m.kLpid), Status::kSuccess);
  EXPECT_EQ(taken, 4u);
  // Plugged; and where the last page cannot be had.
  first = 8;
  m.plug(1, 8, 3);
  EXPECT_EQ(taken, 7u);
  EXPECT_EQ(m.hv_page(10), PageState::kSecure);
  m.guest.remove_slot(1);
  m.normal.pin(m.gpa(10), true);
  EXPECT_EQ(m.guest.add_slot(1, m.gpa(8), 3 * m.page_bytes).error(), Errno{EINVAL});
  m.normal.pin(m.gpa(10), false);
  m.plug(1, 8, 3);
  EXPECT_EQ(m.hv_page(8), PageState::kSecure);
}

// The same where what is absent lies behind: only what is on its way is held.
TEST(SecureGuestProgress, DoneHoldsNoPageThatAForkWouldHaveBack) {
  SecureMachine m;
  m.plug(0, 0, 3);
  m.vmm_fill(0, 3);
  ASSERT_EQ(m.ultravisor.esm_begin(m.kLpid), Status::kSuccess);
  ASSERT_EQ(m.ultravisor.ask_page_in(m.kLpid, m.gpa(2)), Status::kSuccess);
  u64 forks = 0;
  m.normal.before_take = [&](Gpa) {
    u64 frame = 0;
    ASSERT_EQ(m.guest.touch_begin(m.gpa(2), &frame), SecureGuest::Touch::kFrame);
    m.guest.touch_end(m.gpa(2), frame, false);
    ++forks;
  };
  EXPECT_EQ(m.ultravisor.esm_finish(m.kLpid), Status::kSuccess);
  EXPECT_EQ(forks, 2u);
  m.normal.before_take = nullptr;
  EXPECT_EQ(m.guest_bytes(2), m.text(2));
}

TEST(SecureGuestProgress, AbortTakesASealedPageWhenNoPageIsAbsent) {
  SecureMachine m;
  m.plug(0, 0, 4);
  m.vmm_fill(0, 4);
  ASSERT_EQ(m.ultravisor.esm_begin(m.kLpid), Status::kSuccess);
  ASSERT_EQ(m.ultravisor.esm_load(m.kLpid), Status::kSuccess);
  ASSERT_EQ(m.ultravisor.ask_page_out(m.kLpid, m.gpa(1)), Status::kSuccess);
  u64 taken = 0;
  m.normal.before_take = [&](Gpa page) {
    ++taken;
    EXPECT_EQ(page, m.gpa(1));
    for (u64 other = 0; other < 4; ++other) EXPECT_FALSE(m.normal.is_absent(m.gpa(other))) << other;
  };
  EXPECT_EQ(m.ultravisor.esm_abort(m.kLpid), Status::kParameter);
  EXPECT_EQ(taken, 1u);
  m.normal.before_take = nullptr;
  for (u64 page = 0; page < 4; ++page) EXPECT_EQ(m.vmm_read(page), m.text(page)) << page;
}

// Calls about many pages: three a turn, and the vCPU makes the call again.
class SecureGuestTurns : public testing::Test {
 protected:
  static constexpr u64 kPages = 10;
  void SetUp() override {
    m.plug(0, 0, kPages);
    m.vmm_fill(0, kPages);
    ASSERT_EQ(to_the_end([this] { return m.esm(); }), Status::kSuccess);
  }
  template <typename F>
  Status to_the_end(F call) {
    Status done = Status::kBusy;
    for (turns = 0; done == Status::kBusy && turns < 20; ++turns) done = call();
    return done;
  }
  Status share() { return m.guest_call(Call::kUvSharePage, 0, kPages); }
  void expect_all(PageState state, u64 but = kPages) {
    for (u64 page = 0; page < kPages; ++page) {
      EXPECT_TRUE(page == but || m.uv_page(page) == state) << page;
    }
  }
  SecureMachine m{4096, 64, true, 8, 3};
  unsigned turns = 0;
};

TEST_F(SecureGuestTurns, ASharingAndItsEndGoOnWhereTheyRested) {
  EXPECT_EQ(share(), Status::kBusy);
  EXPECT_EQ(m.uv_page(2), PageState::kShared);
  EXPECT_EQ(m.uv_page(3), PageState::kSecure);
  // Another vCPU's call is none of its business.
  ASSERT_EQ(m.guest_call(Call::kUvSharePage, 8, 1), Status::kSuccess);
  EXPECT_EQ(to_the_end([this] { return share(); }), Status::kSuccess);
  EXPECT_EQ(turns, 3u);
  expect_all(PageState::kShared);
  const auto unshare = [this] { return m.guest_call(Call::kUvUnsharePage, 0, kPages); };
  EXPECT_EQ(to_the_end(unshare), Status::kSuccess);
  EXPECT_EQ(turns, 4u);
  expect_all(PageState::kSecure);
  ASSERT_EQ(to_the_end([this] { return share(); }), Status::kSuccess);
  const auto all = [this] { return m.guest_call(Call::kUvUnshareAllPages); };
  EXPECT_EQ(to_the_end(all), Status::kSuccess);
  EXPECT_EQ(turns, 4u);
  expect_all(PageState::kSecure);
}

// A rest is not its vCPU's alone: who makes the same call is answered what is so.
TEST_F(SecureGuestTurns, AnEndOfSharingIsMadeAnewWhenPagesAreSharedBetweenItsTurns) {
  ASSERT_EQ(to_the_end([this] { return share(); }), Status::kSuccess);
  const auto all = [this] { return m.guest_call(Call::kUvUnshareAllPages); };
  EXPECT_EQ(all(), Status::kBusy);
  EXPECT_EQ(m.uv_page(0), PageState::kSecure);
  ASSERT_EQ(m.guest_call(Call::kUvSharePage, 0, 1), Status::kSuccess);
  EXPECT_EQ(to_the_end(all), Status::kSuccess);
  expect_all(PageState::kSecure);
}

TEST_F(SecureGuestTurns, ASharingIsMadeAnewWhenPagesAreUnsharedBetweenItsTurns) {
  EXPECT_EQ(share(), Status::kBusy);
  ASSERT_EQ(m.guest_call(Call::kUvUnsharePage, 0, 1), Status::kSuccess);
  EXPECT_EQ(to_the_end([this] { return share(); }), Status::kSuccess);
  expect_all(PageState::kShared);
}

TEST_F(SecureGuestTurns, ASharingThatIsRefusedInALaterTurnLeavesTheWholeRangeSecure) {
  ASSERT_EQ(m.guest_call(Call::kUvSharePage, 1, 1), Status::kSuccess);
  ASSERT_TRUE(m.vmm_write(1, m.text(1, 3)));
  m.to_hv.refuse(Call::kHSvmPageIn, 8, Status::kParameter);
  EXPECT_EQ(to_the_end([this] { return share(); }), Status::kParameter);
  EXPECT_EQ(turns, 3u);
  expect_all(PageState::kSecure, 1);
  EXPECT_EQ(m.uv_page(1), PageState::kShared);
  EXPECT_EQ(m.guest_bytes(1), m.text(1, 3)) << "it had been shared before";
  EXPECT_EQ(m.guest_bytes(9), m.text(9)) << "it had not come that far";
  EXPECT_EQ(m.guest_bytes(0), test::Bytes(4096));
  // And again, from the beginning.
  EXPECT_EQ(to_the_end([this] { return share(); }), Status::kSuccess);
  EXPECT_EQ(turns, 4u);
}

TEST_F(SecureGuestTurns, AResetBetweenTwoTurnsEndsTheCall) {
  EXPECT_EQ(share(), Status::kBusy);
  ASSERT_TRUE(m.guest.svm_off().has_value());
  EXPECT_EQ(share(), Status::kPermission);
  ASSERT_EQ(to_the_end([this] { return m.esm(); }), Status::kSuccess);
  EXPECT_EQ(to_the_end([this] { return share(); }), Status::kSuccess);
  EXPECT_EQ(turns, 4u) << "the first pages are shared anew, too";
  expect_all(PageState::kShared);
}

TEST(SecureGuestTrace, ACallAndWhatItMakesOfAPageAreEvents) {
  using trace::Event;
  SecureMachine m;
  m.plug(0, 0, 3);
  m.vmm_fill(0, 3);
  ASSERT_TRUE(trace::start());
  EXPECT_EQ(m.h_page_in(0), Status::kUnsupported);
  EXPECT_EQ(m.esm(), Status::kSuccess);
  static_cast<void>(m.vmm_read(1));
  EXPECT_EQ(m.guest_call(Call::kUvSharePage, 2, 1), Status::kSuccess);
  EXPECT_EQ(m.guest_call(Call::kUvUnsharePage, 9, 1), Status::kParameter);
  trace::stop();
  std::vector<std::string> seen;
  trace::for_each([&](const trace::Record& r) {
    const auto word = [&](int i) { return std::to_string(static_cast<s64>(r.arg[i])); };
    const auto call = [&](u64 number) { return static_cast<u64>(number) == r.arg[1]; };
    if (r.event == Event::st_uv_page) seen.push_back(word(1) + ": " + word(2) + " to " + word(3));
    if (r.event == Event::kvm_hcall_exit && call(0xEF00)) seen.push_back("page-in " + word(2));
    if (r.event == Event::st_uv_call && call(0xF134)) seen.push_back("unshare " + word(3));
  });
  const auto state = [](PageState s) { return std::to_string(static_cast<int>(s)); };
  const auto becomes = [&](int page, PageState from, PageState to) {
    return std::to_string(page * 4096) + ": " + state(from) + " to " + state(to);
  };
  std::vector<std::string> want{"page-in -67"};
  for (int page = 0; page < 3; ++page) {
    want.push_back(becomes(page, PageState::kNormal, PageState::kSecure));
    want.push_back("page-in 0");
  }
  want.push_back(becomes(1, PageState::kSecure, PageState::kPagedOut));
  want.push_back(becomes(2, PageState::kSecure, PageState::kShared));
  want.push_back("page-in 0");
  want.push_back("unshare -4");
  EXPECT_EQ(seen, want);
  EXPECT_EQ(trace::count(Event::kvm_hcall_enter), trace::count(Event::kvm_hcall_exit));
  trace::release();
}

}  // namespace
}  // namespace stagetwo::uv
