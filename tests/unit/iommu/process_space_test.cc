// SPDX-License-Identifier: Apache-2.0
// A process's addresses as a device has them: a subscriber of the bell like every other, and pages
// that come when they are asked for and go when they change.
#include "iommu/process_space.h"

#include <sys/mman.h>

#include <thread>

#include "base/failpoint.h"
#include "host/backstop.h"
#include "host/change.h"
#include "host/faultin.h"
#include "tests/support/notifier_contract.h"
#include "tests/support/pages.h"

namespace stagetwo::iommu {
namespace {

// For who stays long: a change in another thread waits for its section.
TEST(ProcessSpaceSection, KnowsWhetherItIsWaitedFor) {
  ASSERT_TRUE(host::backstop::install());
  const auto space = *ProcessSpace::make();
  const test::GuardedPages memory(1);
  const Hva at(memory.address());
  ASSERT_TRUE(space->bring(at, kMayRead));
  std::thread changer;
  {
    const ProcessSpace::Section section(*space);
    EXPECT_FALSE(section.is_asked());
    changer = std::thread([at] {
      const host::InvalidateSection change({HvaRange(at, kPageSize), host::EventKind::kUnmap});
    });
    while (!section.is_asked()) std::this_thread::yield();
    EXPECT_EQ(section.present(at, 1, kMayRead), 1u) << "it waits for the section";
  }
  changer.join();
  const ProcessSpace::Section section(*space);
  EXPECT_FALSE(section.is_asked());
  EXPECT_EQ(section.present(at, 1, kMayRead), 0u);
}

struct SpaceOfADevice {
  SpaceOfADevice() {
    EXPECT_TRUE(host::backstop::install());
    space = std::move(*ProcessSpace::make());
  }
  HvaRange mine() { return {Hva(own.address()), kPageSize}; }
  HvaRange foreign() { return {Hva(other.address()), kPageSize}; }
  bool uses(Hva at) {
    u8 byte = 0;
    return space->access(at, 1, &byte, nullptr);
  }
  bool may_use(Hva at) {
    while (!uses(at)) {
      if (!space->bring(at, kMayWrite)) return false;
    }
    return true;
  }
  bool may_use_now(Hva at) {
    return uses(at) || use_with(at, [] {});
  }
  template <typename F>
  bool use_with(Hva at, F between) {
    const auto before = space->look();
    if (!host::faultin(at, Access::kWrite)) return false;
    between();
    const auto entered = space->enter(before, at, kMayWrite);
    return entered && *entered;
  }
  template <typename F>
  void hold(Hva at, F during) {
    ASSERT_TRUE(may_use(at));
    const ProcessSpace::UseFn use = [](void* fn, Hva) {
      (*static_cast<F*>(fn))();
      return true;
    };
    EXPECT_TRUE(space->use(at, kMayRead, use, &during));
  }
  bool still_holds(Hva at) { return uses(at); }

  test::GuardedPages own{1}, other{1};
  Box<ProcessSpace> space;
};

class ProcessSpaceTest : public testing::Test, protected SpaceOfADevice {
 protected:
  [[nodiscard]] Hva at(unsigned page) const { return Hva(memory_.address() + page * kPageSize); }
  bool puts(Hva to, u8 value) { return space->access(to, 1, nullptr, &value); }
  int protect(unsigned page, int prot) {
    return host::change(at(page).raw(), kPageSize, host::EventKind::kProtection, [&] {
      return mprotect(reinterpret_cast<void*>(at(page).raw()), kPageSize, prot);
    });
  }
  test::GuardedPages memory_{3};
};

TEST_F(ProcessSpaceTest, APageIsThereWhenItWasAskedForWithTheRightThatWasAsked) {
  EXPECT_FALSE(uses(at(0)));
  ASSERT_TRUE(space->bring(at(0), kMayRead));
  EXPECT_TRUE(uses(at(0)));
  EXPECT_FALSE(puts(at(0), 7));
  ASSERT_TRUE(space->bring(at(0), kMayWrite));
  EXPECT_TRUE(puts(at(0), 7));
  EXPECT_EQ(*memory_.bytes_at(0), 7);
  EXPECT_FALSE(uses(at(1)));
  EXPECT_EQ(space->debug_pages(), 1u);
}
TEST_F(ProcessSpaceTest, WhatTheProcessMayNotDoNeitherMayTheDevice) {
  ASSERT_TRUE(space->bring(at(0), kMayWrite));
  ASSERT_EQ(protect(0, PROT_READ), 0);
  EXPECT_FALSE(puts(at(0), 1));
  EXPECT_FALSE(space->bring(at(0), kMayWrite));
  EXPECT_TRUE(space->bring(at(0), kMayRead));
  ASSERT_EQ(protect(0, PROT_NONE), 0);
  EXPECT_FALSE(uses(at(0)));
  EXPECT_FALSE(space->bring(at(0), kMayRead));
  EXPECT_FALSE(space->bring(Hva(memory_.address() - kPageSize), kMayRead));
}
TEST_F(ProcessSpaceTest, WithoutMemoryForATableNothingIsEntered) {
  failpoint::sweep([&] {
    ProcessSpace space_of_its_own;
    const auto brought = space_of_its_own.bring(at(0), kMayRead);
    EXPECT_EQ(space_of_its_own.debug_pages(), brought ? 1u : 0u);
    if (!brought) {
      EXPECT_EQ(to_int(brought.error()), ENOMEM);
    }
    space_of_its_own.release();
  });
}

}  // namespace
}  // namespace stagetwo::iommu

namespace stagetwo::test {
using iommu::SpaceOfADevice;
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(NotifierContractOfTakers);  // it takes nothing
// The ear of ProcessSpace.
INSTANTIATE_TYPED_TEST_SUITE_P(ProcessSpace, NotifierContract, SpaceOfADevice);
}  // namespace stagetwo::test
