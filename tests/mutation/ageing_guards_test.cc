// SPDX-License-Identifier: Apache-2.0
// Without the flush of clear_flush_young a processor goes on with the translation it has, and a
// page that is used all the time is called old.
#include "base/guard.h"
#include "tests/unit/stage2/vm_fixture.h"

namespace stagetwo::stage2 {
namespace {

class AgeingGuards : public Memory {
 protected:
  // Ages a page whose translation is in hand, uses it again, asks.
  bool is_young_after_use() {
    EXPECT_EQ(0, slot(0, kGpa, kPageSize, pages_.address()));
    const HvaRange page(Hva(pages_.address()), kPageSize);
    EXPECT_EQ(fault(kGpa, Access::kRead), FaultOutcome::kFixed);
    EXPECT_TRUE(host::clear_flush_young(page));
    const sync::RunningSection running(line_);
    if (running.must_flush()) {
      Fault again = ask(kGpa, Access::kRead);
      EXPECT_EQ(Walk::Kind::kHit, memory_->translate(*context_, again));
    }
    return host::test_young(page);
  }
  void TearDown() override {
    mutation::restore_all();
    Memory::TearDown();
  }
};

TEST_F(AgeingGuards, WithTheFlushTheNextUseIsSeen) {
  EXPECT_TRUE(is_young_after_use());
}
TEST_F(AgeingGuards, WithoutTheFlushItIsNot) {
  mutation::remove("young_flush");
  EXPECT_FALSE(is_young_after_use());
}

}  // namespace
}  // namespace stagetwo::stage2
