// SPDX-License-Identifier: Apache-2.0
#include "sync/epoch.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>

#include "base/failpoint.h"
#include "sync/futex.h"

namespace stagetwo::sync {
namespace {

int released = 0;
void release(void*) {
  ++released;
}

class Epoch : public ::testing::Test {
 protected:
  Epoch() : domain(std::make_unique<EpochDomain>(set)) {
    released = 0;
    set.add(line);
  }
  ~Epoch() override {
    domain.reset();
    set.remove(line);
  }
  AckSet set;
  AckLine line;
  std::unique_ptr<EpochDomain> domain;
};

TEST_F(Epoch, WaitsForTheFlushAfterTheRetirement) {
  domain->retire(nullptr, release);
  EXPECT_EQ(domain->collect(), 0u) << "nobody asked the line yet";
  set.barrier();
  EXPECT_EQ(domain->collect(), 1u);
  EXPECT_EQ(released, 1);
}

TEST_F(Epoch, ARunningLineHoldsObjectsUntilItPolls) {
  static_cast<void>(line.enter());
  domain->retire(nullptr, release);
  set.bump_all();
  EXPECT_EQ(domain->collect(), 0u);
  static_cast<void>(line.poll());
  EXPECT_EQ(domain->collect(), 1u);
  line.leave();
}

TEST_F(Epoch, SynchronizeReleasesEverything) {
  for (int i = 0; i < 200; ++i) domain->retire(nullptr, release);
  domain->synchronize();
  EXPECT_EQ(released, 200);
  EXPECT_EQ(domain->debug_waiting(), 0u);
}

TEST_F(Epoch, TheListIsBoundedAndNeedsNoMemory) {
  failpoint::arm(nullptr, 1, failpoint::kForever);
  for (u32 i = 0; i < 3 * EpochDomain::kCapacity; ++i) {
    domain->retire(nullptr, release);
    ASSERT_LE(domain->debug_waiting(), EpochDomain::kCapacity);
  }
  EXPECT_EQ(failpoint::asked(), 0u);
  failpoint::disarm();
  EXPECT_GE(released, static_cast<int>(2 * EpochDomain::kCapacity));
}

TEST_F(Epoch, AFullListWaitsForTheReader) {
  Atomic<u32> phase{0};
  std::thread reader([&] {
    static_cast<void>(line.enter());
    phase.store(1);
    while (!line.pending()) yield_thread();
    static_cast<void>(line.poll());
    line.leave();
  });
  while (phase.load() == 0) yield_thread();
  for (u32 i = 0; i <= EpochDomain::kCapacity; ++i) domain->retire(nullptr, release);
  EXPECT_EQ(released, static_cast<int>(EpochDomain::kCapacity));
  reader.join();
}

TEST_F(Epoch, TheEndOfTheDomainReleasesTheRest) {
  domain->retire(nullptr, release);
  domain.reset();
  EXPECT_EQ(released, 1);
}

}  // namespace
}  // namespace stagetwo::sync
