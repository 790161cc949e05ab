// SPDX-License-Identifier: Apache-2.0
// The file of a guest_memfd as a program has it, by libc.
#include <gtest/gtest.h>

#include "tests/shim/run_program.h"

namespace stagetwo::test {
namespace {

void expect_case(const std::string& which, const std::string& level) {
  const Outcome outcome =
      run_program({tool(), "run", "--abi=" + level, "--", program("guest_memfd"), which});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
}

TEST(GuestMemfdFile, IsMadeOfPagesAndWithoutFlags) {
  expect_case("creation", "6.12");
}
TEST(GuestMemfdFile, RefusesWhatTheKernelsRefuses) {
  expect_case("operations", "6.12");
}
TEST(GuestMemfdFile, IsAllocatedAndPunchedByAChildAndOutlivesTheVmsDescriptor) {
  expect_case("elsewhere", "6.12");
}
TEST(GuestMemfdFile, OfLinux618MayBeMapped) {
  expect_case("mappable", "6.18");
}

}  // namespace
}  // namespace stagetwo::test
