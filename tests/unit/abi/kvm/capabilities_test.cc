// SPDX-License-Identifier: Apache-2.0
#include "abi/kvm/capabilities.h"
#include "abi/kvm/parameters.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>

#include "abi/kvm/requests.h"
#include "abi/kvm/uapi.h"

namespace stagetwo::abi_kvm {
namespace {

std::string read_file(const std::string& path) {
  std::ifstream in(path);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

// Name to number of every capability the interface knows.
std::map<u32, std::string> known_capabilities() {
  const std::string text = read_file(ST_SOURCE_DIR "/src/abi/kvm/uapi.h");
  std::map<u32, std::string> known;
  const std::regex line("#define KVM_CAP_([A-Z0-9_]+) ([0-9]+)");
  for (std::sregex_iterator it(text.begin(), text.end(), line), end; it != end; ++it)
    known[static_cast<u32>(std::stoul((*it)[2]))] = (*it)[1];
  return known;
}

const char* name_of(Enable enable) {
  switch (enable) {
    case Enable::kNone:
      return "";
    case Enable::kVm:
      return "VM";
    case Enable::kVcpu:
      return "vCPU";
  }
  return "";
}

std::string support_matrix() {
  std::ostringstream out;
  out << "# What of KVM is there\n\n"
         "Generated from `src/abi/kvm/capabilities.cc` and `src/abi/kvm/requests.cc`; a test fails "
         "when it is stale.\n"
         "Rewrite it with `STAGETWO_UPDATE_DOCS=1 build/tests/abi_kvm_capabilities_test`.\n\n"
         "## Capabilities\n\n"
         "`KVM_CHECK_EXTENSION` answers these; every number that is not listed answers 0.\n\n"
         "| number | KVM_CAP_ | answer | enabled on | remark |\n|---|---|---|---|---|\n";
  for (const Capability& row : capabilities())
    out << "| " << row.number << " | " << row.name << " | "
        << (row.value == -1   ? std::string("processors")
            : row.value == -2 ? std::string("0 or 3")
            : row.value == -3 ? std::string("0 or 1")
                              : std::to_string(row.value))
        << " | " << name_of(row.enable) << " | " << row.remark << " |\n";
  out << "\nKnown to the interface and not offered (0): ";
  std::set<u32> offered;
  for (const Capability& row : capabilities()) offered.insert(row.number);
  const char* comma = "";
  for (const auto& [number, name] : known_capabilities()) {
    if (offered.contains(number)) continue;
    out << comma << name << " " << number;
    comma = ", ";
  }
  out << ".\n\n## Requests\n\n"
         "A request that is not listed for a descriptor is refused as Linux refuses an unknown "
         "one: EINVAL on the\n"
         "device and on a vCPU, ENOTTY on a VM. A descriptor of another process's VM answers EIO "
         "to everything.\n\n"
         "| request | on | remark |\n|---|---|---|\n";
  for (const Request& row : requests())
    out << "| " << row.name << " | "
        << (row.on == On::kDevice ? "device"
            : row.on == On::kVm   ? "VM"
                                  : "vCPU")
        << " | " << row.remark << " |\n";
  out << "\n## Files\n\n"
         "Module parameters are answered whether or not the machine has the module; those of the "
         "other processor's\n"
         "vendor are not there. What is written is the session's: every process under one "
         "`stagetwo run` sees it.\n\n"
         "| /sys/module/ | standard | mode |\n|---|---|---|\n";
  for (unsigned i = 0; const Parameter parameter = parameter_at(i); ++i) {
    FixedString<32> text;
    parameter.show(text);
    out << "| " << parameter.path() << " | " << text.view().substr(0, text.size() - 1) << " | 0"
        << std::oct << parameter.mode() << std::dec << " |\n";
  }
  out << "\n`/sys/kernel/mm/page_idle/bitmap` and, once the device is open, this process's "
         "`/proc/…/pagemap` speak of the\n"
         "pages of a VM's slots. With `stagetwo run --hugetlb=standin` MAP_HUGETLB and MFD_HUGETLB "
         "are served by ordinary\n"
         "memory under hugetlbfs's rules, and `/proc/meminfo`, `/proc/sys/vm/nr_hugepages` and "
         "`/sys/kernel/mm/hugepages/` show\n"
         "its pool.\n";
  return out.str();
}

TEST(Capabilities, AnswerZeroForNumbersNobodyKnows) {
  EXPECT_EQ(check_extension(5), 0);
  EXPECT_EQ(check_extension(100000), 0);
  EXPECT_EQ(check_extension(~u64{0}), 0);
}

TEST(Capabilities, AreNeverNegative) {
  for (u64 number = 0; number < 300; ++number) EXPECT_GE(check_extension(number), 0) << number;
}

TEST(Capabilities, CarryTheNamesOfTheInterface) {
  const auto known = known_capabilities();
  for (const Capability& row : capabilities()) {
    ASSERT_TRUE(known.contains(row.number)) << row.number;
    EXPECT_EQ(known.at(row.number), row.name);
  }
}

TEST(Capabilities, HaveTheValuesEveryKvmProgramNeeds) {
  EXPECT_EQ(check_extension(KVM_CAP_USER_MEMORY), 1);
  EXPECT_EQ(check_extension(KVM_CAP_USER_MEMORY2), 1);
  EXPECT_EQ(check_extension(KVM_CAP_IMMEDIATE_EXIT), 1);
  EXPECT_EQ(check_extension(KVM_CAP_GET_TSC_KHZ), 1);
  EXPECT_EQ(check_extension(KVM_CAP_NR_MEMSLOTS), 32764);
  EXPECT_EQ(check_extension(KVM_CAP_MAX_VCPUS), 1024);
  EXPECT_EQ(check_extension(KVM_CAP_MAX_VCPU_ID), 4096);
  EXPECT_EQ(check_extension(KVM_CAP_COALESCED_MMIO), 2);
  EXPECT_EQ(check_extension(KVM_CAP_SYNC_REGS), 7);
  EXPECT_EQ(check_extension(KVM_CAP_DIRTY_LOG_RING), 1 << 20);
  EXPECT_EQ(check_extension(KVM_CAP_DIRTY_LOG_RING_ACQ_REL), 1 << 20);
  EXPECT_GE(check_extension(KVM_CAP_NR_VCPUS), 1);
}

TEST(Capabilities, OfLaterWorkAreZero) {
  for (const int number :
       {KVM_CAP_GUEST_MEMFD_FLAGS, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, KVM_CAP_NESTED_STATE,
        KVM_CAP_X86_SMM, KVM_CAP_HYPERV, KVM_CAP_XEN_HVM, KVM_CAP_MULTI_ADDRESS_SPACE})
    EXPECT_EQ(check_extension(static_cast<u64>(number)), 0) << number;
}

TEST(Requests, AreListedOncePerDescriptor) {
  std::set<std::pair<u32, On>> seen;
  for (const Request& row : requests())
    EXPECT_TRUE(seen.insert({row.number, row.on}).second) << row.name;
}

TEST(SupportMatrix, IsCurrent) {
  const std::string path = ST_SOURCE_DIR "/docs/support-matrix.md";
  const std::string fresh = support_matrix();
  if (std::getenv("STAGETWO_UPDATE_DOCS") != nullptr) std::ofstream(path) << fresh;
  EXPECT_EQ(read_file(path), fresh);
}

}  // namespace
}  // namespace stagetwo::abi_kvm
