// SPDX-License-Identifier: Apache-2.0
// Goal: the parameter files show and take what the kernel's show and take. Method: tables of text
// and answer (kernel files params.c, kstrtox.c, mmu.c).
#include "abi/kvm/parameters.h"

#include <gtest/gtest.h>

#include <string>

#include "abi/kvm/host_cpu.h"
#include "abi/kvm/kvm.h"
#include "host/session.h"

namespace stagetwo::abi_kvm {
namespace {

constexpr const char* kNx = "kvm/parameters/nx_huge_pages";
constexpr const char* kRatio = "kvm/parameters/nx_huge_pages_recovery_ratio";
constexpr const char* kPeriod = "kvm/parameters/nx_huge_pages_recovery_period_ms";

std::string text_of(const char* path) {
  FixedString<64> text;
  const Parameter parameter = find_parameter(path);
  if (parameter) parameter.show(text);
  return std::string(text.view());
}
int store(const char* path, std::string_view text) {
  const auto stored = find_parameter(path).store(text);
  return stored ? 0 : to_int(stored.error());
}

class Parameters : public testing::Test {
 protected:
  void TearDown() override { host::debug_leave_session(); }
};

TEST_F(Parameters, ShowTheKernelsStandard) {
  EXPECT_EQ("0\n", text_of("kvm/parameters/force_emulation_prefix"));
  EXPECT_EQ("N\n", text_of("kvm/parameters/enable_pmu"));
  EXPECT_EQ("Y\n", text_of("kvm/parameters/eager_page_split"));
  EXPECT_EQ("Y\n", text_of("kvm/parameters/tdp_mmu"));
  EXPECT_EQ("N\n", text_of(kNx));
  EXPECT_EQ("60\n", text_of(kRatio));
  EXPECT_EQ("0\n", text_of(kPeriod));
  EXPECT_EQ("", text_of("kvm/parameters/no_such_thing"));
}

TEST_F(Parameters, VendorModuleIsTheProcessors) {
  EXPECT_EQ(!find_parameter("kvm_amd/parameters/npt"), !host_is_amd());
  EXPECT_EQ(!find_parameter("kvm_intel/parameters/ept"), host_is_amd());
}

TEST_F(Parameters, PathMayBeAbsolute) {
  EXPECT_EQ(find_parameter("/sys/module/kvm/parameters/tdp_mmu").index(),
            find_parameter("kvm/parameters/tdp_mmu").index());
}

TEST_F(Parameters, ThatNobodyFollowsCannotBeWritten) {
  EXPECT_EQ(0444U, find_parameter("kvm/parameters/tdp_mmu").mode());
  EXPECT_EQ(EACCES, store("kvm/parameters/tdp_mmu", "N\n"));
  EXPECT_EQ(0644U, find_parameter(kNx).mode());
}

TEST_F(Parameters, BooleansAreReadAsTheKernelReadsThem) {
  constexpr const char* kSplit = "kvm/parameters/eager_page_split";
  for (const char* text : {"0", "0\n", "n", "No", "F", "off", "OFF\n", "disabled"}) {
    EXPECT_EQ(0, store(kSplit, text)) << text;
    EXPECT_EQ("N\n", text_of(kSplit)) << text;
    EXPECT_FALSE(parameters::eager_page_split());
    EXPECT_EQ(0, store(kSplit, "Y"));
  }
  for (const char* text : {"1\n", "y", "Yes", "true", "on", "On\n", "enabled"}) {
    EXPECT_EQ(0, store(kSplit, "N"));
    EXPECT_EQ(0, store(kSplit, text)) << text;
    EXPECT_EQ("Y\n", text_of(kSplit)) << text;
  }
  for (const char* text : {"", "\n", "2", "o", "ox", " 1", "maybe"}) {
    EXPECT_EQ(EINVAL, store(kSplit, text)) << text;
    EXPECT_EQ("Y\n", text_of(kSplit)) << "a refusal changes nothing";
  }
}

TEST_F(Parameters, NumbersAreReadAsTheKernelReadsThem) {
  const struct {
    const char* text;
    u64 value;
  } kRead[] = {{"100", 100}, {"100\n", 100}, {"+7", 7},    {"0x10", 16},
               {"010\n", 8}, {"0", 0},       {"0X1f", 31}, {"4294967295\n", 4294967295}};
  for (const auto& row : kRead) {
    EXPECT_EQ(0, store(kPeriod, row.text)) << row.text;
    EXPECT_EQ(row.value, parameters::nx_recovery_period_ms()) << row.text;
  }
  for (const char* text : {"", "\n", "-1", "1x", "1 ", "1\n\n", "0x", "08", "ten"}) {
    EXPECT_EQ(EINVAL, store(kPeriod, text)) << text;
  }
  for (const char* text : {"4294967296", "0x100000000\n", "99999999999999999999"}) {
    EXPECT_EQ(ERANGE, store(kPeriod, text)) << text;
  }
  EXPECT_EQ(4294967295U, parameters::nx_recovery_period_ms());
  EXPECT_EQ(0, store(kRatio, "1"));
  EXPECT_EQ(1U, parameters::nx_recovery_ratio());
}

TEST_F(Parameters, NxHugePagesHasItsOwnWords) {
  EXPECT_EQ(0, store(kNx, "force\n"));
  EXPECT_TRUE(parameters::nx_huge_pages());
  EXPECT_EQ("Y\n", text_of(kNx));
  EXPECT_EQ(0, store(kNx, "off"));
  EXPECT_FALSE(parameters::nx_huge_pages());
  EXPECT_EQ(0, store(kNx, "1\n"));
  EXPECT_TRUE(parameters::nx_huge_pages());
  EXPECT_EQ(0, store(kNx, "auto"));
  EXPECT_FALSE(parameters::nx_huge_pages()) << "our processor has not the erratum";
  EXPECT_EQ(EINVAL, store(kNx, "2"));
}

TEST_F(Parameters, NxHugePagesNeverIsForEver) {
  EXPECT_EQ(0, store(kNx, "never\n"));
  EXPECT_EQ("never\n", text_of(kNx));
  EXPECT_FALSE(parameters::nx_huge_pages());
  EXPECT_EQ(EPERM, store(kNx, "1"));
  EXPECT_EQ(EPERM, store(kRatio, "1"));
  EXPECT_EQ(EPERM, store(kPeriod, "1"));
}

TEST(Attach, KnowsTheKindsThatOtherProcessesMayUse) {
  host::DescriptorSpec spec;
  EXPECT_TRUE(attach("kvm", &spec));
  EXPECT_EQ(spec.shape, host::FileShape::kCharDevice);
  EXPECT_TRUE(attach("kvm-stats", &spec));
  EXPECT_EQ(spec.home, host::StateHome::kDescription);
  EXPECT_FALSE(attach("kvm-vm", &spec)) << "hangs off an address space";
  EXPECT_FALSE(attach("kvm-vcpu", &spec));
  EXPECT_FALSE(attach("", &spec));
}

}  // namespace
}  // namespace stagetwo::abi_kvm
