// SPDX-License-Identifier: Apache-2.0
// The dirty log of a VM whose guest is secure: what the client reads otherwise than before is
// marked, and what it has saved by the log is what the guest takes back.
#include <signal.h>

#include <array>
#include <vector>

#include "tests/abi/secure_guest.h"
#include "tests/support/random_source.h"

namespace kvm_client {
namespace {

using stagetwo::test::RandomSource;

class SecureGuestLog : public SecureGuest {
 protected:
  static constexpr u64 kLogged = kBytes / kPage;

  void SetUp() override {
    SecureGuest::SetUp();
    ASSERT_EQ(set_slot(0, kBase, kBytes, ram_, KVM_MEM_LOG_DIRTY_PAGES), 0);
  }
  static u64 bit(u64 gpa) { return u64{1} << ((gpa - kBase) / kPage); }
  u64 harvest() {
    u64 bits = 0;
    kvm_dirty_log log{};
    log.dirty_bitmap = &bits;
    EXPECT_EQ(call(vm_, KVM_GET_DIRTY_LOG, &log), 0);
    return bits;
  }
  // Marked since the last harvest; then the pages are read, which marks none.
  u64 marked() {
    const u64 bits = harvest();
    save(~u64{0});
    return bits;
  }
  void save(u64 bits) {
    for (u64 page = 0; page < kLogged; ++page) {
      if ((bits >> page & 1) != 0) saved_[page] = seen(kBase + page * kPage);
    }
  }

  std::array<Bytes, kLogged> saved_;
};

TEST_F(SecureGuestLog, HasPagesThatBecomeSecureSharedUnsharedSealedAnewAndWiped) {
  become_secure();
  EXPECT_EQ(marked(), (u64{1} << kLogged) - 1) << "all of it is sealed now";
  // The code's page comes in for each order.
  const u64 code = bit(kBase);
  EXPECT_EQ(guest_word(0x3000), text_word(0x3000));
  EXPECT_EQ(marked(), code | bit(0x3000)) << "loaded, and sealed anew when the client looks";
  ASSERT_EQ(guest_call(kShare, 5, 2), kSuccess);
  EXPECT_EQ(marked(), code | bit(0x5000) | bit(0x6000));
  EXPECT_EQ(guest_word(0x5000), 0u);
  EXPECT_EQ(marked(), code) << "a load of a shared page changes nothing";
  guest_stores(0x5000, 7);
  EXPECT_EQ(marked(), code | bit(0x5000));
  ASSERT_EQ(guest_call(kUnshare, 5, 1), kSuccess);
  EXPECT_EQ(marked(), code | bit(0x5000));
  ASSERT_EQ(guest_call(kUnshareAll), kSuccess);
  EXPECT_EQ(marked(), code | bit(0x6000));
  ASSERT_EQ(call(vm_, KVM_PPC_SVM_OFF), 0);
  EXPECT_EQ(marked(), (u64{1} << kLogged) - 1);
  EXPECT_EQ(marked(), 0u);
}

// UV_ESM is not over, its pages are zeros there, and the log has moved with the slot.
TEST_F(SecureGuestLog, HasWhatASlotThatMovesInTheMiddleOfUvEsmThrowsAway) {
  constexpr u64 kMany = 4096 * kPage, kHere = 0x10000, kThere = 0x4000000;
  u8* const more = map(kMany);
  std::memset(more, 0x11, kMany);
  ASSERT_EQ(set_slot(1, kHere, kMany, more, KVM_MEM_LOG_DIRTY_PAGES), 0);
  ASSERT_EQ(enable(), 0);
  give_orders({kEsm, 1, 1});
  alarm_in_the_guest_alone();
  const long done = [&] {
    const SignalWhenItGoes kicker(SIGALRM, more, kMany);
    return call(vcpu_, KVM_RUN);
  }();
  take_alarm();
  using Bits = std::array<u64, kMany / kPage / 64>;
  const auto harvest_more = [&] {
    Bits bits{};
    kvm_dirty_log log{};
    log.slot = 1;
    log.dirty_bitmap = bits.data();
    EXPECT_EQ(call(vm_, KVM_GET_DIRTY_LOG, &log), 0);
    return bits;
  };
  const Bits taken_in = harvest_more();
  ASSERT_EQ(set_slot(1, kThere, kMany, more, KVM_MEM_LOG_DIRTY_PAGES), 0);
  const Bits thrown_away = harvest_more();
  for (u64 page = 0; page < kMany / kPage; ++page) {
    const auto has = [page](const Bits& bits) { return (bits[page / 64] >> (page % 64) & 1) != 0; };
    const bool is_zeros = more[page * kPage] != 0x11 || more[page * kPage + 8] != 0x11;
    EXPECT_EQ(is_zeros, has(thrown_away)) << page;
    EXPECT_TRUE(done == 0 || is_zeros == has(taken_in)) << page;
  }
  EXPECT_EQ(done, -EINTR) << "UV_ESM was over before the signal came";
}

// By rounds, as a client that moves a guest does it; then all that was saved is put back.
TEST_F(SecureGuestLog, WhatWasSavedByItIsWhatTheGuestTakesBack) {
  become_secure();
  RandomSource random(0x5a7e);
  save(~u64{0});
  std::array<u32, kLogged> words{};
  std::array<bool, kLogged> shared{};
  for (u64 page = 1; page < kLogged; ++page) words[page] = text_word(kBase + page * kPage);
  for (int round = 0; round < 60; ++round) {
    for (int step = 0; step < 4; ++step) {
      const u64 page = 1 + random.below(kLogged - 1);
      const u32 gpa = static_cast<u32>(kBase + page * kPage);
      switch (random.small(4)) {
        case 0:
          ASSERT_EQ(guest_call(shared[page] ? kUnshare : kShare, gpa / kPage, 1), kSuccess);
          shared[page] = !shared[page];
          words[page] = 0;
          break;
        case 1:
          words[page] = static_cast<u32>(random.next());
          guest_stores(gpa, words[page]);
          break;
        default:
          ASSERT_EQ(guest_word(gpa), words[page]) << round;
          break;
      }
    }
    save(harvest());
  }
  for (u64 page = 0; page < kLogged; ++page) {
    EXPECT_EQ(seen(kBase + page * kPage), saved_[page]) << page;
    std::memcpy(this->page(kBase + page * kPage), saved_[page].data(), kPage);
  }
  for (u64 page = 1; page < kLogged; ++page) {
    ASSERT_EQ(guest_word(kBase + page * kPage), words[page]) << page;
  }
}

}  // namespace
}  // namespace kvm_client
