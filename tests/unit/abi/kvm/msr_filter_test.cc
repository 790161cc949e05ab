// SPDX-License-Identifier: Apache-2.0
#include "abi/kvm/msr_filter.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "host/backstop.h"
#include "tests/support/seeds.h"

namespace stagetwo::abi_kvm {
namespace {

class Filter : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(host::backstop::install()); }
  Result<void> set(const kvm_msr_filter& asked) {
    return filter_.set(reinterpret_cast<u64>(&asked));
  }
  u8 bits_[KVM_MSR_FILTER_MAX_BITMAP_SIZE] = {};
  MsrFilter filter_;
};

TEST_F(Filter, AllowsEverythingBeforeOneIsSet) {
  EXPECT_TRUE(filter_.allows(0x10, false));
  EXPECT_TRUE(filter_.allows(0x10, true));
}

TEST_F(Filter, BitDecidesInsideARangeAndTheDefaultOutside) {
  kvm_msr_filter asked{};
  asked.flags = KVM_MSR_FILTER_DEFAULT_DENY;
  bits_[1] = 0x04;  // the tenth register
  asked.ranges[0] = {.flags = KVM_MSR_FILTER_READ, .nmsrs = 16, .base = 0x100, .bitmap = bits_};
  ASSERT_TRUE(set(asked));
  EXPECT_TRUE(filter_.allows(0x10a, false));
  EXPECT_FALSE(filter_.allows(0x10b, false));
  EXPECT_FALSE(filter_.allows(0x10a, true)) << "the range speaks of reads";
  EXPECT_FALSE(filter_.allows(0x110, false)) << "behind the range";
  EXPECT_FALSE(filter_.allows(0xff, false)) << "before it";
}

TEST_F(Filter, FirstRangeThatFitsDecides) {
  kvm_msr_filter asked{};
  u8 ones[8] = {0xff};
  asked.ranges[0] = {.flags = 3, .nmsrs = 8, .base = 0x100, .bitmap = bits_};
  asked.ranges[1] = {.flags = 3, .nmsrs = 8, .base = 0x100, .bitmap = ones};
  ASSERT_TRUE(set(asked));
  EXPECT_FALSE(filter_.allows(0x100, false));
}

TEST_F(Filter, RegistersOfTheApicAreNeverFiltered) {
  kvm_msr_filter asked{};
  asked.flags = KVM_MSR_FILTER_DEFAULT_DENY;
  asked.ranges[0] = {.flags = 3, .nmsrs = 8, .base = 0x800, .bitmap = bits_};
  ASSERT_TRUE(set(asked));
  EXPECT_TRUE(filter_.allows(0x802, true));
  EXPECT_FALSE(filter_.allows(0x900, true));
}

TEST_F(Filter, RefusalLeavesTheOneInForce) {
  kvm_msr_filter asked{};
  asked.ranges[0] = {.flags = 3, .nmsrs = 8, .base = 0x100, .bitmap = bits_};
  ASSERT_TRUE(set(asked));
  asked.ranges[1] = {.flags = 0, .nmsrs = 8, .base = 0x200, .bitmap = bits_};
  EXPECT_EQ(to_int(set(asked).error()), EINVAL);
  EXPECT_FALSE(filter_.allows(0x100, false));
}

TEST_F(Filter, ReadersNeverSeeAFilterThatIsGone) {
  kvm_msr_filter one{};
  kvm_msr_filter two{};
  one.ranges[0] = {.flags = 3, .nmsrs = 512, .base = 0x100, .bitmap = bits_};
  two.ranges[5] = {.flags = 3, .nmsrs = 64, .base = 0x100, .bitmap = bits_};
  ASSERT_TRUE(set(one));
  std::atomic<bool> stop{false};
  std::thread reader([&] {
    while (!stop) EXPECT_FALSE(filter_.allows(0x101, true));
  });
  for (const test::Deadline deadline(0.1); deadline.running();) {
    EXPECT_TRUE(set(two));
    EXPECT_TRUE(set(one));
  }
  stop = true;
  reader.join();
}

}  // namespace
}  // namespace stagetwo::abi_kvm
