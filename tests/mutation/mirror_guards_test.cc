// SPDX-License-Identifier: Apache-2.0
// Without a look at changes under way a page is called resident that is about to be unmapped. (What
// a device stores without the comparison: notifier_guards_test.cc and the races mirror-*.)
#include <atomic>
#include <thread>

#include "base/guard.h"
#include "host/page_owner.h"
#include "tests/unit/mirror/mirror_fixture.h"

namespace stagetwo {
namespace {

class MirrorGuards : public test::MirrorTest {
 protected:
  void SetUp() override {
    MirrorTest::SetUp();
    near_ = std::move(*mirror::Mirror::open(2));
  }
  void TearDown() override {
    mutation::restore_all();
    near_.reset();
    MirrorTest::TearDown();
  }
  // A change of the page begins when it has just left, and is under way until it is back.
  bool resident_after_change() {
    std::thread changer;
    {
      test::AtTheEnd begins(*near_, [&] {
        std::atomic<bool> begun{false};
        changer = std::thread([this, &begun] {
          const host::InvalidateSection change({range(0, 1), host::EventKind::kUnmap});
          begun = true;
          while (host::is_absent(at(0))) std::this_thread::yield();
        });
        while (!begun) std::this_thread::yield();
      });
      EXPECT_TRUE(near_->migrate_to_device(range(0, 1)));
    }
    changer.join();
    mirror::PageView view;
    EXPECT_TRUE(one_->snapshot(at(0), 1, &view));
    return view.where == mirror::PageView::Where::kResidentElsewhere;
  }

  Box<mirror::Mirror> near_;
};

TEST_F(MirrorGuards, NoPageBecomesResidentDuringAChange) {
  EXPECT_FALSE(resident_after_change());
}
TEST_F(MirrorGuards, WithoutTheLookAtChangesOneDoes) {
  mutation::remove("mirror_residents");
  EXPECT_TRUE(resident_after_change());
}

}  // namespace
}  // namespace stagetwo
