// SPDX-License-Identifier: Apache-2.0
// The file of a guest_memfd as a program has it, by libc.
#include <gtest/gtest.h>

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "abi/kvm/uapi.h"
#include "tests/shim/run_program.h"

namespace stagetwo::test {
namespace {

void expect_case(const std::string& which, const std::string& level,
                 const std::string& name = "guest_memfd") {
  const Outcome outcome =
      run_program({tool(), "run", "--abi=" + level, "--", program(name), which});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
}

TEST(GuestMemfdFile, IsMadeOfPagesAndWithoutFlags) {
  expect_case("creation", "6.12");
}
TEST(GuestMemfdFile, RefusesWhatTheKernelsRefuses) {
  expect_case("operations", "6.12");
}
TEST(GuestMemfdFile, IsJudgedAfterTheKernelsOwnChecks) {
  expect_case("orders", "6.12");
}
TEST(GuestMemfdFile, HasAnInodeThatNobodyChanges) {
  expect_case("changes", "6.12");
}
TEST(GuestMemfdFile, IsLockedWithoutBeingLetGo) {
  expect_case("locks", "6.18");  // whose default VMs have slots with files
}
TEST(GuestMemfdFile, IsNotOpenedByAName) {
  expect_case("names", "6.12");
}
TEST(GuestMemfdFile, RefusesCallsByNumber) {
  expect_case("numbers", "6.12");
}
TEST(GuestMemfdFile, IsAllocatedAndPunchedByAChildAndOutlivesTheVmsDescriptor) {
  expect_case("elsewhere", "6.12");
}
TEST(GuestMemfdFile, RefusesAProgramThatInheritedItAndOpenedNoDevice) {
  expect_case("inherited", "6.12", "received");
}
TEST(GuestMemfdFile, RefusesAProgramThatWasSentItAndOpenedNoDevice) {
  expect_case("received", "6.12", "received");
}

TEST(GuestMemfdFile, LeavesNothingOfAStormOfBindingsPunchesClosesAndChildren) {
  expect_case("storm", "6.12", "file_storm");
}

// One process looks at another's descriptors, which a machine may forbid.
void expect_of_another(const std::string& which) {
  constexpr int kMayNotLook = 4;
  const Outcome outcome = run_under("received", {which});
  if (outcome.status == kMayNotLook) GTEST_SKIP() << "no process may look at another's descriptors";
  EXPECT_EQ(outcome.status, 0) << outcome.err;
}
TEST(GuestMemfdFile, RefusesAProgramThatTookItAndOpenedNoDevice) {
  expect_of_another("taken");
}
TEST(GuestMemfdFile, IsNotOpenedByItsNameInAnotherProcess) {
  expect_of_another("named");
}
TEST(GuestMemfdFile, OfLinux618MayBeMapped) {
  expect_case("mappable", "6.18");
}

// Past libc's functions, and by libc's own calls inside them.
TEST(GuestMemfdBeneath, ShowsNothingToAProgramsOwnSystemCalls) {
  expect_case("instructions", "6.12", "beneath");
}
TEST(GuestMemfdBeneath, RefusesStreamsAndAsynchronousCallsAsTheKernelsDoes) {
  expect_case("streams", "6.12", "beneath");
}
TEST(GuestMemfdBeneath, IsClosedByWhatReopensItsStream) {
  expect_case("closes", "6.12", "beneath");
}
TEST(GuestMemfdBeneath, IsClosedWithItsStreamInAFullTable) {
  expect_case("closes_full", "6.12", "beneath");
  expect_case("reopens_full", "6.12", "beneath");
}
TEST(GuestMemfdBeneath, AnswersTheKernelsOwnRequestsAsARegularFile) {
  expect_case("asked", "6.12", "beneath");
}
TEST(EngineNumbers, AreNotOpenForTheProgram) {
  expect_case("engines", "6.12", "beneath");
}
TEST(EngineNumbers, TakenByTheProgramLoseItNothing) {
  expect_case("taken_numbers", "6.12", "beneath");
}

// What a guest has in private memory, and does with it, is nowhere in the process but in two kinds
// of mappings of the engine's, which have names and are not dumped; and not there either when the
// pages are given up (src/vcpu/remains.h).
TEST(Canary, StandsInTheEnginesMappingsAloneAndGoesWithItsPages) {
  const Outcome outcome = run_under("canary", {"nowhere"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
}

TEST(Canary, IsNotInTheFramesOfSignalsEither) {
  const Outcome outcome = run_under("canary", {"interrupted"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
}

// The same programs on the machine's own KVM, where it has what they ask for.
void expect_of_oracle(const std::string& which, int capability,
                      const std::string& name = "guest_memfd") {
  const int kvm = ::open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (kvm < 0) GTEST_SKIP() << "oracle: absent (no /dev/kvm this user may open)";
  const bool offered = ::ioctl(kvm, KVM_CHECK_EXTENSION, capability) > 0;
  ::close(kvm);
  if (!offered) GTEST_SKIP() << "oracle: this machine's KVM does not offer it";
  const Outcome outcome = run_program({program(name), which});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
}

TEST(GuestMemfdOracle, RefusesTheSame) {
  for (const char* which : {"operations", "orders", "changes", "names", "numbers"}) {
    expect_of_oracle(which, KVM_CAP_GUEST_MEMFD);
  }
  expect_of_oracle("locks", KVM_CAP_GUEST_MEMFD_FLAGS);
}
TEST(GuestMemfdOracle, IsAllocatedAndPunchedByAChild) {
  expect_of_oracle("elsewhere", KVM_CAP_GUEST_MEMFD);
  expect_of_oracle("inherited", KVM_CAP_GUEST_MEMFD, "received");
  expect_of_oracle("received", KVM_CAP_GUEST_MEMFD, "received");
}
TEST(GuestMemfdOracle, OfLinux618IsMappedTheSame) {
  expect_of_oracle("mappable_on_oracle", KVM_CAP_GUEST_MEMFD_FLAGS);
}

}  // namespace
}  // namespace stagetwo::test
