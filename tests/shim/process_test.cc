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
// Where the first one has left by pthread_exit(): without a device as with one.
TEST(Thread, ThatIsTheLastOfTheClientsEndsTheProcess) {
  const std::string ends = "ends in the last one\n", worker = "worker ends\n" + ends;
  const auto run = [](std::vector<std::string> command, const char* which) {
    command.insert(command.begin(), {tool(), "run"});
    command.insert(command.end(), {"--", program("last_thread"), which});
    return run_program(command);
  };
  for (const auto& [which, told] :
       {std::pair("w", worker), std::pair("t", worker), std::pair("m", worker),
        std::pair("c", worker), std::pair("f", worker + "the child has ended\n" + worker)}) {
    const Outcome outcome = run({}, which);
    EXPECT_EQ(outcome.out, told) << which << outcome.err;
    EXPECT_EQ(outcome.status, 0) << which;
  }
  const Outcome limited = run({"--memory-limit=64M", "--swap=/tmp"}, "w");
  EXPECT_EQ(limited.out, worker) << limited.err;
  EXPECT_EQ(limited.status, 0);
}

}  // namespace
}  // namespace stagetwo::test
