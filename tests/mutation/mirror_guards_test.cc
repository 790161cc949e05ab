// SPDX-License-Identifier: Apache-2.0
// Without the comparison with the gate a device keeps an entry of a page that is being taken away;
// without a look at changes under way a page is called resident that is about to be unmapped.
#include "base/guard.h"
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
  // Between the start and the end of a change.
  template <typename F>
  void during_change(mirror::Mirror& device, F&& what) {
    const host::InvalidateEvent event{range(0, 1), host::EventKind::kUnmap};
    EXPECT_TRUE(device.invalidate_range_start(event));
    what();
    device.invalidate_range_end(event);
  }
  bool maps_during_change() {
    mirror::Transfer done;
    during_change(*one_, [&] {
      static_cast<void>(one_->migrate_to_device(range(0, 1)));
      std::vector<u8> bytes(kPageSize);
      static_cast<void>(one_->read_mapped(at(0), 1, bytes.data(), &done));
    });
    return done.pages == 1;
  }
  bool resident_after_change() {
    during_change(*near_, [&] { static_cast<void>(near_->migrate_to_device(range(0, 1))); });
    mirror::PageView view;
    EXPECT_TRUE(one_->snapshot(at(0), 1, &view));
    return view.where == mirror::PageView::Where::kResidentElsewhere;
  }

  Box<mirror::Mirror> near_;
};

TEST_F(MirrorGuards, NoEntryIsStoredDuringAChange) {
  EXPECT_FALSE(maps_during_change());
}
TEST_F(MirrorGuards, WithoutTheGateOneIs) {
  mutation::remove("mirror_gate");
  EXPECT_TRUE(maps_during_change());
}
TEST_F(MirrorGuards, NoPageBecomesResidentDuringAChange) {
  EXPECT_FALSE(resident_after_change());
}
TEST_F(MirrorGuards, WithoutTheLookAtChangesOneDoes) {
  mutation::remove("mirror_residents");
  EXPECT_TRUE(resident_after_change());
}

}  // namespace
}  // namespace stagetwo
