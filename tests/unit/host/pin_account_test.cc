// SPDX-License-Identifier: Apache-2.0
// Pinned memory and RLIMIT_MEMLOCK. Each case in a process of its own, which gives up its rights.
#include "host/pin_account.h"

#include <gtest/gtest.h>
#include <linux/capability.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

namespace stagetwo {
namespace {

using host::PinCharge;

constexpr u64 kLimit = 16;  // pages

// Runs `body` in a child; true: it said so.
template <typename F>
bool in_process(F&& body) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(body() ? 0 : 1);
  int status = 0;
  ::waitpid(child, &status, 0);
  return status == 0;
}

void give_up_capabilities() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {};
  if (::syscall(SYS_capset, &header, none) != 0) ::_exit(2);
}

// The same without capabilities and under a limit of kLimit pages.
template <typename F>
bool in_limited_process(F&& body) {
  return in_process([&] {
    struct rlimit limit{kLimit * 4096, kLimit * 4096};
    if (::setrlimit(RLIMIT_MEMLOCK, &limit) != 0) ::_exit(2);
    give_up_capabilities();
    return body();
  });
}

bool is_refused(PinCharge mode, u64 pages) {
  const auto charged = host::charge_pins(mode, pages);
  return !charged && to_int(charged.error()) == ENOMEM;
}

TEST(PinAccount, TheUserMayPinUpToTheLimitAndNotAPageMore) {
  EXPECT_TRUE(in_limited_process([] {
    const PinCharge mode = host::pin_charge(PinCharge::kUser, 1);
    bool well = mode == PinCharge::kUser && host::charge_pins(mode, kLimit - 1).has_value();
    well = well && is_refused(mode, 2) && host::pins_charged().user == kLimit - 1;
    well = well && host::charge_pins(mode, 1).has_value() && is_refused(mode, 1);
    host::uncharge_pins(mode, kLimit);
    return well && host::pins_charged().user == 0 && host::charge_pins(mode, kLimit).has_value();
  }));
}
TEST(PinAccount, WhatMlockHasLockedCountsForTheProcessAndNotForTheUser) {
  EXPECT_TRUE(in_limited_process([] {
    void* at =
        ::mmap(nullptr, 6 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    // The address sanitizer's mlock() does nothing.
    if (::syscall(SYS_mlock, at, 6 * 4096) != 0) return false;
    const bool user = host::charge_pins(PinCharge::kUser, kLimit).has_value();
    const bool over = is_refused(PinCharge::kProcess, kLimit - 5);
    return user && over && host::charge_pins(PinCharge::kProcess, kLimit - 6).has_value();
  }));
}
TEST(PinAccount, NumbersThatWrapAreOverTheLimit) {
  EXPECT_TRUE(in_limited_process([] {
    return host::charge_pins(PinCharge::kUser, 1).has_value() &&
           is_refused(PinCharge::kUser, ~u64{0}) && host::pins_charged().user == 1;
  }));
}
TEST(PinAccount, WhoMayLockWhatTheyLikeIsNotCharged) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root (CAP_IPC_LOCK)";
  ASSERT_EQ(host::pin_charge(PinCharge::kUser, 1), PinCharge::kNone);
  ASSERT_TRUE(host::charge_pins(PinCharge::kNone, u64{1} << 40));
  EXPECT_EQ(host::pins_charged().user, 0u);
  EXPECT_EQ(host::pins_charged().process, 0u);
  host::uncharge_pins(PinCharge::kNone, u64{1} << 40);
}

TEST(PinAccount, WhoGivesUpTheRightIsChargedFromAMebibyteOnAtTheLatest) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root (CAP_IPC_LOCK)";
  ASSERT_EQ(host::pin_charge(PinCharge::kUser, 1), PinCharge::kNone);
  EXPECT_TRUE(in_limited_process([] {
    return host::pin_charge(PinCharge::kUser, 1) == PinCharge::kUser;
  })) << "a child inherits no belief";
  EXPECT_TRUE(in_process([] {
    bool well = host::pin_charge(PinCharge::kUser, 1) == PinCharge::kNone;
    give_up_capabilities();
    well = well && host::pin_charge(PinCharge::kUser, 257) == PinCharge::kUser;
    for (int i = 0; i < 256; ++i) static_cast<void>(host::pin_charge(PinCharge::kUser, 1));
    return well && host::pin_charge(PinCharge::kUser, 1) == PinCharge::kUser;
  }));
}
TEST(PinAccount, WhoIsKnownToHaveGivenUpTheRightIsChargedAtOnce) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root (CAP_IPC_LOCK)";
  EXPECT_TRUE(in_process([] {
    const bool before = host::pin_charge(PinCharge::kUser, 1) == PinCharge::kNone;
    give_up_capabilities();
    host::forget_rights();
    return before && host::pin_charge(PinCharge::kUser, 1) == PinCharge::kUser;
  }));
}

}  // namespace
}  // namespace stagetwo
