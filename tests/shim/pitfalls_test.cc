// SPDX-License-Identifier: Apache-2.0
// What interposition gets wrong when it is written carelessly, one test a pitfall. The programs are
// plain C in tests/shim/programs and, but for what only an emulation has, run on a real /dev/kvm
// too.
#include <gtest/gtest.h>

#include "tests/shim/run_program.h"

namespace stagetwo::test {
namespace {

void expect_case(const std::string& name, const std::string& which) {
  const Outcome outcome = run_under(name, {which});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
}

TEST(Pitfall01, SlowStringFunctionsOfTheProgramAreNotUsed) {
  const Outcome outcome = run_under("slow_libc");
  EXPECT_EQ(outcome.status, 0) << outcome.err;
}
TEST(Pitfall02, ConstructorsFindParametersAndDevice) {
  expect_case("descriptors", "constructor");
}
TEST(Pitfall03, RawSystemCallsTakeTheSameWay) {
  expect_case("descriptors", "raw_calls");
}
TEST(Pitfall04, EveryNameOfOpenWorksInAProgramThatIsNotPie) {
  expect_case("descriptors", "every_open");
}
TEST(Pitfall05, ForkedChildGetsEioAndMayHaveMachinesOfItsOwn) {
  expect_case("descriptors", "forked");
}
TEST(Pitfall05, ChildOfVforkClosesItsOwnDescriptors) {
  expect_case("descriptors", "vforked");
}
TEST(Pitfall05, SixtyFourKilledChildrenLeaveNothingBehind) {
  expect_case("descriptors", "killed_children");
}
TEST(Pitfall06, ProgramWithoutDevicesCannotTell) {
  const Outcome alone = run_program({program("plain")});
  const Outcome under = run_under("plain");
  EXPECT_EQ(alone.status, 0);
  EXPECT_EQ(under.status, 0);
  EXPECT_EQ(under.out, alone.out);
  EXPECT_EQ(under.err, "");
}
TEST(Pitfall07, CopiesAreTheSameObjectAndCloseOneByOne) {
  expect_case("descriptors", "copies");
}
TEST(Pitfall08, DeviceOpensThirtyThousandTimes) {
  expect_case("descriptors", "many_opens");
}
TEST(Pitfall08, ThreadsOpenAndCloseInParallel) {
  expect_case("descriptors", "threads_open");
}
TEST(Pitfall09, ImmediateExitLeavesTheExitFieldsAlone) {
  expect_case("signals", "immediate_exit");
}
TEST(Pitfall10, SignalThatTheMaskLetsThroughStaysPending) {
  expect_case("signals", "signal_mask");
}
TEST(Pitfall10, SignalThatTheMaskBlocksWaits) {
  expect_case("signals", "mask_blocks");
}
TEST(Pitfall11, AlarmEndsTheRun) {
  expect_case("signals", "handler_ends_run");
}
TEST(Pitfall12, CancelledThreadLeavesNothingBehind) {
  expect_case("signals", "cancelled_deferred");
}
TEST(Pitfall12, ThreadCancelledAtAnyInstructionLeavesNothingBehind) {
  expect_case("signals", "cancelled_asynchronous");
}
TEST(Pitfall13, RunPageMappingsAreTheKernels) {
  expect_case("memory", "run_page_mappings");
}
TEST(Pitfall14, StatsOutliveTheVm) {
  expect_case("descriptors", "stats");
}
TEST(Pitfall15, SlotsCostNoMapping) {
  expect_case("descriptors", "slots_cost_no_mapping");
}
TEST(Pitfall16, GuestMemoryIsTheProgramsMemory) {
  expect_case("memory", "discard_and_remap");
}
TEST(Pitfall16, GuestMemoryMovesAway) {
  expect_case("memory", "move_away");
}
TEST(Pitfall16, ThreadsOfTheProgramWriteUnderTheGuest) {
  expect_case("memory", "threads_write");
}
TEST(Pitfall17, DirtyLogLosesNothing) {
  expect_case("memory", "dirty_log_loses_nothing");
}
TEST(Pitfall18, SlotDeletionIsSynchronous) {
  expect_case("memory", "deletion_is_synchronous");
}
TEST(Pitfall19, ErrnoAndRefusalsAreTheKernels) {
  expect_case("descriptors", "refusals");
}
TEST(Pitfall20, CpuidIsTheHosts) {
  expect_case("descriptors", "host_processor");
}
TEST(Pitfall21, RandomErrnoAndMaskAreTheClients) {
  expect_case("descriptors", "side_effects");
}
TEST(Pitfall22, GuestAddressesAreNotHostAddresses) {
  expect_case("memory", "own_copy_of_addresses");
}
TEST(Pitfall23, StaticProgramIsRefusedInOneSentence) {
  const Outcome outcome = run_under("static_program");
  EXPECT_EQ(outcome.status, 126);
  EXPECT_NE(outcome.err.find("statically linked"), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find("dynamic build"), std::string::npos) << outcome.err;
  EXPECT_EQ(outcome.err.find('\n'), outcome.err.size() - 1);
}

TEST(Pitfall23, OfAGoProgramItIsSaidThatNotAllOfItIsSeen) {
  const Outcome outcome = run_under("of_go");
  EXPECT_EQ(outcome.status, 0);
  EXPECT_NE(outcome.err.find("is a Go program"), std::string::npos) << outcome.err;
  EXPECT_EQ(outcome.err.find('\n'), outcome.err.size() - 1);
  EXPECT_EQ(run_under("plain").err, "");
}

}  // namespace
}  // namespace stagetwo::test
