// SPDX-License-Identifier: Apache-2.0
// System calls on pages that a device has, as the machine is and where userfaultfd is denied
// (programs/held_buffers.c, rare_buffers.c).
#include <gtest/gtest.h>

#include "tests/shim/run_program.h"

namespace stagetwo::test {
namespace {

void expect_case(const std::vector<std::string>& in_front, const std::string& name,
                 const std::string& which) {
  std::vector<std::string> command = in_front;
  for (const std::string& word :
       {tool(), std::string("run"), std::string("--"), program(name), which})
    command.push_back(word);
  const Outcome outcome = run_program(command);
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
}
void expect_where_denied(const std::string& name, const std::string& which) {
  expect_case({program("denied")}, name, which);
}
void expect_in_both(const std::string& which, const std::string& name = "held_buffers") {
  expect_case({}, name, which);
  expect_where_denied(name, which);
}
void expect_touches(const std::string& which) {
  expect_in_both(which, "hidden_touches");
}

TEST(Buffers, OfCallsOnFilesAreBroughtBack) {
  expect_in_both("files");
}
TEST(Buffers, OfCallsOnSocketsAreBroughtBack) {
  expect_in_both("sockets");
}
TEST(Buffers, OfCallsThatWaitAreBroughtBack) {
  expect_in_both("waiting");
}
TEST(Buffers, OfCallsThatAskAreBroughtBack) {
  expect_in_both("asking");
}
TEST(Buffers, OfRareCallsAreBroughtBack) {
  expect_in_both("rare", "rare_buffers");
  expect_in_both("queues", "rare_buffers");
}
TEST(Buffers, NoMessageIsLostWhileADeviceTakesThem) {
  expect_in_both("nothing_is_lost");
}
TEST(Buffers, ACallThatIsJumpedOutOfLetsThemGo) {
  expect_in_both("jumped_out_of");
}
TEST(Buffers, AreHeldWhileACallWaits) {
  expect_where_denied("held_buffers", "held");
}
TEST(Buffers, OfCallsByNumberAreBroughtBack) {
  expect_in_both("raw_calls");
}
TEST(Buffers, OfRequestsUnderWayAreNotCopied) {
  expect_in_both("requests_under_way");
}
TEST(Buffers, WordsOfAnotherProgramAreBroughtBack) {
  expect_in_both("programs");
}
TEST(Buffers, OfCallsOnMemoryAreBroughtBack) {
  expect_in_both("memory_calls");
}
TEST(Buffers, MemoryIsReadAndWrittenByItsFile) {
  expect_in_both("memory_file");
}
TEST(Buffers, OfAProgramsOwnInstructionsAreRefusedWhereUserfaultfdIsDenied) {
  expect_where_denied("held_buffers", "own_instructions_are_refused");
}

TEST(ThreadEnd, ReleasesLocksOnPagesThatADeviceHas) {
  expect_in_both("locks", "thread_ends");
  expect_in_both("locks_of_numbered_exit", "thread_ends");
}
TEST(ThreadEnd, ClearsItsWordOnAPageThatADeviceHas) {
  expect_in_both("words", "thread_ends");
}
TEST(ThreadEnd, ComesToAnEndWhateverItsListIs) {
  expect_in_both("hostile_lists", "thread_ends");
}

TEST(Forks, HaveWhatTheirHandlersGaveToADevice) {
  expect_in_both("forks_with_handlers");
}

TEST(HiddenTouch, ComesBackInAThreadThatBlocksEverySignal) {
  expect_touches("blocked_in_threads");
}
TEST(HiddenTouch, ComesBackInAHandlerThatBlocksEverySignal) {
  expect_touches("blocked_by_a_handler");
}
TEST(HiddenTouch, ComesBackInTheProgramsOwnHandlerOfFaults) {
  expect_touches("own_handler_touches");
}
TEST(HiddenTouch, LeavesTheProgramItsMasksAndHandlers) {
  expect_touches("masks_are_the_programs");
}
TEST(HiddenTouch, LeavesASentSignalPendingWhileItIsBlocked) {
  expect_touches("a_sent_one_waits");
}
TEST(HiddenTouch, LeavesOtherFaultsTheirEnd) {
  expect_touches("faults_end_the_process");
}
TEST(HiddenTouch, LeavesAnotherProgramTheMask) {
  expect_touches("another_program_has_the_mask");
}
TEST(HiddenTouch, NeverMeetsAThreadsOwnStack) {
  expect_touches("on_device_memory");
  expect_touches("of_threads_and_of_the_program");
  expect_touches("of_threads_that_are_in_the_engine");
}
TEST(HiddenTouch, IsNotInterruptedByAHandlerThatMeetsAnother) {
  expect_touches("handlers_in_between");
}
TEST(HiddenTouch, NeverMeetsAnAlternateStack) {
  expect_touches("alternate_ones");
}

TEST(Denied, ChangesAreSeen) {
  for (const char* which :
       {"free_of_a_large_block", "free_of_device_memory", "trim_discards", "libcs_own_functions",
        "children_have_it_too", "children_of_every_kind", "raw_calls"}) {
    expect_where_denied("changes", which);
  }
  expect_where_denied("file_changes", "copies_on_a_device");
  expect_where_denied("loader", "library_on_a_device_is_closed");
}
TEST(Denied, MemoryIsTheGuestsAndThePrograms) {
  for (const char* which : {"discard_and_remap", "move_away", "threads_write"}) {
    expect_where_denied("memory", which);
  }
}

}  // namespace
}  // namespace stagetwo::test
