// SPDX-License-Identifier: Apache-2.0
// A client that unmaps the memory of its secure guest: what the guest has stays its own, and
// whoever wants a place there is told.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "host/change.h"
#include "tests/abi/secure_guest.h"

namespace kvm_client {
namespace {

class SecureGuestPlaces : public SecureGuest {
 protected:
  static void unmap(u8* at, u64 bytes) {
    stagetwo::host::change(reinterpret_cast<u64>(at), bytes, stagetwo::host::EventKind::kUnmap,
                           [&] { return ::munmap(at, bytes); });
  }
  static void map_anew(u8* at, u64 bytes) {
    ASSERT_EQ(::mmap(at, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0),
              at);
  }
};

TEST_F(SecureGuestPlaces, SharingARangeWithAHoleIsRefusedAndChangesNothing) {
  become_secure();
  unmap(page(0x6000), kPage);
  EXPECT_EQ(guest_call(kShare, 4, 4), kParameter);
  for (u64 gpa = 0x4000; gpa < 0x8000; gpa += kPage) {
    EXPECT_EQ(guest_word(gpa), text_word(gpa)) << std::hex << gpa;
  }
  map_anew(page(0x6000), kPage);
  EXPECT_EQ(guest_call(kShare, 4, 4), kSuccess);
  EXPECT_EQ(guest_word(0x4000), 0u);
  EXPECT_EQ(guest_word(0x6000), 0u);
}

TEST_F(SecureGuestPlaces, ASignalEndsARunInTheMiddleOfASharingAndTheNextGoesOn) {
  constexpr u64 kMany = 1024 * kPage;
  u8* const more = map(kMany);
  ASSERT_EQ(set_slot(1, 0x100000, kMany, more), 0);
  become_secure();
  give_orders({kShare, 0x100, kMany / kPage});
  alarm_in_the_guest_alone();
  std::thread kicker([runner = ::pthread_self(), more] {
    while (!is_present(more)) ::usleep(100);
    ::pthread_kill(runner, SIGALRM);
  });
  EXPECT_EQ(call(vcpu_, KVM_RUN), -EINTR);
  kicker.join();
  EXPECT_FALSE(is_present(more + kMany - kPage)) << "it has not come that far";
  take_alarm();
  ASSERT_EQ(call(vcpu_, KVM_RUN), 0);
  u32 said = 1;
  std::memcpy(&said, pio(), sizeof(said));
  EXPECT_EQ(said, 0U);
  EXPECT_TRUE(is_present(more + kMany - kPage));
}

// The pool is full, and none of its pages has a place to go: KVM_RUN says so, and goes on when one
// has.
TEST_F(SecureGuestPlaces, AFullPoolThatNothingCanLeaveIsEfault) {
  constexpr u64 kMany = 300 * kPage;
  u8* const more = map(kMany);
  std::memset(more, 0x33, kMany);
  ASSERT_EQ(set_slot(1, 0x10000, kMany, more), 0);
  become_secure();
  constexpr u64 kOut[] = {0x3000, 0x5000, 0x7000, 0x9000};
  for (const u64 gpa : kOut) EXPECT_NE(seen(gpa), Bytes(kPage));
  EXPECT_EQ(guest_word(0x2000), text_word(0x2000)) << "its code is there, too";
  unmap(more, kMany);
  for (u64 gpa = kBase; gpa < kBase + kBytes; gpa += kPage) {
    if (std::ranges::find(kOut, gpa) == std::end(kOut)) unmap(page(gpa), kPage);
  }
  // As many as have been freed by looking are there at once.
  size_t fit = 0;
  while (fit < std::size(kOut) && give(kLoad, static_cast<u32>(kOut[fit]), 0) == 0) ++fit;
  ASSERT_LT(fit, std::size(kOut));
  EXPECT_EQ(call(vcpu_, KVM_RUN), -EFAULT) << "as often as it is tried";
  map_anew(more, kMany);
  ASSERT_EQ(give(0, 0, 0), 0);
  u32 said = 0;
  std::memcpy(&said, pio(), sizeof(said));
  EXPECT_EQ(said, text_word(kOut[fit]));
}

}  // namespace
}  // namespace kvm_client
