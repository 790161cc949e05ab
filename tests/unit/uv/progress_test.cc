// SPDX-License-Identifier: Apache-2.0
// Goal: nobody waits for ever. A change of the guest's life comes to its turn however many messages
// come; a page whose unsharing the hypervisor could not follow can be evicted later.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

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

// Half a sharing is taken back by force where the hypervisor cannot follow: its page is in use. It
// goes on taking the page for shared, and would answer each page-out with "nothing to do".
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

}  // namespace
}  // namespace stagetwo::uv
