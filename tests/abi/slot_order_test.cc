// SPDX-License-Identifier: Apache-2.0
// Goal: KVM_SET_USER_MEMORY_REGION(2) refuses in the kernel's order, as a client sees it, and on
// the machine's own /dev/kvm.
// Method: each line that a client can violate, alone and in pairs, on a VM without private memory
// and on one with it; after each call the slots are what they were. The lines that need more than
// a call (13, 14, 19, 23) are tests/unit/stage2/memslots_test.cc's.
#include "tests/abi/kvm_client.h"
#include "tests/support/slot_violations.h"

namespace kvm_client {
namespace {

using stagetwo::stage2::Region;
using stagetwo::test::RegionViolation;
using stagetwo::test::SlotModel;
namespace test = stagetwo::test;

constexpr u64 kOther = u64{1} << 32;
constexpr u64 kBeyondAll = u64{1} << 52;

std::vector<RegionViolation> violations() {
  std::vector<RegionViolation> all = test::region_violations(kOther);
  all.push_back({22, "beyond the highest frame", [](Region& r) { r.gpa |= kBeyondAll; }});
  return all;
}

class SlotOrderCalls : public Machine, public testing::WithParamInterface<u64> {
 protected:
  void SetUp() override {
    device_ = Fd(open_kvm());
    ASSERT_GE(device_, 0) << "no /dev/kvm here";
    const u64 type = GetParam();
    const long types = call(device_, KVM_CHECK_EXTENSION, KVM_CAP_VM_TYPES);
    if (type != KVM_X86_DEFAULT_VM && (types >> type & 1) == 0) {
      ASSERT_TRUE(on_oracle());
      GTEST_SKIP() << "oracle: this machine's KVM has no KVM_X86_SW_PROTECTED_VM";
    }
    vm_ = Fd(call(device_, KVM_CREATE_VM, type));
    other_vm_ = Fd(call(device_, KVM_CREATE_VM, type));
    ASSERT_GE(other_vm_, 0);
    model_.memfd = call(vm_, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD) == 1;
    model_.spaces = static_cast<u32>(call(vm_, KVM_CHECK_EXTENSION, KVM_CAP_MULTI_ADDRESS_SPACE));
    if (model_.spaces == 0) model_.spaces = 1;
    if (model_.memfd) {
      good_ = make_file(vm_);
      foreign_ = make_file(other_vm_);
    }
    for (const Region& region : test::furniture(model_.memfd, kOther)) {
      ASSERT_EQ(0, set(region));
      model_.apply(region);
    }
  }

  static Fd make_file(int vm) {
    kvm_create_guest_memfd asked{};
    asked.size = u64{1} << 40;
    return Fd(call(vm, KVM_CREATE_GUEST_MEMFD, &asked));
  }
  int set(const Region& asked) {
    constexpr int kClosed = 99'999;
    const int file = asked.file != nullptr                     ? int{good_}
                     : asked.file_error == test::kMemfdForeign ? int{foreign_}
                                                               : kClosed;
    kvm_userspace_memory_region2 r{};
    r.slot = asked.slot;
    r.flags = asked.flags;
    r.guest_phys_addr = asked.gpa;
    r.memory_size = asked.size;
    r.userspace_addr = asked.hva;
    r.guest_memfd_offset = asked.memfd_offset;
    r.guest_memfd = static_cast<u32>(file);
    // The first version is the same without what comes behind the address.
    const unsigned long request =
        asked.first_version ? KVM_SET_USER_MEMORY_REGION : KVM_SET_USER_MEMORY_REGION2;
    return static_cast<int>(-call(vm_, request, &r));
  }
  // Of slots that are as they were a second making is nothing to do, or refused as ever.
  void expect_unchanged() {
    for (const Region& region : test::furniture(model_.memfd, kOther)) {
      ASSERT_EQ((region.flags & stagetwo::stage2::kGuestMemfd) != 0 ? EINVAL : 0, set(region));
    }
    for (const u32 slot : {1U, 77U}) ASSERT_EQ(EINVAL, set(test::order_region(slot, 0, 0)));
  }
  // Returns in how many of the base calls they hold together and one of them comes first.
  int expect_first_wins(const std::vector<const RegionViolation*>& chosen) {
    int constructed = 0;
    for (const test::BaseCall base : test::kBaseCalls) {
      Region region = test::base_call(base, model_.memfd);
      for (const RegionViolation* one : chosen) one->make(region);
      const int line = model_.first_line(region);
      bool all = true;
      bool mine = false;
      for (const RegionViolation* one : chosen) {
        all &= model_.violates(one->line, region);
        mine |= one->line == line;
      }
      if (!all || !mine) continue;
      ++constructed;
      EXPECT_EQ(SlotModel::errno_of(line), set(region))
          << "line " << line << ", " << chosen.front()->how << " and " << chosen.back()->how;
      expect_unchanged();
    }
    return constructed;
  }

  Fd other_vm_, good_, foreign_;
  SlotModel model_;
};

TEST_P(SlotOrderCalls, EachLineAloneGivesItsErrnoAndChangesNothing) {
  EXPECT_EQ(call(vm_, KVM_SET_USER_MEMORY_REGION, kBadPointer), -EFAULT);  // line 1
  EXPECT_EQ(call(vm_, KVM_SET_USER_MEMORY_REGION2, kBadPointer), -EFAULT);
  u32 lines = 0;
  for (const RegionViolation& one : violations()) {
    if (expect_first_wins({&one}) > 0) lines |= 1U << one.line;
  }
  u32 expected = 0;
  for (const int line : {2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 16, 17, 18, 22}) expected |= 1U << line;
  if (model_.memfd) expected |= 1U << 8 | 1U << 15 | 1U << 20 | 1U << 21;
  EXPECT_EQ(lines, expected);
}

TEST_P(SlotOrderCalls, OfTwoViolatedLinesTheEarlierAnswers) {
  const std::vector<RegionViolation> all = violations();
  bool seen[24][24] = {};
  for (const RegionViolation& a : all) {
    for (const RegionViolation& b : all) {
      if (a.line >= b.line) continue;
      seen[a.line][b.line] |= expect_first_wins({&a, &b}) + expect_first_wins({&b, &a}) > 0;
    }
  }
  int pairs = 0;
  for (const auto& row : seen) {
    for (const bool one : row) pairs += one ? 1 : 0;
  }
  std::printf("%d pairs of lines can be violated together by a call\n", pairs);
  EXPECT_GE(pairs, 50);
}

INSTANTIATE_TEST_SUITE_P(Types, SlotOrderCalls,
                         testing::Values(KVM_X86_DEFAULT_VM, KVM_X86_SW_PROTECTED_VM));

}  // namespace
}  // namespace kvm_client
