// SPDX-License-Identifier: Apache-2.0
// Programs with a userfaultfd or a handler of SIGSEGV on memory that a guest or a device uses, too
// (programs/own_faults.c).
#include <gtest/gtest.h>

#include "tests/shim/run_program.h"

namespace stagetwo::test {
namespace {

void expect_case(const std::string& which) {
  const Outcome outcome = run_under("own_faults", {which});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
}

TEST(OwnUserfaultfd, FillsMissingPagesOfTheGuest) {
  expect_case("missing");
}
TEST(OwnUserfaultfd, LetsPagesOfAFileBeSeen) {
  expect_case("minor");
}
TEST(OwnUserfaultfd, ProtectsPagesFromTheGuest) {
  expect_case("write_protected");
}
TEST(OwnUserfaultfd, MovesPagesAwayFromTheGuest) {
  expect_case("moved");
}
TEST(OwnUserfaultfd, KeepsWhatItProtectsFromDevices) {
  expect_case("protected_from_devices");
}
TEST(OwnUserfaultfd, TakesARangeThatTheEngineWatched) {
  expect_case("watched_by_both");
}
TEST(OwnHandler, SeesItsOwnFaultsOnLentMemory) {
  expect_case("collects_lent_memory");
}
TEST(OwnHandler, IsTheSameWhenInstalledByNumber) {
  expect_case("collects_by_number");
}
TEST(OwnHandler, SeesItsOwnFaultsOnDeviceMemory) {
  expect_case("collects_device_memory");
}
TEST(OwnHandler, SeesItsOwnFaultsWithoutUserfaultfd) {
  expect_case("collects_device_memory_without_userfaultfd");
}

}  // namespace
}  // namespace stagetwo::test
