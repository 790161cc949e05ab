// SPDX-License-Identifier: Apache-2.0
// Plain clients of /dev/iommu, in several processes.
#include <gtest/gtest.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "tests/shim/run_program.h"

namespace stagetwo::test {
namespace {

Outcome run_client(const std::string& name, const std::string& argument = "") {
  std::vector<std::string> command = {tool(),       "run", "--iommufd-test",
                                      "--abi=6.18", "--",  program(name)};
  if (!argument.empty()) command.push_back(argument);
  return run_program(command);
}

TEST(IommufdQueues, AreReadableExactlyWhileSomethingIsQueued) {
  const Outcome outcome = run_client("iommu_queues");
  EXPECT_EQ(outcome.out, "done\n") << outcome.err;
}

TEST(Iommufd, AnswersAHostileClientAsTheKernelDoes) {
  const Outcome outcome = run_client("iommu_hostile");
  EXPECT_EQ(outcome.out, "done\n") << outcome.err;
}

void expect_done(const Outcome& outcome) {
  if (outcome.out == "not to be had here\n") GTEST_SKIP() << "no namespace, no userfaultfd";
  EXPECT_EQ(outcome.out, "done\n") << outcome.err;
}

TEST(IommufdSharers, AreNotConcernedWhereOneOfThemIsKilled) {
  expect_done(run_client("iommu_sharers", "kills"));
}
TEST(IommufdSharers, MayBeOfAnotherPidNamespace) {
  expect_done(run_client("iommu_sharers", "space"));
}
TEST(IommufdSharers, FillThePageThatAMapWaitsFor) {
  expect_done(run_client("iommu_sharers", "handler"));
}

TEST(IommufdSharers, LeaveNothingInUseWhenTheyEnd) {
  expect_done(run_client("iommu_ends"));
}

TEST(IommufdRights, ThatAreGivenUpCountFromTheNextPageOn) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root (CAP_IPC_LOCK)";
  expect_done(run_client("iommu_rights"));
}
TEST(IommufdRights, OfAUserNamespaceOfOnesOwnAreNone) {
  expect_done(run_client("iommu_rights", "namespace"));
}

TEST(IommufdCharges, GoWithTheProcessHoweverItEnds) {
  expect_done(run_client("iommu_charges"));
}

// A program's memory ends with exec, and its pins with it; in the kernel an iopt_pages keeps
// the mm_struct it was made with.
TEST(IommufdImages, DoNotTakeThePinsOfTheOneBeforeForTheirs) {
  expect_done(run_client("iommu_images", "pins"));
}
TEST(IommufdImages, TakeOverTheFilesOfTheOneBefore) {
  expect_done(run_client("iommu_images", "files"));
}

}  // namespace
}  // namespace stagetwo::test
