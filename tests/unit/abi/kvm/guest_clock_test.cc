// SPDX-License-Identifier: Apache-2.0
#include "abi/kvm/guest_clock.h"

#include <gtest/gtest.h>

#include "abi/kvm/host_cpu.h"
#include "base/sys.h"

namespace stagetwo::abi_kvm {
namespace {

TEST(GuestClock, StartsAtZeroAndRuns) {
  const GuestClock clock;
  const u64 first = clock.get().clock;
  EXPECT_LT(first, 1'000'000'000U);
  EXPECT_GE(clock.get().clock, first);
}

TEST(GuestClock, TakesItsOwnAnswerBack) {
  GuestClock clock;
  kvm_clock_data data = clock.get();
  data.clock = 5'000'000'000'000;
  ASSERT_TRUE(clock.set(data));
  EXPECT_GE(clock.get().clock, 5'000'000'000'000U);
  EXPECT_LT(clock.get().clock, 5'100'000'000'000U);
}

TEST(GuestClock, RealtimeFlagAddsTheTimeThatPassed) {
  GuestClock clock;
  kvm_clock_data data{};
  data.flags = KVM_CLOCK_REALTIME;
  data.realtime = realtime_ns() - 3'000'000'000;
  data.clock = 0;
  ASSERT_TRUE(clock.set(data));
  EXPECT_GE(clock.get().clock, 3'000'000'000U);
}

TEST(GuestClock, UnknownFlagIsEinval) {
  GuestClock clock;
  kvm_clock_data data{};
  data.flags = 1;
  EXPECT_EQ(to_int(clock.set(data).error()), EINVAL);
}

TEST(HostCpu, RateOfTheCounterIsWithinOnePercentOfASecondMeasurement) {
  const u64 ns0 = sys::monotonic_ns();
  const u64 tsc0 = host_tsc();
  while (sys::monotonic_ns() - ns0 < 20'000'000) {
  }
  const u64 khz = (host_tsc() - tsc0) * 1'000'000 / (sys::monotonic_ns() - ns0);
  EXPECT_NEAR(static_cast<double>(host_tsc_khz()), static_cast<double>(khz),
              static_cast<double>(khz) / 100);
}

}  // namespace
}  // namespace stagetwo::abi_kvm
