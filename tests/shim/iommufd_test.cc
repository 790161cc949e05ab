// SPDX-License-Identifier: Apache-2.0
// Plain clients of /dev/iommu, in several processes.
#include <gtest/gtest.h>

#include "tests/shim/run_program.h"

namespace stagetwo::test {
namespace {

Outcome run_client(const std::string& name) {
  return run_program({tool(), "run", "--iommufd-test", "--abi=6.18", "--", program(name)});
}

TEST(IommufdQueues, AreReadableExactlyWhileSomethingIsQueued) {
  const Outcome outcome = run_client("iommu_queues");
  EXPECT_EQ(outcome.out, "done\n") << outcome.err;
}

TEST(Iommufd, AnswersAHostileClientAsTheKernelDoes) {
  const Outcome outcome = run_client("iommu_hostile");
  EXPECT_EQ(outcome.out, "done\n") << outcome.err;
}

}  // namespace
}  // namespace stagetwo::test
