// SPDX-License-Identifier: Apache-2.0
// Descriptors, signals and threads beyond the known pitfalls.
#include <gtest/gtest.h>

#include "tests/shim/run_program.h"

namespace stagetwo::test {
namespace {

void expect_case(const std::string& name, const std::string& which) {
  const Outcome outcome = run_under(name, {which});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
}

TEST(Descriptor, ShowsTheIdentityOfTheDevice) {
  expect_case("descriptors", "identity");
}
TEST(Descriptor, ParametersAreReadByteByByte) {
  expect_case("descriptors", "parameters");
}
TEST(Descriptor, EndsWithItsLastHolder) {
  expect_case("descriptors", "last_close");
}
TEST(Descriptor, RangesAreClosedAroundTheEngine) {
  expect_case("descriptors", "ranges");
}
TEST(Descriptor, SentToAnotherProcessIsStillADevice) {
  expect_case("descriptors", "sent");
}
TEST(Descriptor, SurvivesExec) {
  expect_case("descriptors", "executed");
}
TEST(Descriptor, OfTheEngineIsNotTheClients) {
  expect_case("descriptors", "engine_descriptors");
}
TEST(Fork, BesideTheFirstOpenLeavesAChildThatCanOpen) {
  expect_case("early_forks", "open");
}
TEST(Fork, BesideTheFirstSecureVmLeavesAChildThatCanMakeOne) {
  const Outcome outcome =
      run_program({tool(), "run", "--secure=1G", "--", program("early_forks"), "vm"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
}
TEST(Signal, HandlerFromBeforeTheFirstOpenIsKept) {
  expect_case("signals", "handler_from_before");
}
TEST(Signal, SiginfoSurvivesTheRun) {
  expect_case("signals", "siginfo_survives");
}
TEST(Signal, HandlerMayJumpOutOfTheRun) {
  expect_case("signals", "handler_jumps");
}
TEST(Signal, MaskIsTheClients) {
  expect_case("signals", "mask_is_the_clients");
}
TEST(Signal, OneShotHandlerIsCalledOnce) {
  expect_case("signals", "one_shot_handler");
}
TEST(Signal, FaultOfTheClientReachesTheClient) {
  expect_case("signals", "foreign_fault");
}
TEST(Signal, FaultWithoutHandlerKills) {
  expect_case("signals", "default_fault_kills");
}
TEST(Thread, EndsInAHandlerInsideTheRun) {
  expect_case("signals", "thread_ends_in_handler");
}

}  // namespace
}  // namespace stagetwo::test
