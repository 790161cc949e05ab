// SPDX-License-Identifier: Apache-2.0
// The process changes its memory; the guest's page table follows before the call returns. Programs
// know nothing of it (programs/changes.c).
#include <gtest/gtest.h>

#include "tests/shim/run_program.h"

namespace stagetwo::test {
namespace {

void expect_case(const std::string& which, const std::vector<std::string>& settings = {},
                 const std::string& name = "changes") {
  const Outcome outcome = run_program({tool(), "run", "--", program(name), which}, settings);
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
}

TEST(RightsOfSinglePages, AreLostByAFork) {
  expect_case("fork", {}, "lost_stores");
}
TEST(RightsOfSinglePages, AreLostByAWriteToClearRefs) {
  expect_case("clear_refs", {}, "lost_stores");
}

TEST(LibcByItself, FreeOfALargeBlockLeavesNoStaleRead) {
  expect_case("free_of_a_large_block");
}
TEST(LibcByItself, FreeOfABlockWithCodeLeavesNoStaleCode) {
  expect_case("free_of_a_block_with_code");
}
TEST(LibcByItself, FreeOfDeviceMemoryLeavesNoStaleRead) {
  expect_case("free_of_device_memory");
}
TEST(LibcByItself, ReallocMoves) {
  expect_case("realloc_moves");
}
TEST(LibcByItself, TrimLowersTheBreak) {
  expect_case("trim_lowers_the_break");
}
TEST(LibcByItself, TrimDiscards) {
  expect_case("trim_discards");
}
TEST(LibcByItself, ArenaOfAThreadShrinks) {
  expect_case("arena_of_a_thread_shrinks");
}
TEST(LibcByItself, StackOfAThreadIsGivenBack) {
  expect_case("stack_of_a_thread_is_given_back");
}
TEST(LibcByItself, ItsOwnFunctionsAreSeenAndAnswerAsBefore) {
  expect_case("libcs_own_functions");
}
TEST(LibcByItself, IsSeenBehindAnotherPreloadedLibrary) {
  expect_case("wrapped_by_another_library", {"LD_PRELOAD=" + program("wrapper.so")});
}
TEST(LibcByItself, AHookOfTheProgramStays) {
  expect_case("hooked_by_the_program");
}
TEST(LibcByItself, ChildrenHaveItToo) {
  expect_case("children_have_it_too");
}
TEST(LibcByItself, ChangesWhileThreadsAreInIt) {
  expect_case("threads_are_in_it");
}
TEST(LibcByItself, LeftAsItIsEndsInTheGuardedAccess) {
  expect_case("free_that_nobody_sees", {"STAGETWO_OPTIONS=libc=leave"});
}
TEST(LibcByItself, MayBeClosedToUs) {
  expect_case("libc_may_not_be_changed");
}
TEST(LibcByItself, TheLogSaysWhatIsSeen) {
  const auto said = [](const char* options) {
    return run_program({tool(), "run", "-v", "--", program("changes"), "guard_pages"}, {options})
        .err;
  };
  const std::string all =
      "libc's own calls seen: munmap mremap mprotect madvise mmap brk ld.so:munmap ld.so:mprotect "
      "ld.so:mmap; not seen: none\n";
  const std::string none = "libc's own calls seen:; not seen: munmap (--libc=leave)";
  EXPECT_NE(said("STAGETWO_OPTIONS=").find(all), std::string::npos) << said("STAGETWO_OPTIONS=");
  EXPECT_NE(said("STAGETWO_OPTIONS=libc=leave").find(none), std::string::npos);
}

TEST(LoaderByItself, AClosedLibraryLeavesNoStaleRead) {
  expect_case("library_is_closed", {}, "loader");
}
TEST(LoaderByItself, AClosedLibraryLeavesNothingWithADevice) {
  expect_case("library_on_a_device_is_closed", {}, "loader");
}

TEST(FileChange, AnEarlierEndIsSeenByEveryName) {
  expect_case("shortened", {}, "file_changes");
}
TEST(FileChange, AnEarlierEndIsSeenByPrivateMemory) {
  expect_case("shortened_under_private_memory", {}, "file_changes");
}
TEST(FileChange, ARefusedCallChangesNothing) {
  expect_case("refused", {}, "file_changes");
}
TEST(FileChange, HolesThroughAnotherDescriptorAreSeen) {
  expect_case("holes", {}, "file_changes");
}
TEST(FileChange, PrivateCopiesOnADeviceGoWithTheEndAndNotWithAHole) {
  expect_case("copies_on_a_device", {}, "file_changes");
}
TEST(FileChange, OtherBytesAreSeenWithoutABell) {
  expect_case("written", {}, "file_changes");
}

TEST(Change, ChildrenOfEveryKindHaveWhatADeviceHad) {
  expect_case("children_of_every_kind");
}
TEST(Change, SharedSegmentIsDetached) {
  expect_case("shared_segments");
}
TEST(Change, SegmentTakesThePlaceOfMemory) {
  expect_case("segment_over_memory");
}
TEST(Change, ProgramBreakFalls) {
  expect_case("program_break");
}
TEST(Change, AdviceByPidfdIsSeenWhenItIsOurs) {
  expect_case("advice_by_pidfd");
}
TEST(Change, FilePagesAreTurned) {
  expect_case("file_pages_turned");
}

// Calls that the kernel makes in part, or not at all: the same bytes and the same errno whoever has
// the pages (tests/support/half_calls.h).
void expect_as_natively(const std::vector<std::string>& how, const char* name = "half_calls") {
  std::vector<std::string> native{program(name), "native"};
  std::vector<std::string> ours{tool(), "run", "--", program(name)};
  ours.insert(ours.end(), how.begin(), how.end());
  if (how.back() == "parts" || name != std::string("half_calls")) native.push_back(how.back());
  const Outcome expected = run_program(native);
  ASSERT_EQ(expected.status, 0) << expected.err;
  const Outcome outcome = run_program(ours);
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(outcome.out, expected.out);
}
TEST(HalfCall, OverMemoryOfTheProcessIsTheKernels) {
  expect_as_natively({"resident"});
}
TEST(HalfCall, OverPagesOnADevice) {
  expect_as_natively({"absent"});
}
TEST(HalfCall, OverPagesOnADeviceBehindNoRights) {
  expect_as_natively({"absent", "denied"});
}
TEST(HalfCall, OverPagesThatADeviceHasAlone) {
  expect_as_natively({"exclusive"});
}
TEST(HalfCall, OverPinnedPages) {
  expect_as_natively({"pinned"});
}
TEST(HalfCall, ByPidfdOverPagesOnADevice) {
  expect_as_natively({"absent", "parts"});
}
TEST(HalfCall, ByPidfdOverPinnedPages) {
  expect_as_natively({"pinned", "parts"});
}

// Pages that are away divide no mapping (tests/shim/programs/undivided.c).
TEST(Undivided, OverPagesOnADeviceNoCallTells) {
  expect_as_natively({"absent", "served"}, "undivided");
}
TEST(Undivided, OverPagesOnADeviceBehindNoRightsNoCallTells) {
  expect_as_natively({"absent", "denied"}, "undivided");
}

TEST(PinnedPages, AreTheDevicesThroughEveryKindOfFork) {
  expect_case("forks", {}, "pins");
}
TEST(PinnedPages, CopiesOfAFileOutliveItsEnd) {
  expect_case("copies_of_a_file", {}, "pins");
}
TEST(PinnedPages, OfLockedMemoryLeaveItLockedAndCountNoLongerThanIt) {
  expect_case("locked_memory", {}, "pins");
}
TEST(PinnedPages, ARefusedChangeLeavesTheProgramsOwnWatch) {
  expect_case("refused_change_of_watched_memory", {}, "pins");
}
TEST(PinnedPages, AreNotMovedByAUserfaultfd) {
  expect_case("move_of_pinned_pages", {}, "pins");
}

TEST(Change, GuardPagesAreInstalled) {
  expect_case("guard_pages");
}
TEST(Change, SystemCallsByNumberAreSeen) {
  expect_case("raw_calls");
}

// A program that opens its devices first and locks itself in then (programs/elsewhere.c).
void expect_devices_work(const std::vector<std::string>& arguments) {
  const Outcome outcome = run_under("elsewhere", arguments);
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  if (outcome.out.starts_with("skipped: ")) GTEST_SKIP() << outcome.out.substr(9);
}

TEST(LockedIn, InAnotherRootDevicesWorkOn) {
  expect_devices_work({"root"});
}
TEST(LockedIn, InAnotherRootDevicesWorkOnWithoutUserfaultfd) {
  expect_devices_work({"root", "denied"});
}
TEST(LockedIn, AsAnotherUserDevicesWorkOn) {
  expect_devices_work({"user"});
}
TEST(LockedIn, AsAnotherUserDevicesWorkOnWithoutUserfaultfd) {
  expect_devices_work({"user", "denied"});
}
TEST(LockedIn, WithoutDescriptorsDevicesWorkOn) {
  expect_devices_work({"descriptors"});
}

}  // namespace
}  // namespace stagetwo::test
